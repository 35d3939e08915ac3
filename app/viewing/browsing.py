"""Candidates of the store in pages by key, under filters, so that a page costs the same wherever it stands.

A rare thing is looked for window by window, for at most a moment a call; how far it came is part of the answer, and
the next call goes on from there.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.ledger import Run
from db.tables.texts import Passage, Query
from db.teachers import scores_likeness

ORIGINS = ("synthetic", "edited", "mined", "corpus")
GRADES = ("hard", "medium", "easy")
ROLES = ("positive", "negative")
PAGE = 50
_WINDOW = 5_000
_MOST_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Filters:
    """What to look for; None and empty mean anything. A score range needs its teacher."""

    run_id: int | None = None
    origin: str | None = None
    grade: str | None = None
    role: str | None = None
    text: str = ""
    teacher_id: int | None = None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate in the list."""

    id: int
    example_id: int
    query: str
    text: str
    role: str
    origin: str
    grade: str | None
    rank: int | None
    score: float | None
    run: str


@dataclass(frozen=True, slots=True)
class Page:
    """Candidates by falling key. `is_end`: there are no more this way; otherwise the next page, or the next part of a
    long search, begins beyond `reached`."""

    rows: list[Row]
    reached: int
    is_end: bool


def browse(
    session: Session,
    filters: Filters,
    *,
    beyond: int | None = None,
    towards: Literal["older", "newer"] = "older",
    limit: int = PAGE,
    window: int = _WINDOW,
    most_seconds: float = _MOST_SECONDS,
) -> Page:
    """The next candidates under the filters, from key `beyond` on, itself left out.

    Args:
        beyond: Key of the last candidate seen; None begins with the newest, or the oldest.
        window: So many keys are looked at by one statement.
        most_seconds: After so long no further window is looked at.
    """
    low, high = _bounds(session, filters)
    is_older = towards == "older"
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    at = beyond if beyond is not None else (high + 1 if is_older else low - 1)
    at = max(min(at, high + 1), low - 1)
    ends = time.monotonic() + most_seconds
    rows: list[Row] = []
    while len(rows) < limit and (at > low if is_older else at < high):
        part = (max(low, at - window), at - 1) if is_older else (at + 1, min(high, at + window))
        statement = _in_window(filters, part, is_older=is_older, is_sqlite=is_sqlite)
        found = session.execute(statement.limit(limit - len(rows))).all()
        rows += [Row(*row) for row in found]
        at = rows[-1].id if len(rows) == limit else part[0] if is_older else part[1]
        if time.monotonic() > ends:
            break
    is_end = at <= low if is_older else at >= high
    return Page(rows if is_older else rows[::-1], at, is_end)


def _bounds(session: Session, filters: Filters) -> tuple[int, int]:
    """Smallest and largest key that can match: two looks at the end of an index."""
    of_run = [] if filters.run_id is None else [Candidate.run_id == filters.run_id]
    low = session.scalar(select(func.min(Candidate.id)).where(*of_run))
    high = session.scalar(select(func.max(Candidate.id)).where(*of_run))
    return (low or 0, high or -1) if high is not None else (0, -1)


def _in_window(filters: Filters, window: tuple[int, int], *, is_older: bool, is_sqlite: bool) -> Select[Any]:
    is_its_score = (
        (Score.query_id == Example.query_id)
        & (Score.passage_id == Candidate.passage_id)
        & (Score.teacher_id == filters.teacher_id)
    )
    statement = (
        select(
            Candidate.id,
            Candidate.example_id,
            func.substr(Query.text, 1, 400),
            func.substr(Passage.text, 1, 400),
            Candidate.role,
            Candidate.origin,
            Candidate.grade,
            Candidate.rank,
            Score.value,
            Run.name,
        )
        .join(Example, Example.id == Candidate.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .join(Run, Run.id == Candidate.run_id)
        .join(Score, is_its_score, isouter=filters.least is None and filters.most is None)
        .where(Candidate.id.between(*window))
        .order_by(Candidate.id.desc() if is_older else Candidate.id)
    )
    wanted: list[Any] = []
    for column, value in (
        (Candidate.run_id, filters.run_id),
        (Candidate.origin, filters.origin),
        (Candidate.grade, filters.grade),
        (Candidate.role, filters.role),
    ):
        if value is not None:
            wanted.append(column == value)
    if filters.text:
        wanted.append(_contains(Query.text, filters.text, is_sqlite) | _contains(Passage.text, filters.text, is_sqlite))
    if filters.least is not None:
        wanted.append(Score.value >= filters.least)
    if filters.most is not None:
        wanted.append(Score.value <= filters.most)
    return statement.where(*wanted)


def _contains(column: Any, text: str, is_sqlite: bool) -> Any:
    """Whatever the case, and without NUL: SQLite's pattern ends there, and PostgreSQL knows none.

    SQLite's LIKE ignores the case by itself, of ASCII letters; lower() would cost as much again.
    """
    text = text.replace("\0", "")
    return column.contains(text, autoescape=True) if is_sqlite else column.icontains(text, autoescape=True)


def teachers_of(session: Session, limit: int = 50) -> list[tuple[int, str]]:
    """(id, name) of the newest teachers that have scored something; margins of training stand last."""
    has_scored = select(Score.teacher_id).where(Score.teacher_id == Teacher.id).exists()
    newest = select(Teacher.id, Teacher.name).where(has_scored).order_by(Teacher.id.desc()).limit(limit)
    rows = [*session.execute(newest.where(scores_likeness())), *session.execute(newest.where(~scores_likeness()))]
    return [(key, name) for key, name in rows[:limit]]


def runs_of(session: Session, limit: int = 200) -> list[tuple[int, str]]:
    """(id, name with its kind) of the newest runs that brought candidates."""
    brought = select(Candidate.id).where(Candidate.run_id == Run.id).exists()
    newest = select(Run.id, Run.name, Run.kind).where(brought).order_by(Run.id.desc()).limit(limit)
    return [(key, f"{name} ({kind})") for key, name, kind in session.execute(newest)]
