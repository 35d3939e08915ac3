"""Prices, limits and wire bodies by what is known of a model."""

import pytest

from generator.models import ModelFacts, facts_of
from generator.prompt_pack import PromptPack
from generator.recipe import GenerateRecipe
from generator.wire import wire_body

LUNA = facts_of("gpt-6-luna")


@pytest.mark.parametrize(
    ("model", "tokens", "cost"),
    [
        ("gpt-4o", {"input_tokens": 1_000_000, "output_tokens": 0}, 2.50),
        ("gpt-4o", {"input_tokens": 0, "output_tokens": 1_000_000}, 10.0),
        ("gpt-4o", {"input_tokens": 1_000_000, "output_tokens": 0, "cached": 400_000}, 0.6 * 2.5 + 0.4 * 1.25),
        ("gpt-4o-2024-11-20", {"input_tokens": 1_000_000, "output_tokens": 0, "by_batch": True}, 1.25),
        ("gpt-6-luna", {"input_tokens": 1_000_000, "output_tokens": 0, "cache_write": 1_000_000}, 0.125),
    ],
)
def test_cost_by_value(model: str, tokens: dict[str, int], cost: float) -> None:
    assert facts_of(model).cost(**tokens) == pytest.approx(cost)


def test_the_worst_case_writes_everything_where_writing_is_dearer() -> None:
    assert LUNA.worst_cost(1_000_000, 0, by_batch=False) == pytest.approx(0.125)
    assert facts_of("gpt-4o").worst_cost(1_000_000, 1_000_000, by_batch=True) == pytest.approx(6.25)
    assert ModelFacts("unknown").worst_cost(10, 10, by_batch=False) is None


def recipe(**fields: object) -> GenerateRecipe:
    plan = {"source": "pairs", "collection": "c", "split": "s", "task_instruction": "t", "num": 1}
    engine = {"kind": "openai", "base_url": "http://h"}
    return GenerateRecipe.model_validate({"name": "n", "model": "m", "plan": plan, "engine": engine, **fields})


def test_a_long_stable_part_gets_a_cache_breakpoint_where_the_model_takes_one() -> None:
    entry = PromptPack.load("v2").entry("minimal_edits")
    long = ("x" * 5_000, "row")
    body = wire_body(recipe(model="gpt-6-luna"), entry, long, key="k")
    blocks = body["messages"][0]["content"]
    assert [block["text"] for block in blocks] == list(long)
    assert blocks[0]["prompt_cache_breakpoint"] == {"mode": "explicit"} and "prompt_cache_breakpoint" not in blocks[1]
    assert body["prompt_cache_key"] and body["prompt_cache_options"] == {"mode": "explicit"}
    assert body["reasoning_effort"] == "none"
    for model, prompt in (("gpt-4o", long), ("gpt-6-luna", ("short", "row"))):
        body = wire_body(recipe(model=model), entry, prompt, key="k")
        assert body["messages"][0]["content"] == "".join(prompt) and "prompt_cache_key" not in body


def test_seeds_are_sent_where_they_are_taken_and_differ_by_request() -> None:
    entry = PromptPack.load("v2").entry("minimal_edits")
    seeds = {wire_body(recipe(model_seed=True), entry, ("", "p"), key=f"{n}")["seed"] for n in range(20)}
    assert len(seeds) == 20
    assert "seed" not in wire_body(recipe(model_seed=True, model="gpt-6-luna"), entry, ("", "p"), key="k") or LUNA.seed
    limited = wire_body(recipe(max_output_tokens=9, effort="low"), entry, ("", "p"), key="k")
    assert limited["max_tokens"] == 9 and limited["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"budget": {"tokens": 5}}, "a budget needs max_output_tokens"),
        ({"budget": {"usd": 1.0}, "max_output_tokens": 5}, "budget.usd needs a price"),
        ({"budget": {}, "max_output_tokens": 5}, "give usd, tokens or both"),
        ({"plan": []}, "give one"),
        ({"engine": {"kind": "openai", "base_url": "ftp://x"}}, "http"),
        ({"engine": {"kind": "openai", "base_url": ["http://a", "http://a"]}}, "stands twice"),
    ],
)
def test_a_recipe_is_refused_before_anything_is_spent(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        recipe(**fields)
