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
from sqlalchemy import ColumnElement, bindparam, case, func, or_, select, update
from sqlalchemy.orm import Session

from db.digest import canonical_json, digest_of
from db.insert import insert_missing
from db.runs import Rejected, add_rejections
from db.tables.base import utc_now
from db.tables.ledger import Completion, CompletionBody, Request, RequestBody, Run, RunRequest
from generator.models import ModelFacts
from generator.plan import Planned

# Level 1 takes a fifth of the time of level 6 and leaves texts a tenth larger.
_COMPRESSION = 1
_LOOKUP = 500


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that has no answer yet; `wire` is its canonical body."""

    request_id: int
    custom_id: str
    plan_index: int
    wire: bytes

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = orjson.loads(self.wire)
        return body


@dataclass(frozen=True, slots=True)
class Answer:
    """One attempt at a request: the text that came back, or the reason why none did.

    `is_refusal`: the model answered, and its answer is that it will not, or nothing; asking the same again is no use.
    """

    request_id: int
    engine: str
    text: str | None
    error: str | None = None
    is_refusal: bool = False
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
    plan_index: int
    custom_id: str
    kind: str
    attributes: dict[str, Any]
    source: dict[str, Any]
    text: str
    finish_reason: str | None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and money."""

    tokens: int = 0
    usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Room:
    """What a budget still allows; None where it sets no limit."""

    tokens: int | None
    usd: float | None

    def takes(self, cost: Spent) -> bool:
        fits_tokens = self.tokens is None or cost.tokens <= self.tokens
        return fits_tokens and (self.usd is None or cost.usd <= self.usd + 1e-12)

    def less(self, cost: Spent) -> "Room":
        tokens = None if self.tokens is None else self.tokens - cost.tokens
        return Room(tokens, None if self.usd is None else self.usd - cost.usd)


def request_digest(model: str, body: dict[str, Any], sample_index: int = 0) -> str:
    """The identity of a request."""
    return digest_of([model, canonical_json(body).decode(), sample_index])


def enqueue(session: Session, run_id: int, planned: Sequence[Planned], model: str) -> int:
    """Put requests of a plan into the ledger and link them to the run. Returns how many the ledger did not have.

    Two places of a plan that ask the very same are one request: the second is refused with its reason.
    """
    wires = [canonical_json(item.body) for item in planned]
    digests = [digest_of([model, wire.decode(), item.sample_index]) for wire, item in zip(wires, planned, strict=True)]
    now = utc_now()
    rows = [
        {"digest": digest, "model": model, "sample_index": item.sample_index, "state": "pending", "created_at": now}
        for digest, item in zip(digests, planned, strict=True)
    ]
    num_new = insert_missing(session, Request, rows)
    keys = _request_keys(session, digests)
    insert_missing(
        session,
        RequestBody,
        [
            {"request_id": keys[digest], "body": zlib.compress(wire, _COMPRESSION)}
            for digest, wire in zip(digests, wires, strict=True)
        ],
    )
    links = [
        {
            "run_id": run_id,
            "request_id": keys[digest],
            "plan_index": item.plan_index,
            "custom_id": item.custom_id,
            "kind": item.kind,
            "attributes": item.attributes,
            "source": item.source,
            "num_accepted": 0,
        }
        for digest, item in zip(digests, planned, strict=True)
    ]
    if insert_missing(session, RunRequest, links) < len(links):
        _refuse_same_requests(session, run_id, links)
    return num_new


def _request_keys(session: Session, digests: Sequence[str]) -> dict[str, int]:
    keys: dict[str, int] = {}
    for start in range(0, len(digests), _LOOKUP):
        chunk = digests[start : start + _LOOKUP]
        rows = session.execute(select(Request.digest, Request.id).where(Request.digest.in_(chunk)))
        keys.update({digest: key for digest, key in rows})
    return keys


def _refuse_same_requests(session: Session, run_id: int, links: Sequence[dict[str, Any]]) -> None:
    wanted = RunRequest.request_id.in_([link["request_id"] for link in links])
    known = {
        request: custom_id
        for request, custom_id in session.execute(
            select(RunRequest.request_id, RunRequest.custom_id).where(RunRequest.run_id == run_id, wanted)
        )
    }
    rows = []
    for link in links:
        first = known.get(link["request_id"])
        if first != link["custom_id"]:
            rows.append(Rejected(link["custom_id"], 0, "same_request", f"asks the very same as {first}"))
    add_rejections(session, run_id, rows)


