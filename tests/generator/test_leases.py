"""Leases, reservations and the transactions of several processes on one run, on SQLite and on PostgreSQL."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.runs import start_run
from db.store import Store
from db.tables.base import utc_now
from db.tables.ledger import Completion, Request, Run
from generator import leases, ledger
from generator.budget import Room, Spent, WorstCase
from generator.desk import Desk
from generator.errors import EngineStopped
from generator.heartbeat import Heartbeat
from generator.ledger import Answer, Wanted, enqueue
from generator.models import facts_of
from generator.plan import Planned
from generator.recipe import Budget

FACTS = facts_of("m")
WORST = WorstCase(FACTS, 100)
USAGE = {"prompt_tokens": 10, "completion_tokens": 5}


def planned(numbers: Sequence[int]) -> list[Planned]:
    return [Planned(n, f"c{n}", "k", {}, {}, {"question": n}) for n in numbers]


def run_of(store: Store, name: str, num: int) -> int:
    with store.write() as session:
        run = start_run(session, "generate", name, {"name": name}, 0).id
        enqueue(session, run, planned(range(num)), "m")
    return run


def take(session: Session, run: int, holder: str, num: int) -> list[Wanted]:
    taken, _ = leases.lease(
        session, run, limit=num, holder=holder, lease_s=30, after=-1, is_failed_too=True, worst=WORST,
        room=Room(None, None),
    )  # fmt: skip
    return taken


def money(store: Store, run: int) -> tuple[int, int]:
    with store.read() as session:
        row = session.get_one(Run, run)
        return row.spent_tokens, row.reserved_tokens


def good(item: Wanted, usage: Any = USAGE) -> Answer:
    return Answer(item.request_id, "e", "text", usage=usage)


def test_a_heartbeat_and_a_writer_never_wait_for_each_other(store: Store) -> None:
    run = run_of(store, "a", 1_500)
    with store.write() as session:
        taken = take(session, run, "h", 1_500)
    ended, faults = threading.Event(), []

    def beat() -> None:
        try:
            while not ended.is_set():
                with store.write() as session:
                    leases.renew_leases(session, "h", 30)
        except OperationalError as error:
            faults.append(error)

    thread = threading.Thread(target=beat)
    thread.start()
    random.Random(1).shuffle(taken)
    try:
        for start in range(0, 1_500, 150):
            with store.write() as session:
                ledger.record(session, run, [good(item) for item in taken[start : start + 150]], facts=FACTS)
    finally:
        ended.set()
        thread.join()
    assert not faults and money(store, run) == (1_500 * 15, 0)


def test_two_that_plan_the_same_never_wait_for_each_other(store: Store) -> None:
    runs = [run_of(store, name, 0) for name in ("a", "b")]
    faults: list[Exception] = []

    def plan(run: int, numbers: Sequence[int]) -> None:
        try:
            with store.write() as session:
                enqueue(session, run, planned(numbers), "m")
        except OperationalError as error:
            faults.append(error)

    for block in range(5):
        numbers = range(block * 400, block * 400 + 400)
        threads = [
            threading.Thread(target=plan, args=(run, list(numbers)[::step]))
            for run, step in zip(runs, (1, -1), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with store.read() as session:
        assert (faults, session.scalar(select(func.count()).select_from(Request))) == ([], 2_000)


def test_what_a_dead_process_had_reserved_is_spent_by_its_own_run(store: Store) -> None:
    first, second = run_of(store, "a", 3), run_of(store, "b", 3)
    with store.write() as session:
        lost = take(session, first, "gone", 2)
        session.execute(update(Request).where(Request.state == "leased").values(leased_until=utc_now()))
    reserved = sum(WORST.of(item.wire).tokens for item in lost)
    assert money(store, first) == (0, reserved)
    with store.write() as session:
        taken = take(session, second, "h", 3)
    assert money(store, first) == (reserved, 0)
    with store.write() as session:
        ledger.record(session, second, [good(item) for item in taken], facts=FACTS)
    assert money(store, first) == (reserved, 0) and money(store, second) == (3 * 15, 0)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": 10}, {"prompt_tokens": "10", "completion_tokens": 5},
     {"prompt_tokens": 10, "completion_tokens": -5}],
)  # fmt: skip
def test_an_answer_of_unknown_cost_costs_what_was_reserved(store: Store, usage: Any) -> None:
    run = run_of(store, "a", 3)
    with store.write() as session:
        told, silent, refused = take(session, run, "h", 3)
    worst = WORST.of(silent.wire).tokens
    answers = [good(told), good(silent, usage), Answer(refused.request_id, "e", None, error="no", status=400)]
    with store.write() as session:
        assert ledger.record(session, run, answers, facts=FACTS) == Spent(15 + worst, 0.0)
    assert money(store, run) == (15 + worst, 0)


def test_a_lost_attempt_is_spent_and_goes_again_only_within_the_budget(store: Store) -> None:
    run = run_of(store, "a", 2)
    worst = WORST.of(b'{"question":0}').tokens
    with Desk(store, run, None, worst=WORST, budget=Budget(tokens=3 * worst)) as desk:
        items = desk.take(2)
        assert money(store, run) == (0, 2 * worst)
        assert desk.lose(items) == items[:1]
        assert money(store, run) == (2 * worst, worst)
        with store.read() as session:
            assert session.get_one(Request, items[1].request_id).state == "pending"
        assert desk.take(1) == [] and not desk.progress.is_out_of_budget
        desk.settle([good(items[0])])
        assert desk.take(1) == [] and desk.progress.is_out_of_budget
    assert money(store, run) == (2 * worst + 15, 0)


class FailingStore(Store):
    """A store whose disk can be filled."""

    is_full = False

    @contextmanager
    def write(self) -> Iterator[Session]:
        if self.is_full:
            raise OperationalError("insert", {}, OSError("the disk is full"))
        with super().write() as session:
            yield session


def test_answers_that_could_not_be_committed_are_committed_at_the_end_and_once(store: Store) -> None:
    run = run_of(store, "a", 2)
    failing = FailingStore(store.engine)
    with Desk(failing, run, None, worst=WORST) as desk:
        first, second = desk.take(2)
        failing.is_full = True
        with pytest.raises(OperationalError, match="full"):
            desk.settle([good(first)])
        with pytest.raises(OperationalError, match="full"):
            desk.settle([good(second)])
        failing.is_full = False
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Completion)) == 2
    assert money(store, run) == (2 * 15, 0) and desk.progress.num_new == 2


def test_a_heartbeat_that_cannot_renew_stops_the_engine_before_its_leases_end(store: Store) -> None:
    run = run_of(store, "a", 2)
    failing = FailingStore(store.engine)
    with (
        pytest.raises(EngineStopped, match=r"could not be renewed.*disk is full"),
        Desk(failing, run, None, worst=WORST, lease_s=0.5) as desk,
    ):
        assert len(desk.take(1)) == 1
        failing.is_full = True
        assert desk.stopping.wait(30)
        failing.is_full = False
        assert desk.take(1) == []


def test_a_heartbeat_outlives_a_fault(store: Store) -> None:
    run = run_of(store, "a", 1)
    failing = FailingStore(store.engine)
    with store.write() as session:
        take(session, run, "h", 1)
        session.execute(update(Request).values(leased_until=utc_now()))
    failing.is_full = True
    tried = threading.Event()

    def is_needed() -> bool:
        if tried.is_set():
            failing.is_full = False
        tried.set()
        return True

    heart = Heartbeat(failing, "h", 5.0, is_needed=is_needed, on_failure=lambda: None)
    heart.start()
    try:
        for _ in range(1_000):
            with store.read() as session:
                if session.scalars(select(Request.leased_until)).one() > utc_now():
                    break
            threading.Event().wait(0.02)
        else:
            pytest.fail("the lease was never renewed")
    finally:
        heart.stop()
    assert heart.failure is None
