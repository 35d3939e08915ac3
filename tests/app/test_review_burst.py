"""The decision page in a real browser: bursts of presses, a whole session by keys, and text that stays text.

What was decided is what was painted, whatever the pace. `AppTest` passes pages that lose decisions; only a browser
shows them. A script in the page writes down each negative that is painted and what stands on the page at each key
press; both are compared with the events in the store.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text

from curation.reviewing.people import put_reviewer, reviewer_of
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import close_session, create_session
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.review import Assignment, Decision, Reviewer, ReviewSession
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from scripts.screenshots import launched, opened_page, served

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]
WITNESS = """
window.painted = []; window.pressed = [];
const shown = () => document.querySelector('[data-shown]')?.dataset.shown ?? null;
new MutationObserver(() => {
  const now = shown();
  if (now && now !== window.painted.at(-1)?.key) window.painted.push({key: now, at: performance.now()});
}).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
addEventListener('keydown', press => {
  const button = [...document.querySelectorAll('[class*="st-key-keep-"]')].map(
    box => [...box.classList].find(name => name.startsWith('st-key-keep-')).slice('st-key-keep-'.length));
  window.pressed.push({key: press.key, at: performance.now(), shown: shown(), button});
}, true);
"""
Shown = tuple[int, int]  # (assignment, candidate)


@dataclass
class Desk:
    """A browser on a review session."""

    page: Any

    @classmethod
    def opened(cls, browser: Any, address: str, session_id: int) -> "Desk":
        page = opened_page(browser, viewport={"width": 1280, "height": 900})
        page.add_init_script(WITNESS)
        page.goto(f"{address}/review_decide?session={session_id}")
        page.get_by_role("button", name="Keep").wait_for(timeout=90_000)
        desk = cls(page)
        desk.settle()  # keys count when the page has run through
        return desk

    def burst(self, keys: Sequence[str], gap_ms: int) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(gap_ms)

    def shown(self) -> str:
        return str(self.page.locator("[data-shown]").get_attribute("data-shown"))

    def follow(self, key: str) -> str:
        """Press, and wait until another negative is painted with its keys; what it is."""
        before = self.shown()
        self.page.keyboard.press(key)
        self.page.wait_for_function(
            "before => { const now = document.querySelector('[data-shown]')?.dataset.shown;"
            " return now && now !== before && document.querySelector(`.st-key-keep-${now}`) }",
            arg=before,
            timeout=60_000,
        )
        self.settle()
        return self.shown()

    def painted(self) -> list[Shown]:
        return [_shown(one["key"]) for one in self.page.evaluate("window.painted")]

    def settle(self) -> None:
        """Until nothing has been painted for a while and no run is going on."""
        self.page.wait_for_function(
            "() => performance.now() - Math.max(window.painted.at(-1)?.at ?? 0, window.pressed.at(-1)?.at ?? 0) > 1500"
            " && !document.querySelector('[data-testid=stStatusWidget]')",
            timeout=60_000,
        )


def _shown(key: str) -> Shown:
    assignment, _, candidate = key.split("-")
    return int(assignment), int(candidate)


def decisions_of(store: Store, session_id: int, person: str | None = None) -> list[Shown]:
    """(assignment, candidate) of each verdict event, in order."""
    events = (
        select(Decision.assignment_id, Decision.candidate_id)
        .join(Assignment, Assignment.id == Decision.assignment_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .where(Assignment.session_id == session_id, Decision.candidate_id.is_not(None))
        .order_by(Decision.id)
    )
    if person is not None:
        events = events.where(Reviewer.name == person)
    with store.read() as session:
        return [(assignment, candidate) for assignment, candidate in session.execute(events)]


def require_seen(desk: Desk, decided: list[Shown]) -> None:
    """Decided is what was painted, in its order, but for the one that stands there now; and nothing twice."""
    painted = desk.painted()
    assert decided == painted[: len(decided)]
    assert len(painted) - len(decided) <= 1
    assert len(set(decided)) == len(decided)
    for press in desk.page.evaluate("window.pressed"):
        before = {one["key"] for one in desk.page.evaluate("window.painted") if one["at"] <= press["at"]}
        assert set(press["button"]) <= before, "a key of a negative that is not painted yet"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launched(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, str, str]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('burst')}/store.db"
    store = Store.open(url)
    fill(store)
    with served(url, {"GRADUS_REVIEWER": "ada"}) as address:
        yield store, url, address
    store.close()


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
    desk.page.locator("[data-shown]").wait_for(timeout=90_000)
    other = Desk.opened(browser, address, session_id)
    assert desk.painted() == [stands] == other.painted()
    desk.burst("kk", 800)
    desk.settle()
    after = decisions_of(store, session_id)
    assert after[: len(decided)] == decided
    require_seen(desk, after[len(decided) :])


def fill(store: Store, num: int = 60, hostile: str = "") -> None:
    """Examples with one, two and three negatives, and two people."""
    with store.write() as session:
        ada = put_reviewer(session, "ada", "admin")
        put_reviewer(session, "grace", "reviewer", by=ada)
        run = start_run(session, "generate", f"rivers {hostile[:100]}", {}, 0)
        teacher = put_teacher(session, name="minilm", version="v", kind="bi-encoder", max_length=256)
        for n in range(num):
            (query,) = put_queries(session, [f"which river floods in month {n} {hostile}"])
            others = ("canal", "lake", "hill")[: 1 + n % 3]
            texts = [
                f"The {what} floods in month {n} of every year, people say. {hostile}" for what in ("river", *others)
            ]
            passages = put_passages(session, texts)
            (example,) = put_examples(session, [(query, passages[0])], origin="synthetic")
            grades = (None, "hard", "medium", "easy")
            put_candidates(
                session,
                [
                    NewCandidate(
                        example, passage, "negative" if rank else "positive", "synthetic", run.id,
                        grade=grades[rank], rank=rank or None,
                    )
                    for rank, passage in enumerate(passages)
                ],
            )  # fmt: skip
            values = zip(passages, (0.9, 0.8, 0.85, 0.4), strict=False)
            rows = [{"passage_id": passage, "value": value, "num_tokens": 9} for passage, value in values]
            insert_missing(session, Score, [{"teacher_id": teacher, "query_id": query, **row} for row in rows])


def new_session(store: Store, **facts: Any) -> int:
    recipe = SessionRecipe.model_validate({"name": uuid4().hex, "queue": {"order": "random"}, "seed": 1, **facts})
    with store.write() as session:
        return create_session(session, recipe, reviewer_of(session, "ada")).id


def test_everything_is_done_by_keys(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store, queue={"order": "random", "text": "month 2"}, rubric={"text": "# Look closely"})
    desk = Desk.opened(browser, address, session_id)
    desk.page.get_by_text("Look closely").wait_for()
    for key, expected in (("v", "nothing stated"), ("w", "decided: swap with")):
        desk.page.keyboard.press(key)
        desk.page.get_by_text(expected).first.wait_for(timeout=30_000)
        desk.settle()
    first = desk.shown()
    assert (desk.follow("ArrowDown"), desk.follow("ArrowUp")) != (first, first) and desk.shown() == first
    desk.follow("2")
    desk.page.keyboard.press("e")
    write(desk.page, " indeed")
    desk.page.keyboard.press("Escape")
    desk.page.get_by_role("button", name="False negative").wait_for(timeout=30_000)
    desk.page.keyboard.press("e")
    write(desk.page, " indeed")
    desk.page.keyboard.press("Control+Enter")
    desk.page.get_by_role("button", name="Accept the edit").wait_for(timeout=90_000)
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
        desk.page.get_by_text("handed to somebody else").wait_for(timeout=30_000)
        desk.page.locator("code", has_text="what I found out").wait_for(timeout=30_000)
        taken.burst("k", 1_000)
        taken.settle()
    assert "flag" not in kinds_of(store, session_id)
    desk.page.keyboard.press("x")
    desk.page.get_by_text("handed to somebody else").wait_for(state="hidden", timeout=30_000)


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
    desk.page.locator("code", has_text="a note of mine").wait_for(timeout=30_000)
    desk.page.get_by_text("decided elsewhere").wait_for()
    desk.page.keyboard.press("x")
    desk.page.get_by_text("decided elsewhere").wait_for(state="hidden", timeout=30_000)
    desk.page.keyboard.press("e")
    write(desk.page, " an edit of mine")
    desk.page.keyboard.press("Control+Enter")
    desk.page.get_by_role("button", name="Accept the edit").wait_for(timeout=90_000)
    other.follow("d")
    desk.page.keyboard.press("y")
    desk.page.locator("code", has_text="an edit of mine").wait_for(timeout=30_000)
    assert "edit" not in kinds_of(store, session_id) and "flag" not in kinds_of(store, session_id)
    desk.page.keyboard.press("x")
    desk.page.get_by_role("button", name="Dismiss").wait_for(state="hidden", timeout=30_000)
    desk.page.keyboard.press("e")
    write(desk.page, " a late edit")
    with store.write() as session:
        close_session(session, session.get_one(ReviewSession, session_id), by=reviewer_of(session, "ada"))
    desk.page.keyboard.press("Control+Enter")
    desk.page.locator("code", has_text="a late edit").wait_for(timeout=30_000)
    desk.page.get_by_text("is closed").first.wait_for()


def test_what_is_typed_before_the_box_is_there_decides_nothing(stage: tuple[Store, str, str], browser: Any) -> None:
    store, _, address = stage
    session_id = new_session(store)
    desk = Desk.opened(browser, address, session_id)
    for key in "eg":
        desk.burst([key, *"kdsa123fwu"], 2)
        write(desk.page, " indeed")
        desk.settle()
        assert kinds_of(store, session_id) == []
        desk.page.keyboard.press("Escape")
        desk.page.get_by_role("button", name="Keep").wait_for(timeout=30_000)
    desk.follow("k")
    assert len(kinds_of(store, session_id)) == 1


def write(page: Any, words: str) -> None:
    """Words into the text that has the focus by itself."""
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'", timeout=30_000)
    page.keyboard.type(words)


def kinds_of(store: Store, session_id: int) -> list[str]:
    events = select(Decision.kind).join(Assignment, Assignment.id == Decision.assignment_id)
    with store.read() as session:
        return list(session.scalars(events.where(Assignment.session_id == session_id).order_by(Decision.id)))


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
        desk.page.get_by_text("<b>s</b> **bold**").first.wait_for(timeout=60_000)
        assert desk.page.evaluate("window.owned") is None
    store.close()
