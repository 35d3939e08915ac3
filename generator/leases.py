"""Leases: which process brings the answer to which request, until when.

A process' lease ends by the clock, which its heartbeat puts forward; one that ran out is taken over by whoever asks
next. A batch's ends when the batch is collected, and a file's when its answers are read or the file is gone, never by
the clock: they may be paid for. Functions take a session and never commit; whoever opened it does.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, not_, or_, select, update
from sqlalchemy.orm import Session

from db.tables.base import utc_now
from db.tables.ledger import Request, RequestBody, RunRequest
from generator.budget import Room, Spent, WorstCase, book_all, unreserve
from generator.holders import BATCH, FILE
from generator.ledger import FREED, Wanted


def _is_free(*, is_failed_too: bool) -> ColumnElement[bool]:
    """Requests that may be asked now: without an answer, and not leased to a process whose clock still runs."""
    states = ("pending", "failed") if is_failed_too else ("pending",)
    outside = Request.lease_holder.startswith(BATCH) | Request.lease_holder.startswith(FILE)
    has_clock = Request.lease_holder.is_(None) | not_(outside)
    ran_out = (Request.state == "leased") & (Request.leased_until < utc_now()) & has_clock
    return or_(Request.state.in_(states), ran_out)


def held_by(session: Session, run_id: int, holder: str) -> Iterator[Wanted]:
    """Requests of the run that this batch or file holds, in plan order."""
    rows = session.execute(
        select(Request.id, RunRequest.custom_id, RunRequest.plan_index, RequestBody.body)
        .join(RunRequest, RunRequest.request_id == Request.id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, Request.lease_holder == holder, Request.state == "leased")
        .order_by(RunRequest.plan_index),
        execution_options={"yield_per": 500},
    )
    for key, custom_id, index, body in rows:
        yield Wanted(key, custom_id, index, zlib.decompress(body))


def hand_over(session: Session, items: Sequence[Wanted], holder: str) -> None:
    """From this process to a batch or a file, whose lease no clock ends."""
    for start in range(0, len(items), 500):
        ids = select(Request.id).where(Request.id.in_([item.request_id for item in items[start : start + 500]]))
        _change(session, ids, {"lease_holder": holder, "leased_until": utc_now()})


def _unread(run_id: int) -> Select[int, str, int, bytes, int | None, float | None, int | None]:
    return (
        select(
            Request.id,
            RunRequest.custom_id,
            RunRequest.plan_index,
            RequestBody.body,
            Request.reserved_tokens,
            Request.reserved_usd,
            Request.reserved_by,
        )
        .join(RunRequest, RunRequest.request_id == Request.id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None))
        .order_by(RunRequest.plan_index)
    )


def lease(
    session: Session,
    run_id: int,
    *,
    limit: int,
    holder: str,
    lease_s: float,
    after: int,
    is_failed_too: bool,
    worst: WorstCase,
    room: Room,
) -> tuple[list[Wanted], bool]:
    """Take requests beyond plan index `after` for this holder alone, as far as the budget has room.

    Returns (requests, whether the budget stopped it). A lease that ran out is taken over; its reservation counts as
    spent by the run that made it, since the answer that never came may have been paid for.
    """
    is_next = RunRequest.plan_index > after
    statement = _unread(run_id).where(is_next, _is_free(is_failed_too=is_failed_too)).limit(limit)
    if session.get_bind().dialect.name == "postgresql":
        statement = statement.with_for_update(of=Request, skip_locked=True, key_share=True)
    taken: list[Wanted] = []
    costs: list[Spent] = []
    lost: dict[int, Spent] = {}
    reserved, is_stopped = Spent(), False
    for key, custom_id, index, body, old_tokens, old_usd, old_run in session.execute(statement).all():
        wire = zlib.decompress(body)
        cost = worst.of(wire)
        if not room.takes(cost):
            is_stopped = True
            break
        room = room.less(cost)
        if old_tokens or old_usd:
            loser = run_id if old_run is None else old_run
            lost[loser] = lost.get(loser, Spent()).plus(Spent(old_tokens or 0, old_usd or 0.0))
        reserved = reserved.plus(cost)
        taken.append(Wanted(key, custom_id, index, wire))
        costs.append(cost)
    _mark(session, run_id, taken, costs, holder, lease_s)
    book_all(session, spent=lost, reserved={run_id: reserved}, freed=lost)
    return taken, is_stopped


def _mark(
    session: Session, run_id: int, taken: Sequence[Wanted], costs: Sequence[Spent], holder: str, lease_s: float
) -> None:
    if not taken:
        return
    requests = Request.__table__
    rows = [
        {"b_id": item.request_id, "b_tokens": cost.tokens, "b_usd": cost.usd}
        for item, cost in zip(taken, costs, strict=True)
    ]
    values = {
        "state": "leased",
        "leased_until": utc_now() + timedelta(seconds=lease_s),
        "lease_holder": holder,
        "reserved_tokens": bindparam("b_tokens"),
        "reserved_usd": bindparam("b_usd"),
        "reserved_by": run_id,
    }
    change = update(requests).where(requests.c.id == bindparam("b_id"))  # type: ignore[arg-type]
    session.connection().execute(change.values(**values), rows)


def renew_leases(session: Session, holder: str, lease_s: float) -> None:
    """Put the clock of everything that this holder has in flight forward; what is just being settled is left out."""
    mine = select(Request.id).where(Request.lease_holder == holder, Request.state == "leased")
    _change(session, mine, {"leased_until": utc_now() + timedelta(seconds=lease_s)}, skip_locked=True)


def free_leases_of(session: Session, holders: Sequence[str]) -> int:
    """Let the clock of dead holders run out at once. Returns how many requests that frees."""
    dead = select(Request.id).where(Request.lease_holder.in_(holders), Request.state == "leased")
    return _change(session, dead, {"leased_until": utc_now() - timedelta(seconds=1), "lease_holder": None})


def _change(session: Session, ids: Select[int], values: dict[str, Any], *, skip_locked: bool = False) -> int:
    """Change these requests, which PostgreSQL locks in the order of their ids, as `ledger.record` does: in any other
    order the two would wait for each other."""
    if session.get_bind().dialect.name == "postgresql":
        ids = ids.order_by(Request.id).with_for_update(skip_locked=skip_locked, key_share=True)
    change = update(Request).where(Request.id.in_(ids)).values(**values)
    result = session.execute(change, execution_options={"synchronize_session": False})
    return int(result.rowcount)  # type: ignore[attr-defined]


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
    freed = unreserve(session, request_ids, run_id)
    mine = select(Request.id).where(Request.id.in_(request_ids), Request.state == "leased")
    _change(session, mine, {"state": "pending", **FREED})
    book_all(session, spent={}, reserved={}, freed=freed)


def lose(
    session: Session, run_id: int, items: Sequence[Wanted], *, worst: WorstCase, room: Room
) -> tuple[list[Wanted], Spent]:
    """Attempts that left and came to nothing: what each has reserved counts as spent.

    Returns (those that the budget lets go again, with a new reservation; what was spent). The others are given back.
    """
    kept, spent = [], Spent()
    for item in items:
        cost = worst.of(item.wire)
        spent = spent.plus(cost)
        if room.takes(cost):
            room = room.less(cost)
            kept.append(item)
    again = {item.request_id for item in kept}
    if given := [item.request_id for item in items if item.request_id not in again]:
        release_leases(session, run_id, given)
    book_all(session, spent={run_id: spent}, reserved={}, freed={})
    return kept, spent