def is_unanswered(now: datetime) -> ColumnElement[bool]:
    """Requests that may be asked now: not done, and not leased to a process whose clock still runs."""
    return or_(Request.state.in_(("pending", "failed")), (Request.state == "leased") & (Request.leased_until < now))


def wanted(session: Session, run_id: int) -> Iterator[Wanted]:
    """Requests of the run that remain to be asked, in plan order."""
    statement = (
        select(Request.id, RunRequest.custom_id, RunRequest.plan_index, RequestBody.body)
        .join(RunRequest, RunRequest.request_id == Request.id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None), is_unanswered(utc_now()))
        .order_by(RunRequest.plan_index)
    )
    for key, custom_id, index, body in session.execute(statement, execution_options={"yield_per": 500}):
        yield Wanted(key, custom_id, index, zlib.decompress(body))


def lease(
    session: Session,
    run_id: int,
    *,
    limit: int,
    holder: str,
    lease_s: float,
    after: int,
    is_failed_too: bool,
    worst: "WorstCase",
    room: Room,
) -> tuple[list[Wanted], bool]:
    """Take requests beyond plan index `after` for this holder alone, as far as the budget has room.

    Returns (requests, whether the budget stopped it). A lease that ran out is taken over; its reservation counts as
    spent, since the answer that never came may have been paid for.
    """
    now = utc_now()
    states = ("pending", "failed") if is_failed_too else ("pending",)
    is_free = or_(Request.state.in_(states), (Request.state == "leased") & (Request.leased_until < now))
    statement = (
        select(
            Request.id,
            RunRequest.custom_id,
            RunRequest.plan_index,
            RequestBody.body,
            Request.reserved_tokens,
            Request.reserved_usd,
        )
        .join(RunRequest, RunRequest.request_id == Request.id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.plan_index > after, RunRequest.outcome.is_(None), is_free)
        .order_by(RunRequest.plan_index)
        .limit(limit)
    )
    if session.get_bind().dialect.name == "postgresql":
        statement = statement.with_for_update(of=Request, skip_locked=True)
    taken: list[Wanted] = []
    leases: list[dict[str, Any]] = []
    lost, reserved = Spent(), Spent()
    is_stopped = False
    for key, custom_id, index, body, old_tokens, old_usd in session.execute(statement).all():
        wire = zlib.decompress(body)
        cost = worst.of(wire)
        forfeited = Spent(old_tokens or 0, old_usd or 0.0)
        if not room.takes(cost):
            is_stopped = True
            break
        room = room.less(cost)
        lost = Spent(lost.tokens + forfeited.tokens, lost.usd + forfeited.usd)
        reserved = Spent(reserved.tokens + cost.tokens, reserved.usd + cost.usd)
        taken.append(Wanted(key, custom_id, index, wire))
        leases.append({"b_id": key, "b_tokens": cost.tokens, "b_usd": cost.usd})
    if taken:
        change = update(Request.__table__).where(Request.__table__.c.id == bindparam("b_id"))  # type: ignore[arg-type]
        until = now + timedelta(seconds=lease_s)
        values = {"state": "leased", "leased_until": until, "lease_holder": holder}
        session.connection().execute(
            change.values(**values, reserved_tokens=bindparam("b_tokens"), reserved_usd=bindparam("b_usd")), leases
        )
        _book(session, run_id, spent=lost, reserved=Spent(reserved.tokens - lost.tokens, reserved.usd - lost.usd))
    return taken, is_stopped


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What a request can cost at most: every byte a token, the longest answer, nothing read from a cache."""

    facts: ModelFacts
    max_output: int | None
    by_batch: bool = False

    def of(self, wire: bytes) -> Spent:
        output = self.max_output or 0
        cost = self.facts.worst_cost(len(wire), output, by_batch=self.by_batch)
        return Spent(len(wire) + output, cost or 0.0)


def renew_leases(session: Session, holder: str, lease_s: float) -> None:
    """Put the clock of everything that this holder has in flight forward."""
    mine = update(Request).where(Request.lease_holder == holder, Request.state == "leased")
    session.execute(mine.values(leased_until=utc_now() + timedelta(seconds=lease_s)))


def free_leases_of(session: Session, holders: Sequence[str]) -> int:
    """Let the clock of dead holders run out at once. Returns how many requests that frees."""
    past = utc_now() - timedelta(seconds=1)
    dead = update(Request).where(Request.lease_holder.in_(holders), Request.state == "leased")
    return int(session.execute(dead.values(leased_until=past)).rowcount)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class OpenWork:
    """What of a run is not settled: pending, answered and unread, or held by (holder, until)."""

    num_pending: int
    num_unread: int
    holders: list[tuple[str, datetime]]


def open_work(session: Session, run_id: int) -> OpenWork:
    """What of the run is not settled; what failed is left to the next call."""
    rows = session.execute(
        select(Request.state, Request.lease_holder, func.count(), func.max(Request.leased_until))
        .join(RunRequest, RunRequest.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None), Request.state != "failed")
        .group_by(Request.state, Request.lease_holder)
    ).all()
    held = [(holder or "", until) for state, holder, _, until in rows if state == "leased" and until is not None]
    counts = {state: sum(num for other, _, num, _ in rows if other == state) for state, *_ in rows}
    return OpenWork(counts.get("pending", 0), counts.get("done", 0), held)


def release_leases(session: Session, run_id: int, request_ids: Sequence[int]) -> None:
    """Give requests back that were leased and never sent, with their reservation."""
    freed = _unreserve(session, request_ids)
    mine = update(Request).where(Request.id.in_(request_ids), Request.state == "leased")
    session.execute(
        mine.values(state="pending", leased_until=None, lease_holder=None, reserved_usd=None, reserved_tokens=None)
    )
    _book(session, run_id, reserved=Spent(-freed.tokens, -freed.usd))


def record(
    session: Session, run_id: int, answers: Sequence[Answer], *, facts: ModelFacts, by_batch: bool = False
) -> Spent:
    """Append the answers as attempts, settle what they cost, and mark their requests done or failed.

    A request that is done stays done. Returns what these answers cost.
    """
    ids = [answer.request_id for answer in answers]
    attempts = _attempts(session, ids)
    now = utc_now()
    rows, bodies = [], []
    tokens, usd = 0, 0.0
    for answer in answers:
        attempts[answer.request_id] = attempts.get(answer.request_id, 0) + 1
        row = _completion(answer, attempts[answer.request_id], now, facts, by_batch)
        tokens += (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
        usd += row["cost_usd"] or 0.0
        rows.append(row)
        if answer.text is not None:
            bodies.append((answer.request_id, row["attempt"], zlib.compress(answer.text.encode(), _COMPRESSION)))
    insert_missing(session, Completion, rows)
    _put_bodies(session, bodies)
    freed = _unreserve(session, ids)
    settled = [
        {"b_id": answer.request_id, "b_state": "failed" if answer.text is None else "done"} for answer in answers
    ]
    requests = Request.__table__
    state = case((requests.c.state == "done", "done"), else_=bindparam("b_state"))
    change = update(requests).where(requests.c.id == bindparam("b_id"))  # type: ignore[arg-type]
    cleared = {"leased_until": None, "lease_holder": None, "reserved_usd": None, "reserved_tokens": None}
    session.connection().execute(change.values(state=state, **cleared), settled)
    _book(session, run_id, spent=Spent(tokens, usd), reserved=Spent(-freed.tokens, -freed.usd))
    return Spent(tokens, usd)


def _attempts(session: Session, request_ids: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for start in range(0, len(request_ids), _LOOKUP):
        chunk = request_ids[start : start + _LOOKUP]
        newest = select(Completion.request_id, func.max(Completion.attempt)).where(Completion.request_id.in_(chunk))
        found.update({key: num for key, num in session.execute(newest.group_by(Completion.request_id))})
    return found


def _put_bodies(session: Session, bodies: Sequence[tuple[int, int, bytes]]) -> None:
    if not bodies:
        return
    keys: dict[tuple[int, int], int] = {}
    ids = [request for request, _, _ in bodies]
    for start in range(0, len(ids), _LOOKUP):
        chunk = Completion.request_id.in_(ids[start : start + _LOOKUP])
        rows = session.execute(select(Completion.request_id, Completion.attempt, Completion.id).where(chunk))
        keys.update({(request, attempt): key for request, attempt, key in rows})
    rows_in = [{"completion_id": keys[request, attempt], "body": body} for request, attempt, body in bodies]
    insert_missing(session, CompletionBody, rows_in)


def _completion(
    answer: Answer, attempt: int, received_at: datetime, facts: ModelFacts, by_batch: bool
) -> dict[str, Any]:
    usage = answer.usage or {}
    prompt, output = usage.get("prompt_tokens_details") or {}, usage.get("completion_tokens_details") or {}
    counts = {
        "input_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _count(prompt.get("cached_tokens")),
        "cache_write_tokens": _count(prompt.get("cache_write_tokens")),
        "output_tokens": _count(usage.get("completion_tokens")),
        "reasoning_tokens": _count(output.get("reasoning_tokens")),
    }
    cost = facts.cost(
        input_tokens=counts["input_tokens"] or 0,
        output_tokens=counts["output_tokens"] or 0,
        cached=counts["cached_tokens"] or 0,
        cache_write=counts["cache_write_tokens"] or 0,
        by_batch=by_batch,
    )
    return {
        "request_id": answer.request_id,
        "attempt": attempt,
        "engine": answer.engine,
        "model_reported": answer.model_reported,
        "status": answer.status,
        "finish_reason": answer.finish_reason,
        "error": answer.error,
        **counts,
        "cost_usd": cost if answer.usage else None,
        "latency_s": answer.latency_s,
        "received_at": received_at,
    }


def _count(value: Any) -> int | None:
    """A token count as the server reported it; anything but a sensible number is nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _unreserve(session: Session, request_ids: Sequence[int]) -> Spent:
    tokens, usd = 0, 0.0
    for start in range(0, len(request_ids), _LOOKUP):
        sums = select(func.sum(Request.reserved_tokens), func.sum(Request.reserved_usd)).where(
            Request.id.in_(request_ids[start : start + _LOOKUP]), Request.state == "leased"
        )
        some_tokens, some_usd = session.execute(sums).one()
        tokens, usd = tokens + int(some_tokens or 0), usd + float(some_usd or 0.0)
    return Spent(tokens, usd)


