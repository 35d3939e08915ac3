"""Claiming, deciding, undoing and leases that run out, in any order, against a model that is too simple to be wrong."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from curation.errors import LeaseLostError
from curation.reviewing.decisions import decide, undo
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim, release_lease
from db.check import check_store
from db.store import Store
from db.tables.review import Assignment, CurrentDecision, ItemCandidate, Reviewer, ReviewItem

PEOPLE = ("ann", "ben", "eve")
LEASE = timedelta(minutes=15)
NUM_ITEMS, OVERLAP = 4, 2
who = st.sampled_from(PEOPLE)


@dataclass
class Slot:
    """A turn as a person would keep it on paper."""

    item: int
    slot: int
    person: str | None = None
    opened: datetime | None = None
    until: datetime | None = None
    done: bool = False


@dataclass
class Event:
    """A press: what it set for whom. `slot` is the turn on which it was made."""

    person: str
    item: int
    kind: str
    candidates: tuple[int, ...]
    slot: Slot


@dataclass
class Paper:
    """The model: a list of turns and a list of presses, searched from the front."""

    slots: list[Slot]
    asked: dict[int, list[int]]
    events: list[Event] = field(default_factory=list)

    def claim(self, person: str, now: datetime) -> tuple[Slot | None, bool]:
        mine = [slot for slot in self.slots if slot.person == person and not slot.done]
        if mine:
            latest = max(slot.opened for slot in mine if slot.opened)
            best = next(slot for slot in mine if slot.opened == latest)
            best.until = now + LEASE
            return best, True
        had = {slot.item for slot in self.slots if slot.person == person}
        others = [slot for slot in self.slots if not slot.done and slot.item not in had]
        run_out = sorted((slot for slot in others if slot.until and slot.until <= now), key=lambda slot: slot.until)  # type: ignore[arg-type, return-value]
        free = [slot for slot in others if slot.person is None]
        found = next(iter([*run_out, *free]), None)
        if found is not None:
            found.person, found.opened, found.until = person, now, now + LEASE
        return found, False

    def verdicts(self, person: str, item: int) -> set[int]:
        return {
            key for event in self.events if (event.person, event.item) == (person, item) for key in event.candidates
        }

    def standing(self) -> set[tuple[str, int, int | None]]:
        found: set[tuple[str, int, int | None]] = set()
        for event in self.events:
            found |= {(event.person, event.item, key) for key in event.candidates}
            if event.kind != "keep":
                found.add((event.person, event.item, None))
        return found


class Reviewing(RuleBasedStateMachine):
    """The store beside the model; every answer is compared, and what stands after every step."""

    url: str
    build: Any

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.made = type(self).build(self.folder.name)
        self.store: Store = self.made.store
        self.session_ = self.made.start(overlap=OVERLAP, lease_minutes=LEASE.total_seconds() / 60)
        self.now = datetime(2026, 5, 1, tzinfo=UTC)
        with self.store.read() as session:
            items = session.execute(select(ReviewItem.id).order_by(ReviewItem.position)).scalars().all()
            asked: dict[int, list[int]] = {item: [] for item in items}
            for item, candidate in session.execute(
                select(ItemCandidate.item_id, ItemCandidate.candidate_id).order_by(ItemCandidate.candidate_id)
            ):
                asked[item].append(candidate)
        self.paper = Paper([Slot(item, slot) for item in items for slot in range(1, OVERLAP + 1)], asked)
        self.held: dict[str, tuple[int, Slot]] = {}

    def teardown(self) -> None:
        if hasattr(self, "made"):
            assert check_store(self.store, progress=lambda done, total: None) == []
            self.store.close()
            self.folder.cleanup()

    def person(self, name: str) -> Reviewer:
        return self.made.people[name]

    def tick(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now

    @rule(name=who)
    def claims(self, name: str) -> None:
        now = self.tick()
        with self.store.write() as session:
            got = claim(session, self.session_, self.person(name), now)
        slot, is_resumed = self.paper.claim(name, now)
        assert (got is None) == (slot is None)
        if got is None or slot is None:
            return
        assert (got.item_id, got.is_resumed, got.leased_until) == (slot.item, is_resumed, slot.until)
        self.held[name] = (got.assignment_id, slot)

    @rule(name=who, kind=st.sampled_from(["keep", "keep", "keep", "accept_all", "skip"]), pick=st.integers(0, 3))
    def decides(self, name: str, kind: str, pick: int) -> None:
        if name not in self.held:
            return
        assignment, slot = self.held[name]
        asked = self.paper.asked[slot.item]
        candidate = asked[pick % len(asked)] if kind == "keep" else None
        now = self.tick()
        try:
            with self.store.write() as session:
                got = decide(
                    session, assignment, self.person(name), kind, candidate, shown_at=now, now=now, note="so I think"
                )  # type: ignore[arg-type]
        except LeaseLostError as error:
            assert slot.person != name and error.text == "so I think"
            return
        assert slot.person == name
        verdicts = self.paper.verdicts(name, slot.item)
        is_new = not slot.done and (candidate is None or candidate not in verdicts)
        assert got.is_new == is_new
        if is_new:
            added = {"keep": (candidate,), "accept_all": tuple(set(asked) - verdicts), "skip": ()}[kind]
            self.paper.events.append(Event(name, slot.item, kind, added, slot))  # type: ignore[arg-type]
            slot.done = kind != "keep" or verdicts | {candidate} == set(asked)
            if not slot.done:
                slot.until = now + LEASE
        assert got.is_finished == slot.done

    @rule(name=who)
    def undoes(self, name: str) -> None:
        now = self.tick()
        with self.store.write() as session:
            got = undo(session, self.person(name), self.session_, now)
        mine = [event for event in self.paper.events if event.person == name]
        assert (got is None) == (not mine)
        if got is None:
            return
        last = mine[-1]
        assert (got.item_id, got.kind) == (last.item, last.kind)
        self.paper.events.remove(last)
        if last.slot.person == name:
            last.slot.done, last.slot.opened, last.slot.until = False, now, now + LEASE

    @rule(name=who)
    def gives_back(self, name: str) -> None:
        if name not in self.held:
            return
        assignment, slot = self.held[name]
        now = self.tick()
        with self.store.write() as session:
            was_held = release_lease(session, assignment, self.person(name), now)
        assert was_held == (slot.person == name and not slot.done)
        if was_held:
            slot.until = now

    @rule(minutes=st.sampled_from([1, 14, 16, 40]))
    def waits(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @invariant()
    def what_stands_is_the_same(self) -> None:
        if not hasattr(self, "paper"):
            return
        names = {person.id: name for name, person in self.made.people.items()}
        with self.store.read() as session:
            standing = {
                (names[person], item, candidate)
                for person, item, candidate in session.execute(
                    select(CurrentDecision.reviewer_id, CurrentDecision.item_id, CurrentDecision.candidate_id)
                )
            }
            turns = [
                (item, slot, names.get(person or 0), outcome is not None)
                for item, slot, person, outcome in session.execute(
                    select(Assignment.item_id, Assignment.slot, Assignment.reviewer_id, Assignment.outcome).order_by(
                        Assignment.position, Assignment.slot
                    )
                )
            ]
        assert standing == self.paper.standing()
        assert turns == [(slot.item, slot.slot, slot.person, slot.done) for slot in self.paper.slots]

    @invariant()
    def the_view_agrees(self) -> None:
        for name, (_, slot) in getattr(self, "held", {}).items():
            with self.store.read() as session:
                shown = item_view(session, slot.item, self.person(name))
            verdicts = self.paper.verdicts(name, slot.item)
            assert set(shown.undecided) == set(self.paper.asked[slot.item]) - verdicts


@pytest.mark.slow
def test_the_store_does_what_the_model_does(make_reviewing: Any) -> None:
    def build(folder: str) -> Any:
        made = make_reviewing(Store.open(f"sqlite:///{folder}/store.db"))
        made.fill(NUM_ITEMS)
        for name in PEOPLE:
            made.person(name)
        return made

    machine = type("Machine", (Reviewing,), {"build": staticmethod(build)})
    checks = settings(
        max_examples=25,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run_state_machine_as_test(machine, settings=checks)
