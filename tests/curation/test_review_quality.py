"""Pace, repeated keys, hidden checks, and the facts of a human audit, by value."""

from datetime import timedelta

import pytest

from curation.reviewing.agreement import session_agreement
from curation.reviewing.human_audit import human_audit, reviewed, session_report
from curation.reviewing.quality import (
    READING_WPM,
    Check,
    Press,
    accuracies,
    checks,
    longest_run,
    paces,
    presses,
)
from curation.reviewing.sampling import Stratum, audited
from db.tables.review import ReviewSession
from tests.curation.desk import START, Desk


def press(label: str = "keep", seconds: float = 10.0, words: int = 20, who: str = "ada") -> Press:
    return Press(who, label, seconds, words, START)


def test_presses_are_timed_from_what_was_shown_or_from_the_press_before(desk: Desk) -> None:
    desk.fill([4])
    made = desk.session()
    desk.say("ada", "w 0 1", "keep", seconds=8)
    desk.say("ada", "w 0 2", "regrade", grade="hard", seconds=3, shown=START)  # both were shown together
    undone = desk.say("bob", "w 0 1", "drop", seconds=0.5)
    desk.undo(undone)
    desk.say("chief", "w 0 1", "settle", verdict="keep", role="admin")
    desk.say("chief", "w 0 2", "drop", role="admin", bulk_id="b" * 32)
    with desk.store.read() as session:
        found = presses(session, made.id)
        until = presses(session, made.id, until=START + timedelta(seconds=8))
    assert [(one.reviewer, one.label, one.seconds, one.num_words) for one in found] == [
        ("reviewer-ada-x", "keep", 8.0, 3),
        ("reviewer-ada-x", "regrade hard", 3.0, 3),
        ("reviewer-bob-x", "drop", 0.5, 3),
    ]
    assert until == found[:1]


def test_faster_than_reading_and_far_below_the_own_median() -> None:
    slowest = 60 * 100 / (READING_WPM * 4)
    assert not press(seconds=slowest, words=100).is_faster_than_reading
    assert press(seconds=slowest - 0.01, words=100).is_faster_than_reading
    own = [press(seconds=8.0) for _ in range(11)] + [press(seconds=1.99), press(seconds=0.1)]
    (pace,) = paces(own)
    assert (pace.num_presses, pace.median_s, pace.num_faster_than_reading, pace.num_far_below_median) == (13, 8.0, 1, 2)
    assert pace.warnings[0].startswith("1 of 13 decisions came faster than the text can be read")
    (few,) = paces([press(seconds=8.0), press(seconds=0.9, words=1)])
    assert few.num_far_below_median == 0 and few.warnings == ()


def test_repeated_keys_are_measured_against_the_others() -> None:
    labels = ["keep", "drop"] + ["drop"] * 6 + ["keep"]
    others = ["drop"] * 10 + ["keep"] * 30
    run = longest_run(labels, others)
    chance = 11 / 42
    assert (run.label, run.length) == ("drop", 7)
    assert run.num_expected == pytest.approx(9 * (1 - chance) * chance**7)
    usual = longest_run(["keep"] * 7, ["keep"] * 40)
    assert usual.num_expected == pytest.approx(7 * (1 / 42) * (41 / 42) ** 7)
    assert longest_run([], others).length == 0 and longest_run(["a"], []).length == 1
    # Of two as long the less expected one is told.
    assert longest_run(["keep"] * 3 + ["drop"] * 3, others).label == "drop"
    careless = [press("false_negative") for _ in range(9)]
    diligent = [press(label, who="bob") for label in others]
    warned = {pace.reviewer: pace.warnings for pace in paces(careless + diligent)}
    assert warned["ada"] == ("9 times 'false_negative' in a row",)


def test_gold_and_repeats_are_held_against_what_is_known(desk: Desk) -> None:
    desk.fill([3, 2])
    made = desk.session(nums=[0])
    with desk.store.write() as session:
        expected = {"w 1 1": ("drop", None), "w 1 2": ("regrade", "easy")}
        gold = desk.item(session, made.id, 5, 1, kind="gold", expected=expected)
        again = desk.item(session, made.id, 6, 0, kind="repeat", repeats=0)
    desk.say("ada", "w 1 1", "drop", item=gold)
    desk.say("ada", "w 1 2", "regrade", grade="hard", item=gold)
    desk.say("ada", "m 1", "drop", item=gold)  # nothing is known of it
    desk.say("bob", "w 1 2", "regrade", grade="easy", item=gold)
    for name, kind, second in (("w 0 1", "keep", "keep"), ("w 0 2", "drop", "keep")):
        desk.say("ada", name, kind)
        desk.say("ada", name, second, item=again)
    desk.say("ada", "w 0 3", "keep", item=again)  # not decided at first
    with desk.store.read() as session:
        found = checks(session, made.id)
    assert [(one.kind, one.reviewer, one.is_right) for one in found] == [
        ("gold", "reviewer-ada-x", True),
        ("gold", "reviewer-ada-x", False),
        ("gold", "reviewer-bob-x", True),
        ("repeat", "reviewer-ada-x", True),
        ("repeat", "reviewer-ada-x", False),
    ]


@pytest.mark.parametrize(
    ("num", "sizes"), [(1, [1]), (9, [9]), (10, [10]), (19, [19]), (20, [10, 10]), (34, [10, 10, 14])]
)
def test_blocks_hold_every_check_once(num: int, sizes: list[int]) -> None:
    found = [Check("gold", "ada", START + timedelta(hours=n), n % 3 > 0) for n in range(num)]
    (one,) = accuracies(found)
    assert [block.num for block in one.blocks] == sizes and one.num == num
    assert one.num_right == sum(block.num_right for block in one.blocks) == sum(n % 3 > 0 for n in range(num))
    assert one.blocks[0].since == START and one.blocks[-1].until == found[-1].at


