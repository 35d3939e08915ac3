"""Exact search: the best k of all, in tiles with a running top-k, so memory does not grow with queries x documents.

Ties go to the lower index, so that a ranking never depends on how the work was cut.

Legend: Q queries, D documents, E embedding dimension, k places.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_QUERIES = 256
_DOCUMENTS = 8_192


def best_places(scores_D: Floats, k: int) -> Indices:
    """Indices of the k highest scores, highest first; ties by the lower index."""
    if k >= len(scores_D):
        return np.argsort(-scores_D, kind="stable")
    # A partition alone would choose freely among scores equal to the k-th: take them all, then sort stably.
    lowest = np.partition(scores_D, len(scores_D) - k)[len(scores_D) - k]
    places = np.flatnonzero(scores_D >= lowest)
    return places[np.argsort(-scores_D[places], kind="stable")[:k]]


def top_k(queries_QE: Floats, documents_DE: Floats, k: int) -> tuple[Indices, Floats]:
    """The k best documents of each query by inner product: indices [Q, k] and scores [Q, k], best first."""
    k = min(k, len(documents_DE))
    indices, scores = np.zeros((len(queries_QE), k), np.int64), np.zeros((len(queries_QE), k), np.float32)
    for start in range(0, len(queries_QE), _QUERIES):
        block = slice(start, start + _QUERIES)
        indices[block], scores[block] = _top_k_of_block(queries_QE[block], documents_DE, k)
    return indices, scores


def _top_k_of_block(queries_QE: Floats, documents_DE: Floats, k: int) -> tuple[Indices, Floats]:
    best = np.zeros((len(queries_QE), 0), np.int64)
    best_scores = np.zeros((len(queries_QE), 0), np.float32)
    for start in range(0, len(documents_DE), _DOCUMENTS):
        tile = queries_QE @ documents_DE[start : start + _DOCUMENTS].T
        indices = np.broadcast_to(np.arange(start, start + tile.shape[1]), tile.shape)
        # The best so far stand first and have lower indices, which keeps ties in order.
        found, scores = np.hstack([best, indices]), np.hstack([best_scores, tile])
        places = np.stack([best_places(row, k) for row in scores])
        best, best_scores = np.take_along_axis(found, places, 1), np.take_along_axis(scores, places, 1)
    return best, best_scores
