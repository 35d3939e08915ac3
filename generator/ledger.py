"""The ledger: what was asked, what came back, what remains.

A request's identity is the SHA-256 of (model, canonical wire body, sample index), so nothing committed is ever sent
again, whichever run asks. Functions take a session and never commit; whoever opened it does.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.orm import Session

from db.digest import canonical_json, digest_of
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.ledger import Completion, CompletionBody, Request, RequestBody, RunRequest
from generator.plan import Planned


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that has no answer yet."""

    request_id: int
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt at a request: the text that came back, or the reason why none did."""

    request_id: int
    engine: str
    text: str | None
    error: str | None = None
    status: int | None = None
    finish_reason: str | None = None
    model_reported: str | None = None
    usage: dict[str, Any] | None = None
    latency_s: float | None = None


@dataclass(frozen=True, slots=True)
class Harvestable:
    """A completion that this run has not read yet."""

    run_request_id: int
    request_id: int
    custom_id: str
    kind: str
    attributes: dict[str, Any]
    source: dict[str, Any]
    text: str
    finish_reason: str | None


def request_digest(model: str, body: dict[str, Any], sample_index: int = 0) -> str:
    """The identity of a request."""
    return digest_of([model, canonical_json(body).decode(), sample_index])


def enqueue(session: Session, run_id: int, planned: Sequence[Planned], model: str) -> int:
    """Put requests of a plan into the ledger and link them to the run. Returns how many the ledger did not have."""
    digests = [request_digest(model, item.body) for item in planned]
    now = utc_now()
    rows = [
        {
            "digest": digest,
            "model": model,
            "sample_index": 0,
            "state": "pending",
            "leased_until": None,
            "created_at": now,
        }
        for digest in digests
    ]
    num_new = insert_missing(session, Request, rows)
    keys = {
        digest: key
        for digest, key in session.execute(select(Request.digest, Request.id).where(Request.digest.in_(digests)))
    }
    bodies = [
        {"request_id": keys[digest], "body": zlib.compress(canonical_json(item.body))}
        for digest, item in zip(digests, planned, strict=True)
    ]
    insert_missing(session, RequestBody, bodies)
    links = [
        {
            "run_id": run_id,
            "request_id": keys[digest],
            "plan_index": item.plan_index,
            "custom_id": item.cell.custom_id,
            "kind": item.cell.kind,
            "attributes": item.cell.attributes,
            "source": item.source,
            "num_accepted": 0,
        }
        for digest, item in zip(digests, planned, strict=True)
    ]
    insert_missing(session, RunRequest, links)
    return num_new


def _unanswered(run_id: int) -> Select[int, str, bytes]:
    now = utc_now()
    is_free = or_(Request.state.in_(("pending", "failed")), Request.leased_until < now)
    return (
        select(Request.id, RunRequest.custom_id, RequestBody.body)
        .join(RunRequest, RunRequest.request_id == Request.id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, Request.state != "done", is_free)
        .order_by(RunRequest.plan_index)
    )


def wanted(session: Session, run_id: int) -> Iterator[Wanted]:
    """Requests of the run that remain to be asked, in plan order."""
    for key, custom_id, body in session.execute(_unanswered(run_id), execution_options={"yield_per": 500}):
        yield Wanted(key, custom_id, orjson.loads(zlib.decompress(body)))


def lease(session: Session, run_id: int, *, limit: int, lease_s: float, skip: set[int]) -> list[Wanted]:
    """Take requests for this process alone until the lease's clock runs out; `skip` names those given up on."""
    statement = _unanswered(run_id).limit(limit)
    if skip:
        statement = statement.where(Request.id.not_in(skip))
    if session.get_bind().dialect.name == "postgresql":
        statement = statement.with_for_update(of=Request, skip_locked=True)
    taken = [
        Wanted(key, custom_id, orjson.loads(zlib.decompress(body)))
        for key, custom_id, body in session.execute(statement)
    ]
    if taken:
        until = utc_now() + timedelta(seconds=lease_s)
        ids = [item.request_id for item in taken]
        session.execute(update(Request).where(Request.id.in_(ids)).values(state="leased", leased_until=until))
    return taken


def release_leases(session: Session, request_ids: Sequence[int]) -> None:
    """Give requests back that were leased and not asked."""
    mine = update(Request).where(Request.id.in_(request_ids), Request.state == "leased")
    session.execute(mine.values(state="pending", leased_until=None))


def record(session: Session, answers: Sequence[Answer], *, received_at: datetime | None = None) -> None:
    """Append the answers as attempts, and mark their requests done or failed. One that is done stays done."""
    ids = [answer.request_id for answer in answers]
    attempts: dict[int, int] = {
        key: num
        for key, num in session.execute(
            select(Completion.request_id, func.max(Completion.attempt))
            .where(Completion.request_id.in_(ids))
            .group_by(Completion.request_id)
        )
    }
    for answer in answers:
        attempts[answer.request_id] = attempts.get(answer.request_id, 0) + 1
        completion = _completion(answer, attempts[answer.request_id], received_at or utc_now())
        session.add(completion)
        if answer.text is not None:
            session.flush()
            session.add(CompletionBody(completion_id=completion.id, body=zlib.compress(answer.text.encode())))
    answered = [answer.request_id for answer in answers if answer.text is not None]
    failed = [answer.request_id for answer in answers if answer.text is None]
    done = update(Request).where(Request.id.in_(answered))
    session.execute(done.values(state="done", leased_until=None))
    not_done = update(Request).where(Request.id.in_(failed), Request.state != "done")
    session.execute(not_done.values(state="failed", leased_until=None))


def _completion(answer: Answer, attempt: int, received_at: datetime) -> Completion:
    usage = answer.usage or {}
    prompt, output = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    return Completion(
        request_id=answer.request_id,
        attempt=attempt,
        engine=answer.engine,
        model_reported=answer.model_reported,
        status=answer.status,
        finish_reason=answer.finish_reason,
        error=answer.error,
        input_tokens=usage.get("prompt_tokens"),
        cached_tokens=prompt.get("cached_tokens"),
        cache_write_tokens=prompt.get("cache_write_tokens"),
        output_tokens=usage.get("completion_tokens"),
        reasoning_tokens=output.get("reasoning_tokens"),
        latency_s=answer.latency_s,
        received_at=received_at,
    )


def unread(session: Session, run_id: int, limit: int) -> list[Harvestable]:
    """Answered requests of the run whose completion it has not read yet; the newest good attempt of each."""
    newest = (
        select(Completion.request_id, func.max(Completion.attempt).label("attempt"))
        .where(Completion.error.is_(None))
        .group_by(Completion.request_id)
        .subquery()
    )
    rows = session.execute(
        select(RunRequest, CompletionBody.body, Completion.finish_reason)
        .join(newest, newest.c.request_id == RunRequest.request_id)
        .join(Completion, (Completion.request_id == newest.c.request_id) & (Completion.attempt == newest.c.attempt))
        .join(CompletionBody, CompletionBody.completion_id == Completion.id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None))
        .order_by(RunRequest.plan_index)
        .limit(limit)
    )
    return [
        Harvestable(
            link.id,
            link.request_id,
            link.custom_id,
            link.kind,
            link.attributes,
            link.source,
            zlib.decompress(body).decode(),
            finish_reason,
        )
        for link, body, finish_reason in rows
    ]
