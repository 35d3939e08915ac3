"""What a positive-aware ceiling would have removed of the machine-written negatives, and whether that was right.

They are exempt, because a near-miss is meant to score high; so what the rule would cost, and what it would find, is
counted instead. A negative is removed when its score is not below the ceiling of its query's lowest-scoring positive.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.scope import NegativesScope, negatives_in
from curation.judging.verdicts import pages_with_grades
from curation.mining.positive_aware import ceilings
from db.tables.examples import Candidate, Example, Score, Teacher

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

    def add(self, *, is_over: bool, grade: int | None, threshold: int) -> None:
        """Count a negative that is scored; `grade` is None where no judge has graded it."""
        is_judged, is_relevant = grade is not None, grade is not None and grade >= threshold
        self.num_scored += 1
        self.num_over += is_over
        if is_over:
            self.num_over_judged += is_judged
            self.num_over_relevant += is_relevant
        else:
            self.num_under_judged += is_judged
            self.num_under_relevant += is_relevant

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
    is_scored = (
        (Score.teacher_id == key) & (Score.query_id == Example.query_id) & (Score.passage_id == Candidate.passage_id)
    )
    pairs = (
        select(Candidate.id, Example.query_id, Score.value)
        .select_from(Candidate)
        .join(Example, Candidate.example_id == Example.id)
        .outerjoin(Score, is_scored)
        .where(*negatives_in(session, scope), Candidate.origin.in_(_WRITTEN))
    )
    for page in pages_with_grades(session, pairs):
        lowest = _lowest_positives(session, sorted({query for _, query, *_ in page}), key)
        of_query = dict(zip(lowest, _ceilings(list(lowest.values()), percentage), strict=True))
        for _, query, score, grade in page:
            counts.num_written += 1
            if score is not None and query in of_query:
                counts.add(is_over=not score < of_query[query], grade=grade, threshold=threshold)
    return counts


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
