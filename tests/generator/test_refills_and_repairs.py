"""Refills end and fill what can be filled; repairs are checked beside the negatives that stand already."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Rejection, RunRequest
from db.tables.texts import CollectionQuery, Document, Passage, Qrel
from generator.errors import GeneratorError
from generator.generation import Seams, generate
from generator.recipe import EmbeddingGate

LEVELS = ("high", "medium", "medium", "low")
QUERY_ATTRIBUTES = {"query_type": ["a"], "query_length": ["b"], "language": ["English"]}


def negative(level: str, text: str) -> dict[str, Any]:
    return {
        "similarity_level": level, "violated_requirement": "r", "plan": "p", "text": text,
        "self_check": {"answers_query": False, "reason": ""},
    }  # fmt: skip


def answer(parts: Sequence[dict[str, Any]]) -> str:
    return orjson.dumps({"reflection": {}, "negatives": list(parts)}).decode()


def count(store: Store, *where: Any) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(Candidate).where(Candidate.role == "negative", *where))


def test_refills_of_a_document_that_stands_many_times_end(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 6, positive=lambda n: "the same text" if n < 5 else "another text")

    def script(body: dict[str, Any], turn: int) -> Any:
        document = toolbox.between(toolbox.prompt_of(body), "document")
        texts = [{"text": f"what is in {document}", "evidence": "no such words"}]
        return toolbox.Reply(orjson.dumps({"queries": texts}).decode())

    model_server.script = script
    plan = {"source": "documents", "collection": "toy", "accepted_per_cell": 2, "top_k": 0,
            "max_per_cell": 12, "attributes": QUERY_ATTRIBUTES}  # fmt: skip
    report = generate(store, toolbox.recipe_for(model_server, plan, pack="v2", max_rejected=1))
    # Twelve places over six documents, five of them one text, at two sample indices: 2 x 2 different requests.
    assert report.num_planned == sum(model_server.came.values()) == 4
    with store.read() as session:
        reasons = select(Rejection.reason, func.count()).group_by(Rejection.reason)
        assert {reason: num for reason, num in session.execute(reasons)} == {"same_request": 8, "quote_not_in_text": 4}


def test_a_pair_with_too_few_neighbours_is_told_and_others_fill_its_place(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 8)
    with store.read() as session:
        judged = select(CollectionQuery.query_id).join(Qrel, Qrel.collection_query_id == CollectionQuery.id)
        lonely = set(session.scalars(judged.order_by(CollectionQuery.query_id)).all()[::2])
        passages = list(session.scalars(select(Passage.id)))

    def near(plan: Any, query: str, key: int, k: int) -> list[int]:
        return passages[:1] if key in lonely else passages[:4]

    model_server.script = lambda body, turn: toolbox.Reply("no JSON")
    plan = {"source": "pairs", "collection": "toy", "split": "train", "task_instruction": "t",
            "accepted_per_cell": 3, "max_per_cell": 8}  # fmt: skip
    recipe = toolbox.recipe_for(model_server, plan, pack="v2", max_rejected=1)
    report = generate(store, recipe, seams=Seams(neighbours=near))
    assert report.num_planned == 4
    with store.read() as session:
        few = select(func.count()).where(Rejection.reason == "too_few_neighbours")
        assert session.scalar(few) == 4


def test_a_second_stage_that_was_cut_off_is_planned_to_its_end(store: Store, model_server: Any, toolbox: Any) -> None:
    def script(body: dict[str, Any], turn: int) -> Any:
        if toolbox.prompt_of(body).startswith("You propose"):
            return toolbox.Reply(orjson.dumps({"tasks": ["Find a.", "Find b."]}).decode())
        return toolbox.Reply("no JSON")

    model_server.script = script
    plan = {"source": "tasks", "task_types": ["short-long"], "tasks_per_type": 2, "tasks_per_request": 2, "num": 9,
            "attributes": {"query_type": ["a"], "query_length": ["l"], "clarity": ["c"], "text_length": ["t"],
                           "education_level": ["e"], "language": ["English"]}}  # fmt: skip
    recipe = toolbox.recipe_for(model_server, [plan], pack="v2", max_rejected=1)
    assert generate(store, recipe).num_planned == 10
    with store.write() as session:
        lost = session.scalars(select(RunRequest).where(RunRequest.plan_index % 2 == 1, RunRequest.plan_index > 0))
        for link in lost:
            session.delete(link)
    assert generate(store, recipe).num_planned == 10


def test_a_repair_that_repeats_what_stands_is_refused_again(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 1)
    parts = [negative(level, f"text {place}") for place, level in enumerate(LEVELS)]
    parts[3]["text"] = "text 0"
    model_server.script = lambda body, turn: toolbox.Reply(answer(parts if len(body["messages"]) == 1 else parts[3:]))
    report = generate(store, toolbox.recipe_for(model_server, num=1, max_repairs=2, max_rejected=1))
    assert report.refused == {"duplicate": 3} and report.num_accepted == count(store) == 3


class Gate:
    limits = EmbeddingGate()

    def similarities(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        return [[0.9 if "positive" in text else float(text.split()[-1]) for text in texts] for _, texts in groups]


@pytest.mark.parametrize(("repaired", "is_kept"), [("again 0.49", False), ("again 0.29", False), ("again 0.1", True)])
def test_the_gate_measures_a_repair_beside_what_stands(
    store: Store, model_server: Any, toolbox: Any, repaired: str, is_kept: bool
) -> None:
    toolbox.fill(store, 1)
    parts = [negative(*one) for one in zip(LEVELS, ("a 0.4", "b 0.3", "c 0.2", "d 0.35"), strict=True)]
    mended = answer([negative("low", repaired)])
    model_server.script = lambda body, turn: toolbox.Reply(answer(parts) if len(body["messages"]) == 1 else mended)
    report = generate(store, toolbox.recipe_for(model_server, num=1, max_repairs=1), seams=Seams(gate=Gate()))
    assert report.refused == {"out_of_order": 1 if is_kept else 2}
    assert count(store, Candidate.rank == 4) == is_kept


def test_a_harder_repair_must_stay_above_what_stands(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 1)
    parts = [negative(*one) for one in zip(LEVELS, ("a 0.4", "b 0.3", "c 0.2", "d 0.1"), strict=True)]
    parts[0]["similarity_level"] = "low"  # refused for its level, so that the others stand without it
    mended = answer([negative("high", "again 0.25")])
    model_server.script = lambda body, turn: toolbox.Reply(answer(parts) if len(body["messages"]) == 1 else mended)
    report = generate(store, toolbox.recipe_for(model_server, num=1, max_repairs=1), seams=Seams(gate=Gate()))
    assert report.refused == {"wrong_level": 1, "out_of_order": 1} and count(store) == 3


def test_a_mined_negative_that_is_used_as_it_is_takes_its_rank(store: Store, toolbox: Any) -> None:
    toolbox.fill(store, 2)
    with store.write() as session:
        run = start_run(session, "mine", "m", {}, 0).id
        pairs = session.execute(
            select(CollectionQuery.query_id, Document.passage_id)
            .join(Qrel, Qrel.collection_query_id == CollectionQuery.id)
            .join(Document, Document.id == Qrel.document_id)
        ).all()
        (example,) = put_examples(session, [tuple(pairs[0])], origin="corpus")
        passage = pairs[1][1]
        put_candidates(session, [NewCandidate(example, passage, "negative", "mined", run)])
        put_candidates(session, [NewCandidate(example, passage, "negative", "mined", run, grade="easy", rank=4)])
        put_candidates(session, [NewCandidate(example, passage, "negative", "mined", run, grade="hard", rank=1)])
        stored = session.scalars(select(Candidate).where(Candidate.role == "negative")).one()
        assert (stored.rank, stored.grade) == (4, "easy")


def test_an_attribute_that_the_prompt_does_not_use_is_refused(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 2)
    plan = {"source": "pairs", "collection": "toy", "split": "train", "task_instruction": "t", "num": 1,
            "entry": "graded_negatives", "attributes": {"domain": ["a"], "colour": ["red"]}}  # fmt: skip
    with pytest.raises(GeneratorError, match=r"does not use 'colour'; it uses .*domain"):
        generate(store, toolbox.recipe_for(model_server, plan))
    assert model_server.came.total() == 0
