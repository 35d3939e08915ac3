"""A bulk decision: previewed, one event a row, undone as one, and what gave way stands again."""

import random
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import func, select, text

from curation.errors import CurationError
from curation.reviewing.bulk import Applied, Preview, apply, bulks, preview, undo_bulk
from curation.reviewing.bulk_filter import BulkDecision, BulkFilter
from curation.reviewing.sessions import close_session, session_named
from db.store import Store
from db.tables.review import CurrentDecision, Decision
from tests.curation.desk import Desk

DROP = BulkDecision(verdict="drop")


def looked_at(desk: Desk, what: BulkDecision = DROP, who: str = "chief", **wanted: Any) -> Preview:
    by = desk.person(who, "admin")
    with desk.store.read() as session:
        return preview(session, BulkFilter(session="s", **wanted), what, by)


def done(desk: Desk, what: BulkDecision = DROP, who: str = "chief", mark: int | None = None, **wanted: Any) -> Applied:
    by = desk.person(who, "admin")
    seen = looked_at(desk, what, who, **wanted).mark if mark is None else mark
    with desk.store.write() as session:
        return apply(session, BulkFilter(session="s", **wanted), what, by, mark=seen, now=desk.clock)


def standing(desk: Desk, who: str = "chief") -> dict[str, str]:
    """The person's verdicts that stand, by text."""
    texts = {key: name for name, key in desk.candidates.items()}
    person = desk.person(who, "admin")
    with desk.store.read() as session:
        rows = session.execute(
            select(Decision.candidate_id, Decision.kind, Decision.grade)
            .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
            .where(Decision.reviewer_id == person.id, CurrentDecision.aspect == "verdict")
        )
        return {texts[key]: f"{kind} {grade}" if grade else kind for key, kind, grade in rows}


def assert_sound(store: Store) -> None:
    """The table of current decisions is what the view makes of the events."""
    with store.read() as session:
        columns = "decision_id, session_id, item_id, reviewer_id, candidate_id, kind, aspect"
        table = session.execute(text(f"select {columns} from current_decision order by 1")).all()
        assert table == session.execute(text(f"select {columns} from current_decision_check order by 1")).all()


def test_one_event_a_row_and_the_preview_says_so_before(desk: Desk) -> None:
    desk.fill([4, 2])
    desk.session()
    seen = looked_at(desk, grades=("medium",))
    assert (seen.num, seen.num_examples, seen.now) == (3, 2, {"no decision": 3})
    assert [row["text"] for row in seen.rows] == ["w 0 2", "w 0 3", "w 1 2"]
    with desk.store.read() as session:
        assert session.scalar(select(func.count()).select_from(Decision)) == 0
    made = done(desk, grades=("medium",))
    assert (made.num, made.num_taken_back) == (3, 0)
    assert standing(desk) == dict.fromkeys(("w 0 2", "w 0 3", "w 1 2"), "drop")
    with desk.store.read() as session:
        assert session.scalar(select(func.count()).where(Decision.bulk_id == made.bulk_id)) == 3
        (one,) = bulks(session)
    assert (one.reviewer, one.decision, one.num, one.num_standing) == ("reviewer-chief-x", "drop", 3, 3)
    assert_sound(desk.store)


def test_undone_as_one_what_gave_way_stands_again(desk: Desk) -> None:
    desk.fill([4])
    desk.session()
    for name, kind, grade in (("w 0 1", "keep", None), ("w 0 2", "regrade", "hard"), ("w 0 3", "drop", None)):
        desk.say("chief", name, kind, grade=grade, role="admin")
    before = standing(desk)
    seen = looked_at(desk)
    assert (seen.num, seen.num_same, seen.num_own) == (4, 1, 2)
    assert seen.now == {"keep": 1, "no decision": 2, "regrade hard": 1}
    made = done(desk)
    assert (made.num, made.num_taken_back) == (4, 2) and set(standing(desk).values()) == {"drop"}
    assert_sound(desk.store)
    chief = desk.person("chief", "admin")
    with desk.store.write() as session:
        assert undo_bulk(session, made.bulk_id[:8], chief, now=desk.clock) == 4
    assert standing(desk) == before
    with desk.store.write() as session:
        assert undo_bulk(session, made.bulk_id, chief) == 0
        assert bulks(session)[0].num_standing == 0
    assert_sound(desk.store)


