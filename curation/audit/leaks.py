"""Can a reader who does not see the query tell one set of texts from another? If so, a model can, and learns that.

A linear classifier over character n-grams, cross-validated with all texts of a query on one side. 0.5 means that the
sets cannot be told apart; what two sets of real texts score is the control.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.errors import CurationError

_FOLDS = 5
_MIN_QUERIES = 10


@dataclass(frozen=True, slots=True)
class Leak:
    """Area under the ROC curve of telling two sets apart, with a 95 % interval over queries."""

    auc: float
    low: float
    high: float
    num_texts: int


def source_leak(first: Sequence[str], second: Sequence[str], groups: Sequence[int], *, seed: int = 0) -> Leak:
    """How well character n-grams tell the first set from the second.

    Args:
        first: Texts of one set.
        second: Texts of the other, one for each of the first.
        groups: The query of each pair of texts; a query is never on two sides of a fold.

    Raises:
        CurationError: Fewer than ten queries.
    """
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline

    num_queries = len(set(groups))
    if num_queries < _MIN_QUERIES:
        raise CurationError(f"a leak needs at least {_MIN_QUERIES} queries to be told from chance, got {num_queries}")
    # Hashing learns nothing from the texts, so it may be done once for all folds.
    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=2**18, norm=None, alternate_sign=False
    )
    counts = hashing.transform([*first, *second])
    labels = np.array([1] * len(first) + [0] * len(second))
    group = np.array([*groups, *groups])
    scores = np.zeros(len(labels))
    for train, test in GroupKFold(_FOLDS, shuffle=True, random_state=seed).split(counts, labels, group):
        model = make_pipeline(TfidfTransformer(sublinear_tf=True), LogisticRegression(max_iter=1_000, C=10.0))
        model.fit(counts[train], labels[train])
        scores[test] = model.decision_function(counts[test])
    low, high = _interval(labels, scores, group, seed)
    return Leak(float(roc_auc_score(labels, scores)), low, high, len(labels))


def _interval(labels: np.ndarray, scores: np.ndarray, group: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over queries."""
    from sklearn.metrics import roc_auc_score

    rows_of = [np.flatnonzero(group == query) for query in np.unique(group)]
    draws = np.random.default_rng(seed).integers(0, len(rows_of), (200, len(rows_of)))
    values = []
    for draw in draws:
        rows = np.concatenate([rows_of[place] for place in draw])
        values.append(roc_auc_score(labels[rows], scores[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
