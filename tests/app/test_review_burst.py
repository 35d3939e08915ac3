"""Bursts of presses on the decision page, in a real browser: what was decided is what was painted, whatever the pace.

`AppTest` passes pages that lose decisions; only a browser shows them.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db.store import Store
from scripts.screenshots import served
from tests.app.browser_desk import Desk, decisions_of, fill, new_session, require_seen

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine"),
]


@pytest.mark.parametrize("gap_ms", [600, 250, 120, 40])
def test_decided_is_what_was_painted_at_any_pace(stage: tuple[Store, str, str], browser: Any, gap_ms: int) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.burst("k" * 20, gap_ms)
    desk.settle()
    decided = decisions_of(store, session_id)
    require_seen(desk, decided)
    assert len(decided) >= (2 if gap_ms >= 250 else 1)  # the next negative may be painted after the last press


def test_a_held_key_decides_once(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    for _ in range(40):
        desk.page.keyboard.down("k")  # without letting go: the browser marks all but the first as repeated
        desk.page.wait_for_timeout(50)
    desk.page.keyboard.up("k")
    desk.settle()
    assert len(decisions_of(store, session_id)) == 1


def test_two_people_share_a_queue_and_none_decides_for_the_other(stage: tuple[Store, str, str], browser: Any) -> None:
    store, url, of_ada = stage
    session_id = new_session(store)
    with served(url, {"GRADUS_REVIEWER": "grace"}) as of_grace:
        desks = {name: Desk.opened(browser, at, session_id) for name, at in (("ada", of_ada), ("grace", of_grace))}
        for _ in range(20):
            for desk in desks.values():
                desk.burst("k", 60)
        for desk in desks.values():
            desk.settle()
        decided = {name: decisions_of(store, session_id, name) for name in desks}
    for name, desk in desks.items():
        require_seen(desk, decided[name])
        assert decided[name]
    candidates = [candidate for of_one in decided.values() for _, candidate in of_one]
    assert len(set(candidates)) == len(candidates)


def test_two_windows_of_one_person_decide_nothing_twice(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desks = [Desk.opened(browser, address, session_id) for _ in range(2)]
    for _ in range(20):
        for desk in desks:
            desk.burst("k", 60)
    for desk in desks:
        desk.settle()
    decided = decisions_of(store, session_id)
    assert decided and len(set(decided)) == len(decided)
    assert set(decided) <= set(desks[0].painted()) | set(desks[1].painted())


@pytest.mark.parametrize("gap_ms", [250, 40])
def test_a_slow_database_loses_nothing(tmp_path: Path, browser: Any, gap_ms: int) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    fill(store)
    slow_down(store)
    session_id = new_session(store)
    with served(url, {"GRADUS_REVIEWER": "ada"}) as address:
        desk = Desk.opened(browser, address, session_id)
        desk.burst("k" * 20, gap_ms)
        desk.settle()
        decided = decisions_of(store, session_id)
    require_seen(desk, decided)
    assert decided
    store.close()


def slow_down(store: Store) -> None:
    """Every decision takes the database a good part of a second, inside the transaction that writes it."""
    count = "with recursive counted(n) as (select 1 union all select n + 1 from counted where n < 1500000)"
    with store.write() as session:
        session.execute(text(f"create view slow as {count} select count(*) as num from counted"))
        session.execute(text("create trigger slow_decision before insert on decision begin select num from slow; end"))


def test_a_reload_and_another_device_resume_at_the_same_negative(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.burst("kkkkk", 400)
    desk.settle()
    decided, stands = decisions_of(store, session_id), desk.painted()[-1]
    require_seen(desk, decided)
    desk.page.reload()
    desk.page.locator("[data-shown]").wait_for()
    other = Desk.opened(browser, address, session_id)
    assert desk.painted() == [stands] == other.painted()
    desk.burst("kk", 800)
    desk.settle()
    after = decisions_of(store, session_id)
    assert after[: len(decided)] == decided
    require_seen(desk, after[len(decided) :])
