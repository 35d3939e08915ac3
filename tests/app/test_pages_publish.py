"""Publishing from the page in a real browser against the loopback Hub: a dry run first, then as the command does."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from app.publishing import plan_as, publish_as
from curation.errors import CurationError
from curation.reviewing.people import put_reviewer
from db.publications import publications
from db.store import Store
from scripts.screenshots import launched, opened_page, served, wait_until_painted

TOKEN = "hf_planted0token0that0nobody0may0find"


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_release_is_published_after_a_dry_run_and_the_token_is_never_shown(
    hub: Any, toy_releases: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    # A copy, as other tests use the same releases; the store names the folders that were written first.
    shutil.copytree(toy_releases, tmp_path / "home")
    home = tmp_path / "home"
    sent: list[str] = []
    with served(None, hub.environment(home, HF_TOKEN=TOKEN)) as address, sync_playwright() as playwright:
        browser = launched(playwright)
        page = opened_page(browser, viewport={"width": 1280, "height": 2_400})
        page.on("websocket", lambda socket: socket.on("framereceived", lambda payload: sent.append(str(payload))))
        page.goto(f"{address}/releases?release=toy-1.0.0")
        wait_until_painted(page)
        assert page.get_by_role("button", name="Publish", exact=True).count() == 0
        page.get_by_label("Repository").fill("no-organisation")
        page.get_by_role("button", name="Dry run").click()
        page.get_by_text("write ORG/NAME").wait_for()
        page.get_by_label("Repository").fill(hub.repo)
        page.get_by_role("button", name="Dry run").click()
        page.get_by_text("Dry run, nothing was written").wait_for()
        assert _published(home, hub.repo) == []
        page.get_by_role("button", name="Publish", exact=True).click()
        page.get_by_text("files read back and compared").wait_for()
        page.get_by_role("button", name="Publish", exact=True).wait_for(state="hidden")
        assert TOKEN not in page.content() and not any(TOKEN in frame for frame in sent)
        browser.close()
    (one,) = _published(home, hub.repo)
    assert (one["tag"], one["endpoint"]) == ("v1.0.0", hub.url)


def test_only_an_admin_publishes_from_a_page_and_the_hub_is_not_even_asked(store: Store) -> None:
    hub: Any = None  # whatever asked it would fail
    with store.write() as session:
        ann = put_reviewer(session, "ann", "admin")
        put_reviewer(session, "rea", "reviewer", by=ann)
    for name, told in (("rea", "needs the role 'admin'"), ("nobody", "not known")):
        with pytest.raises(CurationError, match=told):
            plan_as(store, "toy-1.0.0", hub, by=name, is_private=False)
        with pytest.raises(CurationError, match=told):
            publish_as(store, "toy-1.0.0", hub, by=name, is_private=False, progress=lambda done, total: None)
    with pytest.raises(CurationError, match="no release"):
        plan_as(store, "toy-1.0.0", hub, by="ann", is_private=False)


def _published(home: Path, repo: str) -> list[dict[str, str]]:
    """Publications to this repository: other tests have published the same releases to theirs."""
    store = Store.open(f"sqlite:///{home / 'gradus' / 'store.db'}")
    try:
        return [one for one in publications(store, 1) if one["repo"] == repo]
    finally:
        store.close()
