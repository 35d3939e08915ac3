"""The run as a whole against a scripted server: stages, quotas, repairs, budgets, gates, many processes."""

import threading
from collections import Counter
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing, Task
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from db.tables.texts import CollectionQuery, Document, Passage, Qrel, Query
from generator.errors import GeneratorError
from generator.estimate import estimate
from generator.generation import GenerateReport, Seams, generate
from generator.plan import Planner
from generator.recipe import EmbeddingGate


def negative(level: str, text: str, **changes: Any) -> dict[str, Any]:
    return {
        "similarity_level": level, "violated_requirement": "r", "plan": "p", "text": text,
        "self_check": {"answers_query": False, "reason": ""}, **changes,
    }  # fmt: skip


def answer(parts: list[dict[str, Any]], **fields: Any) -> str:
    return orjson.dumps({"reflection": {}, **fields, "negatives": parts}).decode()


def num_rows(store: Store, table: type) -> int:
    with store.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def free(level: str, text: str, *, met: bool = False) -> dict[str, Any]:
    return {
        "similarity_level": level, "violated_requirement": 0, "plan": "p", "text": text,
        "requirements_met": [{"index": 0, "met": met, "quote": ""}],
    }  # fmt: skip


LEVELS = ("high", "medium", "medium", "low")


def test_tasks_are_brainstormed_and_then_written_for_each_once_before_one_twice(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 6)

    def script(body: dict[str, Any], turn: int) -> Any:
        prompt = toolbox.prompt_of(body)
        if prompt.startswith("You propose"):
            kind = prompt.partition("(")[2][:12]
            return toolbox.Reply(orjson.dumps({"tasks": [f"Find {kind} number {n}." for n in range(3)]}).decode())
        if "# Pair" in prompt:
            return toolbox.Reply(toolbox.negatives_for(body))
        mark = f"{hash(prompt)} {turn}"
        parts = [free(level, f"{level} {place} {mark}") for place, level in enumerate(LEVELS)]
        listed = [{"text": "r", "critical": True}]
        return toolbox.Reply(
            orjson.dumps({"requirements": listed, "query": f"q {mark}", "positive": f"p {mark}", "negatives": parts})
            .decode()
        )  # fmt: skip

    model_server.script = script
    tasks = {
        "source": "tasks", "task_types": ["short-long", "sts"], "tasks_per_type": 3, "tasks_per_request": 3, "num": 9,
        "attributes": {
            "query_type": ["a", "b", "c"], "query_length": ["l"], "clarity": ["c"], "text_length": ["t"],
            "education_level": ["e"], "language": ["English"],
        },
    }  # fmt: skip
    recipe = toolbox.recipe_for(model_server, [tasks], pack="v2")
    report = generate(store, recipe)
    assert (report.num_planned, report.outcomes) == (11, {"accepted": 11})
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Task)) == 6
        used = Counter(session.scalars(select(Example.task_id)))
        cells = Counter(row["query_type"] for row in session.scalars(
            select(RunRequest.attributes).where(RunRequest.kind == "graded_example")))  # fmt: skip
    assert sorted(used.values()) == [1, 1, 1, 2, 2, 2] and cells == {"a": 3, "b": 3, "c": 3}
    before = sum(model_server.came.values())
    assert generate(store, recipe).num_new_answers == 0 and sum(model_server.came.values()) == before


def test_a_cell_is_refilled_until_enough_is_accepted_or_its_attempts_are_spent(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 40)
    bad_once: set[str] = set()

    def script(body: dict[str, Any], turn: int) -> Any:
        prompt = toolbox.prompt_of(body)
        domain = prompt.partition("expert in ")[2][0]
        if domain == "b":
            return toolbox.Reply("no JSON at all")
        if domain == "a" and len(bad_once) < 3:
            bad_once.add(prompt)
            return toolbox.Reply(toolbox.negatives_for(body, 3))  # rank 4 is missing
        return toolbox.Reply(toolbox.negatives_for(body))

    model_server.script = script
    plan = {
        "source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train",
        "task_instruction": "Match.", "accepted_per_cell": 4, "max_per_cell": 9,
        "attributes": {"domain": ["a", "b", "c"], "education_level": ["x"], "length": ["l"], "language": ["English"]},
    }  # fmt: skip
    report = generate(store, toolbox.recipe_for(model_server, plan, max_rejected=1))
    with store.read() as session:
        asked = Counter(row["domain"] for row in session.scalars(select(RunRequest.attributes)))
    # a: 4 of rank 4 need 7 requests, since three brought none; b: all its attempts; c: as many as it wants.
    assert asked == {"a": 7, "b": 9, "c": 4}
    assert report.outcomes == {"accepted": 8, "partial": 3, "rejected": 9}


