"""Two ways of writing negatives, side by side on the same pairs: order, leaks, length, negatives above the positive."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.audit.leaks import Leak, source_leak
from curation.audit.ordering import CROSS_GRADE_PAIRS
from curation.embeddings import EmbeddingCache
from curation.errors import CurationError
from db.tables.examples import Candidate, Example, Sourcing
from db.tables.ledger import RunRequest
from db.tables.texts import Passage, Query

_LOOKUP = 400


@dataclass(frozen=True, slots=True)
class Group:
    """The candidates that one way of writing made for one pair: its query, its positive, and negatives by rank."""

    query: str
    positive: str
    negatives: dict[int, str]


@dataclass(frozen=True, slots=True)
class WayReport:
    """One way of writing, measured; `leaks` by rank against the positives of the same pairs."""

    name: str
    num_pairs: int
    similarity: dict[int, float]
    above_positive: dict[int, float]
    order_accuracy: float | None
    length_ratio: dict[int, float]
    leaks: dict[int, Leak]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def groups_of(session: Session, run_ids: Sequence[int], kind: str) -> dict[tuple[int, int], Group]:
    """What these runs wrote with one entry, by (query, positive)."""
    rows = session.execute(
        select(Example.query_id, Example.positive_id, Query.text, Candidate.rank, Passage.text)
        .select_from(Sourcing)
        .join(RunRequest, (RunRequest.request_id == Sourcing.request_id) & (RunRequest.run_id == Sourcing.run_id))
        .join(Candidate, Candidate.id == Sourcing.candidate_id)
        .join(Example, Example.id == Candidate.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .where(Sourcing.run_id.in_(run_ids), RunRequest.kind == kind, Candidate.rank.is_not(None))
        .order_by(Candidate.id)
    )
    queries: dict[tuple[int, int], str] = {}
    negatives: dict[tuple[int, int], dict[int, str]] = defaultdict(dict)
    for query, positive, text, rank, passage in rows:
        queries[query, positive] = text
        negatives[query, positive].setdefault(int(rank or 0), passage)
    positives = _texts(session, [positive for _, positive in queries])
    return {pair: Group(text, positives[pair[1]], negatives[pair]) for pair, text in queries.items()}


def _texts(session: Session, keys: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for start in range(0, len(keys), _LOOKUP):
        rows = session.execute(select(Passage.id, Passage.text).where(Passage.id.in_(keys[start : start + _LOOKUP])))
        found.update({key: text for key, text in rows})
    return found


def compare_ways(
    first: tuple[str, dict[tuple[int, int], Group]],
    second: tuple[str, dict[tuple[int, int], Group]],
    encoder: EmbeddingCache,
) -> tuple[WayReport, WayReport]:
    """Both ways on the pairs that both have.

    Raises:
        CurationError: They have no pair in common.
    """
    common = sorted(first[1].keys() & second[1].keys())
    if not common:
        raise CurationError(
            f"{first[0]!r} ({len(first[1])} pairs) and {second[0]!r} ({len(second[1])} pairs) have no pair in "
            "common: run both on the same plan"
        )
    one, two = (_measure(name, [groups[pair] for pair in common], encoder) for name, groups in (first, second))
    return one, two


def _measure(name: str, groups: Sequence[Group], encoder: EmbeddingCache) -> WayReport:
    ranks = sorted({rank for group in groups for rank in group.negatives})
    queries, _ = encoder.embed([group.query for group in groups])
    positives, _ = encoder.embed([group.positive for group in groups])
    to_positive = np.einsum("ge,ge->g", queries, positives)
    values = np.full((len(groups), max(ranks) + 1), np.nan)
    for rank in ranks:
        rows = [row for row, group in enumerate(groups) if rank in group.negatives]
        vectors, _ = encoder.embed([groups[row].negatives[rank] for row in rows])
        values[rows, rank] = np.einsum("ge,ge->g", queries[rows], vectors)
    above = values > to_positive[:, None]
    return WayReport(
        name=name,
        num_pairs=len(groups),
        similarity={rank: float(np.nanmean(values[:, rank])) for rank in ranks},
        above_positive={rank: float(above[~np.isnan(values[:, rank]), rank].mean()) for rank in ranks},
        order_accuracy=_order_accuracy(values, ranks),
        length_ratio={rank: _length_ratio(groups, rank) for rank in ranks},
        leaks={rank: leak for rank in ranks if (leak := _leak(groups, rank)) is not None},
    )


def _order_accuracy(values: "np.ndarray", ranks: Sequence[int]) -> float | None:
    """Share of pairs of ranks of different grades that stand in order; equal similarity counts half."""
    scores = []
    for harder, easier in CROSS_GRADE_PAIRS:
        if harder in ranks and easier in ranks:
            difference = values[:, harder] - values[:, easier]
            known = difference[~np.isnan(difference)]
            scores += list(np.where(known > 0, 1.0, np.where(known == 0, 0.5, 0.0)))
    return float(np.mean(scores)) if scores else None


def _length_ratio(groups: Sequence[Group], rank: int) -> float:
    ratios = [len(group.negatives[rank]) / len(group.positive) for group in groups if rank in group.negatives]
    return float(np.mean(ratios))


def _leak(groups: Sequence[Group], rank: int) -> Leak | None:
    rows = [(place, group) for place, group in enumerate(groups) if rank in group.negatives]
    queries = {group.query: place for place, group in reversed(rows)}
    try:
        return source_leak(
            [group.negatives[rank] for _, group in rows],
            [group.positive for _, group in rows],
            [queries[group.query] for _, group in rows],
        )
    except CurationError:  # too few pairs to say anything
        return None
