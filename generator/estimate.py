"""What a recipe will ask and cost, before anything is sent: cells, first prompts, tokens, and a price with an interval.

Tokens of the answers, and characters a token, come from completions of the same entry and model that the ledger has
(a pilot, or an earlier run); without any, the input is estimated at four characters a token and the output at
its limit.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import canonical_json
from db.tables.ledger import Completion, Request, RequestBody, RunRequest
from generator.ledger import decompressed
from generator.models import ModelFacts, facts_of
from generator.plan import BLOCK, Planned, Planner
from generator.recipe import CellPlan, Engine, GenerateRecipe, OpenAiBatchEngine, TaskPlan
from generator.wire import CHARACTERS_PER_TOKEN, output_limit

_MAX_PILOT = 2_000
_SHOWN_PROMPTS = 2
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(self.mean * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a plan before it is asked; prices are None where none is known."""

    num_requests: int
    num_second_stage: int
    cells: dict[str, int]
    first_prompts: list[str]
    input_tokens: Interval
    output_tokens: Interval | None
    cost_usd: Interval | None
    worst_cost_usd: float | None
    num_pilot: int
    basis: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(session: Session, recipe: GenerateRecipe, planner: Planner) -> Estimate:
    """Walk the plan without sending or storing anything."""
    second = sum(_second_stage(recipe, planner, number) for number in range(len(recipe.plan)))
    return estimate_requests(
        session, planner.first(session), model=recipe.model, engine=recipe.engine, num_second_stage=second
    )


def estimate_requests(
    session: Session,
    requests: Iterable[Planned],
    *,
    model: str,
    engine: Engine,
    num_second_stage: int = 0,
    pilot_below: int = BLOCK * 100,
) -> Estimate:
    """What these requests will take and cost.

    Args:
        num_second_stage: Requests that will follow from the answers, counted and not priced.
        pilot_below: Completions of plan indices below it tell of first questions; above are repairs.
    """
    facts = facts_of(model)
    by_batch = isinstance(engine, OpenAiBatchEngine)
    num = characters = 0
    limit: int | None = None
    cells: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    prompts: list[str] = []
    for planned in requests:
        num += 1
        characters += _prompt_length(planned)
        limit = output_limit(planned.body, facts)
        cells[_cell_name(planned)] += 1
        kinds[planned.kind] += 1
        if len(prompts) < _SHOWN_PROMPTS:
            prompts.append(_prompt(planned))
    pilot = _pilot(session, model, sorted(kinds), pilot_below)
    output: Interval | None
    if pilot:
        ratio = _interval([tokens / max(1, length) for tokens, length, _ in pilot])
        input_tokens, output = ratio.times(characters), _interval([float(out) for *_, out in pilot]).times(num)
        basis = f"{len(pilot)} completions of the same entries and model in the ledger"
    else:
        guess = characters / CHARACTERS_PER_TOKEN
        input_tokens, output = (
            Interval(guess, guess, guess),
            None if limit is None else Interval(limit * num, 0, limit * num),
        )
        basis = f"{CHARACTERS_PER_TOKEN} characters a token, answers at their limit; a pilot would tell"
    return Estimate(
        num, num_second_stage, dict(sorted(cells.items())), prompts, input_tokens, output,
        _price(facts, input_tokens, output, by_batch),
        facts.worst_cost(characters, (limit or 0) * num, by_batch=by_batch) if limit else None,
        len(pilot), basis,
    )  # fmt: skip


def _prompt(planned: Planned) -> str:
    content = planned.body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _prompt_length(planned: Planned) -> int:
    return len(canonical_json(planned.body["messages"])) + len(canonical_json(planned.body.get("response_format")))


def _cell_name(planned: Planned) -> str:
    values = ", ".join(str(value) for _, value in sorted(planned.attributes.items()))
    return f"{planned.kind}: {values}" if values else planned.kind


def _second_stage(recipe: GenerateRecipe, planner: Planner, number: int) -> int:
    """Requests that depend on the answers to the first ones: examples of tasks that are yet to be brainstormed."""
    plan = recipe.plan[number]
    if isinstance(plan, CellPlan) or not isinstance(plan, TaskPlan):
        return 0
    return plan.num or (plan.accepted_per_cell or 0) * len(planner.cells(number))


def _pilot(session: Session, model: str, kinds: Sequence[str], below: int) -> list[tuple[int, int, int]]:
    """(input tokens, characters of the prompt, output tokens) of the newest completions of these entries."""
    rows = session.execute(
        select(Completion.input_tokens, RequestBody.body, Completion.output_tokens)
        .join(Request, Request.id == Completion.request_id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .join(RunRequest, RunRequest.request_id == Request.id)
        .where(
            Request.model == model,
            RunRequest.kind.in_(kinds),
            RunRequest.plan_index < below,
            Completion.error.is_(None),
            Completion.input_tokens.is_not(None),
            Completion.output_tokens.is_not(None),
        )
        .order_by(Completion.id.desc())
        .limit(_MAX_PILOT)
    )
    found = []
    for tokens, body, output in rows:
        wire = orjson.loads(decompressed(body))
        length = len(canonical_json(wire["messages"])) + len(canonical_json(wire.get("response_format")))
        found.append((int(tokens or 0), length, int(output or 0)))
    return found


def _interval(values: Sequence[float]) -> Interval:
    """Mean with the normal 95 % interval of the mean; of one value, the value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, mean, mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = _Z95 * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)


def _price(facts: ModelFacts, inputs: Interval, outputs: Interval | None, by_batch: bool) -> Interval | None:
    if outputs is None or not facts.has_price:
        return None
    prices = [
        facts.cost(input_tokens=round(i), output_tokens=round(o), by_batch=by_batch) or 0.0
        for i, o in ((inputs.mean, outputs.mean), (inputs.low, outputs.low), (inputs.high, outputs.high))
    ]
    return Interval(*prices)
