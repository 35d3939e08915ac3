"""Review sessions: claiming, deciding, undoing; what nobody may do; what a page may see."""

from collections.abc import Callable
from typing import Any

from curation.reviewing.decisions import decide, undo
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim
from curation.reviewing.sessions import progress_of
from db.tables.review import Decision, ReviewSession

Fill = Callable[[int], Any]


def take(reviewing: Any, session_: ReviewSession, name: str) -> Any:
    with reviewing.store.write() as session:
        return claim(session, session_, reviewing.people[name], reviewing.tick())


def view(reviewing: Any, item: int, name: str) -> Any:
    with reviewing.store.read() as session:
        return item_view(session, item, reviewing.people[name])


def press(reviewing: Any, claimed: Any, name: str, kind: str, candidate: int | None = None, **more: Any) -> Any:
    with reviewing.store.write() as session:
        now = reviewing.tick()
        return decide(
            session, claimed.assignment_id, reviewing.people[name], kind, candidate, shown_at=now, now=now, **more
        )  # type: ignore[arg-type]


def back(reviewing: Any, session_: ReviewSession, name: str) -> Decision | None:
    with reviewing.store.write() as session:
        return undo(session, reviewing.people[name], session_, reviewing.tick())


def drain(reviewing: Any, session_: ReviewSession, name: str) -> list[int]:
    items = []
    while claimed := take(reviewing, session_, name):
        items.append(claimed.item_id)
        press(reviewing, claimed, name, "accept_all")
    return items


def test_a_session_is_decided_to_its_end(filled: Fill) -> None:
    reviewing = filled(5)
    session_ = reviewing.start(overlap=2)
    claimed = take(reviewing, session_, "ann")
    shown = view(reviewing, claimed.item_id, "ann")
    assert shown.undecided == tuple(one.id for one in shown.negatives)
    for number, key in enumerate(shown.undecided, start=1):
        decided = press(reviewing, claimed, "ann", "keep" if number % 2 else "drop", key)
        assert decided.is_new and decided.is_finished == (number == len(shown.undecided))
    assert len(drain(reviewing, session_, "ann")) == 4
    everything = {claimed.item_id, *drain(reviewing, session_, "ben")}
    assert len(everything) == 5 and take(reviewing, session_, "eve") is None
    with reviewing.store.read() as session:
        progress = progress_of(session, session_.id, reviewing.people["ann"])
    assert (progress.done, progress.left, progress.mine) == (10, 0, 5)