def repairing(toolbox: Any, *, good_after: int) -> Any:
    """Negatives 2 and 4 fail until the follow-up has been sent `good_after` times."""

    def script(body: dict[str, Any], turn: int) -> Any:
        mark = toolbox.between(toolbox.prompt_of(body), "query")
        turns = len(body["messages"]) // 2
        good = [negative(level, f"{mark} text {place}") for place, level in enumerate(LEVELS, start=1)]
        bad = [{**part} for part in good]
        bad[1]["text"], bad[3]["similarity_level"] = "This hard negative is bad", "high"
        if turns == 0:
            return toolbox.Reply(answer(bad))
        chosen = good if turns >= good_after else bad
        return toolbox.Reply(answer([chosen[1], chosen[3]]))

    return script


def test_only_what_failed_is_asked_again_with_what_was_measured(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 5)
    model_server.script = repairing(toolbox, good_after=2)
    report = generate(store, toolbox.recipe_for(model_server, num=5, max_repairs=2))
    assert report.num_planned == 15 and report.outcomes == {"partial": 5, "rejected": 5, "accepted": 5}
    follow_up = next(body for body in model_server.bodies if len(body["messages"]) == 3)["messages"][2]["content"]
    assert "number 2: the text gives itself away: 'hard negative'" in follow_up
    assert "number 4: similarity_level 'high' where 'low' was asked for" in follow_up
    assert "hold only the numbers 2, 4, in this order" in follow_up
    with store.read() as session:
        ranks = select(Candidate.example_id, func.count()).where(Candidate.role == "negative")
        assert {num for _, num in session.execute(ranks.group_by(Candidate.example_id))} == {4}
        asked = select(Candidate.rank, func.max(RunRequest.custom_id)).join(
            Sourcing, Sourcing.candidate_id == Candidate.id
        ).join(RunRequest, RunRequest.request_id == Sourcing.request_id)  # fmt: skip
        of_rank = {rank: custom_id for rank, custom_id in session.execute(asked.group_by(Candidate.rank))}
    assert ["~2" in of_rank[rank] for rank in (1, 2, 3, 4)] == [False, True, False, True]
    assert report.refused == {"leak_phrase": 10, "wrong_level": 10}
    assert num_rows(store, Rejection) == 20
    before = sum(model_server.came.values())
    assert generate(store, toolbox.recipe_for(model_server, num=5, max_repairs=2)).outcomes == report.outcomes
    assert sum(model_server.came.values()) == before


def test_repairs_end_at_their_limit(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 3)
    model_server.script = repairing(toolbox, good_after=99)
    report = generate(store, toolbox.recipe_for(model_server, num=3, max_repairs=3, max_rejected=1))
    assert report.num_planned == 3 * 4 and report.outcomes == {"partial": 3, "rejected": 9}


def test_an_answer_without_anything_to_use_is_asked_again_as_it_was(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 4)
    model_server.script = lambda body, turn: toolbox.Reply("no JSON" if turn == 0 else toolbox.negatives_for(body))
    report = generate(store, toolbox.recipe_for(model_server, num=4, max_repairs=1))
    assert report.outcomes == {"rejected": 4, "accepted": 4} and report.refused == {"not_json": 4}
    assert all(len(body["messages"]) == 1 for body in model_server.bodies)


