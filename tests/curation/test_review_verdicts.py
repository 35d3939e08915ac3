"""What people decided of a candidate, all together: agreement, dispute, settlement, swaps, and as of a moment."""

from datetime import datetime
from typing import Any

import pytest

from curation.errors import CurationError
from curation.reviewing.verdicts import Verdict, Verdicts, counts_of
from tests.curation.desk import Desk


def verdicts(desk: Desk, *, sessions: tuple[str, ...] = (), until: datetime | None = None) -> dict[str, Verdict]:
    """By the candidate's text."""
    with desk.store.read() as session:
        found = Verdicts(session, sessions=sessions, until=until).of_examples(desk.examples)
    texts = {key: text for text, key in desk.candidates.items()}
    return {texts[key]: verdict for key, verdict in found.items()}


def told(verdict: Verdict) -> tuple[Any, ...]:
    word = verdict.word
    return (verdict.state, *((word.outcome, word.grade, word.rank) if word else (None, None, None)))


def test_one_two_and_nobody(desk: Desk) -> None:
    desk.fill([4, 2])
    desk.session()
    desk.say("ada", "w 0 1", "keep")
    desk.say("ada", "w 0 2", "drop")
    desk.say("bob", "w 0 2", "drop")
    desk.say("ada", "w 0 3", "drop")
    desk.say("bob", "w 0 3", "keep")
    desk.say("bob", "w 0 4", "false_negative")
    found = verdicts(desk)
    assert {text: told(one) for text, one in found.items()} == {
        "w 0 1": ("decided", "keep", "hard", 1),
        "w 0 2": ("agreed", "drop", "medium", 2),
        "w 0 3": ("disputed", None, None, None),
        "w 0 4": ("decided", "false_negative", "easy", 4),
    }
    assert {one.reviewer for one in found["w 0 2"].events} == {"reviewer-ada-x", "reviewer-bob-x"}
    with desk.store.read() as session:
        counts = counts_of(Verdicts(session).of_examples(desk.examples))
    assert counts == {"settled": 0, "agreed": 1, "decided": 2, "disputed": 1}


def test_an_adjudicator_settles_and_nothing_is_overwritten(desk: Desk) -> None:
    desk.fill([3])
    desk.session()
    for who, kind in (("ada", "keep"), ("bob", "drop")):
        desk.say(who, "w 0 1", kind)
    settled = desk.say("chief", "w 0 1", "settle", verdict="regrade", grade="easy", role="admin")
    one = verdicts(desk)["w 0 1"]
    assert told(one) == ("settled", "keep", "easy", 4) and len(one.words) == 2 and len(one.events) == 3
    assert one.events[-1].kind == "settle" and one.events[-1].rubric == "default v1"
    desk.undo(settled)
    assert verdicts(desk)["w 0 1"].state == "disputed"


def test_a_regrade_takes_the_rank_of_its_grade_and_the_same_grade_changes_nothing(desk: Desk) -> None:
    desk.fill([4])
    desk.session()
    for text, grade in (("w 0 1", "medium"), ("w 0 3", "medium"), ("w 0 4", "hard"), ("m 0", "easy")):
        desk.say("ada", text, "regrade", grade=grade)
    assert {text: told(one)[2:] for text, one in verdicts(desk).items()} == {
        "w 0 1": ("medium", 2),
        "w 0 3": ("medium", 3),
        "w 0 4": ("hard", 1),
        "m 0": ("easy", 4),
    }


def test_swaps_exchange_places_in_their_order_and_a_regrade_speaks_last(desk: Desk) -> None:
    desk.fill([4])
    desk.session()
    desk.say("ada", "w 0 1", "swap", other="w 0 2")  # 1 is N2, 2 is N1
    desk.say("ada", "w 0 2", "swap", other="w 0 4")  # 2 is N4, 4 is N1
    desk.say("ada", "w 0 2", "keep")
    desk.say("ada", "w 0 1", "regrade", grade="easy")
    assert {text: told(one) for text, one in verdicts(desk).items()} == {
        "w 0 1": ("decided", "keep", "easy", 4),
        "w 0 2": ("decided", "keep", "easy", 4),
        "w 0 4": ("decided", "keep", "hard", 1),
    }


