"""A ceiling that several teachers hold together, where each alone is unsure of its own scores.

A false negative is a passage that answers the query; one teacher may miss that, all seldom do. So a candidate is
refused by the mean of what all teachers say, each on its own scale, and the ceiling stands part of the way from the
bulk of the query's candidates up to its positive: the score of one positive says little about where relevance begins.

    z_t(d) = (s_t(d) - mean of t's list) / (standard deviation of t's list)
    z(d)   = mean over the teachers t of z_t(d)
    keep d where  z(d) < weight * z(positive) + offset

Legend: T teachers, Q queries, K candidates of a query (what any teacher listed), k negatives kept.
"""

from collections.abc import Collection, Sequence

import numpy as np

from curation.errors import CurationError
from curation.mining.positive_aware import keep_below
from curation.mining.search import Floats, Indices


def consensus(scores_TQK: Floats, positive_scores_TQ: Floats) -> tuple[Floats, Floats]:
    """Mean standardised score of candidates and of positives, in standard deviations above the bulk.

    Args:
        scores_TQK: Each teacher's scores, NaN where it did not list the candidate, [T, Q, K]. What it did not list
            counts as its lowest, which it is at most.
        positive_scores_TQ: Each teacher's score of the query's lowest-scoring positive; NaN counts as its lowest.

    Returns:
        Candidates [Q, K] and positives [Q]. A teacher that listed nothing, or one score only, says 0 of everything.

    Source: CombSUM over scores of zero mean and unit variance (Montague and Aslam, 2001, Relevance Score Normalization
    for Metasearch).
    """
    is_listed_TQK = np.isfinite(scores_TQK)
    num_TQ = np.maximum(is_listed_TQK.sum(axis=2), 1)
    mean_TQ = np.where(is_listed_TQK, scores_TQK, 0).sum(axis=2, dtype=np.float64) / num_TQ
    offsets_TQK = np.where(is_listed_TQK, scores_TQK - mean_TQ[:, :, None], 0)
    spread_TQ = np.sqrt((offsets_TQK**2).sum(axis=2) / num_TQ)
    lowest_TQ = offsets_TQK.min(axis=2, initial=0)
    # Scores that are equal but for rounding would be blown up to any size.
    is_flat_TQ = spread_TQ <= 1e-6 * np.maximum(np.abs(mean_TQ), 1e-30)
    spread_TQ = np.where(is_flat_TQ, np.inf, spread_TQ)
    offsets_TQK = np.where(is_listed_TQK, offsets_TQK, lowest_TQ[:, :, None])
    of_positive_TQ = np.where(np.isfinite(positive_scores_TQ), positive_scores_TQ - mean_TQ, lowest_TQ)
    candidates_QK = (offsets_TQK / spread_TQ[:, :, None]).mean(axis=0)
    return candidates_QK.astype(np.float32), (of_positive_TQ / spread_TQ).mean(axis=0).astype(np.float32)


def consensus_ceilings(positive_consensus_Q: Floats, *, weight: float = 0.5, offset: float = 0.0) -> Floats:
    """Consensus that a negative of each query must stay strictly below, [Q].

    Args:
        positive_consensus_Q: As `consensus` gives it.
        weight: 1 trusts the positive's own score (a margin below it), 0 ignores it (one cap for all queries).
        offset: In standard deviations; lower is stricter.
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
    offset: float = 0.0,
    excluded: Sequence[Collection[int]] = (),
) -> tuple[Indices, Floats]:
    """The k candidates that one teacher ranks highest, of those it listed that stay below the consensus ceiling.

    Args:
        indices_QK: Candidates, whoever listed them, distinct within a query, -1 for an empty place, [Q, K].
        scores_TQK: Their scores by every teacher, NaN where it did not list them, [T, Q, K].
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
