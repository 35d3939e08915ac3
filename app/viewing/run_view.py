"""One run as people look at it: where it stands, what it cost, why things were refused, and each of its requests.

Requests come in pages by plan index, so that a page costs the same in a run of a hundred and of a million.
"""

import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from db.tables.examples import Candidate, Example, Sourcing
from db.tables.ledger import (
    Completion,
    CompletionBody,
    Rejection,
    Request,
    RequestBody,
    Run,
    RunRequest,
)
from db.tables.texts import Passage

_MOST_CANDIDATES = 60
_MOST_EXAMPLES = 200
ASKING = ("generate", "judge")


@dataclass(frozen=True, slots=True)
class RunChoice:
    """A run in a list."""

    id: int
    kind: str
    name: str
    state: str
    started_at: datetime
    finished_at: datetime | None
    seed: int
    code_version: str
    spent_usd: float
    spent_tokens: int


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A request of a run in a list; `tokens` are of all its attempts."""

    id: int
    plan_index: int
    custom_id: str
    kind: str
    state: str
    outcome: str | None
    num_accepted: int
    tokens: int
    cost_usd: float | None
    latency_s: float | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One completion of a request."""

    attempt: int
    engine: str
    model: str | None
    finish_reason: str | None
    error: str | None
    input_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    latency_s: float | None
    received_at: datetime
    text: str | None


@dataclass(frozen=True, slots=True)
class Parsed:
    """A candidate that was read from a completion."""

    candidate_id: int
    example_id: int
    role: str
    grade: str | None
    rank: int | None
    origin: str
    text: str
    violated_requirement: str | None


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request of a run: what was asked, what came back, what was read from it, what was refused and why."""

    id: int
    run_id: int
    plan_index: int
    custom_id: str
    kind: str
    state: str
    outcome: str | None
    sample_index: int
    attributes: dict[str, Any]
    notes: dict[str, Any]
    messages: list[tuple[str, str]]
    attempts: list[Attempt]
    parsed: list[Parsed]
    rejections: list[tuple[int, str, str]]


def list_runs(session: Session, limit: int = 200) -> list[RunChoice]:
    """The newest runs, those that go on first."""
    names = RunChoice.__slots__
    columns = [getattr(Run, name) for name in names]
    rows = session.execute(select(*columns).order_by(Run.state != "running", Run.id.desc()).limit(limit))
    return [RunChoice(*row) for row in rows]


def run_marks(session: Session, run_id: int) -> tuple[Any, ...]:
    """What changes whenever the run does anything, from its own row and the ends of two indexes."""
    run = session.execute(select(Run.state, Run.finished_at, Run.spent_tokens, Run.spent_usd).where(Run.id == run_id))
    newest = session.scalar(select(func.max(Completion.id)))
    links = session.scalar(select(func.max(RunRequest.id)))
    return (*run.one(), newest, links)


def rejection_reasons(session: Session, run_id: int, limit: int = 40) -> list[tuple[str, int, str, str]]:
    """(reason, how many, an example's name, its detail), the commonest first."""
    counted = (
        select(Rejection.reason, func.count().label("num"), func.max(Rejection.id).label("newest"))
        .where(Rejection.run_id == run_id)
        .group_by(Rejection.reason)
        .order_by(func.count().desc(), Rejection.reason)
        .limit(limit)
        .subquery()
    )
    rows = session.execute(
        select(counted.c.reason, counted.c.num, Rejection.subject, Rejection.detail)
        .join(Rejection, Rejection.id == counted.c.newest)
        .order_by(counted.c.num.desc(), counted.c.reason)
    )
    return [(reason, num, subject, detail) for reason, num, subject, detail in rows]


def request_page(
    session: Session, run_id: int, *, outcome: str | None = None, after: int = -1, limit: int = 50
) -> list[RequestRow]:
    """Requests of the run beyond a plan index, in plan order.

    Args:
        outcome: accepted, partial or rejected; `open` for what has none; None for all.
    """
    statement = (
        select(RunRequest, Request.state)
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id, RunRequest.plan_index > after)
        .order_by(RunRequest.plan_index)
        .limit(limit)
    )
    if outcome is not None:
        statement = statement.where(
            RunRequest.outcome.is_(None) if outcome == "open" else RunRequest.outcome == outcome
        )
    rows = session.execute(statement).all()
    sums = _sums(session, [link.request_id for link, _ in rows])
    return [
        RequestRow(
            link.request_id,
            link.plan_index,
            link.custom_id,
            link.kind,
            state,
            link.outcome,
            link.num_accepted,
            *sums.get(link.request_id, (0, None, None)),
        )
        for link, state in rows
    ]


