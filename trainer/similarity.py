"""Similarity against people's scores, and against negation: pairs and triplets of texts by their cosines.

Legend: U pairs, S samples drawn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.errors import TrainerError
from trainer.evaluation import Statistic

Values = NDArray[np.float64]


def spearman(gold_U: Values) -> Statistic:
    """Spearman's rho of samples of pairs with people's scores, as a statistic for `paired_bootstrap`.

    Ties share their mean rank. A sample in which either side is one single tie has no rho; it counts as 0.

    Raises:
        TrainerError: Fewer than two pairs, or all scores are the same.
    """
    if len(gold_U) < 2 or np.all(gold_U == gold_U[0]):
        raise TrainerError("Spearman needs two pairs or more whose scores differ")

    def rho(cosines_U: Values, rows_SU: NDArray[np.int64]) -> Values:
        return _correlation(_ranks(gold_U[rows_SU]), _ranks(cosines_U[rows_SU]))

    return rho


def _ranks(values_SU: Values) -> Values:
    from scipy.stats import rankdata

    ranks: Values = rankdata(values_SU, axis=1)
    return ranks


def _correlation(one_SU: Values, other_SU: Values) -> Values:
    one_SU = one_SU - one_SU.mean(axis=1, keepdims=True)
    other_SU = other_SU - other_SU.mean(axis=1, keepdims=True)
    scale = np.sqrt((one_SU**2).sum(axis=1) * (other_SU**2).sum(axis=1))
    return np.divide((one_SU * other_SU).sum(axis=1), scale, out=np.zeros(len(scale)), where=scale > 0)


def share_closer(same: Sequence[float], changed: Sequence[float]) -> float:
    """Share of (same meaning, changed meaning) pairs in which the first is closer to the original; a tie counts half.

    Raises:
        TrainerError: One side is empty.
    """
    if not len(same) or not len(changed):
        raise TrainerError("an original needs a text of the same meaning and one of another")
    return float((0.5 + 0.5 * np.sign(np.subtract.outer(np.asarray(same), np.asarray(changed)))).mean())
