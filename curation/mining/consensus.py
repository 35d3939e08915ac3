"""A ceiling that several teachers hold together, where each alone is unsure of its own scores.

A false negative is a passage that answers the query; one teacher may miss that, all seldom do. So a candidate is
refused by what all teachers say, each on its own scale. Little is known of a query: one positive, and a list that may
be full of other answers. So its scale and its ceiling stand half way between what the query says and what all say.

    z_t(d) = (s_t(d) - m) / v      m, v: half way between mean (standard deviation) of t's list and of all its lists
    z(d)   = sum over the teachers t of w_t z_t(d)
    keep d where  z(d) < weight * z(positive) + offset
    w ~ max(0, C^-1 (mean z of positives - mean z of candidates))      C: covariance of teachers, correlations halved

The last is Fisher's discriminant between the known positives and the candidates: a teacher that tells them apart
counts more, two that say the same count once. It needs no judgments but the positives.

The scale and the weights are of all queries of a run together: they are given at once, or one by one to `Survey`.

Legend: T teachers, Q queries, K candidates of a query (what any teacher listed), k negatives kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.mining.positive_aware import keep_below
from curation.mining.search import Floats, Indices

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scales:
    """Mean and standard deviation of each teacher's scores over all its lists, both [T]."""

    mean_T: Doubles
    spread_T: Doubles


def standardised(
    scores_TQK: Floats | Doubles, positive_scores_TQ: Floats | Doubles, scales: Scales | None = None
) -> tuple[Doubles, Doubles]:
    """z of candidates [T, Q, K] and of positives [T, Q]: each teacher's scores on a scale of its own.

    `scales` are those of the whole run where these are not all its queries.

    What a teacher did not list (NaN) counts as its lowest of the query, which it is at most. A teacher all whose
    scores are equal says 0 of everything, and one that listed nothing for a query says 0 there.
    """
    is_listed_TQK = np.isfinite(scores_TQK)
    scores = np.where(is_listed_TQK, scores_TQK, np.nan).astype(np.float64)
    num_TQ = is_listed_TQK.sum(axis=2)
    if scales is None:
        scales = Scales(*_moments(scores.reshape(len(scores), -1)))
    mean_T1, spread_T1 = scales.mean_T, scales.spread_T
    mean_TQ, spread_TQ = _moments(scores)
    # A list of nothing has no scale: its teacher's own.
    centre_TQ = np.where(num_TQ > 0, (mean_TQ + mean_T1[:, None]) / 2, mean_T1[:, None])
    scale_TQ = (spread_TQ + spread_T1[:, None]) / 2
    # Scores that are equal but for rounding would be blown up to any size.
    scale_TQ = np.where(spread_T1[:, None] > 1e-6 * np.abs(mean_T1[:, None]), scale_TQ, np.inf)
    lowest_TQ = np.where(is_listed_TQK, scores, np.inf).min(axis=2, initial=np.inf)
    lowest_TQ = np.where(num_TQ > 0, lowest_TQ, centre_TQ)
    candidates_TQK = (np.where(is_listed_TQK, scores, lowest_TQ[:, :, None]) - centre_TQ[:, :, None]) / (
        scale_TQ[:, :, None]
    )
    of_positive_TQ = np.where(np.isfinite(positive_scores_TQ), positive_scores_TQ, lowest_TQ)
    return candidates_TQK, (of_positive_TQ - centre_TQ) / scale_TQ


def teacher_weights(candidates_TQK: Doubles, positives_TQ: Doubles, is_candidate_QK: NDArray[np.bool_]) -> Doubles:
    """Weights of teachers, [T], none negative, of sum 1: how well each tells known positives from candidates.

    Args:
        candidates_TQK, positives_TQ: As `standardised` gives them.
        is_candidate_QK: False in empty places.

    Source: Fisher's linear discriminant, its covariance regularised towards its diagonal (Friedman 1989).
    """
    pooled_TN = candidates_TQK[:, is_candidate_QK]
    if not pooled_TN.size or not positives_TQ.size:
        return np.full(len(candidates_TQK), 1 / len(candidates_TQK))
    centred_TN = pooled_TN - pooled_TN.mean(axis=1, keepdims=True)
    covariance_TT = centred_TN @ centred_TN.T / pooled_TN.shape[1]
    return _discriminant(covariance_TT, positives_TQ.mean(axis=1) - pooled_TN.mean(axis=1))