def test_edit_scripts_are_applied_and_mended(store: Store, model_server: Any, toolbox: Any) -> None:
    num = 8
    toolbox.fill(store, num, positive=lambda n: f"Title {n}\nDrug number{n} lowers pressure. It was given to mice.")
    with store.read() as session:
        keys = list(session.scalars(select(Passage.id).order_by(Passage.id)))
        judged = (
            select(CollectionQuery.query_id, Document.passage_id)
            .select_from(Qrel)
            .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
            .join(Document, Qrel.document_id == Document.id)
        )
        positives = {query: passage for query, passage in session.execute(judged)}

    def part(source: str, script: list[dict[str, str]], quote: str = "given to mice") -> dict[str, Any]:
        met = [{"index": 0, "met": False, "quote": ""}, {"index": 1, "met": True, "quote": quote}]
        return {"source": source, "violated_requirement": 0, "plan": "p", "script": script, "requirements_met": met}

    def script(body: dict[str, Any], turn: int) -> Any:
        change = [{"find": "lowers", "replace": "raises"}]
        good = [part("positive", change), part("neighbour_1", [{"find": "mice", "replace": "rats"}], "given to rats")]
        good += [part("neighbour_2", []), part("neighbour_3", [])]
        listed = [{"text": "it lowers pressure", "critical": True}, {"text": "in mice", "critical": False}]
        if len(body["messages"]) == 1:
            bad = [part("positive", [{"find": "e", "replace": "f"}]), *good[1:]]
            return toolbox.Reply(orjson.dumps({"requirements": listed, "negatives": bad}).decode())
        assert "stands in the source document" in body["messages"][2]["content"]
        return toolbox.Reply(orjson.dumps({"requirements": listed, "negatives": good[:1]}).decode())

    model_server.script = script
    plan = {
        "source": "pairs", "collection": "toy", "split": "train", "task_instruction": "Match.", "num": num,
    }  # fmt: skip
    recipe = toolbox.recipe_for(model_server, plan, pack="v2", max_repairs=1)
    seams = Seams(neighbours=lambda plan, query, key, k: [one for one in keys if one != positives[key]][:k])
    report = generate(store, recipe, seams=seams)
    assert report.outcomes == {"partial": num, "accepted": num}, report.refused
    assert report.refused == {"find_not_unique": num}
    with store.read() as session:
        rows = session.execute(
            select(Candidate.rank, Candidate.origin, Passage.text, Candidate.parent_passage_id, Example.positive_id)
            .join(Passage, Passage.id == Candidate.passage_id)
            .join(Example, Example.id == Candidate.example_id)
            .where(Candidate.role == "negative")
        ).all()
    assert Counter((rank, origin) for rank, origin, *_ in rows) == {
        (1, "edited"): num, (2, "edited"): num, (3, "mined"): num, (4, "mined"): num,
    }  # fmt: skip
    for rank, _, text, parent, positive in rows:
        assert ("raises pressure. It was given to mice." in text) == (rank == 1)
        assert (parent == positive) == (rank == 1) and (parent is None) == (rank > 2)
    wire = model_server.bodies[0]["response_format"]
    assert wire["json_schema"]["strict"] and wire["json_schema"]["schema"]["additionalProperties"] is False


def test_queries_are_kept_only_if_they_retrieve_their_own_document(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 4, positive=lambda n: f"The subject{n} was seen at noon. It was warm.")

    def script(body: dict[str, Any], turn: int) -> Any:
        subject = toolbox.between(toolbox.prompt_of(body), "document").split()[1]
        queries = [
            {"text": f"when was {subject} seen", "evidence": f"The {subject} was seen"},
            {"text": f"what was warm at {subject[-1]}", "evidence": "It was warm."},
            {"text": "how many subjects were seen", "evidence": "It was warm."},
            {"text": "who was there", "evidence": "not in the document"},
            {"text": f"WHEN was  {subject} seen", "evidence": f"The {subject} was seen"},
            {"text": "what does this document say", "evidence": "It was warm."},
        ]
        return toolbox.Reply(orjson.dumps({"queries": queries}).decode())

    class RoundTrip:
        def ranks(self, queries: Any, passages: Any) -> list[int | None]:
            return [2 if "seen" in query else None for query in queries]

    model_server.script = script
    plan = {"source": "documents", "collection": "toy", "num": 4}
    recipe = toolbox.recipe_for(model_server, plan, pack="v2")
    report = generate(store, recipe, seams=Seams(round_trips={0: RoundTrip()}))
    assert report.num_accepted == 5
    # Twice in one answer, or for several documents: the first stands.
    assert report.refused == {"not_retrieved": 4, "quote_not_in_text": 4, "duplicate": 4 + 3, "leak_phrase": 4}
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Example.origin)
            .join(Example, Example.query_id == Query.id)
            .join(Passage, Passage.id == Example.positive_id)
            .where(Query.text.like("when%"))
        ).all()
    assert len(rows) == 4 and all(query.split()[2] in text and origin == "synthetic" for query, text, origin in rows)


