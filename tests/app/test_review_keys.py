"""The decision page by keys alone, in a real browser: sessions, what is typed too early, and text that stays text."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from curation.reviewing.people import reviewer_of
from curation.reviewing.sessions import close_session
from db.store import Store
from db.tables.review import Decision, ReviewSession
from scripts.screenshots import opened_page, served
from tests.app.browser_desk import AT_BOX, Desk, fill, kinds_of, new_session, write
from tests.curation.desk import Desk as Disputed

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine"),
]
TYPED = "kds a123fwu"  # what decides, skips, swaps or takes back when it is not text

# K as soon as Keep is back, when other keys are not.
KEEP_TOO_EARLY = """
const look = new MutationObserver(() => {
  if (!document.querySelector('[class*="st-key-keep-"] button')) return;
  look.disconnect();
  const press = new KeyboardEvent('keydown', {key: 'k', code: 'KeyK', keyCode: 75, bubbles: true});
  setTimeout(() => document.body.dispatchEvent(press), 30);
});
look.observe(document.body, {subtree: true, childList: true});
"""


def test_everything_is_done_by_keys(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store, queue={"order": "random", "text": "month 2"}, rubric={"text": "# Look closely"})
    desk = Desk.opened(browser, address, session_id)
    desk.page.get_by_text("Look closely").wait_for()
    for key, expected in (("v", "nothing stated"), ("w", "decided: swap with")):
        desk.page.keyboard.press(key)
        desk.page.get_by_text(expected).first.wait_for()
        desk.settle()
    first = desk.shown()
    assert (desk.follow("ArrowDown"), desk.follow("ArrowUp")) != (first, first) and desk.shown() == first
    desk.follow("2")
    desk.page.keyboard.press("e")
    write(desk.page, " indeed")
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="False negative").wait_for()
    edit(desk.page, " indeed")
    desk.follow("y")
    desk.page.keyboard.press("g")
    write(desk.page, "the query is odd")
    flagged = desk.follow("Control+Enter")
    skipped = desk.follow("s")
    desk.follow("a")
    assert desk.follow("u") == skipped and desk.follow("u") == flagged
    kinds = kinds_of(store, session_id)
    assert kinds[:5] == ["swap", "regrade", "edit", "flag", "skip"]
    assert "accept_all" in kinds and kinds.count("undo") == len(kinds) - kinds.index("undo")


def edit(page: Any, words: str) -> None:
    """Add words to the negative, as far as its new scores, which are to be accepted or not."""
    page.keyboard.press("e")
    write(page, words)
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Accept the edit").wait_for()


def test_a_lost_lease_keeps_what_was_written(stage: tuple[Store, str, str], browser: Any) -> None:
    store, url, of_ada = stage
    session_id = new_session(store, queue={"order": "random", "limit": 1}, lease_minutes=0.02)
    desk = Desk.opened(browser, of_ada, session_id)
    desk.page.keyboard.press("g")
    write(desk.page, "what I found out")
    desk.page.wait_for_timeout(1_500)
    with served(url, {"GRADUS_REVIEWER": "grace"}) as of_grace:
        taken = Desk.opened(browser, of_grace, session_id)
        desk.page.keyboard.press("Control+Enter")
        desk.page.get_by_text("handed to somebody else").wait_for()
        desk.page.locator("code", has_text="what I found out").wait_for()
        taken.burst("k", 1_000)
        taken.settle()
    assert "flag" not in kinds_of(store, session_id)
    desk.page.keyboard.press("x")
    desk.page.get_by_text("handed to somebody else").wait_for(state="hidden")


def test_what_was_written_is_given_back_whatever_happened_meanwhile(
    stage: tuple[Store, str, str], browser: Any
) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk, other = (Desk.opened(browser, address, session_id) for _ in range(2))
    desk.page.keyboard.press("g")
    write(desk.page, "a note of mine")
    other.follow("a")  # another window of the same person
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("code", has_text="a note of mine").wait_for()
    desk.page.get_by_text("decided elsewhere").wait_for()
    desk.page.keyboard.press("x")
    desk.page.get_by_text("decided elsewhere").wait_for(state="hidden")
    edit(desk.page, " an edit of mine")
    other.follow("d")
    desk.page.keyboard.press("y")
    desk.page.locator("code", has_text="an edit of mine").wait_for()
    assert "edit" not in kinds_of(store, session_id) and "flag" not in kinds_of(store, session_id)
    desk.page.keyboard.press("x")
    desk.page.get_by_role("button", name="Dismiss").wait_for(state="hidden")
    desk.page.keyboard.press("e")
    write(desk.page, " a late edit")
    with store.write() as session:
        close_session(session, session.get_one(ReviewSession, session_id), by=reviewer_of(session, "ada"))
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("code", has_text="a late edit").wait_for()
    desk.page.get_by_text("is closed").first.wait_for()


def test_what_is_typed_before_the_box_is_there_decides_nothing(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    for key in "eg":
        desk.burst([key, *TYPED], 2)
        write(desk.page, " indeed")
        desk.settle()
        assert kinds_of(store, session_id) == []
        desk.page.keyboard.press("Escape")
        desk.page.get_by_role("button", name="Keep").wait_for()
    desk.settle()  # after Escape keys count when all of them are back
    desk.follow("k")
    assert len(kinds_of(store, session_id)) == 1


def test_on_a_slow_line_what_is_typed_decides_nothing(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.page.evaluate("window.line_ms = 60")
    # The first time all keys are there, then only some of them; one is for an item that is still on its way.
    for keys in (["e"], ["g"], ["g", "Escape", "e"], ["e"], ["ArrowDown", "g"], ["ArrowUp", "e"]):
        desk.burst([*keys, *TYPED], 2)
        write(desk.page, " indeed")
        desk.page.keyboard.press("Escape")
        desk.page.get_by_role("button", name="Keep").wait_for()
    desk.page.keyboard.press("e")
    write(desk.page, " indeed")
    desk.settle()
    desk.page.evaluate(KEEP_TOO_EARLY)
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="Why").wait_for()
    desk.page.evaluate("window.line_ms = 0")
    desk.settle()
    assert kinds_of(store, session_id) == []
    desk.burst(["k", "e", *TYPED], 2)  # the one is decided, the other written on
    write(desk.page, " indeed")
    desk.settle()
    assert kinds_of(store, session_id) == ["keep"]


def test_a_box_is_opened_by_the_key_of_any_layout_by_the_mouse_and_once(
    stage: tuple[Store, str, str], browser: Any
) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.page.evaluate("window.line_ms = 60")
    cyrillic = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'у', code: 'KeyE', bubbles: true}))"
    desk.page.get_by_role("button", name="Keep").focus()  # a space in what is typed does not press it
    desk.page.evaluate(cyrillic)
    desk.burst(TYPED, 2)
    desk.page.wait_for_function(AT_BOX)
    box = desk.page.locator("textarea")
    before = box.input_value()
    desk.page.keyboard.press("Escape")
    desk.settle()
    for _ in range(30):
        desk.page.keyboard.down("e")
        desk.page.wait_for_timeout(100)
    desk.page.keyboard.up("e")
    desk.page.wait_for_function(AT_BOX)
    assert box.input_value() == before
    desk.page.keyboard.press("Escape")
    desk.settle()
    desk.page.get_by_role("button", name="Edit").click()
    desk.burst(TYPED, 2)
    desk.page.wait_for_function(AT_BOX)
    desk.settle()
    assert kinds_of(store, session_id) == [] and box.input_value() == before


def test_a_text_that_is_refused_keeps_its_box_and_cursor(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.page.keyboard.press("e")
    desk.page.wait_for_function(AT_BOX)
    desk.page.evaluate("document.activeElement.isTheOne = true")
    desk.page.keyboard.press("ControlOrMeta+a")
    desk.page.keyboard.type("    ")
    desk.page.keyboard.press("ArrowLeft")
    desk.page.keyboard.press("Control+Enter")
    desk.page.get_by_text("edited text is empty").wait_for()
    desk.settle()
    assert desk.page.evaluate("[document.activeElement.isTheOne, document.activeElement.selectionStart]") == [True, 3]


def test_after_an_edit_is_taken_back_what_is_typed_decides_nothing(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    desk.page.keyboard.press("e")
    write(desk.page, " indeed")
    desk.page.evaluate("window.line_ms = 60")
    desk.page.keyboard.press("Control+Enter")
    desk.page.get_by_role("button", name="Accept the edit").wait_for()
    desk.burst(["Escape", "y", "g", *TYPED], 2)
    write(desk.page, "odd")
    desk.settle()
    assert kinds_of(store, session_id) == []
    desk.follow("Control+Enter")
    assert kinds_of(store, session_id) == ["flag"]


def test_a_held_key_settles_one_dispute(tmp_path: Path, browser: Any) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    disputed = Disputed(Store.open(url))
    disputed.fill([2, 2, 2])
    disputed.session()
    for who, kind in (("ada", "keep"), ("bob", "drop")):
        for n in range(3):
            disputed.say(who, f"w {n} 1", kind)
    with served(url, {"GRADUS_REVIEWER": "owner"}) as address:
        page = opened_page(browser)
        page.goto(f"{address}/adjudication")
        page.get_by_text("Dispute 1 of 3").wait_for()
        page.get_by_role("button", name="Next").wait_for()
        for _ in range(40):
            page.keyboard.down("k")
            page.wait_for_timeout(50)
        page.keyboard.up("k")
        page.get_by_text("Dispute 2 of 3").wait_for()
    with disputed.store.read() as session:
        assert session.scalar(select(func.count()).where(Decision.kind == "settle")) == 1
    disputed.store.close()


HOSTILE = (
    "<script>window.owned = 1</script> <img src=x onerror='window.owned = 1'> **bold** [link](javascript:owned) "
    "</div></bdi> \u202egnp.exe\u202c pay\u200bpal مرحبا $x^2$ :material/home: " + "x" * 3_000
)


def test_hostile_text_is_text_on_both_pages(tmp_path: Path, browser: Any) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    fill(store, num=2, hostile=HOSTILE)
    session_id = new_session(store, name="<b>s</b> **bold** " + "y" * 100, rubric={"text": f"# Rules {HOSTILE}"})
    with served(url, {"GRADUS_REVIEWER": "ada"}) as address:
        desk = Desk.opened(browser, address, session_id)
        desk.burst("v", 1_000)
        desk.settle()
        inside = desk.page.locator("[data-shown]")
        words = inside.inner_text()
        assert "<script>window.owned" in words and "**bold**" in words and "[U+200B]" in words
        assert "\u202e" not in desk.page.content()
        assert inside.locator("script, img, a").count() == 0
        fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert desk.page.evaluate("window.owned") is None and desk.page.evaluate(fits)
        desk.page.goto(f"{address}/review")
        desk.page.get_by_text("<b>s</b> **bold**").first.wait_for()
        assert desk.page.evaluate("window.owned") is None
    store.close()
