"""What a recipe will ask and cost, before anything is sent: cells, first prompts, tokens, and a price with an interval.

Tokens of the answers, and characters a token, come from completions of the same entry and model that the ledger has
(a pilot, or an earlier run); without any, the input is estimated at four characters a token and the output at
its limit. The most is what every first question, every repair and every refill would cost, each answered at its limit.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import canonical_json
from db.tables.examples import Task
from db.tables.ledger import Completion, Request, RequestBody, RunRequest
from generator.ledger import decompressed
from generator.models import ModelFacts, facts_of
from generator.plan import BLOCK, Planned, Planner
from generator.prompt_pack import Entry
from generator.recipe import CellPlan, Engine, GenerateRecipe, OpenAiBatchEngine, TaskPlan
from generator.wire import CHARACTERS_PER_TOKEN, output_limit

_MAX_PILOT = 2_000
_SHOWN_PROMPTS = 2
_Z95 = 1.96
# Prompts of a second stage that are rendered to know their length, and the task that stands in while none is known.
_SAMPLED = 200
_STAND_IN = (
    "Given a question of a student, retrieve the passage of a textbook that explains what the question asks for."
)
# Bytes that the most allows for a task beyond those that were seen, and for each fault that a repair names.
_LONGER_TASK = 1_000
_LONGEST_FAULT = 400


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(self.mean * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Interval") -> "Interval":
        """The sum, as wide as if both erred in the same direction."""
        return Interval(self.mean + other.mean, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a plan before it is asked; prices are None where none is known.

    Tokens and price are of first questions, those of the second stage among them (`num_second_stage`,
    `second_stage_cost_usd`). `most_requests`, `worst_tokens` and `worst_cost_usd` count repairs and refills too.
    """

    num_requests: int
    num_second_stage: int
    cells: dict[str, int]
    second_stage_cells: dict[str, int]
    first_prompts: list[str]
    input_tokens: Interval
    output_tokens: Interval | None
    cost_usd: Interval | None
    second_stage_cost_usd: Interval | None
    most_requests: int
    worst_tokens: int | None
    worst_cost_usd: float | None
    num_pilot: int
    basis: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Group:
    """Requests of one entry in one plan table. `num_most` counts refills, `longer` are bytes that the most adds."""

    kind: str
    num: int = 0
    characters: int = 0
    longest: int = 0
    limit: int | None = None
    num_most: int = 0
    longer: int = 0
    repair: int = 0

    def add(self, planned: Planned, facts: ModelFacts) -> None:
        length = _prompt_length(planned)
        self.num, self.num_most = self.num + 1, self.num_most + 1
        self.characters, self.longest = self.characters + length, max(self.longest, length)
        self.limit = output_limit(planned.body, facts)

    def most(self, max_repairs: int) -> tuple[int, int] | None:
        """(input, output) tokens if everything is repaired as often as it may be and every answer is at its limit; a
        repair sends the earlier prompts and answers too. No tokenizer makes more tokens than there are bytes."""
        if self.limit is None:
            return None
        prompts = self.characters + (self.num_most - self.num) * self.longest + self.num_most * self.longer
        follow_ups = self.num_most * (self.limit + self.repair) * max_repairs * (max_repairs + 1) // 2
        return (max_repairs + 1) * prompts + follow_ups, (max_repairs + 1) * self.num_most * self.limit


@dataclass(slots=True)
class _Asked:
    """What is planned, as it is walked."""

    groups: dict[tuple[int, str], _Group] = field(default_factory=dict)
    second: dict[tuple[int, str], _Group] = field(default_factory=dict)
    cells: Counter[str] = field(default_factory=Counter)
    second_cells: Counter[str] = field(default_factory=Counter)
    prompts: list[str] = field(default_factory=list)

    def add(self, planned: Planned, facts: ModelFacts, table: int = 0) -> None:
        self.groups.setdefault((table, planned.kind), _Group(planned.kind)).add(planned, facts)
        self.cells[_cell_name(planned)] += 1
        if len(self.prompts) < _SHOWN_PROMPTS:
            self.prompts.append(_prompt(planned))

    @property
    def all_groups(self) -> list[_Group]:
        return [*self.groups.values(), *self.second.values()]


