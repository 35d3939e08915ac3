"""The wire body of a request: Chat Completions, as the model's maker wants it today."""

from typing import Any, Protocol

from db.digest import counter_below
from generator.models import ModelFacts, facts_of
from generator.prompt_pack import Entry

# Estimates only: what a price is shown with before anything is sent.
CHARACTERS_PER_TOKEN = 4


class Sampling(Protocol):
    """What a recipe says of how a model is asked."""

    @property
    def model(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def max_output_tokens(self) -> int | None: ...
    @property
    def effort(self) -> str | None: ...
    @property
    def model_seed(self) -> bool: ...
    @property
    def seed(self) -> int: ...


def wire_body(
    recipe: Sampling,
    entry: Entry,
    prompt: tuple[str, str],
    *,
    key: str,
) -> dict[str, Any]:
    """The body of a request.

    Args:
        prompt: The prompt's stable part (may be empty) and the rest.
        key: What a seed is drawn from, where the recipe sends one.
    """
    facts = facts_of(recipe.model)
    body: dict[str, Any] = {
        "model": recipe.model,
        "messages": [{"role": "user", "content": _content(facts, *prompt)}],
        "response_format": _response_format(entry),
        "temperature": recipe.temperature,
    }
    limit = recipe.max_output_tokens
    if limit is not None:
        body[facts.output_limit] = limit
    effort = recipe.effort or facts.effort
    if effort is not None:
        body["reasoning_effort"] = effort
    if recipe.model_seed and facts.seed:
        body["seed"] = counter_below(2**31, recipe.seed, "model", key)
    if facts.breakpoint and isinstance(body["messages"][0]["content"], list):
        body["prompt_cache_key"] = f"gradus-{entry.name}"
        body["prompt_cache_options"] = {"mode": "explicit"}
    return body


def _content(facts: ModelFacts, stable: str, rest: str) -> str | list[dict[str, Any]]:
    # An implicit breakpoint stands at the end of the message, where every row differs: without an explicit one each
    # request would pay for a cache write that nobody reads.
    is_long = len(stable) >= CHARACTERS_PER_TOKEN * (facts.min_cached or 0)
    if not (facts.breakpoint and stable and is_long):
        return stable + rest
    block = {"type": "text", "text": stable, "prompt_cache_breakpoint": {"mode": "explicit"}}
    return [block, {"type": "text", "text": rest}]


def _response_format(entry: Entry) -> dict[str, Any]:
    if entry.facts.response_format != "json_schema":
        return {"type": entry.facts.response_format}
    return {"type": "json_schema", "json_schema": {"name": entry.name, "strict": True, "schema": entry.schema}}


def output_limit(body: dict[str, Any], facts: ModelFacts) -> int | None:
    """Most tokens that the answer to this body can have; None when nothing limits it."""
    for name in ("max_completion_tokens", "max_tokens"):
        if name in body:
            return int(body[name])
    return facts.max_output
