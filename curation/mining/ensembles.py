"""Negatives of several teachers made into one list per query, with the teacher and the rank each came from.

Cross-sample takes all negatives of a query from one teacher, drawn per query; intra-sample takes the first of every
teacher, then the second, and so on (NV-Retriever, arXiv 2407.15831, section 4.2). Keeping duplicates was the better
one there: a negative that several teachers chose weighs more in the loss.

Legend: T teachers, Q queries, K negatives of a teacher, k negatives of the ensemble; -1 is an empty place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.errors import CurationError
from curation.mining.search import Indices
from db.digest import counter_below


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Chosen documents, the teacher (its place in the input) and the rank there (from 1) of each, all [Q, k]."""

    indices: Indices
    teachers: Indices
    ranks: Indices

    @classmethod
    def empty(cls, num_queries: int, k: int) -> "Ensemble":
        if k < 1:
            raise CurationError(f"k = {k}: at least 1 negative must be asked for")
        return cls(*(np.full((num_queries, k), -1, np.int64) for _ in range(3)))


def cross_sample(kept_TQK: Indices, k: int, *, seed: int, query_keys: Sequence[str | int]) -> Ensemble:
    """The first k negatives of one teacher per query, drawn evenly by seed and query key alone.

    A query whose teacher kept too few gets too few: another teacher does not step in.

    Args:
        kept_TQK: Each teacher's negatives, best first, distinct, -1 padded on the right, [T, Q, K].
        query_keys: What identifies a query wherever it stands, such as its text's digest, [Q].

    Raises:
        CurationError: k is below 1.
    """
    num_teachers, num_queries, depth = kept_TQK.shape
    ensemble = Ensemble.empty(num_queries, k)
    drawn_Q = np.array([counter_below(num_teachers, seed, "teacher", key) for key in query_keys], np.int64)
    width = min(k, depth)
    chosen_Qk = kept_TQK[drawn_Q, np.arange(num_queries), :width]
    is_filled_Qk = chosen_Qk >= 0
    ensemble.indices[:, :width] = chosen_Qk
    ensemble.teachers[:, :width] = np.where(is_filled_Qk, drawn_Q[:, None], -1)
    ensemble.ranks[:, :width] = np.where(is_filled_Qk, np.arange(1, width + 1), -1)
    return ensemble


def intra_sample(kept_TQK: Indices, k: int, *, deduplicate: bool) -> Ensemble:
    """The first k of: every teacher's top-1 in the order of teachers, then every teacher's top-2, and so on.

    With `deduplicate` a teacher whose turn would repeat a document gives its next one that is new; without, the
    document stands there once per teacher. A teacher that has no more passes. Where k is less than the number of
    teachers, the later ones get no turn.

    Args:
        kept_TQK: Each teacher's negatives, best first, distinct, -1 padded on the right, [T, Q, K].

    Raises:
        CurationError: k is below 1.
    """
    num_teachers, num_queries, depth = kept_TQK.shape
    ensemble = Ensemble.empty(num_queries, k)
    num_filled_Q = np.zeros(num_queries, np.int64)
    is_given_TQK = kept_TQK < 0
    for turn in range(num_teachers * depth):
        teacher = turn % num_teachers
        is_open_QK = ~is_given_TQK[teacher]
        if deduplicate:
            is_open_QK &= ~(kept_TQK[teacher][:, :, None] == ensemble.indices[:, None, :]).any(axis=2)
        rows = np.flatnonzero(is_open_QK.any(axis=1) & (num_filled_Q < k))
        places = is_open_QK[rows].argmax(axis=1)
        ensemble.indices[rows, num_filled_Q[rows]] = kept_TQK[teacher, rows, places]
        ensemble.teachers[rows, num_filled_Q[rows]] = teacher
        ensemble.ranks[rows, num_filled_Q[rows]] = places + 1
        is_given_TQK[teacher, rows, places] = True
        num_filled_Q[rows] += 1
        if (num_filled_Q == k).all():
            break
    return ensemble
