"""Which candidates may be negatives: a ceiling per query from its positive's score, and what stays below it.

The five methods of NV-Retriever (arXiv 2407.15831, section 3) are one filter with five ceilings. A negative is kept
only when its score is strictly below the ceiling, so a duplicate of the positive under another id never is, except
under `naive` and `shifted`, which know no ceiling: exclude duplicates by id.

Legend: Q queries, K candidates of a query, k negatives kept; an index of -1 is an empty place.
"""

from collections.abc import Collection, Sequence
from typing import Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.mining.search import Floats, Indices

Method = Literal["naive", "shifted", "absolute", "margin", "percentage"]


def ceilings(method: Method, positive_scores_Q: Floats, *, value: float = 0.0) -> Floats:
    """Score that a negative of each query must stay strictly below, or be suspected of being a false negative.

    Args:
        method: `naive` and `shifted` have no ceiling; `absolute` is the value itself; `margin` is the value below
            the positive; `percentage` is that share of the positive, taken off its magnitude, so that the ceiling
            is below the positive for negative scores too (a plain product would be above it).
        positive_scores_Q: Score of each query's *lowest-scoring* positive, [Q]; NaN where the teacher has none.
        value: Cap, margin or share (0.95 is 95%).

    Returns:
        Ceilings, [Q]; NaN, which nothing is below, where a method needs the positive's score and has none.

    Source: NV-Retriever, arXiv 2407.15831, TopK-Abs, TopK-MarginPos, TopK-PercPos.
    """
    match method:
        case "naive" | "shifted":
            return np.full_like(positive_scores_Q, np.inf)
        case "absolute":
            return np.full_like(positive_scores_Q, value)
        case "margin":
            return (positive_scores_Q - value).astype(positive_scores_Q.dtype)
        case "percentage":
            return (positive_scores_Q - np.abs(positive_scores_Q) * (1 - value)).astype(positive_scores_Q.dtype)
    assert_never(method)


def keep_below(
    indices_QK: Indices,
    scores_QK: Floats,
    ceilings_Q: Floats,
    k: int,
    *,
    shift: int = 0,
    excluded: Sequence[Collection[int]] = (),
) -> tuple[Indices, Floats]:
    """The k highest-scoring candidates of each query that are below its ceiling, highest first.

    Candidates are ranked by score, ties by the lower index, so they need not come in order. Excluded ones (known
    positives and their duplicates) leave the ranking first; then the first `shift` ranks are skipped.

    Args:
        indices_QK: Documents, distinct within a query, -1 for an empty place, [Q, K].
        scores_QK: Their scores, [Q, K].
        ceilings_Q: As `ceilings` gives them, [Q].
        excluded: Documents to leave out, one collection per query; empty when there are none at all.

    Returns:
        Indices [Q, k], -1 where fewer than k remain, and scores [Q, k], 0 in empty places.

    Raises:
        CurationError: k or shift is out of range.
    """
    if k < 1:
        raise CurationError(f"k = {k}: at least 1 negative must be asked for")
    if shift < 0:
        raise CurationError(f"shift = {shift}: a number of ranks to skip, 0 or more, is needed")
    order_QK = np.lexsort((indices_QK, -scores_QK), axis=-1)
    indices_QK = np.take_along_axis(indices_QK, order_QK, 1)
    scores_QK = np.take_along_axis(scores_QK, order_QK, 1)
    is_ranked_QK = (indices_QK >= 0) & ~_is_excluded(indices_QK, excluded)
    ranks_QK = np.cumsum(is_ranked_QK, axis=1)
    is_kept_QK = is_ranked_QK & (ranks_QK > shift) & (scores_QK < ceilings_Q[:, None])
    return first_kept(indices_QK, scores_QK, is_kept_QK, k)


def first_kept(indices_QK: Indices, scores_QK: Floats, is_kept_QK: NDArray[np.bool_], k: int) -> tuple[Indices, Floats]:
    """The first k kept places of each row: indices [Q, k], -1 padded, and scores [Q, k], 0 padded."""
    places_QK = np.cumsum(is_kept_QK, axis=1) - 1
    rows, columns = np.nonzero(is_kept_QK & (places_QK < k))
    places = places_QK[rows, columns]
    indices_Qk = np.full((len(indices_QK), k), -1, np.int64)
    scores_Qk = np.zeros((len(indices_QK), k), scores_QK.dtype)
    indices_Qk[rows, places], scores_Qk[rows, places] = indices_QK[rows, columns], scores_QK[rows, columns]
    return indices_Qk, scores_Qk


def _is_excluded(indices_QK: Indices, excluded: Sequence[Collection[int]]) -> NDArray[np.bool_]:
    if not any(map(len, excluded)):
        return np.zeros(indices_QK.shape, np.bool_)
    if len(excluded) != len(indices_QK):
        raise CurationError(f"excluded has {len(excluded)} collections for {len(indices_QK)} queries: one per query")
    rows = np.repeat(np.arange(len(excluded)), [len(of_query) for of_query in excluded])
    documents = np.array([document for of_query in excluded for document in of_query], np.int64)
    # One number per (query, document) turns membership of every row into one look-up.
    width = int(max(documents.max(), indices_QK.max(initial=0))) + 1
    is_document = documents >= 0
    pairs = (rows * width + documents)[is_document]
    return np.isin(np.arange(len(indices_QK))[:, None] * width + indices_QK, pairs) & (indices_QK >= 0)
