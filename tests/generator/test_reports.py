"""What a run reports: its counts add up, its tokens and money are all that was spent, and failures have reasons."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from db.store import Store
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from generator.desk import Progress
from generator.errors import GeneratorError, TooManyRefused
from generator.generation import GenerateReport, Seams, generate, resolved_recipe
from generator.plan import Planner
from generator.progress import run_progress
from generator.recipe import BatchFileEngine, EmbeddingGate, GenerateRecipe

NOWHERE = SimpleNamespace(url="http://127.0.0.1:9/v1")
KINDS = ("good", "junk", "empty", "null", "refusal", "error", "status", "cut", "none")


def by_file(toolbox: Any, folder: Path, **fields: Any) -> GenerateRecipe:
    recipe: GenerateRecipe = toolbox.recipe_for(NOWHERE, model="gpt-6-luna", max_rejected=1.0, **fields)
    engine = BatchFileEngine(kind="batch_file", completions=folder / "in.jsonl", requests=folder / "out.jsonl")
    return recipe.model_copy(update={"engine": engine})


def line(toolbox: Any, asked: dict[str, Any], kind: str, tokens: tuple[int, int]) -> dict[str, Any]:
    text = {"good": toolbox.negatives_for(asked["body"]), "junk": "no JSON", "empty": "", "cut": '{"a'}.get(kind)
    message = {"content": text} | ({"refusal": "no"} if kind == "refusal" else {})
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    choice = {"message": message, "finish_reason": "length" if kind == "cut" else "stop"}
    body: dict[str, Any] = {"choices": [choice], "usage": usage}
    if kind == "status":
        return {"custom_id": asked["custom_id"], "response": {"status_code": 500, "body": {"usage": usage}}}
    if kind == "error":
        return {"custom_id": asked["custom_id"], "response": None, "error": {"message": "the batch expired"}}
    return {"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}}


def check_counts(store: Store, report: GenerateReport) -> None:
    """The report against a walk over the ledger."""
    with store.read() as session:
        run = session.scalars(select(Run).order_by(Run.id.desc()).limit(1)).one()
        links = session.execute(
            select(RunRequest.outcome, Request.state, RunRequest.request_id)
            .join(Request, Request.id == RunRequest.request_id)
            .where(RunRequest.run_id == run.id)
        ).all()
        asked = {key for *_, key in links}
        tries = [row for row in session.scalars(select(Completion)) if row.request_id in asked]
        now = run_progress(session, run)
    assert report.num_planned == report.num_answered + report.num_waiting + report.num_failed == len(links)
    assert report.num_answered == sum(outcome is not None for outcome, *_ in links) == sum(report.outcomes.values())
    # What failed and stands in a file of requests again has still failed.
    tried = {row.request_id for row in tries}
    is_failed = [state == "failed" or (state == "leased" and key in tried) for _, state, key in links]
    assert report.num_failed == sum(
        outcome is None and failed for (outcome, *_), failed in zip(links, is_failed, strict=True)
    )
    assert report.input_tokens == sum(row.input_tokens or 0 for row in tries)
    assert report.output_tokens == sum(row.output_tokens or 0 for row in tries)
    assert report.spent_tokens == report.input_tokens + report.output_tokens
    assert math.isclose(report.spent_usd or 0, math.fsum(row.cost_usd or 0 for row in tries), abs_tol=1e-12)
    assert sum(report.failures.values()) == report.num_failed and report.failures == now.failures
    assert now.num_read + now.num_waiting + now.num_failed == report.num_planned


ANSWERS = st.lists(st.tuples(st.sampled_from(KINDS), st.tuples(st.integers(0, 900), st.integers(0, 900))), min_size=9)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=st.lists(ANSWERS, min_size=1, max_size=3), max_repairs=st.integers(0, 2))
def test_counts_tokens_and_money_of_any_run_add_up(
    store: Store, toolbox: Any, tmp_path: Path, calls: list[Any], max_repairs: int
) -> None:
    with store.read() as session:
        num_runs = session.scalar(select(func.count()).select_from(Run)) or 0
    if num_runs == 0:
        toolbox.fill(store, 9)
    # Other words in every run, so that none finds its answers in the ledger.
    recipe = by_file(toolbox, tmp_path, num=9, max_repairs=max_repairs)
    plan = recipe.plan[0].model_copy(update={"task_instruction": f"Task {num_runs}."})
    recipe = recipe.model_copy(update={"plan": (plan,), "name": f"run {num_runs}"})
    for path in ("in.jsonl", "out.jsonl"):
        (tmp_path / path).write_bytes(b"")
    generate(store, recipe)
    for answers in calls:
        requests = tmp_path / "out.jsonl"  # gone when all is answered
        asked = [orjson.loads(row) for row in requests.read_bytes().splitlines()] if requests.exists() else []
        given = [(one, *answers[place % len(answers)]) for place, one in enumerate(asked)]
        rows = [line(toolbox, one, kind, tokens) for one, kind, tokens in given if kind != "none"]
        (tmp_path / "in.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        check_counts(store, generate(store, recipe))


def test_failed_requests_are_told_with_their_commonest_reasons(store: Store, toolbox: Any, model_server: Any) -> None:
    toolbox.fill(store, 5)
    model_server.script = lambda body, _: toolbox.Reply(
        status=400, body={"error": {"message": f"too long {int('query 4' in toolbox.prompt_of(body))}"}}
    )
    report = generate(store, toolbox.recipe_for(model_server, num=5, max_rejected=1))
    assert (report.num_planned, report.num_failed, report.num_answered) == (5, 5, 0)
    assert list(report.failures.values()) == [4, 1]
    assert "too long 0" in next(iter(report.failures))


def test_too_many_refusals_bring_their_report(store: Store, toolbox: Any, model_server: Any) -> None:
    toolbox.fill(store, 6)
    model_server.script = lambda body, _: toolbox.Reply("no JSON")
    with pytest.raises(TooManyRefused, match="above max_rejected") as caught:
        generate(store, toolbox.recipe_for(model_server, num=6))
    assert caught.value.report.outcomes == {"rejected": 6} and caught.value.report.num_planned == 6


def write_plan(path: Path, *names: str) -> None:
    cells = [
        {"custom_id": name, "kind": "graded_negatives", "query_id": f"q{n}", "positive_id": f"d{n}",
         "attributes": {"domain": "a", "education_level": "x", "length": "l", "language": path.stem}}
        for n, name in enumerate(names)
    ]  # fmt: skip
    path.write_bytes(b"".join(orjson.dumps(cell) + b"\n" for cell in cells))


def test_a_custom_id_of_two_plan_files_is_refused_before_anything_is_asked(
    store: Store, toolbox: Any, model_server: Any, tmp_path: Path
) -> None:
    toolbox.fill(store, 3)
    write_plan(tmp_path / "one.jsonl", "a", "b")
    write_plan(tmp_path / "two.jsonl", "c", "b")
    plan = [
        {"source": "cells", "cells": str(tmp_path / f"{name}.jsonl"), "collection": "toy", "task_instruction": "t"}
        for name in ("one", "two")
    ]
    recipe = toolbox.recipe_for(model_server, plan)
    with pytest.raises(GeneratorError, match=r"two.jsonl:2: custom_id 'b' stands twice .* in one.jsonl"):
        generate(store, recipe)
    with store.read() as session:
        assert session.scalar(select(Request.id).limit(1)) is None
        assert session.scalar(select(Rejection.id).limit(1)) is None
    write_plan(tmp_path / "two.jsonl", "c", "d")
    assert generate(store, recipe).num_planned == 4


def test_without_its_seams_a_gate_or_a_round_trip_is_refused(store: Store, toolbox: Any, model_server: Any) -> None:
    toolbox.fill(store, 3)
    with pytest.raises(GeneratorError, match=r"\[gate\]"):
        generate(store, toolbox.recipe_for(model_server, num=3, gate={}))
    plan = {"source": "documents", "collection": "toy", "num": 3}
    with pytest.raises(GeneratorError, match="top_k = 10"):
        generate(store, toolbox.recipe_for(model_server, plan, pack="v2"), seams=Seams())
    assert not model_server.bodies


def test_a_resumed_run_starts_from_what_the_store_has_and_is_running_meanwhile(
    store: Store, toolbox: Any, model_server: Any
) -> None:
    toolbox.fill(store, 12)
    recipe = toolbox.recipe_for(model_server, num=12, engine={"concurrency": 1})
    generate(store, recipe, limit=7)
    with store.write() as session:
        session.scalars(select(Run)).one().state = "failed"
    seen: list[tuple[int, int, str]] = []
    cells: list[Counter[tuple[int, int]]] = []

    def look(progress: Progress) -> None:
        with store.read() as session:
            state = session.scalars(select(Run)).one().state
        seen.append((sum(progress.outcomes.values()), progress.num_new, state))
        cells.append(progress.cells.copy())

    report = generate(store, recipe, on_progress=look)
    assert report.num_new_answers == 5
    assert all(read == new + 7 and state == "running" for read, new, state in seen) and seen
    assert sum(cells[-1].values()) == 12 * 4 and {cell for cell, _ in cells[-1]} == set(range(6))


def test_cells_of_several_tables_have_names_and_numbers_of_their_own(toolbox: Any) -> None:
    pairs = {"source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train", "num": 4,
             "task_instruction": "t", "attributes": {"domain": ["a", "b"], "education_level": ["x"], "length": ["l"],
             "language": ["English"]}}  # fmt: skip
    planner = Planner(toolbox.recipe_for(NOWHERE, [pairs, {**pairs, "task_instruction": "u"}]))
    assert len(planner.cell_names) == 4 and planner.cell_names[2].startswith("2: a")
    numbers = [planner.cell_of(index) for index in (0, 1, 10**9, 10**9 + 1)]
    assert sorted(numbers[:2]) == [0, 1] and sorted(numbers[2:]) == [2, 3]
    assert planner.cell_of(10**12 + 10**9) == numbers[2]


def test_the_values_of_a_named_attribute_set_make_another_run(toolbox: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = {"source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train", "num": 4,
             "task_instruction": "t", "attributes": "scifact"}  # fmt: skip
    recipe = toolbox.recipe_for(NOWHERE, pairs)
    before = resolved_recipe(recipe)
    assert "attributes_digest_0" in before
    values = {"domain": ("one",), "education_level": ("x",), "length": ("l",), "language": ("English",)}
    monkeypatch.setattr("generator.plan.attribute_set", lambda name: values)
    after = resolved_recipe(recipe)
    assert {name for name in after if after[name] != before[name]} == {"attributes_digest_0"}
    own = toolbox.recipe_for(NOWHERE, {**pairs, "attributes": {name: list(v) for name, v in values.items()}})
    assert "attributes_digest_0" not in resolved_recipe(own)


def test_a_gate_that_is_given_is_used(store: Store, toolbox: Any, model_server: Any) -> None:
    class Falling:
        limits = EmbeddingGate()

        def similarities(self, groups: Any) -> list[list[float]]:
            return [[0.9 - 0.1 * place for place in range(len(texts))] for _, texts in groups]

    toolbox.fill(store, 2)
    report = generate(store, toolbox.recipe_for(model_server, num=2, gate={}), seams=Seams(gate=Falling()))
    assert report.outcomes == {"accepted": 2}
