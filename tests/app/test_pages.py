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

from app.overview import example_view, last_runs, neighbouring_example, store_counts
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

ROOT = Path(__file__).parents[2]
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
        assert [(r.label, r.similarity) for r in view.rungs] == [
            ("positive", 0.9),
            ("N1", 0.95),
            ("N4", 0.2),
            ("mined", 0.5),
        ]
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


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_page_shows_figures_and_steps_through_examples(filled_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_STORE", filled_url)
    page = AppTest.from_file(str(ROOT / "app" / "pages" / "overview.py"), default_timeout=60).run()
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}["Examples"] == "3"
    page.button[1].click().run()
    assert not page.exception and page.query_params["example"] == "2"


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
    yield url
    os.killpg(server.pid, 15)
    server.wait(20)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_browser_shows_the_page_and_hostile_text_stays_text(address: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, "--disable-component-update", "--disable-sync"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 2000})
        page.goto(address)
        page.get_by_text("query 0").first.wait_for(timeout=90_000)
        page.locator("img").first.wait_for(timeout=90_000)
        assert page.title() == "Gradus"
        assert page.locator("script", has_text="owned").count() == 0
        page.get_by_role("button", name="Next").click()
        page.get_by_text("query 1").first.wait_for(timeout=30_000)
        assert "example=2" in page.url
        page.reload()
        page.get_by_text("query 1").first.wait_for(timeout=90_000)
        shot = Path(os.environ.get("GRADUS_SCREENSHOTS", tmp_path)) / "overview.png"
        page.screenshot(path=str(shot), full_page=True)
        browser.close()
    assert shot.stat().st_size > 10_000
