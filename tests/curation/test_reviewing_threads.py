"""Many people at once, and a process that dies: nothing is doubled, nothing is lost."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from curation.reviewing.decisions import decide
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim
from db.check import check_store
from db.store import Store
from db.tables.base import utc_now
from db.tables.review import Assignment, CurrentDecision, Decision, Reviewer, ReviewSession

Fill = Callable[[int], Any]
NUM_ITEMS = 1_000
NUM_PEOPLE = 8

_ENDLESS = """
import sys
from db.store import Store
from curation.reviewing.decisions import decide, undo
from curation.reviewing.leases import claim
from curation.reviewing.people import reviewer_of
from curation.reviewing.sessions import session_named
from db.tables.base import utc_now
store = Store.open(sys.argv[1])
with store.read() as session:
    who, what = reviewer_of(session, sys.argv[2]), session_named(session, "s")
number = 0
while True:
    with store.write() as session:
        claimed = claim(session, what, who)
    with store.write() as session:
        decide(session, claimed.assignment_id, who, "accept_all", shown_at=utc_now())
    number += 1
    if number % 5 == 4:
        with store.write() as session:
            undo(session, who, what)
    print(number, flush=True)
"""


def decide_all(store: Store, review_session: ReviewSession, person: Reviewer) -> list[int]:
    """Claim and decide until there is nothing left for this person; which items these were."""
    items = []
    while True:
        with store.write() as session:
            claimed = claim(session, review_session, person)
        if claimed is None:
            return items
        items.append(claimed.item_id)
        if claimed.item_id % 50 == 0:
            with store.read() as session:
                for candidate in item_view(session, claimed.item_id, person).undecided:
                    with store.write() as writing:
                        decide(writing, claimed.assignment_id, person, "keep", candidate, shown_at=utc_now())
        else:
            with store.write() as session:
                decide(session, claimed.assignment_id, person, "accept_all", shown_at=utc_now())


@pytest.mark.slow
def test_eight_people_drain_one_queue_each_item_by_two_of_them(filled: Fill) -> None:
    reviewing = filled(NUM_ITEMS)
    people = [reviewing.person(f"person {number}") for number in range(NUM_PEOPLE)]
    session_ = reviewing.start(overlap=2)
    with ThreadPoolExecutor(NUM_PEOPLE) as threads:
        decided = list(threads.map(lambda person: decide_all(reviewing.store, session_, person), people))
    times = Counter(item for items in decided for item in items)
    assert len(times) == NUM_ITEMS and set(times.values()) == {2}
    assert all(len(set(items)) == len(items) for items in decided)
    with reviewing.store.read() as session:
        turns = session.execute(select(Assignment.item_id, Assignment.reviewer_id, Assignment.outcome)).all()
        verdicts = session.execute(
            select(CurrentDecision.item_id, CurrentDecision.candidate_id, CurrentDecision.reviewer_id).where(
                CurrentDecision.aspect == "verdict"
            )
        ).all()
    assert len({(item, person) for item, person, outcome in turns if outcome}) == 2 * NUM_ITEMS
    by_candidate = Counter((item, candidate) for item, candidate, _ in verdicts)
    assert len(by_candidate) == 2_500 and set(by_candidate.values()) == {2}
    assert check_store(reviewing.store, progress=lambda done, total: None) == []


def test_a_killed_process_leaves_events_and_current_decisions_equal(filled: Fill, store_url: str) -> None:
    reviewing = filled(200)
    reviewing.start(overlap=3)
    for kill_after, name in enumerate(("ann", "ben", "eve"), start=4):
        with subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, store_url, name],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        ) as running:
            assert running.stdout is not None
            for _, _line in zip(range(kill_after), running.stdout, strict=False):
                pass
            running.send_signal(signal.SIGKILL)
    with reviewing.store.read() as session:
        assert session.scalars(select(Decision.id)).first() is not None
    assert check_store(reviewing.store, progress=lambda done, total: None) == []