def _discriminant(covariance_TT: Doubles, apart_T: Doubles) -> Doubles:
    """Weights from the candidates' covariance and how far the positives' means stand above the candidates'."""
    covariance_TT = (covariance_TT + np.diag(np.diag(covariance_TT))) / 2
    weights_T = np.maximum(np.linalg.pinv(covariance_TT) @ apart_T, 0)
    # Positives no higher than the candidates say nothing about the teachers.
    return weights_T / weights_T.sum() if weights_T.sum() > 0 else np.full(len(weights_T), 1 / len(weights_T))


def consensus(scores_TQK: Floats, positive_scores_TQ: Floats) -> tuple[Floats, Floats]:
    """What the teachers say together of candidates [Q, K] and of positives [Q].

    Args:
        scores_TQK: Each teacher's scores, NaN where it did not list the candidate and in empty places, [T, Q, K].
        positive_scores_TQ: Each teacher's score of the query's lowest-scoring positive; NaN counts as its lowest.
    """
    candidates_TQK, positives_TQ = standardised(scores_TQK, positive_scores_TQ)
    weights_T = teacher_weights(candidates_TQK, positives_TQ, np.isfinite(scores_TQK).sum(axis=0) > 0)
    candidates_QK, positives_Q = (np.tensordot(weights_T, one, 1) for one in (candidates_TQK, positives_TQ))
    return candidates_QK.astype(np.float32), positives_Q.astype(np.float32)


def consensus_ceilings(positive_consensus_Q: Floats, *, weight: float = 0.5, offset: float = -0.5) -> Floats:
    """Consensus that a negative of each query must stay strictly below, [Q].

    Args:
        positive_consensus_Q: As `consensus` gives it.
        weight: 1 trusts the positive's own score (a margin below it), 0 ignores it (one cap for all queries).
        offset: In standard deviations; lower is stricter. At -0.5 all but 2 to 3% of ten places asked were still filled
            from lists of 100 (benchmarks/results/false_negatives.md).
    """
    return (weight * positive_consensus_Q + offset).astype(np.float32)


def keep_below_consensus(
    indices_QK: Indices,
    scores_TQK: Floats,
    positive_scores_TQ: Floats,
    k: int,
    *,
    order_by: int,
    weight: float = 0.5,
    offset: float = -0.5,
    excluded: Sequence[Collection[int]] = (),
) -> tuple[Indices, Floats]:
    """The k candidates that one teacher ranks highest, of those it listed that stay below the consensus ceiling.

    Args:
        indices_QK: Candidates, whoever listed them, distinct within a query, -1 for an empty place, [Q, K].
        scores_TQK: Their scores by every teacher, NaN where it did not list them and in empty places, [T, Q, K].
        positive_scores_TQ: Each teacher's score of the query's lowest-scoring positive; NaN where unknown.
        order_by: Place of the teacher whose candidates are ranked.
        excluded: As in `keep_below`.

    Returns:
        Indices [Q, k], -1 padded, and that teacher's scores [Q, k].

    Raises:
        CurationError: k is below 1, or there is no such teacher.
    """
    if not 0 <= order_by < len(scores_TQK):
        raise CurationError(f"order_by = {order_by}: a teacher's place from 0 to {len(scores_TQK) - 1} is needed")
    candidates_QK, positives_Q = consensus(scores_TQK, positive_scores_TQ)
    limits_Q = consensus_ceilings(positives_Q, weight=weight, offset=offset)
    is_open_QK = np.isfinite(scores_TQK[order_by]) & (candidates_QK < limits_Q[:, None])
    no_ceiling_Q = np.full(len(indices_QK), np.inf, np.float32)
    ranked_QK = np.where(is_open_QK, scores_TQK[order_by], 0)
    return keep_below(np.where(is_open_QK, indices_QK, -1), ranked_QK, no_ceiling_Q, k, excluded=excluded)


