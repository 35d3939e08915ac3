"""What `--dry-run` tells is an upper bound of what is spent, and tells of both stages."""

from typing import Any

import orjson
import pytest

from db.digest import canonical_json
from db.store import Store
from generator.estimate import Estimate, estimate
from generator.generation import generate
from generator.plan import Planner
from generator.recipe import GenerateRecipe

ATTRIBUTES = {"domain": ["a", "b"], "education_level": ["x"], "length": ["l"], "language": ["English"]}
LIMIT = 300


def told(store: Store, recipe: GenerateRecipe) -> Estimate:
    with store.read() as session:
        return estimate(session, recipe, Planner(recipe))


def dear(toolbox: Any, text: str) -> Any:
    """A server that charges a token for every byte of the messages, and answers at the limit."""

    def script(body: dict[str, Any], _: int) -> Any:
        usage = {"prompt_tokens": len(canonical_json(body["messages"])), "completion_tokens": LIMIT}
        return toolbox.Reply(
            body={"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
        )

    return script


def part(level: str, text: str) -> dict[str, Any]:
    return {"similarity_level": level, "violated_requirement": "r", "plan": "p", "text": text,
            "self_check": {"answers_query": False, "reason": ""}}  # fmt: skip


# The second and the fourth are refused each time and asked again; or nothing can be used at all.
PARTLY = orjson.dumps(
    {"reflection": {}, "negatives": [part("high", "one"), part("low", "two"), part("medium", "three"), part("no", "4")]}
).decode()


@pytest.mark.parametrize("text", [PARTLY, "no JSON"])
@pytest.mark.parametrize("max_repairs", [0, 2])
def test_repairs_and_refills_stay_below_the_very_most(
    store: Store, model_server: Any, toolbox: Any, text: str, max_repairs: int
) -> None:
    toolbox.fill(store, 12)
    model_server.script = dear(toolbox, text)
    plan = {"source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train",
            "accepted_per_cell": 1, "max_per_cell": 4, "task_instruction": "t", "attributes": ATTRIBUTES}  # fmt: skip
    recipe = toolbox.recipe_for(
        model_server, plan, model="gpt-6-luna", max_output_tokens=LIMIT, max_repairs=max_repairs, max_rejected=1.0
    )
    before = told(store, recipe)
    assert before.num_requests == 2 and before.most_requests == (max_repairs + 1) * 2 * 4
    report = generate(store, recipe)
    assert report.num_planned > before.num_requests
    assert before.worst_tokens is not None and before.worst_cost_usd is not None and report.spent_usd is not None
    assert 0.5 * before.worst_tokens < report.spent_tokens <= before.worst_tokens
    assert 0.5 * before.worst_cost_usd < report.spent_usd <= before.worst_cost_usd
    assert report.num_planned <= before.most_requests


def test_both_stages_of_tasks_are_told(store: Store, model_server: Any, toolbox: Any) -> None:
    plan = {"source": "tasks", "num": 5, "task_types": ["sts", "short-long"], "tasks_per_type": 2,
            "tasks_per_request": 2,
            "attributes": {"language": ["English", "German"], "clarity": ["c"], "education_level": ["e"],
                           "query_length": ["q"], "query_type": ["t"], "text_length": ["l"]}}  # fmt: skip
    fields = {"model": "gpt-6-luna", "max_output_tokens": LIMIT, "pack": "v2", "max_rejected": 1.0}
    recipe = toolbox.recipe_for(model_server, plan, **fields)
    before = told(store, recipe)
    assert before.num_requests == 2 and before.num_second_stage == 5
    assert sum(before.second_stage_cells.values()) == 5 and sorted(before.second_stage_cells.values()) == [2, 3]
    assert before.output_tokens is not None and before.output_tokens.mean == (2 + 5) * LIMIT
    assert before.cost_usd is not None and before.second_stage_cost_usd is not None
    assert 0 < before.second_stage_cost_usd.mean < before.cost_usd.mean
    assert len(before.first_prompts) == 3 and not model_server.bodies
    lengths: list[int] = []

    def script(body: dict[str, Any], turn: int) -> Any:
        if toolbox.prompt_of(body).startswith("You propose"):
            tasks = [f"Given a thing of kind {len(model_server.bodies)}, find the other thing {n}." for n in range(2)]
            return toolbox.Reply(orjson.dumps({"tasks": tasks}).decode())
        lengths.append(len(canonical_json(body["messages"])) + len(canonical_json(body["response_format"])))
        return toolbox.Reply("no JSON")

    model_server.script = script
    generate(store, recipe)
    after = told(store, recipe)
    assert len(lengths) == 5 and after.num_pilot == 7
    # Rendered with the real tasks, as the model is another and the ledger tells nothing of it.
    again = told(store, toolbox.recipe_for(model_server, plan, **{**fields, "model": "another"}))
    first = sum(len(canonical_json(one["messages"])) + len(canonical_json(one["response_format"]))
                for one in model_server.bodies if toolbox.prompt_of(one).startswith("You propose"))  # fmt: skip
    assert again.input_tokens.mean == pytest.approx((first + sum(lengths)) / 4, rel=0.01)