def _sums(session: Session, request_ids: list[int]) -> dict[int, tuple[int, float | None, float | None]]:
    """Tokens, cost and latency of all attempts, by request."""
    tokens = func.coalesce(Completion.input_tokens, 0) + func.coalesce(Completion.output_tokens, 0)
    rows = session.execute(
        select(Completion.request_id, func.sum(tokens), func.sum(Completion.cost_usd), func.sum(Completion.latency_s))
        .where(Completion.request_id.in_(request_ids))
        .group_by(Completion.request_id)
    )
    return {key: (int(num), cost, latency) for key, num, cost, latency in rows}


def request_view(session: Session, run_id: int, request_id: int) -> RequestView | None:
    """Everything about one request of a run; None where the run does not want it."""
    found = session.execute(
        select(RunRequest, Request)
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id, RunRequest.request_id == request_id)
    ).one_or_none()
    if found is None:
        return None
    link, request = found.RunRequest, found.Request
    body = session.scalar(select(RequestBody.body).where(RequestBody.request_id == request_id))
    refused = session.execute(
        select(Rejection.position, Rejection.reason, Rejection.detail)
        .where(Rejection.run_id == run_id, Rejection.subject == link.custom_id)
        .order_by(Rejection.position, Rejection.reason)
        .limit(_MOST_CANDIDATES)
    )
    return RequestView(
        id=request_id,
        run_id=run_id,
        plan_index=link.plan_index,
        custom_id=link.custom_id,
        kind=link.kind,
        state=request.state,
        outcome=link.outcome,
        sample_index=request.sample_index,
        attributes=link.attributes,
        notes=link.notes or {},
        messages=[] if body is None else _messages(body),
        attempts=_attempts(session, request_id),
        parsed=_parsed(session, link),
        rejections=[(position, reason, detail) for position, reason, detail in refused],
    )


def _messages(body: bytes) -> list[tuple[str, str]]:
    """(role, text) of the wire body; parts of a text are put together."""
    messages = orjson.loads(zlib.decompress(body)).get("messages") or []
    return [(str(message.get("role", "")), _text(message.get("content"))) for message in messages]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return str(content or "")


def _attempts(session: Session, request_id: int) -> list[Attempt]:
    rows = session.execute(
        select(Completion, CompletionBody.body)
        .outerjoin(CompletionBody, CompletionBody.completion_id == Completion.id)
        .where(Completion.request_id == request_id)
        .order_by(Completion.attempt)
    )
    return [
        Attempt(
            one.attempt,
            one.engine,
            one.model_reported,
            one.finish_reason,
            one.error,
            one.input_tokens,
            one.cached_tokens,
            one.output_tokens,
            one.cost_usd,
            one.latency_s,
            one.received_at,
            None if body is None else zlib.decompress(body).decode("utf-8", "replace"),
        )
        for one, body in rows
    ]


def _parsed(session: Session, link: RunRequest) -> list[Parsed]:
    """Negatives that this request brought, and the positives of their examples.

    A request names its first example; those of a document are found by it. So no search by request over all
    sourcings is needed, which have no such index.
    """
    of_request = [Example.id == link.example_id]
    document = link.source.get("document")
    if isinstance(document, int):
        of_request.append(Example.positive_id == document)
    examples = session.scalars(select(Example.id).where(or_(*of_request)).limit(_MOST_EXAMPLES)).all()
    brought = select(Sourcing.id).where(Sourcing.candidate_id == Candidate.id, Sourcing.request_id == link.request_id)
    is_own_positive = (Candidate.role == "positive") & (Candidate.example_id == link.example_id)
    rows = session.execute(
        select(Candidate, Passage.text)
        .join(Passage, Passage.id == Candidate.passage_id)
        .where(Candidate.example_id.in_(examples), brought.exists() | is_own_positive)
        .order_by(Candidate.example_id, Candidate.role.desc(), Candidate.rank, Candidate.id)
        .limit(_MOST_CANDIDATES)
    )
    return [
        Parsed(one.id, one.example_id, one.role, one.grade, one.rank, one.origin, text, one.violated_requirement)
        for one, text in rows
    ]
