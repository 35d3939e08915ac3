"""The review pages: what a form means, what lies on a desk, and a person who does everything by keys in a browser."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from app.errors import RecipeError
from app.reviewing.desk import (
    Desk,
    Press,
    Seat,
    accept_edit,
    focus_of,
    open_desk,
    press,
    rescored,
    step_back,
    stepped,
    swap_partner,
)
from app.reviewing.edit_scoring import EncoderThread, scoring_of
from app.reviewing.form import choices, create_from_form, listed_sessions, recipe_from_form
from curation.errors import CurationError, LeaseLostError
from curation.reviewing.people import put_reviewer, reviewer_of
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import create_session
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.base import utc_now
from db.tables.examples import Candidate, Score
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

EMPTY: dict[str, Any] = {
    "name": "first", "runs": [], "release": None, "grades": [], "origins": [], "languages": "", "attributes": "",
    "text": "", "teacher": None, "min_score": None, "max_score": None, "order": "suspicion", "limit": None,
    "sample_size": None, "max_error_rate": None, "reviewers": [], "overlap": 1, "blind": False, "lease_minutes": 15.0,
    "repeats": 0.0, "gold_session": None, "seed": 0, "rubric_name": "default", "rubric_text": "",
}  # fmt: skip


def fill(store: Store, num: int = 3) -> None:
    """Examples with three ranked negatives; the second is inverted with the first and above the positive."""
    with store.write() as session:
        ada = put_reviewer(session, "ada", "admin")
        put_reviewer(session, "grace", "reviewer", by=ada)
        run = start_run(session, "generate", "rivers", {}, 0)
        teacher = put_teacher(session, name="minilm", version="v", kind="bi-encoder", max_length=256)
        for n in range(num):
            (query,) = put_queries(session, [f"query {n}"])
            passages = put_passages(session, [f"{what} {n}" for what in ("positive", "first", "second", "third")])
            (example,) = put_examples(session, [(query, passages[0])], origin="synthetic")
            candidates = [NewCandidate(example, passages[0], "positive", "synthetic", run.id)]
            for rank, (passage, grade) in enumerate(zip(passages[1:], ("hard", "medium", "easy"), strict=True), 1):
                new = NewCandidate(
                    example, passage, "negative", "synthetic", run.id, grade=grade, rank=rank,
                    violated_requirement=f"breaks {rank}",
                )  # fmt: skip
                candidates.append(new)
            put_candidates(session, candidates)
            rows = [
                {"teacher_id": teacher, "query_id": query, "passage_id": passage, "value": value, "num_tokens": 9}
                for passage, value in zip(passages, (0.8, 0.7, 0.85, 0.4), strict=True)
            ]
            insert_missing(session, Score, rows)


def seated(store: Store, person: str = "ada", **facts: Any) -> Seat:
    recipe = SessionRecipe.model_validate({"name": "s", "queue": {"order": "random"}, **facts})
    with store.write() as session:
        return Seat(create_session(session, recipe, reviewer_of(session, "ada")).id, person)


def opened(store: Store, seat: Seat, **options: Any) -> Desk:
    desk, _, _ = open_desk(store, seat, **options)
    assert desk is not None
    return desk


def pressed(store: Store, desk: Desk, what: Press, place: int | None = None, **options: Any) -> Any:
    candidate = None if place is None else desk.asked[place]
    return press(store, desk, what, candidate, shown_at=utc_now(), **options)


def test_the_desk_shows_the_ladder_with_what_is_flagged(store: Store) -> None:
    fill(store)
    desk = opened(store, seated(store))
    first, second, third = desk.item.rungs
    assert [rung.label for rung in desk.item.rungs] == ["N1", "N2", "N3"]
    assert (first.is_inverted, second.is_inverted, third.is_inverted) == (True, True, False)
    assert (first.is_above_positive, second.is_above_positive) == (False, True)
    assert (desk.item.teacher, desk.item.positive_similarity, third.similarity) == ("minilm", 0.8, 0.4)
    assert ("Breaks", "breaks 2") in second.details
    assert "default" in desk.rubric_title and desk.rubric


def test_a_blind_desk_has_nothing_to_give_away(store: Store) -> None:
    fill(store)
    desk = opened(store, seated(store, blind=True))
    for rung in desk.item.rungs:
        assert (rung.grade, rung.origin, rung.is_inverted, rung.reasons) == (None, None, False, ())
        assert rung.label.startswith("#")


def test_each_verdict_moves_on_and_the_last_one_opens_the_next_item(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    before = desk.item.key
    assert focus_of(desk, None, None) == desk.asked[0]
    pressed(store, desk, Press("drop"), 1)
    desk = opened(store, seat)
    assert focus_of(desk, None, desk.asked[1]) == desk.asked[2]
    assert desk.item.rungs[1].decided == "drop" and desk.item.key == before
    pressed(store, desk, Press("regrade", "easy"), 2)
    desk = opened(store, seat)
    assert focus_of(desk, None, desk.asked[2]) == desk.asked[0]  # around the end, to the one that is still open
    assert focus_of(desk, desk.asked[1], None) == desk.asked[1] and focus_of(desk, 10**9, 10**9) == desk.asked[0]
    assert pressed(store, desk, Press("keep"), 0).is_finished
    assert opened(store, seat).item.key != before


def test_a_decided_negative_is_decided_anew_only_when_it_was_painted_so(store: Store) -> None:
    fill(store)
    seat = seated(store)
    stale = opened(store, seat)
    pressed(store, stale, Press("keep"), 0)
    assert not pressed(store, stale, Press("drop"), 0).is_new
    assert pressed(store, opened(store, seat), Press("drop"), 0).is_new
    assert opened(store, seat).item.rungs[0].decided == "drop"


def test_swap_goes_with_the_next_of_the_ladder_and_leaves_the_verdict_open(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    assert swap_partner(desk, desk.asked[0]) == (desk.asked[1], "N2") and swap_partner(desk, desk.asked[2]) is None
    pressed(store, desk, Press("swap"), 0, other_candidate_id=desk.asked[1])
    desk = opened(store, seat)
    assert desk.item.rungs[0].decided == "swap with N2" and focus_of(desk, None, None) == desk.asked[0]
    assert (stepped(desk, desk.asked[0], -1), stepped(desk, desk.asked[2], 1)) == (desk.asked[2], desk.asked[0])


def test_undo_goes_back_over_items_and_a_second_press_before_the_paint_does_nothing(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    assert step_back(store, seat, desk.last_decision_id) is None
    pressed(store, desk, Press("accept_all"))
    following = opened(store, seat)
    pressed(store, following, Press("skip"))
    last = opened(store, seat)
    undone = step_back(store, seat, last.last_decision_id)
    assert undone is not None and undone.kind == "skip"
    assert step_back(store, seat, last.last_decision_id) is None
    again = opened(store, seat)
    assert again.item.key == following.item.key
    undone = step_back(store, seat, again.last_decision_id)
    assert undone is not None and undone.kind == "accept_all"
    assert opened(store, seat).item.key == desk.item.key and not opened(store, seat).standing


class FakeEncoder:
    name, dimension, max_length = "minilm", 2, 9

    def __init__(self, version: str) -> None:
        self.version = version

    def encode(self, texts: Any) -> Any:
        import numpy as np

        return np.array([[1.0, 0.0], [0.6, 0.8]], np.float32), np.array([1, 1])


def test_an_edit_is_scored_before_it_is_accepted(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    edit = rescored(store, desk, desk.asked[1], "second, mended", scoring_of(store, EncoderThread(FakeEncoder("v"))))
    assert (edit.scores, edit.scores_before) == ({"minilm": 0.6}, {"minilm": 0.85})
    assert opened(store, seat).standing == {}
    assert accept_edit(store, desk, edit, shown_at=utc_now()).is_new
    rung = opened(store, seat).item.rungs[1]
    assert rung.decided == "edit" and ("Your edit", "second, mended") in rung.details
    assert rescored(store, desk, desk.asked[2], "other", scoring_of(store, FakeEncoder("another"))).scores == {}
    with pytest.raises(CurationError, match="as it was"):
        rescored(store, desk, desk.asked[2], edit_text_of(desk, 2), scoring_of(store, FakeEncoder("v")))


def test_an_edit_of_what_was_decided_meanwhile_is_refused_and_leaves_no_child(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    edit = rescored(store, desk, desk.asked[1], "second, mended", scoring_of(store, EncoderThread(FakeEncoder("v"))))
    pressed(store, desk, Press("keep"), 1)
    with store.read() as session:
        before = session.scalar(select(func.count()).select_from(Candidate))
    with pytest.raises(CurationError, match="elsewhere"):
        accept_edit(store, desk, edit, shown_at=utc_now())
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Candidate)) == before


def edit_text_of(desk: Desk, place: int) -> str:
    return next(rung.text for rung in desk.item.rungs if rung.candidate_id == desk.asked[place])


def test_a_lost_lease_tells_and_gives_the_text_back(store: Store) -> None:
    fill(store)
    seat = seated(store)
    desk = opened(store, seat)
    later = utc_now() + timedelta(hours=1)
    taken = opened(store, Seat(seat.session_id, "grace"), now=later)
    assert taken.item_id == desk.item_id
    with pytest.raises(LeaseLostError) as lost:
        pressed(store, desk, Press("flag"), note="this is my note")
    assert lost.value.text == "this is my note"


def test_a_person_nobody_knows_and_a_session_that_is_not_there_are_refused(store: Store) -> None:
    fill(store)
    seat = seated(store)
    with pytest.raises(CurationError, match="mallory"):
        open_desk(store, Seat(seat.session_id, "mallory"))
    with pytest.raises(CurationError, match="no review session"):
        open_desk(store, Seat(10**6, "ada"))


def test_an_empty_form_means_the_defaults_and_a_filled_one_what_it_says() -> None:
    assert recipe_from_form(EMPTY) == SessionRecipe(name="first")
    full = {
        "runs": ["a"], "release": "1.0", "grades": ["hard"], "origins": ["mined"], "languages": "de, fr ,",
        "attributes": "domain = law, medicine\n\nlength = long", "text": " rivers ", "teacher": "minilm",
        "min_score": 0.0, "order": "random", "limit": 5, "reviewers": ["ada", "grace"], "overlap": 2, "blind": True,
        "repeats": 0.1, "gold_session": "old", "seed": 7, "rubric_text": "# Rules",
    }  # fmt: skip
    recipe = recipe_from_form({**EMPTY, **full})
    assert recipe.queue.attributes == {"domain": ("law", "medicine"), "length": ("long",)}
    assert recipe.queue.languages == ("de", "fr") and recipe.queue.text == "rivers"
    assert [one.model_dump() for one in recipe.queue.scores] == [{"teacher": "minilm", "min": 0.0, "max": None}]
    assert (recipe.queue.order, recipe.queue.limit, recipe.overlap, recipe.blind) == ("random", 5, 2, True)
    assert recipe.gold is not None and recipe.gold.session == "old" and recipe.repeats is not None
    assert recipe.rubric.text == "# Rules" and recipe.seed == 7
    sampled = recipe_from_form({**EMPTY, "sample_size": 100, "max_error_rate": 0.05, "limit": 3})
    assert sampled.queue.sample is not None and sampled.queue.sample.max_error_rate == 0.05


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"name": " "}, "name"),
        ({"attributes": "domain"}, "name = value"),
        ({"teacher": "minilm"}, "min, max or both"),
        ({"min_score": 0.1}, "teacher"),
        ({"overlap": 3, "reviewers": ["ada"]}, "overlap = 3"),
        ({"sample_size": 10, "max_error_rate": 1.0}, "max_error_rate"),
    ],
)
def test_a_form_that_cannot_be_is_told_by_field(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe_from_form({**EMPTY, **wrong})


def test_a_session_from_the_form_is_listed_and_only_an_admin_makes_one(store: Store) -> None:
    fill(store)
    recipe = recipe_from_form({**EMPTY, "name": "by form", "runs": ["rivers"]})
    with pytest.raises(CurationError, match="admin"):
        create_from_form(store, "grace", recipe, lambda done, total: None)
    key = create_from_form(store, "ada", recipe, lambda done, total: None)
    with store.read() as session:
        ((listed, summary),) = listed_sessions(session)
        offered = choices(session)
    assert (listed, summary.name, summary.num_items) == (key, "by form", 3)
    assert (offered.runs, offered.teachers, offered.sessions) == (("rivers",), ("minilm",), ("by form",))
    assert offered.reviewers == ("ada", "grace")
