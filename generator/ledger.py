"""The ledger: what was asked, what came back, what remains.

A request's identity is the SHA-256 of (model, canonical wire body, sample index), so nothing committed is ever sent
again, whichever run asks. Functions take a session and never commit; whoever opened it does.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Any

import orjson
from sqlalchemy import bindparam, case, func, select, update
from sqlalchemy.orm import Session

from db.digest import canonical_json, digest_of
from db.insert import insert_missing
from db.runs import Rejected, add_rejections
from db.tables.base import utc_now
from db.tables.ledger import Completion, CompletionBody, Request, RequestBody, RunRequest
from generator.budget import Spent, book_all, unreserve
from generator.models import ModelFacts
from generator.plan import Planned

# Level 1 takes a fifth of the time of level 6 and leaves texts a tenth larger.
_COMPRESSION = 1
_LOOKUP = 500
# Columns of a request that is leased to nobody.
FREED = {
    "leased_until": None,
    "lease_holder": None,
    "reserved_usd": None,
    "reserved_tokens": None,
    "reserved_by": None,
}


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

    `may_be_paid`: the request left and no answer came, so what was reserved for it counts as spent. `is_refusal`: the
    model answered, and its answer is that it will not, or nothing; asking the same again is no use.
    """

    request_id: int
    engine: str
    text: str | None
    error: str | None = None
    is_refusal: bool = False
    may_be_paid: bool = False
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


def request_digest(model: str, body: dict[str, Any], sample_index: int = 0) -> str:
    """The identity of a request."""
    return digest_of([model, canonical_json(body).decode(), sample_index])


def enqueue(session: Session, run_id: int, planned: Sequence[Planned], model: str) -> int:
    """Put requests of a plan into the ledger and link them to the run. Returns how many are new to the run.

    Two places of a plan that ask the very same are one request: the second is refused with its reason.
    """
    wires = [canonical_json(item.body) for item in planned]
    digests = [digest_of([model, wire.decode(), item.sample_index]) for wire, item in zip(wires, planned, strict=True)]
    now = utc_now()
    # In one order for all: two processes that plan the same must not wait for each other's rows.
    in_order = sorted(zip(digests, planned, strict=True), key=lambda pair: pair[0])
    rows = [
        {"digest": digest, "model": model, "sample_index": item.sample_index, "state": "pending", "created_at": now}
        for digest, item in in_order
    ]
    insert_missing(session, Request, rows)
    keys = _request_keys(session, digests)
    insert_missing(
        session,
        RequestBody,
        [
            {"request_id": keys[digest], "body": zlib.compress(wire, _COMPRESSION)}
            for digest, wire in sorted(zip(digests, wires, strict=True), key=lambda pair: keys[pair[0]])
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
    num_new = insert_missing(session, RunRequest, links)
    if num_new < len(links):
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


def record(
    session: Session, run_id: int, answers: Sequence[Answer], *, facts: ModelFacts, by_batch: bool = False
) -> Spent:
    """Append the answers as attempts, settle what they cost, and mark their requests done or failed.

    A request that is done stays done. One whose cost nobody told costs what was reserved for it: the worst case, so
    that a budget holds against any server. Returns what these answers cost.
    """
    # In one order for all: two transactions that lock the same rows must not wait for each other.
    answers = sorted(answers, key=lambda answer: answer.request_id)
    ids = [answer.request_id for answer in answers]
    attempts = _attempts(session, ids)
    now = utc_now()
    rows, bodies = [], []
    unknown_ids: list[int] = []
    tokens, usd = 0, 0.0
    for answer in answers:
        attempts[answer.request_id] = attempts.get(answer.request_id, 0) + 1
        row = _completion(answer, attempts[answer.request_id], now, facts, by_batch)
        if _is_cost_unknown(answer, row):
            unknown_ids.append(answer.request_id)
        else:
            tokens += (row["input_tokens"] or 0) + (row["output_tokens"] or 0)
            usd += row["cost_usd"] or 0.0
        rows.append(row)
        if answer.text is not None:
            bodies.append((answer.request_id, row["attempt"], zlib.compress(answer.text.encode(), _COMPRESSION)))
    insert_missing(session, Completion, rows)
    _put_bodies(session, bodies)
    freed = unreserve(session, ids, run_id)
    unknown = unreserve(session, unknown_ids, run_id)
    settled = [
        {"b_id": answer.request_id, "b_state": "failed" if answer.text is None else "done"} for answer in answers
    ]
    requests = Request.__table__
    state = case((requests.c.state == "done", "done"), else_=bindparam("b_state"))
    change = update(requests).where(requests.c.id == bindparam("b_id"))  # type: ignore[arg-type]
    session.connection().execute(change.values(state=state, **FREED), settled)
    spent = {**unknown, run_id: unknown.get(run_id, Spent()).plus(Spent(tokens, usd))}
    book_all(session, spent=spent, reserved={}, freed=freed)
    return reduce(Spent.plus, spent.values())


def _is_cost_unknown(answer: Answer, row: Mapping[str, Any]) -> bool:
    """Whether it was, or may have been, paid for and nobody said how much: no usage, or none that can be read."""
    if answer.text is None and answer.status != 200:
        return answer.may_be_paid
    return row["input_tokens"] is None or row["output_tokens"] is None


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
    counts = token_counts(answer.usage)
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


def token_counts(usage: dict[str, Any] | None) -> dict[str, int | None]:
    """Tokens of a usage object by the columns that hold them; what a server left out or garbled is None."""
    usage = usage or {}
    details = [usage.get(f"{name}_tokens_details") for name in ("prompt", "completion")]
    prompt, output = (value if isinstance(value, dict) else {} for value in details)
    return {
        "input_tokens": _count(usage.get("prompt_tokens")),
        "cached_tokens": _count(prompt.get("cached_tokens")),
        "cache_write_tokens": _count(prompt.get("cache_write_tokens")),
        "output_tokens": _count(usage.get("completion_tokens")),
        "reasoning_tokens": _count(output.get("reasoning_tokens")),
    }


def _count(value: Any) -> int | None:
    """A token count as the server reported it; anything but a sensible number is nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


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
