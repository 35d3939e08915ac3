"""In a real browser: text from outside stays text on every page, no page sends much, none is wider than its window."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from curation.reviewing.decisions import Kind, decide
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim
from curation.reviewing.people import put_reviewer
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import create_session
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.insert import insert_missing
from db.runs import Rejected, add_rejections, start_run
from db.store import Store
from db.tables.base import utc_now
from db.tables.examples import Score
from db.tables.ledger import RunRequest
from db.tables.releases import Release
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from db.trainings import NewTraining, put_training
from generator.ledger import Answer, enqueue, record
from generator.models import facts_of
from generator.plan import Planned
from scripts.screenshots import faults, opened_page, page_paths, served, wait_until_painted

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine"),
]
SHORT = "<script>window.owned=1</script><img src=x onerror=window.owned=1>"
HOSTILE = (
    f"{SHORT} **bold** _slanted_ [evil](javascript:window.owned=1) <https://evil.example> $x^2$ :material/home: "
    ":red[warn] `code` # head {{7*7}} \u202egnp.exe\u2066 zero\u200bwidth \u05e9\u05dc\u05d5\u05dd \x1b[2J </div></bdi>"
    "<style>body{display:none}</style><iframe src=//evil.example></iframe>"
)
LONG = HOSTILE + "<&>" * 8_000 + "\u200b" * 4_000 + "x" * 40_000
PERSON = HOSTILE[:150]
TOKEN = "hf_planted0token0that0nobody0may0find"
MOST_BYTES = 300_000
KEYBOARD = (Path(__file__).parents[2] / "app" / "pages" / "keyboard.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hostile")
    store = Store.open(f"sqlite:///{folder}/store.db")
    fill(store)
    store.close()
    write_model(folder / "models")
    with served(
        None,
        {"GRADUS_DATA": str(folder), "HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9", "GRADUS_REVIEWER": PERSON},
    ) as url:
        yield url


def fill(store: Store) -> None:
    """Every text that a page shows is hostile, most of them long too."""
    with store.write() as session:
        run = start_run(session, "generate", HOSTILE[:200], {"model": HOSTILE, "name": HOSTILE}, 0)
        teacher = put_teacher(session, name=HOSTILE[:200], version="v", kind="bi-encoder")
        candidates, scores = [], []
        for n in range(60):
            (query,) = put_queries(session, [f"query {n} {LONG}"])
            positive, *negatives = put_passages(session, [f"{n} {k} {LONG}" for k in range(5)])
            (example,) = put_examples(session, [(query, positive)], origin="corpus")
            candidates.append(NewCandidate(example, positive, "positive", "corpus", run.id))
            for rank, passage in enumerate(negatives, 1):
                grade = {1: "hard", 4: "easy"}.get(rank, "medium")
                candidates.append(
                    NewCandidate(
                        example, passage, "negative", "synthetic", run.id, grade=grade, rank=rank,
                        violated_requirement=LONG,
                    )
                )  # fmt: skip
            values = enumerate([positive, *negatives])
            scores += [{"query_id": query, "passage_id": p, "value": 0.5 + 0.01 * place} for place, p in values]
            if n == 0:
                _ask(session, run.id, example)
        keys = put_candidates(session, candidates)
        insert_missing(session, Score, [{"teacher_id": teacher, "num_tokens": 9, **row} for row in scores])
        of_first = [key for (example, _), key in keys.items() if example == candidates[0].example_id]
        put_sourcings(session, [NewSourcing(key, run.id, request_id=1) for key in of_first[1:]])
        add_rejections(session, run.id, [Rejected("ex-0", 2, HOSTILE[:90], LONG)])
        for number in (0, 1):
            session.add(_release(number))
        put_training(session, _training())
        _dispute(session)


def _training() -> NewTraining:
    """One that came from another machine; its plain name is for the URL."""
    figures = dict.fromkeys(("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance"), 0.5)
    names = (
        "rank",
        "loss",
        "learning_rate",
        "gradient_norm",
        "query_gradient_variance",
        "positive",
        "written",
        "mined",
    )
    ranks = {"1": {"negatives": 2, **figures}, "<b>b</b>": {"negatives": 1, **figures}}
    steps = [{"step": n, "block": 1, "masked": 0, "ranks": ranks, **dict.fromkeys(names, n)} for n in range(9)]
    recipe = {"name": "stored", "model": LONG, "schedule": HOSTILE, "pooling": HOSTILE}
    blocks = [{"block": HOSTILE, "rank": HOSTILE, "loss": 0.5, "gradient_variance": 0.5}]
    summary = {
        "recipe": recipe,
        "release": HOSTILE[:200],
        "release_digest": "d" * 64,
        "machine": LONG,
        "blocks": blocks,
    }
    return NewTraining(summary, LONG, None, None, steps)


def _dispute(session: Any) -> None:
    """Two people with hostile names who disagree on an example."""
    first = put_reviewer(session, PERSON, "admin")
    people = [first, put_reviewer(session, f"another {PERSON}", "reviewer", by=first)]
    asked = {
        "name": HOSTILE[:190],
        "overlap": 2,
        "queue": {"limit": 2},
        "rubric": {"name": HOSTILE[:100], "text": LONG},
    }
    review = create_session(session, SessionRecipe.model_validate(asked), people[0])
    kinds: tuple[Kind, ...] = ("drop", "false_negative")
    for person, kind in zip(people, kinds, strict=True):
        claimed = claim(session, review, person)
        assert claimed is not None
        candidate = item_view(session, claimed.item_id, person).undecided[0]
        decide(session, claimed.assignment_id, person, kind, candidate, shown_at=utc_now())


def _ask(session: Any, run_id: int, example: int) -> None:
    body = {
        "model": "m",
        "messages": [{"role": HOSTILE, "content": LONG}, {"role": "user", "content": [{"text": LONG}]}],
    }
    enqueue(session, run_id, [Planned(0, "ex-0", HOSTILE[:50], {HOSTILE: HOSTILE}, {}, body)], HOSTILE[:300])
    answer = Answer(1, "stand-in", LONG, model_reported=HOSTILE[:300], finish_reason=HOSTILE[:50], latency_s=1.0)
    record(session, run_id, [answer], facts=facts_of("m"))
    link = session.get_one(RunRequest, 1)
    link.outcome, link.num_accepted, link.example_id, link.notes = "partial", 4, example, {HOSTILE: LONG}


_WORD = {"text": LONG, "share_first": 0.1, "share_second": 0.2}


def _release(number: int) -> Release:
    leak = {
        "auc": 0.9, "interval_95": [0.8, 1.0], "control_auc": 0.5, "stands_out": True, "sets": [HOSTILE, LONG],
        "by_rank": {HOSTILE: {"auc": 0.9}}, "controls": [{"what": LONG, "properties": {HOSTILE: 0.5}}],
        "causes": {
            "properties": [{"name": HOSTILE, "auc": 0.9, "mean_first": None, "mean_second": 1.0}],
            **{f"{side}_words": [_WORD] for side in ("first", "second")},
        },
    }  # fmt: skip
    gate = {
        "gate": HOSTILE, "sense": "at most", "limit": 0.1, "figure": 0.2, "note": LONG, "is_met": False,
        "overridden_by": HOSTILE, "reason": LONG, "rows": [{HOSTILE: LONG, "text": HOSTILE}] * 50,
    }  # fmt: skip
    manifest = {
        "num_items": 9, "rows": {HOSTILE: {HOSTILE: 3}}, "files": {}, "gates": [gate],
        "runs": [{"kind": HOSTILE, "name": LONG, "recipe_digest": HOSTILE, "seed": 0}],
        "sources": [{"name": LONG, "licence": HOSTILE, "num_examples": 3}],
        "audit": {"groups": [{"run": HOSTILE[:200], "leaks": {"negative_from_positive": leak}}]},
    }  # fmt: skip
    name = f"hostile-1.{number}.0"
    recipe = {"title": f"{number} {LONG}", "runs": [HOSTILE]}
    return Release(name=name, digest=f"{number}" * 64, recipe=recipe, manifest=manifest, path="/", created_at=utc_now())


def write_model(models: Path) -> None:
    model = models / HOSTILE[:60].replace("/", "")
    model.mkdir(parents=True)
    steps = [{"step": n, "block": HOSTILE, "rank": 4, "loss": 1.0, "gradient_norm": n} for n in range(3)]
    (model / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in steps))
    (model / "training.json").write_bytes(
        orjson.dumps({"recipe": {"model": LONG}, "release": HOSTILE, "machine": LONG})
    )
    report = {"data": LONG, "split": HOSTILE, "models": [{"model": HOSTILE, "metrics": {HOSTILE: 0.5}}]}
    (models.parent / "evaluation.json").write_bytes(orjson.dumps(report))


def opened(browser: "Browser", address: str, path: str) -> tuple["Page", int]:
    """The page, painted, at 800 pixels, and the bytes that came over its WebSocket."""
    page = opened_page(browser, viewport={"width": 800, "height": 3_000})
    received: list[int] = []

    def count(payload: str | bytes) -> None:
        received.append(len(payload if isinstance(payload, bytes) else payload.encode()))

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    page.goto(f"{address}/{path}")
    wait_until_painted(page)
    return page, sum(received)


def require_text_only(page: "Page") -> None:
    """Nothing of the hostile text became an element, ran, or turned the page."""
    assert page.evaluate("window.owned") is None
    assert page.title() == "Gradus"
    main = page.locator("[data-testid=stMain]")
    scripts = main.locator("script").evaluate_all("all => all.map(one => one.textContent)")
    assert set(scripts) <= {KEYBOARD}
    for selector in ("img[src=x]", "iframe[src*=evil]", "a[href*=evil]", "a[href*=javascript]", ".katex"):
        assert main.locator(selector).count() == 0, selector
    assert main.locator("style", has_text="display:none").count() == 0
    for words, selector in (("bold", "strong"), ("slanted", "em"), ("code", "code"), ("warn", "span")):
        assert main.locator(selector).get_by_text(words, exact=True).count() == 0, words
    text = main.inner_text()
    for mark in ("\u202e", "\u2066", "\u200b", "\x1b"):
        assert mark not in text, hex(ord(mark))
    assert TOKEN not in page.content()
    assert faults(page) == []


PATHS = (
    "", "audit", "runs", "store_browser", "store_browser?example=1&text=zero", "releases", "training",
    "training?model=stored", "agreement", "adjudication", "bulk",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_hostile_text_stays_text_and_a_page_stays_small(browser: "Browser", address: str, path: str) -> None:
    page, num_bytes = opened(browser, address, path)
    require_text_only(page)
    assert num_bytes <= MOST_BYTES, f"{num_bytes:,} bytes"
    for expander in page.locator("details summary").all()[:6]:
        expander.click()
    require_text_only(page)
    page.context.close()


def test_every_page_of_the_navigation_is_looked_at(browser: "Browser", address: str) -> None:
    page = opened_page(browser, viewport={"width": 1600, "height": 900})
    ours = {path.partition("?")[0] for path in PATHS}
    assert {path for path in page_paths(page, address) if not path.startswith("review")} == ours
    page.close()


MADE_UP = [
    ("", "example=../../etc/passwd"),
    ("store_browser", "example=-1"),
    ("store_browser", "example=999999999"),
    ("store_browser", "run=<b>&grade=evil&least=nan&older=x"),
    ("audit", "run=<b>"),
    ("runs", "run=1&request=7&after=1e9&outcome=<b>"),
    ("training", "model=../../secret"),
    ("releases", "release=<script>"),
]


@pytest.mark.parametrize(("path", "query"), MADE_UP)
def test_a_url_that_someone_made_up_breaks_no_page(browser: "Browser", address: str, path: str, query: str) -> None:
    page, _ = opened(browser, address, f"{path}?{query}")
    require_text_only(page)
    page.context.close()