def estimate(session: Session, recipe: GenerateRecipe, planner: Planner) -> Estimate:
    """Walk the plan without sending or storing anything."""
    facts, asked = facts_of(recipe.model), _Asked()
    for planned in planner.first(session):
        asked.add(planned, facts, planned.plan_index // BLOCK)
    for number, plan in enumerate(recipe.plan):
        if isinstance(plan, CellPlan):
            continue
        if isinstance(plan, TaskPlan):
            asked.second[number, plan.entry] = _second_stage(session, planner, number, facts, asked)
        elif plan.most_per_cell is not None and (number, plan.entry) in asked.groups:
            asked.groups[number, plan.entry].num_most = plan.most_per_cell * len(planner.cells(number))
    for group in asked.all_groups:
        group.repair = _repair_length(planner.pack.entry(group.kind))
    return _told(
        session, asked, facts, by_batch=isinstance(recipe.engine, OpenAiBatchEngine),
        max_repairs=recipe.max_repairs, pilot_below=BLOCK * 100,
    )  # fmt: skip


def estimate_requests(
    session: Session, requests: Iterable[Planned], *, model: str, engine: Engine, pilot_below: int, max_repairs: int = 0
) -> Estimate:
    """What these requests will take and cost.

    Args:
        pilot_below: Completions of plan indices below it tell of first questions; above are repairs.
        max_repairs: How often each may be asked again.
    """
    facts, asked = facts_of(model), _Asked()
    for planned in requests:
        asked.add(planned, facts)
    by_batch = isinstance(engine, OpenAiBatchEngine)
    return _told(session, asked, facts, by_batch=by_batch, max_repairs=max_repairs, pilot_below=pilot_below)


def _told(
    session: Session, asked: _Asked, facts: ModelFacts, *, by_batch: bool, max_repairs: int, pilot_below: int
) -> Estimate:
    groups = asked.all_groups
    pilots = {kind: _pilot(session, facts.name, kind, pilot_below) for kind in {group.kind for group in groups}}
    inputs, outputs = _tokens(groups, pilots)
    second = _tokens(asked.second.values(), pilots) if asked.second else None
    most = [group.most(max_repairs) for group in groups]
    known = [tokens for tokens in most if tokens is not None]
    worst = (sum(i for i, _ in known), sum(o for _, o in known)) if len(known) == len(most) else None
    return Estimate(
        num_requests=sum(group.num for group in asked.groups.values()),
        num_second_stage=sum(group.num for group in asked.second.values()),
        cells=dict(sorted(asked.cells.items())),
        second_stage_cells=dict(sorted(asked.second_cells.items())),
        first_prompts=asked.prompts,
        input_tokens=inputs,
        output_tokens=outputs,
        cost_usd=_price(facts, inputs, outputs, by_batch),
        second_stage_cost_usd=_price(facts, *second, by_batch) if second else None,
        most_requests=(max_repairs + 1) * sum(group.num_most for group in groups),
        worst_tokens=None if worst is None else sum(worst),
        worst_cost_usd=None if worst is None else facts.worst_cost(*worst, by_batch=by_batch),
        num_pilot=sum(len(pilot) for pilot in pilots.values()),
        basis=_basis(pilots),
    )


_Pilot = Sequence[tuple[int, int, int]]


def _tokens(groups: Iterable[_Group], pilots: Mapping[str, _Pilot]) -> tuple[Interval, Interval | None]:
    """(input, output) tokens of first questions; the output is None where nothing limits it and no pilot tells."""
    inputs: Interval = Interval(0, 0, 0)
    outputs: Interval | None = Interval(0, 0, 0)
    for group in groups:
        pilot = pilots[group.kind]
        one: Interval | None
        if pilot:
            ratio = _interval([tokens / max(1, length) for tokens, length, _ in pilot])
            inputs = inputs.plus(ratio.times(group.characters))
            one = _interval([float(out) for *_, out in pilot]).times(group.num)
        else:
            guess = group.characters / CHARACTERS_PER_TOKEN
            inputs = inputs.plus(Interval(guess, guess, guess))
            most = None if group.limit is None else group.limit * group.num
            one = None if most is None else Interval(most, 0, most)
        outputs = None if outputs is None or one is None else outputs.plus(one)
    return inputs, outputs


def _basis(pilots: Mapping[str, _Pilot]) -> str:
    num = sum(len(pilot) for pilot in pilots.values())
    unknown = sorted(kind for kind, pilot in pilots.items() if not pilot)
    guess = f"{CHARACTERS_PER_TOKEN} characters a token, answers at their limit"
    if not num:
        return f"{guess}; a pilot would tell"
    known = f"{num} completions of the same entries and model in the ledger"
    return known if not unknown else f"{known}; for {', '.join(unknown)} {guess}"


def _second_stage(session: Session, planner: Planner, number: int, facts: ModelFacts, asked: _Asked) -> _Group:
    """Examples of tasks that are yet to be brainstormed: as many as the recipe wants, each as long as the mean of some
    with tasks of these types that the store has, or with one that stands in."""
    plan = planner.recipe.plan[number]
    assert isinstance(plan, TaskPlan)
    cells = planner.cells(number)
    num = plan.num or (plan.accepted_per_cell or 0) * len(cells)
    known = session.execute(
        select(Task.task_type, Task.instruction).where(Task.task_type.in_(plan.task_types)).limit(_SAMPLED)
    ).all()
    tasks = [(task_type, text) for task_type, text in known] or [(name, _STAND_IN) for name in plan.task_types]
    group = _Group(plan.entry)
    for planned in planner.second_stage(number, min(num, max(len(tasks), _SAMPLED)), tasks):
        if not group.num:
            asked.prompts.append(_prompt(planned))
        group.add(planned, facts)
    mean = group.characters / group.num
    group.num, group.characters, group.longer = num, round(mean * num), _LONGER_TASK
    group.num_most = num if plan.most_per_cell is None else plan.most_per_cell * len(cells)
    rounds, rest = divmod(num, len(cells))
    in_rest = Counter(cells.place(rounds * len(cells) + place).cell for place in range(rest))
    for cell in range(len(cells)):
        values = ", ".join(value for _, value in sorted(cells.values(cell).items()))
        name = f"{plan.entry}: {values}" if values else plan.entry
        asked.second_cells[name] += rounds + in_rest[cell]
    return group


def _repair_length(entry: Entry) -> int:
    """Bytes of the longest follow-up that asks for parts again."""
    if not entry.facts.slots:
        return 0
    faults: list[dict[str, object]] = [
        {"position": position, "detail": "x" * _LONGEST_FAULT} for position in range(1, len(entry.facts.slots) + 1)
    ]
    return len(canonical_json(entry.render_repair(faults)))


def _prompt(planned: Planned) -> str:
    content = planned.body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _prompt_length(planned: Planned) -> int:
    return len(canonical_json(planned.body["messages"])) + len(canonical_json(planned.body.get("response_format")))


def _cell_name(planned: Planned) -> str:
    values = ", ".join(str(value) for _, value in sorted(planned.attributes.items()))
    return f"{planned.kind}: {values}" if values else planned.kind


def _pilot(session: Session, model: str, kind: str, below: int) -> list[tuple[int, int, int]]:
    """(input tokens, characters of the prompt, output tokens) of the newest completions of this entry."""
    rows = session.execute(
        select(Completion.input_tokens, RequestBody.body, Completion.output_tokens)
        .join(Request, Request.id == Completion.request_id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .join(RunRequest, RunRequest.request_id == Request.id)
        .where(
            Request.model == model,
            RunRequest.kind == kind,
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
    return Interval(mean, max(0.0, mean - half), mean + half)


def _price(facts: ModelFacts, inputs: Interval, outputs: Interval | None, by_batch: bool) -> Interval | None:
    if outputs is None or not facts.has_price:
        return None
    prices = [
        facts.cost(input_tokens=round(i), output_tokens=round(o), by_batch=by_batch) or 0.0
        for i, o in ((inputs.mean, outputs.mean), (inputs.low, outputs.low), (inputs.high, outputs.high))
    ]
    return Interval(*prices)