def test_logical_negatives_break_one_clause_each_and_another_one(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 3, positive=lambda n: f"Case {n} is green. It is round. " + "Filler words stand here. " * 4)

    def part(find: str, replace: str, broken: int) -> dict[str, Any]:
        met = [{"index": index, "met": index != broken, "quote": ""} for index in (0, 1)]
        script = [{"find": find, "replace": replace}]
        return {"source": "document", "violated_requirement": broken, "plan": "p", "script": script,
                "requirements_met": met}  # fmt: skip

    def script(body: dict[str, Any], turn: int) -> Any:
        case = toolbox.between(toolbox.prompt_of(body), "document").split()[1]
        second = part("is round", "is square", 1) if case != "2" else part("is green", "is grey", 0)
        listed = [{"text": "green", "critical": True}, {"text": "round", "critical": True}]
        parts = [part("is green", "is blue", 0), second]
        return toolbox.Reply(
            orjson.dumps({"query": f"green and round case {case}", "requirements": listed, "negatives": parts}).decode()
        )

    model_server.script = script
    plan = {"source": "documents", "collection": "toy", "entry": "logical_negatives", "num": 3, "top_k": 0}
    report = generate(store, toolbox.recipe_for(model_server, plan, pack="v2"))
    assert report.outcomes == {"accepted": 2, "partial": 1} and report.refused == {"same_requirement": 1}
    with store.read() as session:
        found = select(Candidate.violated_requirement, func.count()).where(Candidate.role == "negative")
        assert dict(session.execute(found.group_by(Candidate.violated_requirement)).all()) == {"green": 3, "round": 2}


def test_a_rewritten_positive_stands_in_for_the_real_one(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 2)

    def script(body: dict[str, Any], turn: int) -> Any:
        mark = toolbox.between(toolbox.prompt_of(body), "query")
        parts = [free(level, f"{mark} {place} {level}") for place, level in enumerate(LEVELS)]
        listed = [{"text": "r", "critical": True}]
        fields = {"domain": "a", "requirements": listed, "positive": f"{mark} again"}
        return toolbox.Reply(orjson.dumps({**fields, "negatives": parts}).decode())

    model_server.script = script
    plan = {
        "source": "pairs", "entry": "rewritten_pair", "collection": "toy", "split": "train",
        "task_instruction": "Match.", "num": 2,
    }  # fmt: skip
    report = generate(store, toolbox.recipe_for(model_server, plan, pack="v2"))
    assert report.outcomes == {"accepted": 2}
    with store.read() as session:
        texts = session.execute(
            select(Passage.text, Example.origin).join(Example, Example.positive_id == Passage.id)
        ).all()
        notes = list(session.scalars(select(RunRequest.notes)))
    assert sorted(texts) == [("query 0! again", "synthetic"), ("query 1! again", "synthetic")]
    assert all(note and note["domain"] == "a" for note in notes)
    assert "Epidemiology; Public Health" in toolbox.prompt_of(model_server.bodies[0])


class FakeGate:
    """Similarity by what a text says of itself."""

    def __init__(self, **limits: Any) -> None:
        self.limits = EmbeddingGate(**limits)

    def similarities(self, groups: Any) -> list[list[float]]:
        return [[0.5 if "positive" in text else float(text.split()[-1]) for text in texts] for _, texts in groups]


@pytest.mark.parametrize(
    ("limits", "values", "refused", "suspect"),
    [
        ({}, (0.4, 0.3, 0.2, 0.1), {}, 0),
        ({}, (0.4, 0.2, 0.3, 0.1), {}, 0),  # ranks 2 and 3 share a grade
        ({}, (0.4, 0.3, 0.2, 0.25), {"out_of_order": 1}, 0),
        ({}, (0.2, 0.3, 0.3, 0.1), {"out_of_order": 2}, 0),
        ({"margin": 0.05}, (0.4, 0.36, 0.3, 0.28), {"out_of_order": 2}, 0),
        ({"margin": 0.05}, (0.4, 0.35, 0.3, 0.25), {}, 0),
        ({}, (0.7, 0.3, 0.2, 0.1), {}, 1),
        ({"above_positive": "refuse"}, (0.7, 0.3, 0.2, 0.1), {"above_positive": 1}, 0),
    ],
)
def test_the_gate_keeps_the_order_of_grades(
    store: Store, model_server: Any, toolbox: Any, limits: Any, values: Any, refused: Any, suspect: int
) -> None:
    toolbox.fill(store, 1)

    def script(body: dict[str, Any], turn: int) -> Any:
        parts = [negative(level, f"text {place} {value}") for (place, level), value in
                 zip(enumerate(LEVELS), values, strict=True)]  # fmt: skip
        return toolbox.Reply(answer(parts))

    model_server.script = script
    report = generate(store, toolbox.recipe_for(model_server, num=1), seams=Seams(gate=FakeGate(**limits)))
    assert (report.refused, report.num_suspect) == (refused, suspect)
    assert report.num_accepted == 4 - sum(refused.values())


