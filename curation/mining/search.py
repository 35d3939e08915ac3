"""Exact search: the best k of all documents for each query, below its ceiling and without its excluded documents.

Two steps. `scanning` multiplies tiles and keeps a few more finalists than asked, by scores that are off by at most
`slack`. Finalists are then scored again in double precision, and a query is done when no document outside them can
reach its k-th place. The few queries for which that cannot be shown (ties across the last place) are scanned again,
in single precision and then document by document. So the result is that of sorting everything, ties by the lower
index, whatever the tiles, the number format or the device; memory grows with queries x k.

Legend: Q queries, D documents, E embedding dimension, k places, F finalists.
"""

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Precision = Literal["float32", "half"]

_EXTRA = {"float32": 8, "half": 32}
_RESCORED_AT_ONCE = 1 << 19  # elements: 4 MB in double precision
_COLLECTED_AT_ONCE = 2_048


class Vectors(Protocol):
    """Document vectors [D, E], a part at a time: an array, a memory map, or whatever reads slices and lists of rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: "slice | Indices") -> NDArray[np.floating]: ...


def top_k(
    queries_QE: Floats,
    documents_DE: Vectors,
    k: int,
    *,
    ceilings_Q: NDArray[np.floating] | None = None,
    excluded: Sequence[Collection[int]] = (),
    precision: Precision = "float32",
    device: str = "cpu",
) -> tuple[Indices, Floats]:
    """The k best documents of each query by inner product, highest first, ties by the lower index.

    Args:
        documents_DE: float32 or float16; read tile by tile, never as a whole.
        ceilings_Q: Only documents that score strictly below it; NaN leaves a query without any.
        excluded: Documents to leave out, one collection per query (known positives, their duplicates); or empty.
        precision: `half` multiplies in bfloat16 (float16 on a GPU), with more finalists scored again: the same result.
        device: `cpu`, or a torch device such as `cuda`.

    Returns:
        Indices [Q, k], -1 where fewer than k remain, and scores [Q, k], 0 in empty places.

    Raises:
        CurationError: k is below 1, dimensions differ, or `excluded` is not one collection per query.
    """
    from curation.mining.scanning import Scan

    num_queries, num_documents = len(queries_QE), documents_DE.shape[0]
    indices = np.full((num_queries, k if k > 0 else 0), -1, np.int64)
    scores = np.zeros(indices.shape, np.float32)
    _check(queries_QE, documents_DE, k, excluded)
    if num_queries == 0 or num_documents == 0:
        return indices, scores
    queries_QE = np.ascontiguousarray(queries_QE, np.float32)
    ceilings = np.full(num_queries, np.inf) if ceilings_Q is None else ceilings_Q.astype(np.float64)
    left_out = [np.array(sorted(of_query), np.int64) for of_query in excluded] if any(map(len, excluded)) else []
    open_rows = np.flatnonzero(~np.isnan(ceilings))
    for attempt in ("half", "float32") if precision == "half" else ("float32",):
        if len(open_rows) == 0:
            return indices, scores
        num_finalists = min(num_documents, (2 * k if attempt == "half" else k) + _EXTRA[attempt])
        of_rows = [left_out[row] for row in open_rows] if left_out else []
        scan = Scan(queries_QE[open_rows], ceilings[open_rows], of_rows, num_finalists, attempt == "half", device)
        finalists, slack = scan.run(documents_DE)
        rescored = _rescored(queries_QE[open_rows], documents_DE, finalists.indices)
        found, exact = _ranked(finalists.indices, rescored, ceilings[open_rows], k)
        # Nobody outside the finalists scores above their lowest in the scan, so nobody exactly above that plus slack.
        is_done = ~finalists.is_full | (exact[:, -1] > finalists.lowest + slack)
        done = open_rows[is_done]
        indices[done], scores[done] = found[is_done], np.where(found[is_done] >= 0, exact[is_done], 0)
        open_rows = open_rows[~is_done]
    for row in open_rows.tolist():
        excluded_here = left_out[row] if left_out else np.empty(0, np.int64)
        indices[row], scores[row] = _sorted_all(queries_QE[row], documents_DE, k, ceilings[row], excluded_here)
    return indices, scores


def best_places(scores_D: Floats, k: int) -> Indices:
    """Indices of the k highest scores, highest first; ties by the lower index."""
    if k >= len(scores_D):
        return np.argsort(-scores_D, kind="stable")
    # A partition alone would choose freely among scores equal to the k-th: take them all, then sort stably.
    lowest = np.partition(scores_D, len(scores_D) - k)[len(scores_D) - k]
    places = np.flatnonzero(scores_D >= lowest)
    return places[np.argsort(-scores_D[places], kind="stable")[:k]]


def pair_scores(queries_QE: Floats, documents_QE: Floats) -> NDArray[np.float64]:
    """Inner products of rows, [Q], in double precision: of a pair always the same, wherever it stands."""
    scores_Q = np.empty(len(queries_QE))
    step = max(1, _RESCORED_AT_ONCE // max(1, queries_QE.shape[1]))
    for start in range(0, len(scores_Q), step):
        block = slice(start, start + step)
        parts = queries_QE[block].astype(np.float64), documents_QE[block].astype(np.float64)
        np.einsum("qe,qe->q", *parts, out=scores_Q[block])
    return scores_Q


def _check(queries_QE: Floats, documents_DE: Vectors, k: int, excluded: Sequence[Collection[int]]) -> None:
    if k < 1:
        raise CurationError(f"k = {k}: at least 1 document must be asked for")
    if len(queries_QE) and documents_DE.shape[0] and queries_QE.shape[1] != documents_DE.shape[1]:
        raise CurationError(
            f"queries have {queries_QE.shape[1]} dimensions and documents {documents_DE.shape[1]}: embed both with "
            "one model"
        )
    if len(excluded) not in (0, len(queries_QE)):
        raise CurationError(f"excluded has {len(excluded)} collections for {len(queries_QE)} queries: one per query")


def _rescored(queries_QE: Floats, documents_DE: Vectors, indices_QF: Indices) -> NDArray[np.float64]:
    """Scores of the finalists in double precision; what an empty place scores does not matter."""
    num_finalists, dimension = indices_QF.shape[1], queries_QE.shape[1]
    exact = np.empty(indices_QF.shape)
    step = max(1, _RESCORED_AT_ONCE // max(1, num_finalists * dimension))
    for start in range(0, len(indices_QF), step):
        block = slice(start, start + step)
        vectors = documents_DE[np.maximum(indices_QF[block], 0).ravel()].astype(np.float64)
        vectors = vectors.reshape(-1, num_finalists, dimension)
        # einsum sums every pair in the same order; a BLAS product would not, and would break ties by position.
        np.einsum("qfe,qe->qf", vectors, queries_QE[block].astype(np.float64), out=exact[block])
    return exact


def _ranked(
    indices_QF: Indices, scores_QF: NDArray[np.float64], ceilings_Q: NDArray[np.float64], k: int
) -> tuple[Indices, NDArray[np.float64]]:
    """The k highest of the finalists that are below the ceiling, [Q, k]; -1 and minus infinity in empty places."""
    is_valid = (indices_QF >= 0) & (scores_QF < ceilings_Q[:, None])
    scores = np.where(is_valid, scores_QF, -np.inf)
    order = np.lexsort((indices_QF, -scores), axis=-1)[:, :k]
    found = np.take_along_axis(np.where(is_valid, indices_QF, -1), order, 1)
    scores = np.take_along_axis(scores, order, 1)
    missing = ((0, 0), (0, k - found.shape[1]))
    return np.pad(found, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)


def _sorted_all(
    query_E: Floats, documents_DE: Vectors, k: int, ceiling: float, excluded: Indices
) -> tuple[Indices, Floats]:
    """One query against every document in double precision: the slow way, for ties across the last place."""
    num_documents = documents_DE.shape[0]
    exact = np.empty(num_documents)
    query = query_E.astype(np.float64)
    for start in range(0, num_documents, _COLLECTED_AT_ONCE):
        part = documents_DE[start : start + _COLLECTED_AT_ONCE].astype(np.float64)
        exact[start : start + len(part)] = np.einsum("de,e->d", part, query)
    exact[excluded[(excluded >= 0) & (excluded < num_documents)]] = -np.inf
    exact[~(exact < ceiling)] = -np.inf
    found, scores = _ranked(np.arange(num_documents)[None], exact[None], np.array([np.inf]), k)
    found[scores == -np.inf] = -1
    return found[0], np.where(found[0] >= 0, scores[0], 0).astype(np.float32)
