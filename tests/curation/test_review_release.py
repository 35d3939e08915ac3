"""What people's decisions do to a release, and that every released row traces to the events behind it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.errors import CurationError
from curation.release.differences import diff_releases
from curation.release.exporting import export_release
from curation.release.recipe import ReleaseRecipe
from curation.release.release import create_release
from db.examples import NewCandidate, put_candidates
from db.runs import start_run
from db.store import Store
from db.texts import put_passages
from tests.curation.desk import Desk


def released(desk: Desk, folder: Path, name: str = "toy-1.0.0", **recipe: Any) -> dict[str, Any]:
    found = create_release(desk.store, ReleaseRecipe.model_validate({"split": {"dev_share": 0}} | recipe), name,
                           folder=folder)  # fmt: skip
    graded = {row["query"]: row for row in read(found.folder / "graded")}
    return {
        "manifest": found.manifest,
        "negatives": {query: {one["text"]: one for one in row["negatives"]} for query, row in graded.items()},
        "positives": {query: {one["text"] for one in row["more_positives"]} for query, row in graded.items()},
        "provenance": read(found.folder / "provenance"),
        "triplets": {(row["anchor"], row["positive"], row["negative"]) for row in read(found.folder / "triplet")},
        "card": (found.folder / "README.md").read_text(),
    }


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def decide_everything(desk: Desk, *, is_filled: bool = False) -> None:
    """One example of each fate; `q 5` is left alone."""
    if not is_filled:
        desk.fill([4, 4, 4, 4, 3, 2])
    desk.session()
    for who in ("ada", "bob"):
        desk.say(who, "w 0 1", "drop")
        desk.say(who, "w 0 2", "keep")
        desk.say(who, "w 1 1", "false_negative")
        desk.say(who, "w 1 2", "keep")
        desk.say(who, "w 2 4", "regrade", grade="hard")
        desk.say(who, "w 3 1", "swap", other="w 3 4")
        for text in ("w 3 1", "w 3 4"):
            desk.say(who, text, "keep")
    edited = desk.edit("w 4 1", "x 4 better words")
    for who in ("ada", "bob"):
        desk.say(who, "w 4 1", "edit", other=edited)
    desk.edit("w 4 2", "x 4 nobody accepted this")
    desk.say("ada", "w 4 2", "keep")
    desk.say("bob", "w 4 2", "drop")
    desk.say("ada", "w 4 3", "keep")


def places(rows: dict[str, Any]) -> dict[str, tuple[str | None, int | None]]:
    return {text: (one["grade"], one["rank"]) for text, one in rows.items()}


def test_decisions_are_applied_wherever_there_are_any(desk: Desk, tmp_path: Path) -> None:
    decide_everything(desk)
    found = released(desk, tmp_path)
    negatives = found["negatives"]
    assert set(negatives["q 0"]) == {"w 0 2", "w 0 3", "w 0 4", "m 0"}
    assert set(negatives["q 1"]) == {"w 1 2", "w 1 3", "w 1 4", "m 1"} and found["positives"]["q 1"] == {"w 1 1"}
    assert not any(negative == "w 1 1" for *_, negative in found["triplets"])
    assert any(pair[:2] == ("q 1", "w 1 1") for pair in found["triplets"])
    assert places(negatives["q 2"])["w 2 4"] == ("hard", 1) and places(negatives["q 2"])["w 2 1"] == ("hard", 1)
    assert places(negatives["q 3"])["w 3 1"] == ("easy", 4) and places(negatives["q 3"])["w 3 4"] == ("hard", 1)
    # The edit stands for its parent, in its place; a child that nobody accepted and a disputed negative are out.
    assert places(negatives["q 4"]) == {"x 4 better words": ("hard", 1), "w 4 3": ("medium", 3), "m 4": (None, None)}
    assert set(negatives["q 5"]) == {"w 5 1", "w 5 2", "m 5"}
    assert found["manifest"]["decisions"]["negatives"] == {
        "kept": 3, "regraded": 3, "edited": 1, "dropped": 1, "false_negatives": 1, "disputed": 1, "undecided": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("required", "expected"),
    [
        (
            "decided",
            {
                "q 0": {"w 0 2"},
                "q 1": {"w 1 2"},
                "q 2": {"w 2 4"},
                "q 3": {"w 3 1", "w 3 4"},
                "q 4": {"x 4 better words", "w 4 3"},
            },
        ),
        (
            "agreed",
            {
                "q 0": {"w 0 2"},
                "q 1": {"w 1 2"},
                "q 2": {"w 2 4"},
                "q 3": {"w 3 1", "w 3 4"},
                "q 4": {"x 4 better words"},
            },
        ),
    ],
)
def test_only_what_people_accepted(desk: Desk, tmp_path: Path, required: str, expected: dict[str, set[str]]) -> None:
    decide_everything(desk)
    found = released(desk, tmp_path, decisions={"required": required})
    assert {query: set(rows) for query, rows in found["negatives"].items()} == expected
    assert found["positives"]["q 1"] == {"w 1 1"}
    assert found["manifest"]["decisions"]["negatives"]["undecided"] > 5


def test_disputes_refuse_a_release_where_the_recipe_says_so_until_they_are_settled(desk: Desk, tmp_path: Path) -> None:
    decide_everything(desk)
    with pytest.raises(CurationError, match=r"1 negatives of 1 examples are disputed .* disputed = 'leave_out'"):
        released(desk, tmp_path, decisions={"disputed": "refuse"})
    desk.say("chief", "w 4 2", "settle", verdict="keep", role="admin")
    found = released(desk, tmp_path, decisions={"disputed": "refuse"})
    assert "w 4 2" in found["negatives"]["q 4"]


def test_only_the_named_sessions_count(desk: Desk, tmp_path: Path) -> None:
    desk.fill([2, 2])
    desk.session("pilot")
    desk.session("real")
    desk.say("ada", "w 0 1", "drop", session="pilot")
    desk.say("ada", "w 1 1", "drop", session="real")
    found = released(desk, tmp_path, decisions={"sessions": ["real"]})
    assert "w 0 1" in found["negatives"]["q 0"] and "w 1 1" not in found["negatives"]["q 1"]
    with pytest.raises(CurationError, match="review session 'other' is not in this store"):
        released(desk, tmp_path, "toy-1.1.0", decisions={"sessions": ["other"]})


def test_an_edit_enters_although_its_run_was_not_named(desk: Desk, tmp_path: Path) -> None:
    decide_everything(desk)
    assert "x 4 better words" in released(desk, tmp_path, runs=["toy"])["negatives"]["q 4"]


def test_every_released_row_traces_to_its_events(desk: Desk, tmp_path: Path) -> None:
    decide_everything(desk)
    desk.say("chief", "w 0 2", "settle", verdict="keep", role="admin")
    found = released(desk, tmp_path)
    ids = {one["id"]: text for rows in found["negatives"].values() for text, one in rows.items()}
    traced = {ids[row["id"]]: row["decisions"] for row in found["provenance"] if row["id"] in ids}
    assert [one["kind"] for one in traced["w 0 2"]] == ["keep", "keep", "settle"]
    assert [(one["kind"], one["reviewer"]) for one in traced["x 4 better words"]] == [
        ("edit", "reviewer-ada-x"), ("edit", "reviewer-bob-x"),
    ]  # fmt: skip
    assert {one["kind"] for one in traced["w 3 4"]} == {"swap", "keep"} and traced["w 5 1"] == []
    assert {one["rubric"] for events in traced.values() for one in events} == {"default v1"}
    assert all(one["decided_at"].tzinfo and len(one["event"]) == 32 for events in traced.values() for one in events)
    positive = [row for row in found["provenance"] if row["decisions"] and row["id"] not in ids]
    assert [one["kind"] for row in positive for one in row["decisions"]] == ["false_negative", "false_negative"]
    told = repr(found["provenance"]) + found["card"] + repr(found["manifest"])
    assert not any(f"'{name}'" in told for name in ("ada", "bob", "chief", "owner"))


def test_a_person_goes_over_a_judge(desk: Desk, tmp_path: Path) -> None:
    from db.tables.judgements import Judge, Judgement
    from db.tables.ledger import Request

    desk.fill([3, 3])
    desk.session()
    with desk.store.write() as session:
        judge = Judge(digest="j" * 64, model="judge", entry="e", prompt_digest="p" * 64)
        session.add(judge)
        session.flush()
        for n, rank in ((0, 1), (0, 2)):
            from db.tables.examples import Candidate, Example

            candidate = session.get_one(Candidate, desk.candidates[f"w {n} {rank}"])
            request = Request(digest=f"{rank:064}", model="judge", state="done")
            session.add(request)
            session.flush()
            query = session.get_one(Example, candidate.example_id).query_id
            session.add(
                Judgement(query_id=query, passage_id=candidate.passage_id, judge_id=judge.id, request_id=request.id,
                          stage="confirm", relevance=3, evidence="e", reason="r")
            )  # fmt: skip
    desk.say("ada", "w 0 1", "keep")
    found = released(desk, tmp_path, false_negatives={"policy": "drop"})
    assert set(found["negatives"]["q 0"]) == {"w 0 1", "w 0 3", "m 0"}


def test_a_release_is_written_again_as_it_was_whatever_is_decided_later(desk: Desk, tmp_path: Path) -> None:
    decide_everything(desk)
    before = released(desk, tmp_path, mix={"slots": 2})
    desk.say("cem", "w 2 4", "drop")
    desk.say("cem", "w 1 1", "keep")
    desk.say("cem", "w 3 1", "keep")
    exported = export_release(desk.store, "toy-1.0.0", folder=tmp_path / "again")
    assert exported.left_out == {}
    for file in sorted((tmp_path / "toy-1.0.0").rglob("*.parquet")):
        assert (tmp_path / "again" / file.relative_to(tmp_path)).read_bytes() == file.read_bytes(), file.name
    later = released(desk, tmp_path, "toy-2.0.0", mix={"slots": 2})
    assert "w 2 4" not in later["negatives"]["q 2"] and "w 2 4" in before["negatives"]["q 2"]


def test_no_decisions_no_difference(desk: Desk, tmp_path: Path) -> None:
    desk.fill([4, 2])
    found = released(desk, tmp_path)
    assert {query: len(rows) for query, rows in found["negatives"].items()} == {"q 0": 5, "q 1": 3}
    assert all(row["decisions"] == [] for row in found["provenance"])
    assert found["manifest"]["decisions"]["until"] is None
    assert "No person has reviewed these rows" in found["card"]


def test_a_difference_names_what_people_decided(desk: Desk, tmp_path: Path) -> None:
    desk.fill([4, 4, 4, 4, 3, 2])
    released(desk, tmp_path)
    decide_everything(desk, is_filled=True)
    made = released(desk, tmp_path, "toy-1.1.0", false_negatives={"policy": "relabel"})
    found = diff_releases(desk.store, "toy-1.0.0", "toy-1.1.0")
    assert reasons(found["went"]) == {
        "dropped by people": {"w 0 1"},
        "edited by people: their text stands in its place": {"w 4 1"},
        "people disagree on it, and nobody settled it": {"w 4 2"},
    }
    assert reasons(found["came"]) == {"edited by people in the review s": {"x 4 better words"}}
    placed = reasons(found["changed"]["place"])
    assert placed["people's decision whether it is a false negative"] == {"w 1 1"}
    assert placed["regraded or put in another order by people"] <= {"w 2 4", "w 3 1", "w 3 4"}
    assert "1 candidates went: dropped by people" in made["card"]
    released(desk, tmp_path, "toy-2.0.0", decisions={"required": "agreed"})
    strict = reasons(diff_releases(desk.store, "toy-1.1.0", "toy-2.0.0")["went"])
    assert strict["one person decided on it, and two have to agree"] == {"w 4 3"}
    assert "w 0 3" in strict["nobody decided on it"]
    back = reasons(diff_releases(desk.store, "toy-2.0.0", "toy-1.0.0")["came"])
    assert back["left out before: dropped by people"] == {"w 0 1"}


def test_a_model_s_edit_is_not_called_a_person_s(store: Store, tmp_path: Path) -> None:
    desk = Desk(store)
    desk.fill([2])
    released(desk, tmp_path)
    with store.write() as session:
        run = start_run(session, "generate", "minimal edits", {"pack": "v1", "pack_digest": "e" * 64}, 1).id
        parent, passage = put_passages(session, ["w 0 1", "by a model"])
        new = NewCandidate(desk.examples[0], passage, "negative", "edited", run, grade="hard", parent_passage_id=parent)
        put_candidates(session, [new])
    released(desk, tmp_path, "toy-1.1.0")
    found = diff_releases(store, "toy-1.0.0", "toy-1.1.0")
    assert reasons(found["came"]) == {"run minimal edits is new": {"by a model"}}


def test_the_card_tells_what_was_passed_over(desk: Desk, tmp_path: Path) -> None:
    desk.fill([2, 2, 2])
    desk.session()
    desk.say("ada", "w 0 1", "keep")
    desk.pass_over("ada", 1, "skip")
    desk.pass_over("bob", 2, "flag")
    card = released(desk, tmp_path)["card"]
    assert "1 example was skipped and 1 example was flagged with a note" in card


def reasons(part: dict[str, Any]) -> dict[str, set[str]]:
    return {one["reason"]: {row["text"] for row in one["rows"]} for one in part["reasons"]}
