"""The arithmetic of order: does similarity fall from rank 1 to rank 4, as it was written to?

Known order: hard (rank 1) > medium (ranks 2 and 3, tied) > easy (rank 4). So there are five cross-grade pairs of ranks.
Ties in similarity count half.
"""

from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRADE_OF_RANK = {1: "hard", 2: "medium", 3: "medium", 4: "easy"}
_HARDNESS = {"hard": 3, "medium": 2, "easy": 1}
CROSS_GRADE_PAIRS = tuple(
    (first, second) for first, second in combinations(GRADE_OF_RANK, 2) if GRADE_OF_RANK[first] != GRADE_OF_RANK[second]
)

_MOST_DRAWN = 20_000


def hardness(rank: int) -> int:
    """Place of a rank in the known order, larger is harder; ranks 2 and 3 are tied, beyond 4 is as easy as 4."""
    return _HARDNESS[GRADE_OF_RANK.get(rank, "easy")]


def pair_outcomes(ranks: Sequence[int], similarities: Sequence[float]) -> dict[tuple[int, int], list[float]]:
    """For each cross-grade pair of ranks, 1 where the harder one is more similar, 0 where less, 0.5 at a tie."""
    outcomes: dict[tuple[int, int], list[float]] = {}
    for (rank_a, value_a), (rank_b, value_b) in combinations(zip(ranks, similarities, strict=True), 2):
        (hard, above), (easy, below) = sorted([(rank_a, value_a), (rank_b, value_b)], key=lambda pair: pair[0])
        if hardness(hard) > hardness(easy):
            outcomes.setdefault((hard, easy), []).append(0.5 + 0.5 * float(np.sign(above - below)))
    return outcomes


def kendall_tau_b(ranks: Sequence[int], similarities: Sequence[float]) -> float | None:
    """Kendall's tau-b between the known order and similarity, -1 to 1; None where either is one single tie.

    Source: Kendall 1945; ties in both orders are taken out of the denominator.
    """
    known = _pair_signs([hardness(rank) for rank in ranks])
    seen = _pair_signs(similarities)
    untied = float(np.count_nonzero(known)) * float(np.count_nonzero(seen))
    return float(known @ seen) / untied**0.5 if untied else None


def _pair_signs(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    upper = np.triu_indices(len(array), 1)
    return np.sign(array[upper[0]] - array[upper[1]])


def bootstrap_interval(
    numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0, num_samples: int = 1_000, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of sum(numerators) / sum(denominators) over examples; None when empty.

    The percentiles of a bootstrap, examples drawn with replacement; beyond 20,000 examples the ratio's linearised
    standard error, which no longer differs from it and takes one pass.

    Source: Efron 1979; Cochran 1977, section 2.11, for the ratio.
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not bottom.sum():
        return None
    tail = (1 - level) / 2
    if len(top) > _MOST_DRAWN:
        ratio = top.sum() / bottom.sum()
        error = np.sqrt(len(top) * (top - ratio * bottom).var(ddof=1)) / bottom.sum()
        reach = NormalDist().inv_cdf(1 - tail) * error
        return float(ratio - reach), float(ratio + reach)
    generator = np.random.default_rng(seed)
    ratios = np.empty(num_samples)
    for sample in range(num_samples):
        drawn = generator.integers(0, len(top), len(top))
        total = bottom[drawn].sum()
        ratios[sample] = top[drawn].sum() / total if total else np.nan
    low, high = np.nanquantile(ratios, [tail, 1 - tail])
    return float(low), float(high)
