"""Disputes are found, shown with what was said, settled by an admin as an event, and opened again by another."""

from typing import Any

import pytest
from sqlalchemy import func, select

from curation.errors import CurationError
from curation.reviewing.adjudication import dispute_of, disputes, last_settled, settle, unsettle
from curation.reviewing.verdicts import Verdicts
from db.tables.review import CurrentDecision, Decision
from tests.curation.desk import Desk


def disputed(desk: Desk, *sessions: str) -> list[str]:
    texts = {key: text for text, key in desk.candidates.items()}
    with desk.store.read() as session:
        return [texts[key] for _, key in disputes(session, sessions)]


def settling(desk: Desk, text: str, verdict: str, who: str = "chief", role: str = "admin", **more: Any) -> Decision:
    by = desk.person(who, role)
    with desk.store.write() as session:
        name = more.pop("session", "s")
        return settle(session, desk.items[name, int(text.split()[1])], desk.candidates[text], verdict, by=by, **more)


def quarrel(desk: Desk) -> None:
    desk.fill([4, 2, 3])
    desk.session()
    for who, kinds in (("ada", ("keep", "drop", "keep")), ("bob", ("drop", "drop", "false_negative"))):
        for n, kind in enumerate(kinds):
            desk.say(who, f"w {n} 1", kind)


def test_disputes_in_the_order_of_examples_until_they_are_settled(desk: Desk) -> None:
    quarrel(desk)
    assert disputed(desk) == ["w 0 1", "w 2 1"]
    settling(desk, "w 0 1", "regrade", grade="medium", note="see the rubric")
    assert disputed(desk) == ["w 2 1"]
    with desk.store.read() as session:
        verdict = Verdicts(session).of_examples(desk.examples)[desk.candidates["w 0 1"]]
        assert verdict.word is not None and (verdict.state, verdict.word.grade) == ("settled", "medium")
        # What each said stands; the settlement is one more event.
        assert session.scalar(select(func.count()).where(Decision.kind == "undo")) == 0
        assert session.scalar(select(func.count()).select_from(CurrentDecision)) == 7


def test_what_a_page_shows_of_a_dispute(desk: Desk) -> None:
    quarrel(desk)
    edited = desk.edit("w 2 1", "x 2 better")
    desk.say("cem", "w 2 1", "edit", other=edited)
    with desk.store.read() as session:
        shown = dispute_of(session, desk.candidates["w 2 1"])
        assert dispute_of(session, desk.candidates["w 1 1"]) is None and dispute_of(session, 10**9) is None
    assert shown is not None
    assert (shown.query, shown.positive, shown.text, shown.grade, shown.rank) == ("q 2", "p 2", "w 2 1", "hard", 1)
    assert [(one.reviewer, one.outcome, one.text) for one in shown.said] == [
        ("reviewer-ada-x", "keep", None),
        ("reviewer-bob-x", "false_negative", None),
        ("reviewer-cem-x", "edit", "x 2 better"),
    ]
    assert shown.rubric == "default v1" and shown.session == "s"
    settling(desk, "w 2 1", "edit", child_id=desk.candidates[edited])
    assert disputed(desk) == ["w 0 1"]


@pytest.mark.parametrize(("is_blind", "grade"), [(True, None), (False, "hard")])
def test_who_saw_no_grade_is_not_told_to_have_said_one(desk: Desk, is_blind: bool, grade: str | None) -> None:
    desk.fill([3])
    desk.session(is_blind=is_blind)
    for who, kind, given in (("ada", "keep", None), ("bob", "drop", None), ("cem", "regrade", "easy")):
        desk.say(who, "w 0 1", kind, grade=given)
    with desk.store.read() as session:
        shown = dispute_of(session, desk.candidates["w 0 1"])
    assert shown is not None
    assert [(one.outcome, one.grade) for one in shown.said if one.outcome == "keep"] == [
        ("keep", grade),
        ("keep", "easy"),
    ]


def test_a_dispute_between_two_sessions_is_settled_in_the_newer(desk: Desk) -> None:
    desk.fill([2])
    desk.session("first", overlap=1)
    desk.session("second", overlap=1)
    desk.say("ada", "w 0 1", "keep", session="first")
    desk.say("bob", "w 0 1", "drop", session="second")
    assert disputed(desk) == ["w 0 1"] and disputed(desk, "first") == disputed(desk, "second") == []
    with desk.store.read() as session:
        shown = dispute_of(session, desk.candidates["w 0 1"])
    assert shown is not None and (shown.session, shown.item_id) == ("second", desk.items["second", 0])


def test_only_an_admin_settles_and_only_once(desk: Desk) -> None:
    quarrel(desk)
    with pytest.raises(CurationError, match="'dora' is a reviewer, this needs the role 'admin'"):
        settling(desk, "w 0 1", "keep", who="dora", role="reviewer")
    settling(desk, "w 0 1", "keep")
    with pytest.raises(CurationError, match="was settled meanwhile: undo that first"):
        settling(desk, "w 0 1", "drop", who="second chief")
    with desk.store.read() as session:
        assert session.scalar(select(func.count()).where(Decision.kind == "settle")) == 1


def test_a_settlement_is_taken_back_by_an_event(desk: Desk) -> None:
    quarrel(desk)
    chief = desk.person("chief", "admin")
    settling(desk, "w 0 1", "keep")
    with desk.store.write() as session:
        last = last_settled(session, chief)
        assert last is not None and unsettle(session, last.id, by=chief) is not None
    assert disputed(desk) == ["w 0 1", "w 2 1"]
    with desk.store.write() as session:
        assert last_settled(session, chief) is None and unsettle(session, last.id, by=chief) is None
    settling(desk, "w 0 1", "drop")
    assert disputed(desk) == ["w 2 1"]


@pytest.mark.parametrize(
    ("verdict", "more", "message"),
    [
        ("maybe", {}, "verdict = 'maybe'"),
        ("swap", {}, "verdict = 'swap'"),
        ("regrade", {}, "grade = None"),
        ("regrade", {"grade": "harder"}, "grade = 'harder'"),
        ("keep", {"grade": "hard"}, "grade = 'hard'"),
        ("edit", {}, "child_id = None"),
        ("edit", {"child_id": 1}, "candidate 1 is not an edit"),
        ("edit", {"child_id": 10**9}, "is not an edit"),
        ("keep", {"note": "x" * 10_001}, "the note has 10,001 characters"),
    ],
)
def test_nonsense_is_refused(desk: Desk, verdict: str, more: dict[str, Any], message: str) -> None:
    quarrel(desk)
    with pytest.raises(CurationError, match=message):
        settling(desk, "w 0 1", verdict, **more)
    with pytest.raises(CurationError, match="is not asked about by item"):
        by = desk.person("chief", "admin")
        with desk.store.write() as session:
            settle(session, desk.items["s", 1], desk.candidates["w 0 1"], "keep", by=by)