def _book(session: Session, run_id: int, *, spent: Spent | None = None, reserved: Spent) -> None:
    spent = spent or Spent()
    session.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(
            spent_tokens=Run.spent_tokens + spent.tokens,
            spent_usd=Run.spent_usd + spent.usd,
            reserved_tokens=Run.reserved_tokens + reserved.tokens,
            reserved_usd=Run.reserved_usd + reserved.usd,
        ),
        execution_options={"synchronize_session": False},
    )


def harvestable(session: Session, run_id: int, *, after: int, limit: int) -> list[Harvestable]:
    """Answered requests of the run beyond plan index `after` that it has not read; the newest good attempt of each."""
    newest = (
        select(func.max(Completion.attempt))
        .where(Completion.request_id == RunRequest.request_id, Completion.error.is_(None))
        .correlate(RunRequest)
        .scalar_subquery()
    )
    rows = session.execute(
        select(RunRequest, CompletionBody.body, Completion.finish_reason)
        .join(Request, Request.id == RunRequest.request_id)
        .join(Completion, (Completion.request_id == RunRequest.request_id) & (Completion.attempt == newest))
        .join(CompletionBody, CompletionBody.completion_id == Completion.id)
        .where(
            RunRequest.run_id == run_id,
            RunRequest.plan_index > after,
            RunRequest.outcome.is_(None),
            Request.state == "done",
        )
        .order_by(RunRequest.plan_index)
        .limit(limit)
    )
    return [_harvestable(link, zlib.decompress(body).decode(), reason) for link, body, reason in rows]


