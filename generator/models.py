"""What is known of models: prices, limits, the day they are switched off. The facts stand in models.toml."""

import tomllib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any

from generator.errors import GeneratorError

_FACTS = Path(__file__).with_name("models.toml")
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts of one model; what is None is not known. Prices are US dollars for a million tokens."""

    name: str
    input: float | None = None
    cached: float | None = None
    cache_write: float | None = None
    output: float | None = None
    batch: float = 1.0
    shutdown: date | None = None
    successor: str | None = None
    max_output: int | None = None
    output_limit: str = "max_tokens"
    seed: bool = True
    effort: str | None = None
    breakpoint: bool = False
    min_cached: int | None = None

    @property
    def has_price(self) -> bool:
        return self.input is not None and self.output is not None

    def cost(
        self, *, input_tokens: int, output_tokens: int, cached: int = 0, cache_write: int = 0, by_batch: bool = False
    ) -> float | None:
        """US dollars; None without a price. Cached and cache-written tokens are part of the input tokens."""
        if self.input is None or self.output is None:
            return None
        cached_price = self.input if self.cached is None else self.cached
        write_price = self.input if self.cache_write is None else self.cache_write
        total = (
            max(0, input_tokens - cached - cache_write) * self.input
            + cached * cached_price
            + cache_write * write_price
            + output_tokens * self.output
        )
        return total / _MILLION * (self.batch if by_batch else 1.0)

    def worst_cost(self, input_tokens: int, output_tokens: int, *, by_batch: bool) -> float | None:
        """US dollars if nothing is read from the cache and everything is written to it."""
        dear = max(self.input or 0.0, self.cache_write or 0.0) == (self.cache_write or 0.0)
        write = input_tokens if dear and self.cache_write else 0
        return self.cost(input_tokens=input_tokens, output_tokens=output_tokens, cache_write=write, by_batch=by_batch)


def facts_of(model: str) -> ModelFacts:
    """The facts of a model; one that is not listed has none, and works."""
    fields = _all_facts().get(model, {})
    if "same_as" in fields:
        fields = _all_facts()[fields["same_as"]]
    return ModelFacts(name=model, **fields)


@cache
def _all_facts() -> dict[str, dict[str, Any]]:
    return tomllib.loads(_FACTS.read_text())


def refuse_if_shut_down(facts: ModelFacts, today: date | None = None) -> None:
    """Stop before anything is sent to a model that is gone.

    Raises:
        GeneratorError: The model's shutdown date has come.
    """
    today = today or datetime.now(UTC).date()
    if facts.shutdown is not None and today >= facts.shutdown:
        instead = f"; its maker names {facts.successor!r} instead" if facts.successor else ""
        raise GeneratorError(f"model = {facts.name!r} was switched off on {facts.shutdown}{instead}: nothing was sent")
