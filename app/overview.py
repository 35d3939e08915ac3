"""What a store holds, as small queries: counts, last runs, one example with its negatives in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from db.tables.base import Base
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.ledger import Completion, Rejection, Request, Run
from db.tables.releases import Release
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as people see it in a list."""

    kind: str
    name: str
    state: str
    started_at: datetime
    seconds: float | None
    totals: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rung:
    """A candidate of an example: the positive, or a negative."""

    label: str
    origin: str
    grade: str | None
    text: str
    violated_requirement: str | None
    similarity: float | None


@dataclass(frozen=True, slots=True)
class ExampleView:
    """An example with its candidates, the positive first, then by rank, then by similarity."""

    id: int
    query: str
    rungs: list[Rung]


def store_counts(session: Session) -> list[tuple[str, int]]:
    """(what, how many), in the order of the road."""
    imported = [
        ("collections", Collection),
        ("documents", Document),
        ("queries", CollectionQuery),
        ("judgments", Qrel),
        ("examples", Example),
    ]
    made = [("completions", Completion), ("rejections", Rejection), ("scores", Score), ("releases", Release)]
    by_state = select(Request.state, func.count()).group_by(Request.state)
    return [
        *_sizes(session, imported),
        *((f"requests {state}", num) for state, num in sorted(session.execute(by_state).all())),
        *((f"negatives, {origin}", num) for origin, num in sorted(session.execute(_negatives_by_origin()).all())),
        *_sizes(session, made),
    ]


def _sizes(session: Session, tables: Sequence[tuple[str, type[Base]]]) -> list[tuple[str, int]]:
    return [(what, session.scalar(select(func.count()).select_from(table)) or 0) for what, table in tables]


def _negatives_by_origin() -> Any:
    is_negative = Candidate.role == "negative"
    return select(Candidate.origin, func.count()).where(is_negative).group_by(Candidate.origin)


def last_runs(session: Session, limit: int = 10) -> list[RunRow]:
    """The newest runs first."""
    rows = []
    for run in session.scalars(select(Run).order_by(Run.id.desc()).limit(limit)):
        seconds = (run.finished_at - run.started_at).total_seconds() if run.finished_at else None
        rows.append(RunRow(run.kind, run.name, run.state, run.started_at, seconds, run.totals or {}))
    return rows


def rejection_counts(session: Session) -> list[tuple[str, str, int]]:
    """(run, reason, how many), the most frequent first."""
    statement = (
        select(Run.name, Rejection.reason, func.count())
        .join(Run, Rejection.run_id == Run.id)
        .group_by(Run.name, Rejection.reason)
        .order_by(func.count().desc(), Run.name, Rejection.reason)
    )
    return [(name, reason, num) for name, reason, num in session.execute(statement)]


def neighbouring_example(session: Session, current: int | None, step: int) -> int | None:
    """Id of the next (step 1) or previous (step -1) example with negatives; None at the end."""
    has_negatives = exists().where(Candidate.example_id == Example.id, Candidate.role == "negative")
    statement = select(Example.id).where(has_negatives).limit(1)
    if step > 0:
        statement = statement.where(Example.id > (current or 0)).order_by(Example.id)
    else:
        statement = statement.where(Example.id < (current or 0)).order_by(Example.id.desc())
    return session.scalar(statement)


def example_view(session: Session, example_id: int) -> ExampleView | None:
    """The example with similarities by the newest encoder that scored its positive; None when there is none."""
    example = session.get(Example, example_id)
    if example is None:
        return None
    query = session.get_one(Query, example.query_id)
    teacher = session.scalar(
        select(func.max(Teacher.id))
        .join(Score, Score.teacher_id == Teacher.id)
        .where(Score.query_id == query.id, Score.passage_id == example.positive_id, Teacher.kind == "bi-encoder")
    )
    is_its_score = (
        (Score.query_id == query.id) & (Score.passage_id == Candidate.passage_id) & (Score.teacher_id == teacher)
    )
    rows = session.execute(
        select(Candidate, Passage.text, Score.value)
        .join(Passage, Candidate.passage_id == Passage.id)
        .outerjoin(Score, is_its_score)
        .where(Candidate.example_id == example_id)
    ).all()
    ordered = sorted(
        rows,
        key=lambda row: (row[0].role != "positive", row[0].rank or 99, 2.0 if row[2] is None else -row[2], row[0].id),
    )
    rungs = [
        Rung(_label(candidate), candidate.origin, candidate.grade, text, candidate.violated_requirement, value)
        for candidate, text, value in ordered
    ]
    return ExampleView(example_id, query.text, rungs)


def _label(candidate: Candidate) -> str:
    if candidate.role == "positive":
        return "positive"
    return f"N{candidate.rank}" if candidate.rank else candidate.origin