def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    model_server.usage = {"prompt_tokens": 700, "completion_tokens": 100}
    budget = {"tokens": 20_000}
    first = generate(
        store, toolbox.recipe_for(model_server, max_output_tokens=100, budget=budget, engine={"concurrency": 32})
    )
    assert first.is_out_of_budget and first.num_waiting > 0
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert 20_000 - 4_000 < run.spent_tokens <= 20_000 and run.reserved_tokens == 0
        assert run.spent_tokens == 800 * first.num_new_answers
    assert all(body["max_tokens"] == 100 for body in model_server.bodies)
    second = generate(store, toolbox.recipe_for(model_server, max_output_tokens=100, budget={"tokens": 10**9}))
    assert second.outcomes == {"accepted": 60} and max(model_server.answered.values()) == 1


def test_money_is_counted_with_cached_and_written_tokens(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 10)
    model_server.usage = {
        "prompt_tokens": 1_000, "completion_tokens": 200,
        "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
    }  # fmt: skip
    recipe = toolbox.recipe_for(
        model_server, num=10, model="gpt-6-luna", max_output_tokens=300, budget={"usd": 1.0}, effort=None
    )
    report = generate(store, recipe)
    one = (300 * 0.10 + 600 * 0.01 + 100 * 0.125 + 200 * 0.50) / 1e6
    assert report.spent_usd == pytest.approx(10 * one, rel=1e-9)
    with store.read() as session:
        assert list(session.scalars(select(Completion.cost_usd))) == pytest.approx([one] * 10)
    body = model_server.bodies[0]
    assert body["reasoning_effort"] == "none" and body["max_completion_tokens"] == 300 and "max_tokens" not in body


