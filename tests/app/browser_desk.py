"""A browser on a review session: what is painted in it, which keys were pressed on what, and what the store then holds.

A script in the page writes down each negative that is painted and what stands on the page at each key press; both are
compared with the events in the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import select

from curation.reviewing.people import put_reviewer, reviewer_of
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import create_session
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.review import Assignment, Decision, Reviewer
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from scripts.screenshots import IS_BUSY, opened_page

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
# What the server sends comes one message at a time, `line_ms` apart: a page is then painted button by button.
SLOW_LINE = """
window.line_ms = 0;
let free = 0;
const listen = WebSocket.prototype.addEventListener;
WebSocket.prototype.addEventListener = function (kind, hear, ...rest) {
  if (kind !== 'message') return listen.call(this, kind, hear, ...rest);
  return listen.call(this, kind, message => {
    free = Math.max(free, performance.now()) + window.line_ms;
    setTimeout(() => hear(message), free - performance.now());
  }, ...rest);
};
"""
AT_BOX = "document.activeElement.tagName === 'TEXTAREA'"
Shown = tuple[int, int]  # (assignment, candidate)


@dataclass
class Desk:
    """A browser on a review session."""

    page: Any

    @classmethod
    def opened(cls, browser: Any, address: str, session_id: int) -> "Desk":
        page = opened_page(browser, viewport={"width": 1280, "height": 900})
        page.add_init_script(WITNESS + SLOW_LINE)
        page.goto(f"{address}/review_decide?session={session_id}")
        page.get_by_role("button", name="Keep").wait_for()
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
        )
        self.settle()
        return self.shown()

    def painted(self) -> list[Shown]:
        return [_shown(one["key"]) for one in self.page.evaluate("window.painted")]

    def settle(self) -> None:
        """Until nothing has been painted for a while and no run is going on."""
        self.page.wait_for_function(
            "() => performance.now() - Math.max(window.painted.at(-1)?.at ?? 0, window.pressed.at(-1)?.at ?? 0) > 1500"
            f" && !({IS_BUSY})",
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


def write(page: Any, words: str) -> None:
    """Words into the text that has the focus by itself."""
    page.wait_for_function(AT_BOX)
    page.keyboard.type(words)


def kinds_of(store: Store, session_id: int) -> list[str]:
    events = select(Decision.kind).join(Assignment, Assignment.id == Decision.assignment_id)
    with store.read() as session:
        return list(session.scalars(events.where(Assignment.session_id == session_id).order_by(Decision.id)))


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
