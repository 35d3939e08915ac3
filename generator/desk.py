"""The ledger's desk: where an engine takes requests of one run and hands in answers.

The desk keeps every promise that all engines share: what is taken is leased by the clock and renewed by a heartbeat;
the worst case of its cost is reserved within the budget before it leaves; answers are committed before they are read;
reading brings repairs, and cells that lack accepted texts are refilled; a run of which too much is rejected stops.
Engines only carry requests and answers.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sqlalchemy.orm import Session

from db.runs import Rejected as RejectedRow
from db.runs import add_rejections
from db.store import Store
from db.tables.base import utc_now
from db.tables.ledger import Run
from generator import leases, ledger
from generator.acceptance import Accepted
from generator.budget import Room, Spent, WorstCase
from generator.errors import EngineStopped
from generator.heartbeat import Heartbeat
from generator.holders import BATCH, is_dead, this_process, waits_for_outside
from generator.ledger import Answer, Harvestable, Wanted
from generator.recipe import Budget
from generator.secret import Secret
from generator.writing import first_line, in_transaction

# A heartbeat may wait a minute for SQLite's lock, and a second time: the lease has to outlast both.
_LEASE_S = 150.0
_READ_CHUNK = 200
_LOOK_EVERY_S = 0.25
# Another process reads what it has recorded within this time, or is gone.
_READS_WITHIN_S = 5.0
# So many answers tell whether a run is worth its money.
_ENOUGH_TO_JUDGE = 50
_Result = TypeVar("_Result")


@dataclass(slots=True)
class Progress:
    """Where a run stands, as this process sees it; `num_new` is what it answered itself. Without `has_price` what was
    spent is known in tokens alone."""

    num_planned: int = 0
    num_answered: int = 0
    num_new: int = 0
    num_in_flight: int = 0
    num_accepted: int = 0
    num_failed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    cells: Counter[tuple[int, int]] = field(default_factory=Counter)
    has_price: bool = True
    spent_usd: float = 0.0
    spent_tokens: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    num_suspect: int = 0
    is_out_of_budget: bool = False
    is_mostly_rejected: bool = False
    waiting_for: str = ""

    @property
    def share_rejected(self) -> float:
        """Of the answers that this process has read or that never came, 0 to 1."""
        num = sum(self.outcomes.values()) + self.num_failed
        return (self.outcomes["rejected"] + self.num_failed) / num if num else 0.0


class Reader(Protocol):
    """What reads the answers of a run, in the transaction that records what became of each."""

    def read(self, session: Session, items: Sequence[Harvestable]) -> Accepted:
        """Store what is good and why the rest is not; put what is asked again into the ledger."""

    def cell_of(self, plan_index: int) -> int:
        """The attribute cell of a request, for the live view; -1 where it has none."""


class Desk:
    """Takes and settles for one run and one process. All methods may be called from one thread at a time.

    Without `reader` answers are recorded, and reading them is left to whoever asked. With `limit` no more than this
    many requests are taken: a pilot. Above `max_rejected`, a share of the answers, the run stops. `secret` never
    reaches the store, whatever a server repeats of it.
    """

    def __init__(
        self,
        store: Store,
        run_id: int,
        reader: Reader | None,
        *,
        worst: WorstCase,
        budget: Budget | None = None,
        follow_ups: Callable[[], int] = lambda: 0,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        lease_s: float = _LEASE_S,
        limit: int | None = None,
        max_rejected: float | None = None,
        secret: str | None = None,
    ) -> None:
        self.store, self.run_id, self._reader, self._worst, self._budget = store, run_id, reader, worst, budget
        self.stopping = threading.Event()
        self.progress = Progress(has_price=worst.facts.has_price)
        self.holder = this_process()
        self._follow_ups, self._on_progress, self._lease_s = follow_ups, on_progress, lease_s
        self._limit, self._max_rejected, self.secret = limit, max_rejected, Secret(secret)
        self._after, self._is_first_pass = -1, True
        self._new_from: int | None = None
        self._is_held_back = False
        self._unsettled: list[Answer] = []
        self._heart = Heartbeat(
            store,
            self.holder,
            lease_s,
            is_needed=lambda: self.progress.num_in_flight > 0,
            on_failure=self.stopping.set,
        )

    def __enter__(self) -> "Desk":
        self._heart.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._heart.stop()
        if self._unsettled:
            self._record()
        # What was cut off in flight is free at once; its reservation counts as spent when it is taken over.
        self._write(lambda session: leases.free_leases_of(session, [self.holder]))
        if self._heart.failure is not None and error is None:
            raise EngineStopped(
                f"the leases of what is in flight could not be renewed ({first_line(self._heart.failure)}): all that "
                "was answered is stored; mend the store, then run again"
            ) from self._heart.failure

    def take(self, limit: int) -> list[Wanted]:
        """Lease requests that have no answer yet, in plan order; [] when none is free now or the budget is spent."""
        if self.stopping.is_set() or self.progress.is_out_of_budget:
            return []
        if self._limit is not None:
            limit = min(limit, self._limit - self.progress.num_new - self.progress.num_in_flight)
            if limit <= 0:
                return []
        taken = self._lease(limit)
        while not taken and self._turn_back():
            taken = self._lease(limit)
        self.progress.num_in_flight += len(taken)
        return taken

    @property
    def has_new(self) -> bool:
        """Whether another `take` may bring more than the last: repairs were added, or money was freed."""
        return self._new_from is not None or self._is_held_back

    def refill(self) -> bool:
        """When everything taken is settled: is there more? Asks the plan for second stages and refills, and takes over
        what other processes left; False when the run has nothing left to ask."""
        if self.stopping.is_set() or self.progress.is_out_of_budget or self._limit is not None:
            return False
        if self._is_held_back and self.progress.num_in_flight == 0:
            return self._wait_for_room()
        if self.has_new:
            return True
        return self.plan_more() > 0 or self._wait_for_leases()

    def plan_more(self) -> int:
        """Ask the plan for second stages and refills. Returns how many requests that adds."""
        num_new = self._follow_ups()
        if num_new:
            self.progress.num_planned += num_new
            # What failed in this call is left to the next.
            self._after, self._is_first_pass = -1, False
        return num_new

    def settle(self, answers: Sequence[Answer]) -> None:
        """Commit answers, then read them: candidates, rejections and repairs. What cannot be committed is kept for the
        next call, or for the end."""
        self._unsettled += [self.secret.out_of_answer(answer) for answer in answers]
        if not self._unsettled:
            return
        recorded = self._record()
        reader = self._reader
        if reader is None:
            accepted = Accepted()
        else:
            accepted = self._write(
                lambda session: reader.read(session, ledger.harvestable_now(session, self.run_id, recorded))
            )
        self._count_accepted(accepted)
        self._on_progress(self.progress)

    def _record(self) -> list[Answer]:
        answers, facts, by_batch = self._unsettled, self._worst.facts, self._worst.by_batch
        spent = self._write(
            lambda session: ledger.record(session, self.run_id, answers, facts=facts, by_batch=by_batch)
        )
        self._unsettled = []
        self._count(answers, spent)
        return answers

    def lose(self, items: Sequence[Wanted]) -> list[Wanted]:
        """Attempts that left and came to nothing may have been paid for: what was reserved for each counts as spent.

        Returns those that may go again; the others go back to the ledger, since the budget has no room for them now.
        """
        kept, spent = self._write(
            lambda session: leases.lose(session, self.run_id, items, worst=self._worst, room=self._room(session))
        )
        self.progress.spent_usd += spent.usd
        self.progress.spent_tokens += spent.tokens
        if len(kept) < len(items):
            self.progress.num_in_flight -= len(items) - len(kept)
            self._is_held_back = True
            self.look_back(min(item.plan_index for item in items) - 1)
        return kept

    def _write(self, work: Callable[[Session], _Result]) -> _Result:
        return in_transaction(self.store, work)

    def give_back(self, items: Sequence[Wanted]) -> None:
        """Return requests that were taken and never sent."""
        if items:
            ids = [item.request_id for item in items]
            self._write(lambda session: leases.release_leases(session, self.run_id, ids))
            self.progress.num_in_flight -= len(items)

    def free_what_the_dead_hold(self) -> bool:
        """What processes and files of this machine hold that are gone. Returns whether there was any."""
        with self.store.read() as session:
            holders = leases.open_work(session, self.run_id).holders
        dead = [holder for holder, _ in holders if holder != self.holder and is_dead(holder)]
        if dead:
            self._write(lambda session: leases.free_leases_of(session, dead))
        return bool(dead)

    def begin_again(self) -> None:
        """From the first request, with what failed: for an engine whose answers come in a later call."""
        self._after, self._is_first_pass = -1, True

    def look_back(self, plan_index: int) -> None:
        """Requests beyond this plan index were given back: the next `take` sees them again."""
        self._new_from = plan_index + 1 if self._new_from is None else min(self._new_from, plan_index + 1)

    def read_waiting(self) -> int:
        """Read answers that are in the ledger and that this run has not read: from other runs, or from before."""
        after, num = -1, 0
        while (reader := self._reader) is not None and not self.stopping.is_set():

            def read(session: Session, reader: Reader = reader, after: int = after) -> tuple[Any, Accepted]:
                items = ledger.harvestable(session, self.run_id, after=after, limit=_READ_CHUNK)
                return items, reader.read(session, items) if items else Accepted()

            items, accepted = self._write(read)
            if not items:
                return num
            after, num = items[-1].plan_index, num + len(items)
            self._count_accepted(accepted)
            self._on_progress(self.progress)
        return num

    def reject(self, subject: str, reason: str, detail: str) -> None:
        """Record something that could not even be an answer."""
        with self.store.write() as session:
            add_rejections(session, self.run_id, [RejectedRow(subject, 0, reason, self.secret.out_of(detail))])

    def _lease(self, limit: int) -> list[Wanted]:
        def lease(session: Session) -> tuple[list[Wanted], bool, bool]:
            taken, is_stopped = leases.lease(
                session,
                self.run_id,
                limit=limit,
                holder=self.holder,
                lease_s=self._lease_s,
                after=self._after,
                is_failed_too=self._is_first_pass,
                worst=self._worst,
                room=self._room(session),
            )
            is_idle = not taken and self.progress.num_in_flight == 0
            # Asked in this transaction, which holds the run: in the next moment others may have settled all they had,
            # or handed it to a vendor.
            is_last = is_stopped and is_idle and not self._others_at_work(session)
            return taken, is_stopped, is_last and not self._batches_at_work(session)

        taken, is_stopped, is_final = self._write(lease)
        if taken:
            self._after = taken[-1].plan_index
        # What is in flight, here or in another process, may cost less than was reserved for it: only when nothing is
        # left in flight is the budget spent.
        self._is_held_back, self.progress.is_out_of_budget = is_stopped and not is_final, is_final
        return taken

    def _others_at_work(self, session: Session) -> bool:
        """Whether other processes hold requests of this run, and live."""
        now = utc_now()
        return any(
            until > now for holder, until in leases.open_work(session, self.run_id).holders
            if holder != self.holder and not waits_for_outside(holder) and not is_dead(holder)
        )  # fmt: skip

    def _batches_at_work(self, session: Session) -> bool:
        """Whether a vendor has requests of this run: their answers free what they cost less than was reserved."""
        return any(holder.startswith(BATCH) for holder, _ in leases.open_work(session, self.run_id).holders)

    def _wait_for_room(self) -> bool:
        """The budget is reserved to its end, some of it by others: wait until they have settled something, or left."""
        before: tuple[float, float] | None = None
        while not self.stopping.is_set():
            with self.store.read() as session:
                run = session.get_one(Run, self.run_id)
                reserved = (run.reserved_usd, run.reserved_tokens)
                is_alone = not self._others_at_work(session)
            if is_alone or before not in (None, reserved):
                self.progress.waiting_for = ""
                return True
            before = reserved
            self.progress.waiting_for = "budget that other processes have reserved"
            self._on_progress(self.progress)
            self.stopping.wait(_LOOK_EVERY_S)
        return False

    def _turn_back(self) -> bool:
        """Go back to where repairs were added, if there are any; what failed in this process is not asked again."""
        if self._new_from is None or self.progress.is_out_of_budget:
            return False
        self._after, self._new_from, self._is_first_pass = self._new_from - 1, None, False
        return True

    def _room(self, session: Session) -> Room:
        budget = self._budget
        if budget is None:
            return Room(None, None)
        # Locked until the lease is committed: two processes must not both take the last of it.
        run = session.get_one(Run, self.run_id, with_for_update={"key_share": True})
        tokens = None if budget.tokens is None else budget.tokens - run.spent_tokens - run.reserved_tokens
        return Room(tokens, None if budget.usd is None else budget.usd - run.spent_usd - run.reserved_usd)

    def _wait_for_leases(self) -> bool:
        """What other processes hold: freed when its process is gone, else waited for until its clock runs out.

        Returns whether there may be something to take.
        """
        patience, has_waited = _READS_WITHIN_S, False
        while not self.stopping.is_set():
            with self.store.read() as session:
                open_work = leases.open_work(session, self.run_id)
            held = [row for row in open_work.holders if row[0] != self.holder and not waits_for_outside(row[0])]
            dead = self.free_what_the_dead_hold()
            if open_work.num_pending or dead or any(until < utc_now() for _, until in held):
                # Pending ones that could not be taken are being leased by another process at this very moment.
                self.stopping.wait(0.02)
                self.progress.waiting_for = ""
                self._after, self._is_first_pass = -1, False
                return True
            is_read = open_work.num_unread == 0 or self._reader is None
            if not held and (is_read or patience <= 0):
                # Whoever recorded what is unread is gone: read it here, it may bring repairs.
                self.progress.waiting_for = ""
                # What others have read meanwhile may leave cells that lack texts.
                return self.read_waiting() > 0 or (has_waited and self.plan_more() > 0)
            has_waited = True
            patience -= 0.0 if held else _LOOK_EVERY_S
            self.progress.waiting_for = f"{len(held)} other process(es)"
            self._on_progress(self.progress)
            self.stopping.wait(_LOOK_EVERY_S)
        return False

    def _count(self, answers: Sequence[Answer], spent: Spent) -> None:
        progress = self.progress
        progress.spent_usd += spent.usd
        progress.spent_tokens += spent.tokens
        progress.num_in_flight = max(0, progress.num_in_flight - len(answers))
        progress.num_new += len(answers)
        progress.num_answered += sum(answer.text is not None for answer in answers)
        progress.num_failed += sum(answer.text is None and not answer.is_refusal for answer in answers)
        for answer in answers:
            counts = ledger.token_counts(answer.usage)
            progress.input_tokens += counts["input_tokens"] or 0
            progress.cached_tokens += counts["cached_tokens"] or 0

    def _count_accepted(self, accepted: Accepted) -> None:
        progress = self.progress
        if self._reader is None:
            return
        progress.outcomes.update(accepted.outcomes)
        progress.reasons.update(accepted.reasons)
        progress.num_accepted += accepted.num_accepted
        progress.num_suspect += accepted.num_suspect
        progress.num_planned += len(accepted.new_plan_indices)
        for plan_index, ranks in accepted.cells:
            cell = self._reader.cell_of(plan_index)
            progress.cells.update((cell, rank) for rank in ranks)
        if accepted.new_plan_indices:
            lowest = min(accepted.new_plan_indices)
            self._new_from = lowest if self._new_from is None else min(lowest, self._new_from)
        num = sum(progress.outcomes.values()) + progress.num_failed
        limit = self._max_rejected
        if limit is not None and num >= _ENOUGH_TO_JUDGE and progress.share_rejected > limit:
            progress.is_mostly_rejected = True
            self.stopping.set()
