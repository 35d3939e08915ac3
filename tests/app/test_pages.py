"""The overview page: figures by value, hostile text shown as text, and a real browser that clicks through."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from streamlit.testing.v1 import AppTest

from app.viewing.overview import example_view, last_runs, neighbouring_example, store_counts
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from scripts.screenshots import launched, opened_page

ROOT = Path(__file__).parents[2]
LEAKY = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
HOSTILE = "<script>document.title='owned'</script> **bold** <img src=x onerror=alert(1)>"


def fill(store: Store, num: int = 3) -> None:
    with store.write() as session:
        run = start_run(session, "generate", "pages-run", {}, 0)
        teacher = put_teacher(session, name="minilm", version="v", kind="bi-encoder", max_length=256)
        for n in range(num):
            (query,) = put_queries(session, [f"query {n} {HOSTILE}"])
            texts = [f"positive {n}", f"easy {n}", f"hard {n} {HOSTILE}", f"mined {n}"]
            passages = put_passages(session, texts)
            (example,) = put_examples(session, [(query, passages[0])], origin="corpus")
            roles = [
                ("positive", "corpus", None),
                ("negative", "synthetic", 4),
                ("negative", "synthetic", 1),
                ("negative", "mined", None),
            ]
            grades = {4: "easy", 1: "hard", None: None}
            put_candidates(
                session,
                [
                    NewCandidate(example, passage, role, origin, run.id, grade=grades[rank], rank=rank)
                    for passage, (role, origin, rank) in zip(passages, roles, strict=True)
                ],
            )
            scores = [
                {"teacher_id": teacher, "query_id": query, "passage_id": p, "value": value, "num_tokens": 9}
                for p, value in zip(passages, (0.9, 0.2, 0.95, 0.5), strict=True)
            ]
            insert_missing(session, Score, scores)


def test_overview_by_value(store: Store) -> None:
    fill(store)
    with store.read() as session:
        counts = dict(store_counts(session))
        assert (counts["examples"], counts["scores"], counts["negatives, synthetic"], counts["negatives, mined"]) == (
            3,
            12,
            6,
            3,
        )
        assert [(run.kind, run.name, run.state) for run in last_runs(session)] == [("generate", "pages-run", "running")]
        first = neighbouring_example(session, None, 1)
        assert first is not None and neighbouring_example(session, first, -1) is None
        view = example_view(session, first)
        assert view is not None
        assert view.positive is not None and view.positive.similarity == 0.9
        (ladder,) = view.ladders
        assert (ladder.run, [(r.label, r.similarity) for r in ladder.rungs]) == (
            "pages-run",
            [("N1", 0.95), ("N4", 0.2), ("mined", 0.5)],
        )
        assert (counts["graded hard"], counts["graded easy"]) == (3, 3)
        second = neighbouring_example(session, first, 1)
        assert second is not None and neighbouring_example(session, second, -1) == first
        assert example_view(session, 10**9) is None


@pytest.fixture
def filled_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    fill(store)
    store.close()
    return url


def test_empty_store_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_STORE", f"sqlite:///{tmp_path}/empty.db")
    page = AppTest.from_file(str(ROOT / "app" / "pages" / "overview.py"), default_timeout=60).run()
    assert not page.exception
    assert "gradus demo" in page.info[0].value


@LEAKY
def test_page_shows_figures_and_steps_through_examples(filled_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_STORE", filled_url)
    page = AppTest.from_file(str(ROOT / "app" / "pages" / "overview.py"), default_timeout=60).run()
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}["Examples"] == "3"
    page.button[1].click().run()
    assert not page.exception and page.query_params["example"] == "2"


def put_example(store: Store, query: str, scored: dict[str, float], teacher: str = "minilm") -> None:
    """An example whose first text is the positive, with similarities by the teacher."""
    with store.write() as session:
        run = start_run(session, "mine", "odd-run", {}, 0)
        teacher_id = put_teacher(session, name=teacher, version="v", kind="bi-encoder")
        (query_id,), passages = put_queries(session, [query]), put_passages(session, list(scored))
        (example,) = put_examples(session, [(query_id, passages[0])], origin="corpus")
        roles = ["positive", *["negative"] * (len(passages) - 1)]
        put_candidates(
            session,
            [NewCandidate(example, p, role, "mined", run.id) for p, role in zip(passages, roles, strict=True)],
        )
        pairs = zip(passages, scored.values(), strict=True)
        scores = [{"passage_id": p, "value": value, "num_tokens": 9} for p, value in pairs]
        insert_missing(session, Score, [{"teacher_id": teacher_id, "query_id": query_id, **row} for row in scores])


def open_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *examples: tuple[str, dict[str, float], str]) -> AppTest:
    url = f"sqlite:///{tmp_path}/odd.db"
    store = Store.open(url)
    for query, scored, teacher in examples:
        put_example(store, query, scored, teacher)
    store.close()
    monkeypatch.setenv("GRADUS_STORE", url)
    page = AppTest.from_file(str(ROOT / "app" / "pages" / "overview.py"), default_timeout=60).run()
    assert not page.exception
    return page


def rungs_of(page: AppTest) -> list[str]:
    """HTML of the example's query, then of each of its rungs."""
    bodies = [element.proto.body for element in page.get("html")]
    start = next(place for place, body in enumerate(bodies) if "<b>Query</b>" in body)
    return [bodies[start], *"".join(bodies[start + 1 :]).split("<div style='border-left:6px")[1:]]


