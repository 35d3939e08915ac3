"""The pages of agreement, adjudication and bulk decisions: what they show, what a press writes, text as text."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from app.reviewing.adjudicating import open_dispute, open_disputes, said_html, settle_dispute, take_back
from curation.errors import CurationError
from db.store import Store
from db.tables.base import utc_now
from db.tables.review import CurrentDecision, Decision
from tests.curation.desk import Desk

PAGES = Path(__file__).parents[2] / "app" / "pages"
HOSTILE = "<script>document.title='owned'</script> **bold**"
LEAKY = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
pytestmark = LEAKY


@pytest.fixture
def quarrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Two people on three examples: two disputes, one edit; `owner` is the admin of this machine."""
    url = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("GRADUS_STORE", url)
    monkeypatch.setenv("GRADUS_REVIEWER", "owner")
    desk = Desk(Store.open(url))
    desk.fill([2, 2, 2])
    desk.session()
    edited = desk.edit("w 1 1", f"x 1 {HOSTILE}")
    for who, kinds in (("ada", ("keep", "edit", "drop")), ("bob", ("drop", "keep", "drop"))):
        for n, kind in enumerate(kinds):
            desk.say(who, f"w {n} 1", kind, other=edited if kind == "edit" else None)
    return desk


def opened(name: str) -> AppTest:
    page = AppTest.from_file(str(PAGES / f"{name}.py"), default_timeout=120).run()
    assert not page.exception, page.exception
    return page


def button(page: AppTest, label: str) -> Any:
    return next(one for one in page.button if one.label == label)


def settled(desk: Desk) -> dict[str, str | None]:
    texts = {key: text for text, key in desk.candidates.items()}
    with desk.store.read() as session:
        rows = session.execute(
            select(Decision.candidate_id, Decision.verdict)
            .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
            .where(Decision.kind == "settle")
        )
        return {texts[key]: verdict for key, verdict in rows if key is not None}


def test_disputes_are_settled_one_after_the_other_and_undone(quarrel: Desk) -> None:
    page = opened("adjudication")
    assert any("Dispute 1 of 2" in one.value for one in page.caption)
    button(page, "Drop").click().run()
    assert settled(quarrel) == {"w 0 1": "drop"} and any("Dispute 2 of 2" in one.value for one in page.caption)
    assert all("<script>document" not in str(one.proto) for one in page.get("html"))
    button(page, "Edit 1").click().run()
    assert settled(quarrel) == {"w 0 1": "drop", "w 1 1": "edit"}
    assert any("No dispute is open" in one.value for one in page.success)
    button(page, "Undo").click().run()
    assert settled(quarrel) == {"w 0 1": "drop"} and any("Dispute 2 of 2" in one.value for one in page.caption)
    shortcuts = [one.proto.shortcut for one in page.button]
    assert len(shortcuts) == len(set(shortcuts)) and "" not in shortcuts


def test_a_dispute_that_was_settled_meanwhile_is_told_and_not_settled_twice(quarrel: Desk) -> None:
    page = opened("adjudication")
    quarrel.say("chief", "w 0 1", "settle", verdict="keep", role="admin")
    button(page, "Drop").click().run()
    assert settled(quarrel) == {"w 0 1": "keep"} and any("settled meanwhile" in one.value for one in page.error)
    assert any("Dispute 2 of 2" in one.value for one in page.caption)


def test_only_an_admin_adjudicates(quarrel: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_REVIEWER", "ada")
    for name in ("adjudication", "bulk"):
        assert any("this needs the role" in one.value for one in opened(name).error)


def test_a_dispute_step_by_step(quarrel: Desk) -> None:
    store = quarrel.store
    found = open_disputes(store, "owner")
    assert found == [quarrel.candidates["w 0 1"], quarrel.candidates["w 1 1"]]
    place, first = open_dispute(store, "owner", found, 0) or (0, None)
    assert first is not None and place == 0 and first.last_settled_id is None
    made = settle_dispute(store, "owner", first.dispute, "regrade", shown_at=utc_now(), grade="easy")
    with pytest.raises(CurationError, match="settled meanwhile"):
        settle_dispute(store, "owner", first.dispute, "drop", shown_at=utc_now())
    place, second = open_dispute(store, "owner", found, 0) or (0, None)
    assert second is not None and place == 1 and second.last_settled_id == made.id
    assert [one.text for one in second.edits] == [f"x 1 {HOSTILE}"] and "<script>" not in said_html(second.dispute)
    assert (open_dispute(store, "owner", found, 0, direction=-1) or (0,))[0] == 1
    assert (
        take_back(store, "owner", made.id) == first.dispute.candidate_id and take_back(store, "owner", made.id) is None
    )
    assert (open_dispute(store, "owner", found, 0) or (9,))[0] == 0 and open_dispute(store, "owner", [], 0) is None


def test_bulk_is_previewed_before_it_decides_and_undone_as_one(quarrel: Desk) -> None:
    page = opened("bulk")
    button(page, "See what would change").click().run()
    figures = {one.label: one.value for one in page.metric}
    assert figures["would get it"] == "9" and figures["disputed then"] == "2"
    with quarrel.store.read() as session:
        assert session.scalars(select(Decision).where(Decision.bulk_id.is_not(None))).first() is None
    button(page, "Decide on 9").click().run()
    with quarrel.store.read() as session:
        assert len(session.scalars(select(Decision).where(Decision.bulk_id.is_not(None))).all()) == 9
    assert any("Decided on 9 negatives" in one.value for one in page.success)
    button(page, "Undo").click().run()
    assert any("Took 9 decisions back" in one.value for one in page.success)


def test_agreement_shows_its_figures(quarrel: Desk) -> None:
    page = opened("agreement")
    figures = {one.label: one.value for one in page.metric}
    assert figures["negatives"] == "3" and figures["same outcome"] == "33.3%" and figures["disputed"] == "2"
    assert any(label.startswith("Krippendorff's alpha (nominal), 3 negatives") for label in figures)