def _moments(scores: Doubles) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of what is not NaN, over the last axis; 0 where nothing is."""
    is_there = np.isfinite(scores)
    num = np.maximum(is_there.sum(axis=-1), 1)
    mean = np.where(is_there, scores, 0).sum(axis=-1) / num
    squares = np.where(is_there, scores - mean[..., None], 0) ** 2
    return mean, np.sqrt(squares.sum(axis=-1) / num)


class Survey:
    """What the consensus needs to know of all queries, gathered from one query at a time, in two rounds.

    First `add_scores` of every query, then `add_agreement` of every query, then `weights_T`: the values are those of
    `consensus` over all queries at once but for rounding. Each query counts by itself, so they do not depend on how
    queries are put together. Memory grows with queries x teachers^2 numbers.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for sample variances (1979).
    """

    def __init__(self, num_teachers: int) -> None:
        self._of_teachers = [_Parts(1) for _ in range(num_teachers)]
        self._candidates, self._positives = _Parts(num_teachers), _Parts(num_teachers)
        self._scales: Scales | None = None

    @property
    def scales(self) -> Scales:
        if self._scales is None:
            moments = [parts.moments() for parts in self._of_teachers]
            spread_T = np.sqrt(np.array([covariance[0, 0] for _, covariance in moments]))
            self._scales = Scales(np.array([mean[0] for mean, _ in moments]), spread_T)
        return self._scales

    def add_scores(self, scores_TK: Doubles) -> None:
        """The scores of a query's candidates, NaN where a teacher did not list one."""
        for parts, scores_K in zip(self._of_teachers, scores_TK, strict=True):
            parts.add(scores_K[None, np.isfinite(scores_K)].astype(np.float64))

    def add_agreement(self, scores_TK: Doubles, positive_scores_T: Doubles) -> None:
        """The same once more, and each teacher's score of the query's lowest-scoring positive."""
        candidates_TK, positives_T = self._standardised(scores_TK, positive_scores_T)
        self._candidates.add(candidates_TK[:, np.isfinite(scores_TK).any(axis=0)])
        self._positives.add(positives_T[:, None])

    def weights_T(self) -> Doubles:  # noqa: N802
        """As `teacher_weights`."""
        num_teachers = len(self._of_teachers)
        if not self._candidates.num or not self._positives.num:
            return np.full(num_teachers, 1 / num_teachers)
        mean_T, covariance_TT = self._candidates.moments()
        return _discriminant(covariance_TT, self._positives.moments()[0] - mean_T)

    def consensus_of(
        self, scores_TK: Doubles, positive_scores_T: Doubles, weights_T: Doubles
    ) -> tuple[Floats, np.float32]:
        """As `consensus`, for one query: of its candidates [K] and of its positive."""
        candidates_TK, positives_T = self._standardised(scores_TK, positive_scores_T)
        # All in one sum, so that a passage with the positive's scores has exactly its consensus.
        together = (weights_T[:, None] * np.column_stack([candidates_TK, positives_T])).sum(axis=0).astype(np.float32)
        return together[:-1], together[-1]

    def _standardised(self, scores_TK: Doubles, positive_scores_T: Doubles) -> tuple[Doubles, Doubles]:
        candidates, positives = standardised(scores_TK[:, None], positive_scores_T[:, None], self.scales)
        return candidates[:, 0], positives[:, 0]


class _Parts:
    """Mean [T] and covariance [T, T] of columns [T, N] that come in parts, one part a query."""

    def __init__(self, num_rows: int) -> None:
        self._shape = num_rows
        self._parts: list[tuple[int, Doubles, Doubles]] = []

    @property
    def num(self) -> int:
        return sum(num for num, _, _ in self._parts)

    def add(self, values_TN: Doubles) -> None:
        if values_TN.shape[1]:
            mean_T = values_TN.mean(axis=1)
            centred_TN = values_TN - mean_T[:, None]
            self._parts.append((values_TN.shape[1], mean_T, centred_TN @ centred_TN.T))

    def moments(self) -> tuple[Doubles, Doubles]:
        """Zeros where nothing was added."""
        if not self._parts:
            return np.zeros(self._shape), np.zeros((self._shape, self._shape))
        num_P = np.array([num for num, _, _ in self._parts], np.float64)
        means_PT = np.stack([mean for _, mean, _ in self._parts])
        mean_T = num_P @ means_PT / num_P.sum()
        apart_PT = means_PT - mean_T
        products_TT = np.sum([products for _, _, products in self._parts], axis=0) + (apart_PT.T * num_P) @ apart_PT
        return mean_T, products_TT / num_P.sum()