def harvestable_now(session: Session, run_id: int, answers: Sequence[Answer]) -> list[Harvestable]:
    """The same for answers that were just recorded and are still at hand."""
    found: list[Harvestable] = []
    answer_of = {answer.request_id: answer for answer in answers if answer.text is not None or answer.is_refusal}
    ids = list(answer_of)
    for start in range(0, len(ids), _LOOKUP):
        wanted = RunRequest.request_id.in_(ids[start : start + _LOOKUP])
        links = select(*_LINK).where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None), wanted)
        for link in session.execute(links):
            answer = answer_of[link.request_id]
            refused = answer.error if answer.is_refusal else None
            found.append(_harvestable(link, answer.text or "", answer.finish_reason, refused))
    return found


_LINK = (
    RunRequest.id,
    RunRequest.request_id,
    RunRequest.plan_index,
    RunRequest.custom_id,
    RunRequest.kind,
    RunRequest.attributes,
    RunRequest.source,
)


def _harvestable(link: Any, text: str, finish_reason: str | None, refused: str | None = None) -> Harvestable:
    return Harvestable(
        link.id,
        link.request_id,
        link.plan_index,
        link.custom_id,
        link.kind,
        link.attributes,
        link.source,
        text,
        finish_reason,
        refused,
    )


def decompressed(body: bytes) -> bytes:
    """A stored body or text as it was."""
    return zlib.decompress(body)
