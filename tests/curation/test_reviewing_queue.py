"""What a session asks about: filters, orders, audit samples, and the hidden items in between."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from curation.errors import CurationError
from curation.reviewing.decisions import decide
from curation.reviewing.events import NewDecision, record
from curation.reviewing.items import item_view
from curation.reviewing.leases import claim
from curation.reviewing.queue import Queue, draw_queue
from curation.reviewing.recipe import QueueDefinition, SessionRecipe
from curation.reviewing.suspicion import suspicion_of
from db.check import check_store
from db.digest import digest_text
from db.examples import NewSourcing, put_sourcings
from db.runs import start_run
from db.tables.examples import Candidate, Example, Score
from db.tables.ledger import Request, RunRequest
from db.tables.releases import Release, ReleaseItem
from db.tables.review import Assignment, ItemCandidate, ReviewItem
from db.tables.texts import Passage, Query

Fill = Callable[[int], Any]


def drawn(reviewing: Any, seed: int = 0, **definition: Any) -> Queue:
    with reviewing.store.read() as session:
        return draw_queue(session, QueueDefinition.model_validate({"order": "random", **definition}), seed)


def asked(reviewing: Any, **definition: Any) -> set[int]:
    return {one.candidate_id for each in drawn(reviewing, **definition).picked for one in each.asked}


def rows(reviewing: Any) -> list[Any]:
    with reviewing.store.read() as session:
        statement = select(Candidate, Example, Passage.text, Score.value).select_from(Candidate).join(Example)
        statement = statement.join(Passage, Passage.id == Candidate.passage_id)
        statement = statement.join(Score, (Score.passage_id == Passage.id) & (Score.query_id == Example.query_id))
        return list(session.execute(statement.where(Candidate.role == "negative")).all())


def test_filters_let_through_what_brute_force_does(filled: Fill) -> None:
    reviewing = filled(23)
    with reviewing.store.write() as session:
        session.execute(update(Example).where(Example.id % 3 == 0).values(language="German"))
        session.execute(update(Query).where(Query.id == 5).values(text="Straße ÖL", digest=digest_text("Straße ÖL")))
        mining = start_run(session, "mine", "mined", {}, 0)
        found_again = session.scalars(select(Candidate.id).where(Candidate.role == "negative").limit(4)).all()
        put_sourcings(session, [NewSourcing(key, mining.id) for key in found_again])
        release = Release(name="v1", digest="d", recipe={}, manifest={}, path="x")
        session.add(release)
        session.flush()
        session.add(ReleaseItem(release_id=release.id, candidate_id=found_again[1], split="train", position=1))
    everything = rows(reviewing)

    def brute(keep: Callable[[Any, Any, str, float], bool]) -> set[int]:
        return {one.id for one, example, text, value in everything if keep(one, example, text, value)}

    assert asked(reviewing) == brute(lambda *_: True)
    assert asked(reviewing, grades=["hard", "easy"]) == brute(lambda one, *_: one.grade in ("hard", "easy"))
    assert asked(reviewing, origins=["mined"]) == brute(lambda one, *_: one.origin == "mined")
    assert asked(reviewing, languages=["German"]) == brute(lambda _, example, *__: example.language == "German")
    assert asked(reviewing, runs=["mined"]) == set(found_again)
    assert asked(reviewing, release="v1") == {found_again[1]}
    assert asked(reviewing, text="NEGATIVE 8 2") == brute(lambda _, __, text, ___: "negative 8 2" in text)
    assert asked(reviewing, text="STRASSE öl") == brute(lambda _, example, *__: example.query_id == 5)
    between = {"teacher": "minilm", "min": 0.55, "max": 0.7}
    assert asked(reviewing, scores=[between]) == brute(lambda *row: 0.55 <= row[3] <= 0.7)
    both = asked(reviewing, scores=[between], languages=["German"])
    assert both == brute(lambda _, example, __, value: 0.55 <= value <= 0.7 and example.language == "German")
    assert 0 < len(both) < len(everything)


def test_attributes_are_those_that_were_asked_for(filled: Fill) -> None:
    reviewing = filled(6)
    with reviewing.store.write() as session:
        run = start_run(session, "generate", "asking", {}, 0)
        keys = session.scalars(select(Candidate.id).where(Candidate.role == "negative").order_by(Candidate.id)).all()
        for number, domain in enumerate(["Law", "Art", "Law"]):
            request = Request(digest=f"r{number}", model="m", state="done")
            session.add(request)
            session.flush()
            link = RunRequest(run_id=run.id, request_id=request.id, plan_index=number, custom_id=f"c{number}",
                              kind="k", attributes={"domain": domain, "clarity": "clear"}, source={})  # fmt: skip
            session.add(link)
            put_sourcings(session, [NewSourcing(keys[number], run.id, request_id=request.id)])
    assert asked(reviewing, attributes={"domain": ["Law"]}) == {keys[0], keys[2]}
    assert asked(reviewing, attributes={"domain": ["Art"], "clarity": ["clear"]}) == {keys[1]}
    with pytest.raises(CurationError, match="no negative matches"):
        asked(reviewing, attributes={"clarity": ["vague"]})


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        ({"runs": ["nothing"]}, "no run 'nothing'"),
        ({"release": "nothing"}, "no such release"),
        ({"scores": [{"teacher": "nobody", "min": 0}]}, "no teacher 'nobody'"),
        ({"text": "stands nowhere"}, "no negative matches"),
    ],
)
def test_what_is_not_there_is_named(filled: Fill, definition: dict[str, Any], why: str) -> None:
    with pytest.raises(CurationError, match=why):
        drawn(filled(2), **definition)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scores": [{"teacher": "t"}]},
        {"scores": [{"teacher": "t", "min": 2, "max": 1}]},
        {"scores": [{"teacher": "t", "min": float("nan")}]},
        {"sample": {"size": 3}, "order": "suspicion"},
        {"sample": {"size": 3}, "limit": 2},
        {"attributes": {'a"b': ["x"]}},
        {"graeds": ["hard"]},
    ],
)
def test_definitions_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QueueDefinition.model_validate(wrong)


def test_a_session_needs_as_many_people_as_its_overlap() -> None:
    with pytest.raises(ValidationError, match="overlap = 2"):
        SessionRecipe.model_validate({"name": "s", "overlap": 2, "reviewers": ["ann"]})


@pytest.mark.parametrize("order", ["suspicion", "disagreement", "uncertainty"])
def test_orders_follow_the_example_s_most_telling_negative(filled: Fill, order: str) -> None:
    reviewing = filled(12)
    with reviewing.store.write() as session:
        for number, score in enumerate(session.scalars(select(Score).order_by(Score.passage_id))):
            score.value = (number * 37 % 23) / 23
    values: dict[int, float] = {}
    with reviewing.store.read() as session:
        candidates = session.execute(
            select(Candidate.id, Candidate.example_id).where(Candidate.role == "negative")
        ).all()
        found = suspicion_of(session, [key for key, _ in candidates])
    for key, example in candidates:
        value = {"suspicion": found[key].value, "disagreement": found[key].disagreement,
                 "uncertainty": found[key].uncertainty}[order]  # fmt: skip
        values[example] = max(values.get(example, -1.0), value)
    picked = drawn(reviewing, order=order).picked
    told = [values[one.example_id] for one in picked]
    assert told == sorted(values.values(), reverse=True)
    limited = drawn(reviewing, order=order, limit=5).picked
    assert [one.example_id for one in limited] == [one.example_id for one in picked][:5]
    assert max(one.suspicion or 0 for one in picked[0].asked) == picked[0].suspicion


def test_random_order_is_the_seed_s(filled: Fill) -> None:
    reviewing = filled(30)
    first, again, other = (
        [one.example_id for one in drawn(reviewing, seed=seed, limit=9).picked] for seed in (1, 1, 2)
    )
    assert first == again != other and len(set(first)) == 9


def test_a_sample_takes_from_each_stratum_what_is_allocated(filled: Fill) -> None:
    reviewing = filled(40)
    queue = drawn(reviewing, sample={"size": 30}, seed=4)
    everything = Counter(f"{one.grade}/{one.origin}" for one, *_ in rows(reviewing))
    strata = {one["name"]: (one["size"], one["drawn"]) for one in queue.facts["strata"]}
    assert {name: size for name, (size, _) in strata.items()} == everything
    sampled = [one for each in queue.picked for one in each.asked]
    assert Counter(one.stratum for one in sampled) == {name: num for name, (_, num) in strata.items()}
    assert len(sampled) == len({one.candidate_id for one in sampled}) == 30
    with reviewing.store.read() as session:
        for one in sampled:
            row = session.get_one(Candidate, one.candidate_id)
            assert one.stratum == f"{row.grade}/{row.origin}"
    ids = {one.candidate_id for one in sampled}
    assert {
        one.candidate_id for each in drawn(reviewing, sample={"size": 30}, seed=5).picked for one in each.asked
    } != ids


def test_a_sample_of_everything_is_everything(filled: Fill) -> None:
    reviewing = filled(5)
    assert asked(reviewing, sample={"size": 1000, "allocation": "equal"}) == {one.id for one, *_ in rows(reviewing)}


def work(reviewing: Any, session_: Any, name: str, times: int = 10_000) -> list[int]:
    """Positions of the items that this person got, each accepted whole."""
    positions = []
    for _ in range(times):
        with reviewing.store.write() as session:
            claimed = claim(session, session_, reviewing.people[name], reviewing.tick())
            if claimed is None:
                break
            decide(session, claimed.assignment_id, reviewing.people[name], "accept_all", shown_at=reviewing.now,
                   now=reviewing.tick())  # fmt: skip
            positions.append(session.get_one(ReviewItem, claimed.item_id).position)
    return positions


def test_repeats_come_later_to_those_who_had_the_first(filled: Fill) -> None:
    reviewing = filled(30)
    session_ = reviewing.start(overlap=1, repeats={"share": 0.2, "distance": 4})
    with reviewing.store.read() as session:
        items = {one.position: one for one in session.scalars(select(ReviewItem))}
    repeats = {one.repeats_position: one.position for one in items.values() if one.kind == "repeat"}
    assert len(repeats) == 6 and len(items) == 36
    assert all(
        items[late].example_id == items[first].example_id and late >= first + 4 for first, late in repeats.items()
    )
    had = {name: work(reviewing, session_, name, 8) for name in ("ann", "ben", "eve", "ann", "ben")}
    for name in ("ann", "ben", "eve"):
        had[name] = [*had[name], *work(reviewing, session_, name)]
    with reviewing.store.read() as session:
        people = dict(session.execute(select(Assignment.position, Assignment.reviewer_id)).all())
    assert set(people) == set(items)
    assert all(people[first] == people[late] for first, late in repeats.items())
    assert check_store(reviewing.store, progress=lambda done, total: None) == []


def test_gold_goes_to_everybody_and_cannot_be_told(filled: Fill, tmp_path: Path) -> None:
    reviewing = filled(20)
    answers = [
        {"query": "query 3", "passage": "negative 3 1", "decision": "false_negative"},
        {
            "query": digest_text("query 5"),
            "passage": digest_text("negative 5 2"),
            "decision": "regrade",
            "grade": "easy",
        },
        {"query": "query 5", "passage": "negative 5 1", "decision": "drop"},
        {"query": "query 6", "passage": "not in the store", "decision": "drop"},
    ]  # fmt: skip
    (tmp_path / "gold.jsonl").write_bytes(b"\n".join(map(orjson.dumps, answers)))
    session_ = reviewing.start(overlap=1, gold={"file": str(tmp_path / "gold.jsonl")})
    with reviewing.store.read() as session:
        gold = session.execute(
            select(ReviewItem.position, ItemCandidate.expected, ItemCandidate.expected_grade)
            .join(ItemCandidate, ItemCandidate.item_id == ReviewItem.id)
            .where(ReviewItem.kind == "gold")
        ).all()
        examples = session.scalars(select(ReviewItem.example_id)).all()
    assert {tuple(row[1:]) for row in gold} == {("false_negative", None), ("drop", None), ("regrade", "easy")}
    assert len(examples) == len(set(examples)) == 20
    positions = {row[0] for row in gold}
    got = {name: work(reviewing, session_, name, 9) for name in ("ann", "ben")}
    got = {name: [*already, *work(reviewing, session_, name)] for name, already in got.items()}
    got["eve"] = work(reviewing, session_, "eve")
    assert all(positions <= set(had) for had in got.values()) and set(got["eve"]) == positions
    regular = [position for had in got.values() for position in had if position not in positions]
    assert sorted(regular) == sorted(set(range(20)) - positions)
    with reviewing.store.read() as session:
        item = session.scalars(select(ReviewItem.id).where(ReviewItem.kind == "gold")).first()
        assert item is not None
        assert "gold" not in repr(item_view(session, item, reviewing.people["ann"]))


def test_what_was_settled_is_gold_for_the_next_session(filled: Fill) -> None:
    reviewing = filled(4)
    before = reviewing.start("before")
    with reviewing.store.write() as session:
        item, candidate = session.execute(select(ItemCandidate.item_id, ItemCandidate.candidate_id).limit(1)).one()
        settled = NewDecision(item, reviewing.people["boss"].id, "settle", before.rubric_id, reviewing.now,
                              candidate_id=candidate, verdict="drop")  # fmt: skip
        record(session, before.id, [settled])
    reviewing.start("after", gold={"session": "before"})
    with reviewing.store.read() as session:
        told = session.execute(select(ItemCandidate.candidate_id).where(ItemCandidate.expected == "drop")).all()
    assert [tuple(row) for row in told] == [(candidate,)]
    with pytest.raises(CurationError, match="none of its answers"):
        reviewing.start("empty", gold={"session": "after"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b'{"query": "q", "decision": "drop"}', "'passage' is missing"),
        (b'{"query": "q", "passage": "p", "decision": "like"}', "decision = 'like'"),
        (b'{"query": "q", "passage": "p", "decision": "regrade"}', "grade = None"),
        (b'{"query": "q", "passage": "p", "decision": "drop"}', "none of its answers"),
    ],
)
def test_gold_files_are_checked_by_line(filled: Fill, tmp_path: Path, line: bytes, why: str) -> None:
    file = tmp_path / "gold.jsonl"
    file.write_bytes(b"\n" + line)
    with pytest.raises(CurationError, match=why):
        filled(1).start(gold={"file": str(file)})