@LEAKY
def test_negative_cosine_is_a_bar_left_of_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(tmp_path, monkeypatch, ("q", {"p": 0.5, "n": -0.25, "m": 0.1}, "minilm"))
    positive, above, below = rungs_of(page)[1:]
    assert "margin-left:50.0%;width:25.0%" in positive
    assert "margin-left:50.0%;width:5.0%" in above
    assert "margin-left:37.5%;width:12.5%" in below


@LEAKY
def test_what_drives_or_turns_the_page_is_shown_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"p \u202egnp.exe\u202c": 0.5, "n\x1b[2J\u2066 \u3000wide\tline\n": 0.2}
    page = open_page(tmp_path, monkeypatch, ("q \u200fx", texts, "minilm"))
    query, positive, negative = rungs_of(page)
    assert "q �x" in query and "p �gnp.exe�" in positive
    assert "n�[2J� \u3000wide\tline\n" in negative


@LEAKY
def test_many_negatives_and_long_texts_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"p" * 9_000: 0.9} | {f"negative {number}": 0.5 - number / 1_000 for number in range(60)}
    page = open_page(tmp_path, monkeypatch, ("q", texts, "minilm"))
    shown = rungs_of(page)
    assert len(shown) == 1 + 40
    assert sum(map(len, shown)) < 200_000 and "p" * 9_000 in shown[1]
    assert "21 more negatives" in page.caption[-1].value


@LEAKY
def test_any_teacher_of_the_store_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = open_page(tmp_path, monkeypatch, ("q", {"p": 0.5, "n": 0.2}, "mine-own"))
    assert not only.selectbox and any("newest 3 runs" in caption.value for caption in only.caption)
    both = open_page(tmp_path, monkeypatch, ("r", {"s": 0.5, "t": 0.2}, "second"))
    assert both.selectbox[0].options == ["second", "mine-own"]
    both.selectbox[0].set_value("mine-own").run()
    assert not both.exception and any("by mine\\-own" in caption.value for caption in both.caption)


CHROMIUM = shutil.which("chromium")


@pytest.fixture
def address(filled_url: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "gradus"), "app", "--port", str(port), "--store", filled_url]
    server = subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            with urlopen(f"{url}/_stcore/health") as answer:
                if answer.status == 200:
                    break
        except OSError:
            time.sleep(0.25)
    else:
        pytest.fail(f"no answer at {url} within a minute")
    yield url
    server.terminate()  # this process alone: a child of it would be left behind
    server.wait(20)
    with pytest.raises(OSError, match="refused"):
        urlopen(f"{url}/_stcore/health")


@pytest.mark.slow
def test_sigterm_to_the_command_ends_the_server(address: str) -> None:
    with urlopen(f"{address}/_stcore/health") as answer:
        assert answer.status == 200


def refused(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "gradus"), "app", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "Gradus on" not in done.stdout
    return done.stderr


def test_store_that_cannot_be_opened_is_told_before_the_server_starts(tmp_path: Path) -> None:
    assert "cannot open the store" in refused("--store", f"postgresql://u:secret@/none?host={tmp_path}")
    assert "no store at" in refused("--store", f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "text.db").write_text("not a database, only long enough to be looked at" * 50)
    assert "cannot open" in refused("--store", f"sqlite:///{tmp_path}/text.db")


def test_port_that_is_taken_is_told_with_the_remedy(filled_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = refused("--store", filled_url, "--port", str(taken.getsockname()[1]))
    assert "--port" in told


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_browser_shows_the_page_and_hostile_text_stays_text(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launched(playwright)
        page = opened_page(browser, viewport={"width": 1400, "height": 2000})
        page.goto(address)
        page.get_by_text("query 0").first.wait_for()
        page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
        assert page.title() == "Gradus"
        assert page.get_by_text("Deploy", exact=True).count() == 0
        assert page.locator("script", has_text="owned").count() == 0
        page.get_by_role("button", name="Next").click()
        page.get_by_text("query 1").first.wait_for()
        assert "example=2" in page.url
        page.reload()
        page.get_by_text("query 1").first.wait_for()
        shot = Path(os.environ.get("GRADUS_SCREENSHOTS", tmp_path)) / "overview.png"
        page.screenshot(path=str(shot), full_page=True)
        browser.close()
    assert shot.stat().st_size > 10_000
