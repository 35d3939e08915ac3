"""What a store holds, as small queries: counts, last runs, one example with its negatives in order, run by run."""

from collections import Counter
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

_MOST_OF_AN_EXAMPLE = 201


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

    candidate_id: int
    label: str
    origin: str
    grade: str | None
    text: str
    violated_requirement: str | None
    similarity: float | None


@dataclass(frozen=True, slots=True)
class Ladder:
    """The negatives that one run brought to an example, by rank, then by similarity: its ranks are its own."""

    run_id: int
    run: str
    kind: str
    rungs: list[Rung]


@dataclass(frozen=True, slots=True)
class ExampleView:
    """An example with its positive (None where it is no candidate yet) and a ladder a run; at most 200 negatives."""

    id: int
    query: str
    teacher: str | None
    positive: Rung | None
    ladders: list[Ladder]


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
    origins, grades = _negatives(session)
    return [
        *_sizes(session, imported),
        *((f"requests {state}", num) for state, num in sorted(session.execute(by_state).all())),
        *((f"negatives, {origin}", num) for origin, num in sorted(origins.items())),
        *((f"graded {grade}", grades[grade]) for grade in ("hard", "medium", "easy") if grades[grade]),
        *_sizes(session, made),
        *_tokens(session),
    ]


def store_marks(session: Session) -> tuple[int, ...]:
    """The newest key of every table that grows: while they stand, so do the counts. Costs a look at each index' end."""
    tables: list[Any] = [Document, CollectionQuery, Qrel, Example, Candidate, Completion, Rejection, Release, Run]
    return tuple(session.scalar(select(func.max(table.id))) or 0 for table in tables)


def _sizes(session: Session, tables: Sequence[tuple[str, type[Base]]]) -> list[tuple[str, int]]:
    return [(what, session.scalar(select(func.count()).select_from(table)) or 0) for what, table in tables]


def _negatives(session: Session) -> tuple[Counter[str], Counter[str | None]]:
    """How many negatives of each origin, and of each grade, in one pass."""
    origins: Counter[str] = Counter()
    grades: Counter[str | None] = Counter()
    columns = select(Candidate.origin, Candidate.grade, func.count()).where(Candidate.role == "negative")
    for origin, grade, num in session.execute(columns.group_by(Candidate.origin, Candidate.grade)):
        origins[origin] += num
        grades[grade] += num
    return origins, grades


def _tokens(session: Session) -> list[tuple[str, int]]:
    """Tokens of every attempt, as all of them are paid for."""
    sums = session.execute(select(func.sum(Completion.input_tokens), func.sum(Completion.output_tokens))).one()
    return [(f"{what} tokens", int(num)) for what, num in zip(("input", "output"), sums, strict=True) if num]


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
    teacher = session.execute(
        select(Teacher.id, Teacher.name)
        .join(Score, Score.teacher_id == Teacher.id)
        .where(Score.query_id == query.id, Score.passage_id == example.positive_id, Teacher.kind == "bi-encoder")
        .order_by(Teacher.id.desc())
        .limit(1)
    ).one_or_none()
    is_its_score = (
        (Score.query_id == query.id)
        & (Score.passage_id == Candidate.passage_id)
        & (Score.teacher_id == (teacher.id if teacher else None))
    )
    rows = session.execute(
        select(Candidate, Passage.text, Score.value, Run.name, Run.kind)
        .join(Passage, Candidate.passage_id == Passage.id)
        .join(Run, Candidate.run_id == Run.id)
        .outerjoin(Score, is_its_score)
        .where(Candidate.example_id == example_id)
        # The positive and the hardest first, should there be more than are shown.
        .order_by(Candidate.role.desc(), func.coalesce(Candidate.rank, 99), Candidate.id)
        .limit(_MOST_OF_AN_EXAMPLE)
    ).all()
    positive = next((_rung(row) for row in rows if row.Candidate.role == "positive"), None)
    return ExampleView(example_id, query.text, teacher.name if teacher else None, positive, _ladders(rows))


def _ladders(rows: Sequence[Any]) -> list[Ladder]:
    """Negatives by run, graded runs first."""
    by_run: dict[int, list[Any]] = {}
    for row in rows:
        if row.Candidate.role == "negative":
            by_run.setdefault(row.Candidate.run_id, []).append(row)
    ladders = [
        Ladder(run_id, of_run[0].name, of_run[0].kind, [_rung(row) for row in sorted(of_run, key=_place)])
        for run_id, of_run in by_run.items()
    ]
    return sorted(ladders, key=lambda one: (not one.rungs[0].label[1:].isdigit(), one.run_id))


def _place(row: Any) -> tuple[int, float, int]:
    return row.Candidate.rank or 99, 2.0 if row.value is None else -row.value, row.Candidate.id


def _rung(row: Any) -> Rung:
    one = row.Candidate
    return Rung(one.id, _label(one), one.origin, one.grade, row.text, one.violated_requirement, row.value)


def _label(candidate: Candidate) -> str:
    if candidate.role == "positive":
        return "positive"
    return f"N{candidate.rank}" if candidate.rank else candidate.origin