def test_an_endpoint_that_fails_leaves_the_work_to_the_other(
    store: Store, model_server: Any, second_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    second_server.script = lambda body, turn: toolbox.Reply(status=401, body={"error": {"message": "no"}})
    engine = {"base_url": [second_server.url, model_server.url]}
    report = generate(store, toolbox.recipe_for(model_server, engine=engine))
    assert report.outcomes == {"accepted": 60} and sum(model_server.came.values()) == 60


def test_two_endpoints_share_the_work(store: Store, model_server: Any, second_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    slow = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.02)  # noqa: E731
    model_server.script = second_server.script = slow
    engine = {"base_url": [second_server.url, model_server.url], "concurrency": 4}
    assert generate(store, toolbox.recipe_for(model_server, engine=engine)).outcomes == {"accepted": 60}
    shares = sum(model_server.came.values()), sum(second_server.came.values())
    assert sum(shares) == 60 and min(shares) > 10
    assert max(model_server.most_open, second_server.most_open) <= 4


def test_several_workers_drain_one_run_and_ask_nothing_twice(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.02)
    recipe = toolbox.recipe_for(model_server, engine={"concurrency": 2})
    reports: list[GenerateReport] = []
    threads = [threading.Thread(target=lambda: reports.append(generate(store, recipe))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.outcomes for report in reports] == [{"accepted": 60}] * 3
    assert sum(report.num_new_answers for report in reports) == 60
    assert set(model_server.came.values()) == {1} and num_rows(store, Candidate) == 5 * 60


def test_another_recipe_that_shares_requests_sends_none_of_them(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    generate(store, toolbox.recipe_for(model_server, num=40))
    report = generate(store, toolbox.recipe_for(model_server, name="other", num=60))
    assert report.outcomes == {"accepted": 60} and report.num_new_answers == 20
    assert len(model_server.came) == 60 and set(model_server.came.values()) == {1}
    assert num_rows(store, Request) == 60


def test_a_user_adds_an_entry_as_a_folder_of_files(
    store: Store, model_server: Any, toolbox: Any, tmp_path: Any
) -> None:
    toolbox.fill(store, 2)
    entry = tmp_path / "mine" / "near_misses"
    entry.mkdir(parents=True)
    (entry / "prompt.j2").write_text("Be {{ mood }}: <query>{{ query }}</query>")
    (entry / "entry.toml").write_text(
        'title = "Near misses"\nsubject = "pair"\n[[slots]]\ngrade = "hard"\n[checks]\nlength_ratio = [0.5, 2.0]\n'
    )
    part = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    schema = {
        "type": "object",
        "properties": {"negatives": {"type": "array", "items": part}},
        "required": ["negatives"],
    }
    (entry / "schema.json").write_bytes(orjson.dumps(schema))
    model_server.script = lambda body, turn: toolbox.Reply(
        orjson.dumps({"negatives": [{"text": f"near {toolbox.prompt_of(body)}"}]}).decode()
    )
    plan = {
        "source": "pairs", "entry": "near_misses", "collection": "toy", "split": "train", "task_instruction": "M.",
        "num": 2, "attributes": {"mood": ["calm", "brisk"]},
    }  # fmt: skip
    report = generate(store, toolbox.recipe_for(model_server, plan, pack=str(tmp_path / "mine")))
    assert report.outcomes == {"accepted": 2}
    assert {toolbox.prompt_of(body).split(":")[0] for body in model_server.bodies} == {"Be calm", "Be brisk"}


def test_a_dry_run_tells_cells_tokens_and_price_and_a_pilot_sharpens_it(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    usages = iter([100, 300] * 100)
    model_server.script = lambda body, turn: toolbox.Reply(
        body={
            "choices": [{"message": {"content": toolbox.negatives_for(body)}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 500, "completion_tokens": next(usages)},
        }
    )
    recipe = toolbox.recipe_for(model_server, model="gpt-6-luna", max_output_tokens=1_000)
    with store.read() as session:
        before = estimate(session, recipe, Planner(recipe))
    assert num_rows(store, Request) == 0 and not model_server.bodies
    assert before.num_requests == 60 and set(before.cells.values()) == {10} and before.num_pilot == 0
    assert before.output_tokens is not None and before.output_tokens.high == 60_000
    report = generate(store, recipe, limit=20)
    assert report.num_new_answers == 20 == sum(model_server.came.values())
    with store.read() as session:
        after = estimate(session, recipe, Planner(recipe))
    assert after.num_pilot == 20 and after.output_tokens is not None and after.cost_usd is not None
    assert after.output_tokens.mean == pytest.approx(60 * 200)
    half = 1.96 * 60 * (100 * (20 / 19) ** 0.5) / 20**0.5
    assert after.output_tokens.high - after.output_tokens.mean == pytest.approx(half)
    assert after.cost_usd.mean == pytest.approx((after.input_tokens.mean * 0.10 + 12_000 * 0.50) / 1e6, rel=1e-3)
    assert generate(store, recipe).outcomes == {"accepted": 60} and sum(model_server.came.values()) == 60


def test_a_model_that_was_switched_off_is_refused_before_anything_is_sent(
    store: Store, model_server: Any, toolbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import date

    from generator.models import ModelFacts, facts_of, refuse_if_shut_down

    refuse_if_shut_down(facts_of("gpt-4o"), date(2027, 1, 13))
    with pytest.raises(GeneratorError, match="switched off on 2027-01-14; its maker names 'gpt-6-luna'"):
        refuse_if_shut_down(facts_of("gpt-4o-2024-08-06"), date(2027, 1, 14))
    refuse_if_shut_down(ModelFacts("anything"), date(2099, 1, 1))


def test_a_reservation_of_a_process_that_died_counts_as_spent(store: Store, toolbox: Any, model_server: Any) -> None:
    toolbox.fill(store, 10)
    recipe = toolbox.recipe_for(model_server, num=10, max_output_tokens=50, budget={"tokens": 10**6})
    generate(store, recipe, limit=4)
    with store.write() as session:
        run = session.scalars(select(Run)).one()
        spent = run.spent_tokens
        left = session.scalars(select(Request).where(Request.state == "pending")).all()
        from db.tables.base import utc_now

        for request in left[:3]:
            request.state, request.leased_until, request.lease_holder = "leased", utc_now(), "gone:1:1:x"
            request.reserved_tokens, request.reserved_usd = 1_000, 0.0
        run.reserved_tokens = 3_000
    assert generate(store, recipe).outcomes == {"accepted": 10}
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert (run.spent_tokens, run.reserved_tokens) == (spent + 6 * 15 + 3_000, 0)