def test_what_was_decided_anew_since_is_left_alone_by_the_undo(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    desk.say("chief", "w 0 1", "keep", role="admin")
    made = done(desk)
    with desk.store.write() as session:
        from curation.reviewing.events import revoke

        of_bulk = session.scalars(
            select(Decision).where(Decision.bulk_id == made.bulk_id, Decision.candidate_id == desk.candidates["w 0 1"])
        ).one()
        revoke(session, [of_bulk], of_bulk.reviewer_id, desk.clock)
    desk.say("chief", "w 0 1", "false_negative", role="admin")
    chief = desk.person("chief", "admin")
    with desk.store.write() as session:
        assert undo_bulk(session, made.bulk_id, chief) == 2
    assert standing(desk) == {"w 0 1": "false_negative"}
    assert_sound(desk.store)


def test_settled_ones_stay_and_disagreement_is_counted(desk: Desk) -> None:
    desk.fill([3])
    desk.session()
    desk.say("ada", "w 0 1", "keep")
    desk.say("bob", "w 0 1", "drop")
    desk.say("ada", "w 0 2", "keep")
    desk.say("bob", "w 0 3", "drop")
    desk.say("chief", "w 0 1", "settle", verdict="keep", role="admin")
    seen = looked_at(desk)
    assert (seen.num, seen.num_settled, seen.num_against) == (3, 1, 1)
    assert {row["text"]: row["num_against"] for row in seen.rows} == {"w 0 2": 1, "w 0 3": 0, "m 0": 0}
    assert looked_at(desk, decided="no").num == 1 and looked_at(desk, decided="yes").num == 2


def test_filters(desk: Desk) -> None:
    desk.fill([4, 2])
    desk.session()
    assert {row["text"] for row in looked_at(desk, origins=("mined",)).rows} == {"m 0", "m 1"}
    assert {row["text"] for row in looked_at(desk, text="W 1").rows} == {"w 1 1", "w 1 2"}
    assert looked_at(desk, text="Q 0").num == 5 and looked_at(desk, text="nowhere").num == 0
    assert looked_at(desk, languages=("Turkish",)).num == 0 and looked_at(desk, min_suspicion=0.1).num == 0
    assert looked_at(desk, reason="judged").num == 0


def test_a_preview_that_is_out_of_date_is_refused(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    seen = looked_at(desk)
    undone = desk.say("ada", "w 0 1", "keep")
    with pytest.raises(CurationError, match="people decided in 's' since the preview"):
        done(desk, mark=seen.mark)
    seen = looked_at(desk)
    desk.undo(undone)
    with pytest.raises(CurationError, match="since the preview"):
        done(desk, mark=seen.mark)
    assert standing(desk) == {}


def test_only_an_admin_in_an_open_session_and_never_for_nothing(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    person, chief = desk.person("dora"), desk.person("chief", "admin")
    with pytest.raises(CurationError, match="needs the role 'admin'"), desk.store.write() as session:
        apply(session, BulkFilter(session="s"), DROP, person, mark=0)
    made = done(desk)
    with pytest.raises(CurationError, match="needs the role 'admin'"), desk.store.write() as session:
        undo_bulk(session, made.bulk_id, person)
    with pytest.raises(CurationError, match="nothing matches that is not decided so already"):
        done(desk)
    for wrong in ("x", "%", ""):
        with pytest.raises(CurationError, match=f"bulk '{wrong}': there is none"), desk.store.write() as session:
            undo_bulk(session, wrong, chief)
    with desk.store.write() as session:
        close_session(session, session_named(session, "s"), by=chief)
    with pytest.raises(CurationError, match="is closed"):
        done(desk, BulkDecision(verdict="keep"))
    for wrong in ({"verdict": "regrade"}, {"verdict": "keep", "grade": "hard"}, {"verdict": "edit"}):
        with pytest.raises(ValidationError):
            BulkDecision.model_validate(wrong)


@pytest.mark.parametrize("seed", range(6))
def test_bulks_undone_from_the_last_to_the_first_lead_back(desk: Desk, seed: int) -> None:
    draws = random.Random(seed)
    desk.fill([4])
    desk.session()
    chief = desk.person("chief", "admin")
    for candidate in ("w 0 1", "w 0 2", "w 0 3", "w 0 4", "m 0"):
        if kind := draws.choice(["keep", "drop", "false_negative", None]):
            desk.say("chief", candidate, kind, role="admin")

    def now() -> dict[int, str]:
        with desk.store.read() as session:
            rows = session.execute(
                select(CurrentDecision.candidate_id, CurrentDecision.kind).where(
                    CurrentDecision.item_id == desk.items["s", 0]
                )
            )
            return {key: kind for key, kind in rows if key is not None}

    seen, made = [now()], []
    for verdict in draws.choices(["keep", "drop", "false_negative"], k=3):
        with desk.store.write() as session:
            what, wanted = BulkDecision(verdict=verdict), BulkFilter(session="s")
            mark = preview(session, wanted, what, chief)
            if mark.num:
                made.append(apply(session, wanted, what, chief, mark=mark.mark).bulk_id)
        if mark.num:
            seen.append(now())
            assert set(seen[-1].values()) == {verdict}
    for bulk_id, before in zip(reversed(made), reversed(seen[:-1]), strict=True):
        with desk.store.write() as session:
            undo_bulk(session, bulk_id, chief)
        assert now() == before
    assert_sound(desk.store)