def test_falling_off_is_told_and_being_as_good_as_before_is_not() -> None:
    good = [Check("gold", "ada", START + timedelta(hours=n), True) for n in range(30)]
    bad = [Check("gold", "ada", START + timedelta(hours=30 + n), n % 5 == 0) for n in range(10)]
    assert accuracies(good + bad)[0].is_drifting and not accuracies(good)[0].is_drifting
    assert not accuracies(bad)[0].is_drifting


def decide(desk: Desk) -> ReviewSession:
    """Two people on four examples, with a dispute, a regrade and a drop; the last example is left alone."""
    desk.fill([4, 2, 2, 3])
    sample = {"queue": {"sample": {"size": 9, "max_error_rate": 0.2, "confidence": 0.9}}}
    strata = [
        {"name": "hard/synthetic", "size": 40, "drawn": 4},
        {"name": "medium/synthetic", "size": 60, "drawn": 6},
        {"name": "easy/synthetic", "size": 1, "drawn": 1},
        {"name": "ungraded/mined", "size": 5, "drawn": 4},
    ]
    made = desk.session(strata=True, definition=sample, facts={"strata": strata})
    for who in ("ada", "bob"):
        desk.say(who, "w 0 1", "keep")
        desk.say(who, "w 0 2", "regrade", grade="hard")
        desk.say(who, "w 1 1", "drop")
        desk.say(who, "w 1 2", "keep" if who == "ada" else "drop")
        desk.say(who, "m 2", "keep")
    desk.say("ada", "w 2 1", "keep")
    return made


def test_a_session_told_in_figures(desk: Desk) -> None:
    decide(desk)
    with desk.store.read() as session:
        report = session_report(session, "s", num_resamples=20)
        agreement = session_agreement(session, "s", num_resamples=20)
    assert report.fates == {"kept": 3, "regraded": 1, "drop": 1, "false_negative": 0, "edit": 0, "disputed": 1}
    assert (report.num, report.num_changed, report.num_settled) == (6, 3, 0)
    assert report.agreement == agreement
    outcome, grade = agreement.outcome, agreement.grade
    assert (outcome.num_units, outcome.num_shared_units, outcome.share_same) == (6, 5, 0.8)
    (pair,) = outcome.pairs
    assert pair.confusion == [[3, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4] and pair.num_units == 5
    # Grades of what both keep: w 0 1 (hard as it was) and w 0 2 (regraded hard); mined ones carry none.
    assert grade.num_shared_units == 2 and grade.pairs[0].confusion == [[0] * 3, [0] * 3, [0, 0, 2]]
    assert report.audit is not None
    assert report.audit == audited(
        [
            Stratum("hard/synthetic", 40, 3, 1),
            Stratum("medium/synthetic", 60, 2, 2),
            Stratum("easy/synthetic", 1, 0, 0),
            Stratum("ungraded/mined", 5, 1, 0),
        ],
        max_error_rate=0.2,
        confidence=0.9,
    )


def test_the_facts_of_an_audit_name_nobody_and_leave_out_what_is_of_other_examples(desk: Desk) -> None:
    decide(desk)
    desk.session("elsewhere", nums=[3])
    desk.say("ada", "w 3 1", "keep", session="elsewhere")
    desk.session("nobody came", nums=[3])
    with desk.store.read() as session:
        facts = {one["session"]: one for one in human_audit(session, num_resamples=20)}
        (only,) = human_audit(session, examples=desk.examples[:3], num_resamples=20)
        (named,) = human_audit(session, sessions=("elsewhere",), num_resamples=20)
        before = human_audit(session, until=START, num_resamples=20)
        rows = reviewed(session, "elsewhere")
    assert set(facts) == {"s", "elsewhere"} and only["session"] == "s" and named["session"] == "elsewhere"
    assert before == [] and len(rows) == 1 and rows[0].fate == "kept"
    told = facts["s"]
    assert told["reviewers"] == [{"reviewer": "reviewer-ada-x", "num": 6}, {"reviewer": "reviewer-bob-x", "num": 5}]
    assert (told["num"], told["num_examples"], told["num_changed"], told["rubric"]) == (6, 3, 3, "default v1")
    assert told["agreement"]["num_shared"] == 5 and told["agreement"]["outcome_alpha"]["value"] is not None
    assert told["warnings"]["num_presses"] == 11 and told["audit"]["advice"] == "going on"
    assert "'ada'" not in repr(facts) and "'owner'" not in repr(facts)


def test_skipped_and_flagged_examples_are_told_as_they_stood(desk: Desk) -> None:
    decide(desk)
    before = desk.clock
    desk.pass_over("ada", 2, "skip")
    desk.pass_over("bob", 2, "skip")
    desk.pass_over("ada", 3, "flag")
    undone = desk.pass_over("bob", 1, "skip")
    then = desk.clock
    desk.undo(undone)
    with desk.store.read() as session:
        told = [human_audit(session, until=at, num_resamples=5)[0] for at in (before, then, None)]
        report = session_report(session, "s", num_resamples=5)
    assert [(one["num_skipped"], one["num_flagged"]) for one in told] == [(0, 0), (2, 1), (1, 1)]
    assert (report.num_skipped, report.num_flagged) == (1, 1)


def test_a_session_without_a_sample_has_no_error_rate(desk: Desk) -> None:
    desk.fill([2])
    desk.session()
    desk.say("ada", "w 0 1", "keep")
    with desk.store.read() as session:
        assert session_report(session, "s", num_resamples=5).audit is None
