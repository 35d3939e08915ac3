"""Review sessions: claiming, deciding, undoing; what nobody may do; what a page may see."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, func, select

from curation.errors import CurationError, LeaseLostError
from curation.reviewing.decisions import decide, undo
from curation.reviewing.edits import put_edit, rescore
from curation.reviewing.exporting import exported_events
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim, release_lease
from curation.reviewing.people import deactivate, put_reviewer, reviewer_of
from curation.reviewing.sessions import close_session, create_session, invite, list_sessions, progress_of
from db.check import check_store
from db.store import Store
from db.tables.examples import Candidate, Score
from db.tables.ledger import Run
from db.tables.review import Assignment, CurrentDecision, Decision, ReviewSession, Rubric

Fill = Callable[[int], Any]
LEASE_S = 15 * 60


def take(reviewing: Any, session_: ReviewSession, name: str) -> Any:
    with reviewing.store.write() as session:
        return claim(session, session_, reviewing.people[name], reviewing.tick())


def view(reviewing: Any, claimed: Any, name: str) -> Any:
    with reviewing.store.read() as session:
        return item_view(session, claimed.item_id, reviewing.people[name])


def press(reviewing: Any, claimed: Any, name: str, kind: str, candidate: int | None = None, **more: Any) -> Any:
    with reviewing.store.write() as session:
        now = reviewing.tick()
        person = reviewing.people[name]
        return decide(session, claimed.assignment_id, person, kind, candidate, shown_at=now, now=now, **more)  # type: ignore[arg-type]


def back(reviewing: Any, session_: ReviewSession, name: str) -> Decision | None:
    with reviewing.store.write() as session:
        return undo(session, reviewing.people[name], session_, reviewing.tick())


def drain(reviewing: Any, session_: ReviewSession, name: str) -> list[int]:
    items = []
    while claimed := take(reviewing, session_, name):
        items.append(claimed.item_id)
        press(reviewing, claimed, name, "accept_all")
    return items


def kinds(reviewing: Any) -> list[str]:
    with reviewing.store.read() as session:
        return sorted(session.scalars(select(CurrentDecision.kind)))


def test_a_session_is_decided_to_its_end(filled: Fill) -> None:
    reviewing = filled(5)
    session_ = reviewing.start(overlap=2)
    claimed = take(reviewing, session_, "ann")
    shown = view(reviewing, claimed, "ann")
    assert shown.undecided == tuple(one.id for one in shown.negatives)
    for number, key in enumerate(shown.undecided, start=1):
        decided = press(reviewing, claimed, "ann", "keep" if number % 2 else "drop", key)
        assert decided.is_new and decided.is_finished == (number == len(shown.undecided))
    assert len(drain(reviewing, session_, "ann")) == 4
    everything = {claimed.item_id, *drain(reviewing, session_, "ben")}
    assert len(everything) == 5 and take(reviewing, session_, "eve") is None
    with reviewing.store.read() as session:
        progress = progress_of(session, session_.id, reviewing.people["ann"])
    assert (progress.done, progress.left, progress.mine) == (10, 0, 5)
    # 14 negatives; ann dropped every second one of the first item, ben kept all.
    dropped = len(shown.undecided) // 2
    assert progress.num_compared == 14 and progress.agreement == pytest.approx((14 - dropped) / 14)
    assert check_store(reviewing.store, progress=lambda done, total: None) == []


def test_pressing_again_changes_nothing(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    first, *_ = view(reviewing, claimed, "ann").undecided
    decided = press(reviewing, claimed, "ann", "keep", first)
    again = press(reviewing, claimed, "ann", "drop", first)
    assert not again.is_new and again.decision.id == decided.decision.id
    whole = press(reviewing, claimed, "ann", "flag", note="the query is cut off")
    late = press(reviewing, claimed, "ann", "skip")
    assert not late.is_new and late.is_finished and late.decision.id == whole.decision.id
    assert kinds(reviewing) == sorted(["keep", "flag"])


def test_a_decision_is_changed_by_naming_it(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    first, *_ = view(reviewing, claimed, "ann").undecided
    kept = press(reviewing, claimed, "ann", "keep", first)
    graded = press(reviewing, claimed, "ann", "regrade", first, grade="easy", replaces=kept.decision.id)
    assert graded.is_new and kinds(reviewing) == ["regrade"]
    stale = press(reviewing, claimed, "ann", "drop", first, replaces=kept.decision.id)
    assert not stale.is_new and stale.decision.id == graded.decision.id
    assert view(reviewing, claimed, "ann").negatives[0].decision.grade == "easy"


def test_undo_goes_back_any_number_of_steps_and_opens_items_again(filled: Fill) -> None:
    reviewing = filled(3)
    session_ = reviewing.start()
    assert back(reviewing, session_, "ann") is None
    items = []
    for _ in range(3):
        claimed = take(reviewing, session_, "ann")
        items.append(claimed.item_id)
        press(reviewing, claimed, "ann", "keep", view(reviewing, claimed, "ann").undecided[0])
        press(reviewing, claimed, "ann", "accept_all")
    steps = []
    while (undone := back(reviewing, session_, "ann")) is not None:
        steps.append((undone.item_id, undone.kind))
    assert {item for item, _ in steps} == set(items)
    assert [item for item, _ in steps] == sorted((item for item, _ in steps), key=items.index, reverse=True)
    assert kinds(reviewing) == []
    # The one that was opened again last comes first.
    assert take(reviewing, session_, "ann").item_id == items[0]
    with reviewing.store.read() as session:
        assert progress_of(session, session_.id, reviewing.people["ann"]).mine == 0
        undoing = session.scalar(select(func.count()).where(Decision.kind == "undo"))
        assert undoing == session.scalar(select(func.count()).where(Decision.kind != "undo"))


def test_what_was_opened_last_comes_first_wherever_it_stands(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start()
    take(reviewing, session_, "ben")
    later = take(reviewing, session_, "ann")
    press(reviewing, later, "ann", "accept_all")
    reviewing.tick(LEASE_S)
    earlier = take(reviewing, session_, "ann")
    back(reviewing, session_, "ann")
    assert later.item_id != earlier.item_id == 1
    assert take(reviewing, session_, "ann").item_id == later.item_id


def test_a_swap_stands_beside_a_verdict(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    first, second, *_ = view(reviewing, claimed, "ann").undecided
    assert press(reviewing, claimed, "ann", "swap", first, other_candidate_id=second).is_new
    assert press(reviewing, claimed, "ann", "keep", first).is_new
    shown = view(reviewing, claimed, "ann").negatives[0]
    assert (shown.decision.kind, shown.swap.other_candidate_id) == ("keep", second)


def test_whoever_walks_away_loses_the_lease_alone(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start()
    walked = take(reviewing, session_, "ann")
    first, *_ = view(reviewing, walked, "ann").undecided
    press(reviewing, walked, "ann", "drop", first)
    assert take(reviewing, session_, "ben").item_id != walked.item_id
    assert take(reviewing, session_, "eve") is None
    reviewing.tick(LEASE_S)
    handed_on = take(reviewing, session_, "eve")
    assert (handed_on.item_id, handed_on.is_resumed) == (walked.item_id, False)
    with pytest.raises(LeaseLostError, match="handed to somebody else") as lost:
        press(reviewing, walked, "ann", "flag", note="a long thought")
    assert lost.value.text == "a long thought" and "a long thought" in str(lost.value)
    assert kinds(reviewing) == ["drop"]
    press(reviewing, handed_on, "eve", "accept_all")
    assert back(reviewing, session_, "ann").kind == "drop"  # type: ignore[union-attr]
    with reviewing.store.read() as session:
        turn = session.get_one(Assignment, walked.assignment_id)
    assert (turn.reviewer_id, turn.outcome) == (reviewing.people["eve"].id, "accepted")
    assert check_store(reviewing.store, progress=lambda done, total: None) == []


def test_a_lease_that_nobody_took_is_still_good(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    reviewing.tick(10 * LEASE_S)
    assert press(reviewing, claimed, "ann", "accept_all").is_finished


def test_a_reload_resumes_and_a_lease_can_be_given_back(filled: Fill) -> None:
    reviewing = filled(3)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    again = take(reviewing, session_, "ann")
    assert (again.assignment_id, again.is_resumed) == (claimed.assignment_id, True)
    with reviewing.store.write() as session:
        assert release_lease(session, claimed.assignment_id, reviewing.people["ann"], reviewing.tick())
        assert not release_lease(session, claimed.assignment_id, reviewing.people["ben"], reviewing.tick())
    assert take(reviewing, session_, "ben").assignment_id == claimed.assignment_id
    assert take(reviewing, session_, "ann").item_id != claimed.item_id


def scored_by(value: float) -> Callable[[str, str], dict[str, float]]:
    return lambda query, text: {"minilm": value, "not in this store": 0.1}


def test_an_edit_is_a_scored_child_and_the_parent_stays(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    parent = view(reviewing, claimed, "ann").negatives[0]
    with reviewing.store.read() as session:
        edit = rescore(session, claimed.item_id, parent.id, "  negative, mended ", scored_by(0.95))
    assert edit.scores_before == {"minilm": pytest.approx(0.8)} and edit.positive_scores == {"minilm": 0.9}
    assert edit.is_above_positive("minilm")
    with reviewing.store.write() as session:
        child = put_edit(session, claimed.item_id, reviewing.people["ann"], edit)
    decided = press(reviewing, claimed, "ann", "edit", parent.id, other_candidate_id=child)
    shown = view(reviewing, claimed, "ann")
    assert shown.negatives[0].decision.text == "negative, mended" and shown.negatives[0].text == parent.text
    assert child not in [one.id for one in shown.negatives]
    with reviewing.store.read() as session:
        row = session.get_one(Candidate, child)
        stored = session.get_one(Candidate, parent.id)
        value = session.scalar(select(Score.value).where(Score.passage_id == row.passage_id))
        edited_in = session.get_one(Run, row.run_id)
    assert (row.origin, row.grade, row.rank, row.parent_passage_id) == ("edited", "hard", None, stored.passage_id)
    assert value == 0.95 and stored.rank == 1 and decided.is_new
    assert (edited_in.kind, edited_in.state) == ("review", "finished") and edited_in.finished_at is not None


def test_an_edit_that_comes_too_late_gives_its_text_back(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    parent = view(reviewing, claimed, "ann").negatives[0]
    reviewing.tick(LEASE_S)
    take(reviewing, session_, "ben")
    with reviewing.store.read() as session:
        edit = rescore(session, claimed.item_id, parent.id, "what ann wrote", scored_by(0.5))
    with pytest.raises(LeaseLostError) as lost, reviewing.store.write() as session:
        child = put_edit(session, claimed.item_id, reviewing.people["ann"], edit)
        now = reviewing.tick()
        decide(session, claimed.assignment_id, reviewing.people["ann"], "edit", parent.id,
               other_candidate_id=child, shown_at=now, now=now)  # fmt: skip
    assert lost.value.text == "what ann wrote"


@pytest.mark.parametrize(
    ("edited", "why"), [(" ", "empty"), ("negative 0 1", "as it was"), ("negative 0 2", "that of"), ("a\x00b", "NUL")]
)
def test_an_edit_has_to_be_a_new_text(filled: Fill, edited: str, why: str) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    parent = view(reviewing, claimed, "ann").negatives[0]
    with reviewing.store.read() as session, pytest.raises(CurationError, match=why):
        rescore(session, claimed.item_id, parent.id, edited, scored_by(0.5))


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("like", {}, "kind = 'like'"),
        ("regrade", {}, "needs hard, medium or easy"),
        ("keep", {"grade": "hard"}, "nothing else takes one"),
        ("swap", {}, "need one"),
        ("swap", {"other_candidate_id": 999}, "not asked about"),
        ("edit", {"other_candidate_id": 2}, "not an edit of"),
        ("skip", {"candidate_id": 2}, "whole example"),
        ("keep", {"candidate_id": None}, "one candidate"),
        ("keep", {"candidate_id": 1}, "not asked about"),
        ("flag", {"candidate_id": None, "note": " "}, "needs a note"),
        ("flag", {"candidate_id": None, "note": "odd\x00"}, "NUL"),
    ],
)
def test_nonsense_is_refused(filled: Fill, kind: str, fields: dict[str, Any], why: str) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    fields = dict(fields)
    candidate = fields.pop("candidate_id", view(reviewing, claimed, "ann").undecided[-1])
    with pytest.raises(CurationError, match=why):
        press(reviewing, claimed, "ann", kind, candidate, **fields)
    assert kinds(reviewing) == []


def test_roles_hold_whatever_the_page_believes(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    believed = reviewing.people["ann"]
    reviewing.person("ann", "reader")
    reviewing.people["ann"] = believed
    for work in (
        lambda: take(reviewing, session_, "ann"),
        lambda: press(reviewing, claimed, "ann", "accept_all"),
        lambda: back(reviewing, session_, "ann"),
        lambda: (
            reviewing.start("another")
            if reviewing.people.update(boss=reviewing.people["ben"])
            else reviewing.start("x")
        ),
    ):
        with pytest.raises(CurationError, match="needs the role"):
            work()


def test_only_admins_make_people(filled: Fill) -> None:
    reviewing = filled(1)
    with pytest.raises(CurationError, match="only an admin"), reviewing.store.write() as session:
        put_reviewer(session, "stranger", "admin")
    with pytest.raises(CurationError, match="needs the role 'admin'"), reviewing.store.write() as session:
        put_reviewer(session, "stranger", "reader", by=reviewing.people["ann"])
    with pytest.raises(CurationError, match="last admin"), reviewing.store.write() as session:
        put_reviewer(session, "boss", "reader", by=reviewing.people["boss"])
    with pytest.raises(CurationError, match="printable"), reviewing.store.write() as session:
        put_reviewer(session, "a\x1b[1m", "reader", by=reviewing.people["boss"])
    with reviewing.store.write() as session:
        deactivate(session, "ann", by=reviewing.people["boss"])
    with pytest.raises(CurationError, match="no longer active"), reviewing.store.read() as session:
        reviewer_of(session, "ann")
    with reviewing.store.write() as session:
        pseudonym = reviewing.people["ann"].pseudonym
        assert put_reviewer(session, "ann", "reviewer", by=reviewing.people["boss"]).pseudonym == pseudonym


def test_a_session_by_invitation_keeps_others_out(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start(reviewers=["ann"])
    assert take(reviewing, session_, "ann") is not None
    with pytest.raises(CurationError, match="not invited"):
        take(reviewing, session_, "ben")
    with reviewing.store.write() as session:
        invite(session, session_, "ben", by=reviewing.people["boss"])
    assert take(reviewing, session_, "ben") is not None


def test_a_closed_session_takes_no_decisions(filled: Fill) -> None:
    reviewing = filled(2)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    with reviewing.store.write() as session:
        close_session(session, session_, by=reviewing.people["boss"])
    for work in (
        lambda: take(reviewing, session_, "ann"),
        lambda: press(reviewing, claimed, "ann", "accept_all"),
        lambda: back(reviewing, session_, "ann"),
    ):
        with pytest.raises(CurationError, match="is closed"):
            work()


def test_a_blind_view_carries_nothing_that_gives_it_away(filled: Fill) -> None:
    reviewing = filled(3)
    session_ = reviewing.start(overlap=2, blind=True)
    claimed = take(reviewing, session_, "ann")
    other = take(reviewing, session_, "ben")
    assert other.item_id == claimed.item_id
    press(reviewing, other, "ben", "accept_all")
    shown = view(reviewing, claimed, "ann")
    for one in shown.negatives:
        assert (one.rank, one.grade, one.origin, one.run, one.suspicion, one.decision) == (None,) * 6
        assert (one.others, one.reasons, one.judgements, one.is_inverted) == ((), (), (), False)
    assert shown.undecided and "ben" not in repr(shown) and reviewing.people["ben"].pseudonym not in repr(shown)


def test_an_open_view_shows_others_by_their_pseudonyms(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start(overlap=2)
    claimed, other = take(reviewing, session_, "ann"), take(reviewing, session_, "ben")
    first, *_ = view(reviewing, claimed, "ann").undecided
    press(reviewing, other, "ben", "drop", first)
    shown = view(reviewing, claimed, "ann").negatives[0]
    assert [(one.kind, one.by) for one in shown.others] == [("drop", reviewing.people["ben"].pseudonym)]
    assert shown.decision is None and (shown.rank, shown.grade, shown.origin) == (1, "hard", "synthetic")


def test_inversions_are_flagged_against_another_grade_of_the_run(filled: Fill) -> None:
    reviewing = filled(1)
    with reviewing.store.write() as session:
        keys = session.scalars(select(Candidate.passage_id).where(Candidate.rank.is_not(None)).order_by(Candidate.rank))
        # hard 0.5, medium 0.7, medium 0.4, easy 0.95: hard falls under the first medium, easy over all.
        for passage, value in zip(keys.all(), (0.5, 0.7, 0.4, 0.95), strict=True):
            session.get_one(Score, (1, 1, passage)).value = value
    session_ = reviewing.start()
    shown = view(reviewing, take(reviewing, session_, "ann"), "ann")
    assert [one.is_inverted for one in shown.negatives] == [True, True, True, True]
    assert [one.is_above_positive for one in shown.negatives] == [False, False, False, True]
    with reviewing.store.write() as session:
        session.get_one(Score, (1, 1, shown_passage(session, shown.negatives[3].id))).value = 0.1
    again = view(reviewing, take(reviewing, session_, "ann"), "ann")
    assert [one.is_inverted for one in again.negatives] == [True, True, False, False]


def shown_passage(session: Any, candidate: int) -> int:
    return session.get_one(Candidate, candidate).passage_id


def test_a_turn_takes_the_same_number_of_statements_whatever_stands_in_the_store(filled: Fill) -> None:
    reviewing = filled(2)
    counts = []
    for num in (2, 60):
        reviewing.fill(num)
        session_ = reviewing.start(f"of {num}")
        statements: list[str] = []

        def listen(*given: Any, told: list[str] = statements) -> None:
            told.append(given[2])

        event.listen(reviewing.store.engine, "before_cursor_execute", listen)
        claimed = take(reviewing, session_, "ann")
        press(reviewing, claimed, "ann", "keep", view(reviewing, claimed, "ann").undecided[0])
        event.remove(reviewing.store.engine, "before_cursor_execute", listen)
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 30


def test_a_changed_rubric_is_a_new_version_and_decisions_keep_theirs(filled: Fill) -> None:
    reviewing = filled(2)
    first = reviewing.start("first", rubric={"name": "strict", "text": "# One"})
    claimed = take(reviewing, first, "ann")
    press(reviewing, claimed, "ann", "accept_all")
    again = reviewing.start("again", rubric={"name": "strict"})
    changed = reviewing.start("changed", rubric={"name": "strict", "text": "# Two"})
    with reviewing.store.read() as session:
        versions = {one.id: (one.version, one.text) for one in session.scalars(select(Rubric))}
        used = set(session.scalars(select(Decision.rubric_id)))
    assert again.rubric_id == first.rubric_id and versions[changed.rubric_id] == (2, "# Two")
    assert used == {first.rubric_id}


def test_names_are_taken_once_and_sessions_are_listed(filled: Fill) -> None:
    reviewing = filled(2)
    reviewing.start("a", overlap=3)
    with pytest.raises(CurationError, match="there is such a review session already"):
        reviewing.start("a")
    with reviewing.store.read() as session:
        (told,) = list_sessions(session)
    assert (told.name, told.num_items, told.num_slots, told.num_finished) == ("a", 2, 6, 0)


def test_events_are_exported_without_keys_or_names(filled: Fill) -> None:
    reviewing = filled(1)
    session_ = reviewing.start()
    claimed = take(reviewing, session_, "ann")
    first, second, *_ = view(reviewing, claimed, "ann").undecided
    press(reviewing, claimed, "ann", "keep", first)
    press(reviewing, claimed, "ann", "swap", first, other_candidate_id=second)
    back(reviewing, session_, "ann")
    with reviewing.store.read() as session:
        kept, swapped, undone = exported_events(session, session_)
    assert (kept["kind"], kept["stands"], swapped["stands"]) == ("keep", True, False)
    assert undone["undoes"] == swapped["uid"] and len(swapped["other_passage"]) == 64
    assert kept["reviewer"] == reviewing.people["ann"].pseudonym and "ann" not in str(kept)


def test_creating_needs_an_admin_and_known_reviewers(filled: Fill) -> None:
    reviewing = filled(1)
    from curation.reviewing.recipe import SessionRecipe

    recipe = SessionRecipe(name="s")
    with pytest.raises(CurationError, match="needs the role 'admin'"), reviewing.store.write() as session:
        create_session(session, recipe, reviewing.people["ann"])
    with pytest.raises(CurationError, match="'nobody' is not known"):
        reviewing.start(reviewers=["nobody"])


def test_deciding_needs_a_turn_that_was_opened(store: Store, filled: Fill) -> None:
    reviewing = filled(1)
    reviewing.start()
    with reviewing.store.read() as session:
        turn = session.scalars(select(Assignment)).one()
    from curation.reviewing.leases import Claim

    with pytest.raises(LeaseLostError):
        press(reviewing, Claim(turn.id, turn.item_id, reviewing.now, False), "ann", "accept_all")
