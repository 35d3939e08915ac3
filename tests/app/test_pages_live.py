"""In a real browser: a run that goes on is read again by itself, one more draw is asked for by a press, rows open."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.tables.ledger import Request, RunRequest
from db.texts import put_passages, put_queries
from generator.ledger import Answer, enqueue, record
from generator.models import facts_of
from generator.plan import Planned
from scripts.screenshots import launched, opened_page, served, wait_until_painted

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine"),
]
NUM = 5


def fill(store: Store) -> None:
    with store.write() as session:
        run = start_run(session, "generate", "going", {"model": "m"}, 0)
        asked = [
            Planned(n, f"ex-{n}", "pairs", {}, {}, {"messages": [{"role": "user", "content": f"ask {n}"}]})
            for n in range(NUM)
        ]  # fmt: skip
        enqueue(session, run.id, asked, "m")
        (query,), passages = put_queries(session, ["what?"]), put_passages(session, ["that", "not that"])
        (example,) = put_examples(session, [(query, passages[0])], origin="corpus")
        roles = ("positive", "negative")
        put_candidates(
            session,
            [NewCandidate(example, p, role, "corpus", run.id) for p, role in zip(passages, roles, strict=True)],
        )


def answer(store: Store, num: int) -> None:
    """The first `num` requests are answered and read."""
    with store.write() as session:
        link: Any
        for link in session.scalars(select(RunRequest).order_by(RunRequest.plan_index).limit(num)):
            if link.outcome is None:
                told = Answer(link.request_id, "e", f"answer of {link.custom_id}", usage={"prompt_tokens": 7})
                record(session, link.run_id, [told], facts=facts_of("m"))
                link.outcome, link.num_accepted = "accepted", 1


def test_a_run_refreshes_itself_and_a_request_is_asked_again(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    fill(store)
    answer(store, 1)
    with served(None, {"GRADUS_DATA": str(tmp_path)}) as address, sync_playwright() as playwright:
        browser = launched(playwright)
        page = opened_page(browser, viewport={"width": 1280, "height": 2_400})
        page.goto(f"{address}/runs")
        page.get_by_text(f"1 of {NUM} read").wait_for()
        answer(store, 4)
        page.get_by_text(f"4 of {NUM} read").wait_for()
        page.get_by_text("answer of ex-0").wait_for()
        page.get_by_role("button", name="Ask again").click()
        page.get_by_text("waits in the ledger").wait_for()
        page.goto(f"{address}/store_browser?role=negative")
        wait_until_painted(page)
        assert "role=negative" in page.url
        # A table is a canvas: its first column holds the boxes that choose a row.
        page.locator("[data-testid=stDataFrame]").first.click(position={"x": 16, "y": 52})
        page.get_by_text("The example", exact=True).wait_for()
        page.get_by_text("not that").locator("visible=true").first.wait_for()
        assert "example=1" in page.url
        browser.close()
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(RunRequest)) == NUM + 1
        assert session.scalar(select(func.max(Request.sample_index))) == 1
    store.close()
