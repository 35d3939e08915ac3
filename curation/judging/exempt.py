"""What a positive-aware ceiling would have removed of the machine-written negatives, and whether that was right.

They are exempt, because a near-miss is meant to score high; so what the rule would cost, and what it would find, is
counted instead. A negative is removed when its score is not below the ceiling of its query's lowest-scoring positive.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.scope import NegativesScope, negatives_in
from curation.judging.verdicts import Verdict, last_words
from curation.mining.positive_aware import ceilings
from db.tables.examples import Candidate, Example, Score, Teacher

_PAGE = 1_000
_LOOKUP = 400
_WRITTEN = ("synthetic", "edited")


@dataclass(slots=True)
class Exempted:
    """Counts of machine-written negatives; `relevant` ones are judged at least the threshold (2: in part)."""

    teacher: str
    percentage: float
    num_written: int = 0
    num_scored: int = 0
    num_over: int = 0
    num_over_judged: int = 0
    num_over_relevant: int = 0
    num_under_judged: int = 0
    num_under_relevant: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_exempted(
    session: Session, scope: NegativesScope, *, teacher: str, percentage: float, threshold: int = 2
) -> Exempted:
    """Count over the scope's machine-written negatives, a page at a time.

    Args:
        teacher: Name of a teacher with stored scores; its newest version.
        percentage: Share of the positive's score that the ceiling is, 0 to 1.

    Raises:
        CurationError: No teacher of this name is in the store.
    """
    key = session.scalar(select(Teacher.id).where(Teacher.name == teacher).order_by(Teacher.id.desc()).limit(1))
    if key is None:
        raise CurationError(f"ceiling.teacher = {teacher!r} has scored nothing in this store: run 'gradus score' first")
    counts = Exempted(teacher, percentage)
    statement = (
        select(Candidate.id, Example.query_id, Candidate.passage_id, Score.value)
        .select_from(Candidate)
        .join(Example, Candidate.example_id == Example.id)
        .outerjoin(
            Score,
            (Score.teacher_id == key)
            & (Score.query_id == Example.query_id)
            & (Score.passage_id == Candidate.passage_id),
        )
        .where(*negatives_in(session, scope), Candidate.origin.in_(_WRITTEN))
        .order_by(Candidate.id)
        .limit(_PAGE)
    )
    last = 0
    while page := session.execute(statement.where(Candidate.id > last)).all():
        last = page[-1][0]
        _count(session, counts, page, key, threshold)
    return counts


def _count(
    session: Session, counts: Exempted, page: Sequence[Row[int, int, int, float | None]], teacher: int, threshold: int
) -> None:
    lowest = _lowest_positives(session, sorted({query for _, query, *_ in page}), teacher)
    of_query = dict(zip(lowest, _ceilings(list(lowest.values()), counts.percentage), strict=True))
    words = last_words(session, [(query, passage) for _, query, passage, _ in page])
    for _, query, passage, score in page:
        counts.num_written += 1
        if score is None or query not in of_query:
            continue
        counts.num_scored += 1
        is_over = not score < of_query[query]
        counts.num_over += is_over
        verdict: Verdict | None = words.get((query, passage))
        if verdict is None:
            continue
        is_relevant = verdict.relevance >= threshold
        if is_over:
            counts.num_over_judged += 1
            counts.num_over_relevant += is_relevant
        else:
            counts.num_under_judged += 1
            counts.num_under_relevant += is_relevant


def _ceilings(lowest: list[float], percentage: float) -> list[float]:
    """As they are compared with stored scores: six decimals."""
    found = ceilings("percentage", np.array(lowest, np.float64), value=percentage)
    return [round(float(value), 6) for value in found]


def _lowest_positives(session: Session, queries: Sequence[int], teacher: int) -> dict[int, float]:
    """Score of each query's lowest-scoring positive, whichever example it is of; queries without one are left out."""
    found: dict[int, list[float]] = defaultdict(list)
    for start in range(0, len(queries), _LOOKUP):
        rows = session.execute(
            select(Example.query_id, Score.value)
            .select_from(Example)
            .join(Score, (Score.query_id == Example.query_id) & (Score.passage_id == Example.positive_id))
            .where(Example.query_id.in_(queries[start : start + _LOOKUP]), Score.teacher_id == teacher)
        )
        for query, value in rows:
            found[query].append(value)
    return {query: min(values) for query, values in found.items()}
