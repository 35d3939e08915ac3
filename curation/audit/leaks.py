"""Can a reader who does not see the query tell one set of texts from another? If so, a model can, and learns that.

A linear classifier over character n-grams, cross-validated with all linked texts on one side. 0.5 means that the sets
cannot be told apart; what two sets of real texts score is the control.

Shapes: T texts of both sets (the first set's first), F hashed features, D bootstrap draws, G groups of linked texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

NUM_HASHED = 2**18
NGRAMS = (2, 4)
_MAX_CHARACTERS = 2_000  # of a text: what gives a writer away shows long before, and memory is bounded
MIN_GROUPS = 10
_CHUNK = 500
_FOLDS = 5
_NUM_DRAWS = 200
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Leak:
    """Area under the ROC curve of telling two sets apart, with a 95 % interval over queries."""

    auc: float
    low: float
    high: float
    num_texts: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sets of texts to be told apart: labels and groups [T], and the folds that all classifiers share."""

    labels: Ints
    groups: Ints
    folds: tuple[tuple[Ints, Ints], ...]


def source_leak(first: Sequence[str], second: Sequence[str], groups: Sequence[int], *, seed: int = 0) -> Leak:
    """How well character n-grams tell the first set from the second.

    Args:
        first: Texts of one set.
        second: Texts of the other, one for each of the first.
        groups: The query of each pair of texts; a query is never on two sides of a fold.

    Raises:
        CurationError: Fewer than ten queries.
    """
    comparison = compare_sets(groups, groups, seed=seed)
    counts = ngram_counts([*first, *second])
    return leak_of(comparison, held_out_scores(comparison, counts), seed=seed)


def compare_sets(first_groups: Sequence[int], second_groups: Sequence[int], *, seed: int = 0) -> Comparison:
    """Labels and folds for two sets, given the group (linked queries and positives) of each text.

    Raises:
        CurationError: Either set has fewer than ten groups.
    """
    from sklearn.model_selection import GroupKFold

    for groups in (first_groups, second_groups):
        if len(set(groups)) < MIN_GROUPS:
            raise CurationError(
                f"a leak needs at least {MIN_GROUPS} queries to be told from chance, got {len(set(groups))}"
            )
    labels_T = np.array([1] * len(first_groups) + [0] * len(second_groups), np.int64)
    groups_T = np.array([*first_groups, *second_groups], np.int64)
    splits = GroupKFold(_FOLDS, shuffle=True, random_state=seed).split(labels_T, labels_T, groups_T)
    folds = tuple((train.astype(np.int64), test.astype(np.int64)) for train, test in splits)
    if any(len(np.unique(labels_T[train])) < 2 for train, _ in folds):
        raise CurationError("nearly all texts of one set are linked to each other: no fold can be held out")
    return Comparison(labels_T, groups_T, folds)


def ngram_counts(texts: Sequence[str]) -> "csr_matrix":
    """Counts of hashed character n-grams, [T, F]. Hashing learns nothing, so it may be done once for all folds."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=NGRAMS, n_features=NUM_HASHED, norm=None, alternate_sign=False
    )
    # Repeated n-grams are added up chunk by chunk: before that, a text takes several times its room.
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)] or [[]]
    return vstack([hashing.transform([text[:_MAX_CHARACTERS] for text in chunk]) for chunk in chunks], format="csr")


def held_out_scores(comparison: Comparison, counts_TF: "csr_matrix") -> Floats:
    """Each text's score by the classifier that was trained without its group, [T]; larger means the first set."""
    scores_T = np.zeros(len(comparison.labels))
    # What one text alone has cannot help to tell another: half of the columns, and of the time.
    counts_TF = counts_TF[:, np.flatnonzero(np.bincount(counts_TF.indices, minlength=counts_TF.shape[1]) > 1)]
    for train, test in comparison.folds:
        weighting, model = trained_classifier(counts_TF[train], comparison.labels[train])
        scores_T[test] = model.decision_function(weighting.transform(counts_TF[test]))
    return scores_T


def trained_classifier(counts_TF: "csr_matrix", labels_T: Ints):  # type: ignore[no-untyped-def]
    """(tf-idf weighting, logistic regression) fitted on these texts."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    weighting = TfidfTransformer(sublinear_tf=True).fit(counts_TF)
    model = LogisticRegression(max_iter=1_000, C=10.0)
    return weighting, model.fit(weighting.transform(counts_TF), labels_T)


def leak_of(comparison: Comparison, scores_T: Floats, *, seed: int = 0) -> Leak:
    """AUC of held-out scores, with a percentile bootstrap over groups."""
    labels_T = comparison.labels
    _, group_T = np.unique(comparison.groups, return_inverse=True)
    num_groups = int(group_T.max()) + 1
    aucs_D = np.empty(_NUM_DRAWS)
    for draw, drawn in enumerate(np.random.default_rng(seed).integers(0, num_groups, (_NUM_DRAWS, num_groups))):
        aucs_D[draw] = area_under_curve(labels_T, scores_T, np.bincount(drawn, minlength=num_groups)[group_T])
    low, high = np.nanquantile(aucs_D, [0.025, 0.975])
    whole = area_under_curve(labels_T, scores_T, np.ones(len(labels_T)))
    return Leak(whole, float(low), float(high), len(labels_T))


def area_under_curve(labels_T: Ints, scores_T: Floats, weights_T: NDArray[np.number]) -> float:
    """Weighted area under the ROC curve; a tie counts half. NaN where a set has no weight."""
    values, place_T = np.unique(scores_T, return_inverse=True)
    of_first = np.bincount(place_T, weights_T * labels_T, len(values))
    of_second = np.bincount(place_T, weights_T * (1 - labels_T), len(values))
    below = np.cumsum(of_second) - of_second
    total = of_first.sum() * of_second.sum()
    return float(of_first @ (below + of_second / 2) / total) if total else float("nan")