def test_swapping_and_keeping_disagree_and_both_directions_agree(desk: Desk) -> None:
    desk.fill([4])
    desk.session()
    desk.say("ada", "w 0 1", "swap", other="w 0 4")
    desk.say("bob", "w 0 4", "swap", other="w 0 1")
    desk.say("ada", "w 0 2", "swap", other="w 0 3")
    desk.say("bob", "w 0 2", "keep")
    desk.say("bob", "w 0 3", "keep")
    states = {text: one.state for text, one in verdicts(desk).items()}
    # Ranks 2 and 3 share a grade, so that exchanging them is no disagreement about the grade.
    assert states == {"w 0 1": "agreed", "w 0 4": "agreed", "w 0 2": "agreed", "w 0 3": "agreed"}
    desk.say("cem", "w 0 1", "keep")
    assert verdicts(desk)["w 0 1"].state == "disputed"


def test_keep_says_nothing_of_the_grade_in_a_blind_session(desk: Desk) -> None:
    desk.fill([4, 4])
    desk.session("open", nums=[0])
    desk.session("blind", nums=[1], is_blind=True)
    for n, name in enumerate(("open", "blind")):
        desk.say("ada", f"w {n} 1", "keep", session=name)
        desk.say("bob", f"w {n} 1", "regrade", grade="easy", session=name)
    found = verdicts(desk)
    assert told(found["w 0 1"])[0] == "disputed" and told(found["w 1 1"]) == ("agreed", "keep", "easy", 4)


def test_two_different_edits_disagree(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    one, other = desk.edit("w 0 1", "x 0 one"), desk.edit("w 0 1", "x 0 other")
    desk.say("ada", "w 0 1", "edit", other=one)
    assert told(verdicts(desk)["w 0 1"])[:2] == ("decided", "edit")
    desk.say("bob", "w 0 1", "edit", other=other)
    assert verdicts(desk)["w 0 1"].state == "disputed"


def test_the_newest_word_of_a_person_counts_across_sessions(desk: Desk) -> None:
    desk.fill([2])
    desk.session("first")
    desk.session("second")
    desk.say("ada", "w 0 1", "drop", session="first")
    desk.say("ada", "w 0 1", "keep", session="second")
    assert told(verdicts(desk)["w 0 1"])[:2] == ("decided", "keep")
    assert told(verdicts(desk, sessions=("first",))["w 0 1"])[:2] == ("decided", "drop")
    with pytest.raises(CurationError, match="'third' is not in this store; there are: first, second"):
        verdicts(desk, sessions=("third",))


def test_gold_and_repeats_decide_nothing(desk: Desk) -> None:
    desk.fill([2])
    made = desk.session()
    with desk.store.write() as session:
        gold = desk.item(session, made.id, 10, 0, kind="gold", expected={"w 0 1": ("drop", None)})
        repeat = desk.item(session, made.id, 11, 0, kind="repeat", repeats=0)
    desk.say("ada", "w 0 1", "drop", item=gold)
    desk.say("ada", "w 0 2", "drop", item=repeat)
    assert verdicts(desk) == {}


def test_as_of_a_moment(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    moments = [desk.clock]
    first = desk.say("ada", "w 0 1", "drop")
    moments.append(desk.clock)
    desk.undo(first)
    moments.append(desk.clock)
    desk.say("ada", "w 0 1", "keep")
    moments.append(desk.clock)
    found = [verdicts(desk, until=moment).get("w 0 1") for moment in moments]
    assert [one and told(one)[1] for one in found] == [None, "drop", None, "keep"]
