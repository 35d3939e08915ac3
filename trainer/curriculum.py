"""The curriculum: which examples, in which order, with negatives of which rank.

A plan is a pure function of the recipe and of the examples' number and sources, so it can be printed before training,
is the same on every process, and resumes exactly. A pass visits every example once, in an order of its own. Four
blocks follow each other, each with its rank; a step, which ends where a block ends, is `accumulate` batches.

Source: Negative Matters, ACL 2025 long.1501: four equal blocks, N4 first.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import TrainerError
from trainer.recipe import Slots, TrainRecipe
from trainer.release import GradedExample, Negative

RANKS = (1, 2, 3, 4)
_OF_SCHEDULE: dict[str, tuple[int | None, ...]] = {
    "easy_to_hard": (4, 3, 2, 1),
    "reverse": (1, 2, 3, 4),
    "mixture": (None,) * 4,  # whatever ranks an example has, in an order drawn anew each time
    "random": (0,) * 4,  # a rank drawn for each row: every four turns, each example has each rank once
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows whose passages count against each other: indices of examples, and how often they were all visited before."""

    examples: tuple[int, ...]
    turn: int


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step. `rank` fills the written slots (None: any rank, 0: drawn for each row)."""

    block: int
    rank: int | None
    batches: tuple[Batch, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(batch.examples) for batch in self.batches)


def ranks_of_blocks(schedule: str) -> tuple[int | None, ...]:
    """The rank of each of the four blocks; `easy_to_hard` is rank 4 first."""
    if schedule.startswith("fixed:"):
        return (int(schedule.removeprefix("fixed:")),) * len(RANKS)
    return _OF_SCHEDULE[schedule]


def plan_steps(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> list[Step]:
    """Every step of the training, in order.

    Raises:
        TrainerError: The recipe needs ranks or grades that no example has, or an epoch has too few rows for a batch.
    """
    ranks = ranks_of_blocks(recipe.schedule)
    _check_grades(recipe, examples)
    if len(examples) < 2:
        raise TrainerError(
            f"split {recipe.split!r} has {len(examples)} example: contrastive training needs two or more"
        )
    sources = [example.source if recipe.one_source else "" for example in examples]
    passes = _passes(sources, recipe.batch_size, recipe.seed)
    if recipe.max_steps is None:
        return [step for block, rank in enumerate(ranks) for step in _whole_passes(block, rank, passes, recipe)]
    stream = (batch for one in passes for batch in one)
    steps = []
    for block, (rank, num_steps) in enumerate(zip(ranks, _shared_out(recipe.max_steps, recipe.shares), strict=True)):
        for _ in range(num_steps):
            steps.append(Step(block, rank, tuple(next(stream) for _ in range(recipe.accumulate))))
    return steps


def _check_grades(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> None:
    """Refuse what would count for no negative of the release."""
    has_ranks = any(n.rank for example in examples for n in example.written)
    if recipe.schedule != "mixture" and not has_ranks:
        raise TrainerError(
            f"schedule = {recipe.schedule!r}: the release has no graded negatives to order; "
            "use 'mixture', or release negatives with ranks"
        )
    if recipe.ordering is not None and not has_ranks:
        raise TrainerError("ordering: the release has no graded negatives to order; leave it out")
    found = {n.grade or "hard" for example in examples for n in example.written}
    missing = [name for name in ("hard", "medium", "easy") if name in recipe.grades and name not in found]
    if missing:
        raise TrainerError(
            f"grades.{missing[0]}: the release has no written negative of grade {missing[0]!r}; leave it out"
        )


def _whole_passes(block: int, rank: int | None, passes: Iterator[list[Batch]], recipe: TrainRecipe) -> list[Step]:
    batches = [batch for _ in range(recipe.passes) for batch in next(passes)]
    size = recipe.accumulate
    return [Step(block, rank, tuple(batches[start : start + size])) for start in range(0, len(batches), size)]


def _shared_out(num_steps: int, shares: Sequence[float]) -> list[int]:
    """Steps of each block: borders at the rounded running share, so that sizes are right to within one step."""
    borders = [round(num_steps * float(share)) for share in np.cumsum(shares)]
    return [end - start for start, end in zip([0, *borders[:-1]], borders, strict=True)]


def _passes(sources: Sequence[str], batch_size: int, seed: int) -> Iterator[list[Batch]]:
    """The batches of one pass after the other, without end. Rows of a batch share their source.

    A source's last batch may be smaller; a lone row joins the batch before, for alone it has no other row's positive
    to learn from.
    """
    places = defaultdict(list)
    for place, source in enumerate(sources):
        places[source].append(place)
    turn = 0
    while True:
        draws = np.random.default_rng([seed, turn])
        batches = []
        for source in sorted(places):
            order = draws.permutation(places[source]).tolist()
            starts = list(range(0, len(order), batch_size))
            if len(starts) > 1 and len(order) - starts[-1] == 1:
                starts.pop()
            batches += [
                Batch(tuple(order[start:end]), turn)
                for start, end in zip(starts, [*starts[1:], len(order)], strict=True)
            ]
        if len(places) > 1:
            batches = [batches[place] for place in draws.permutation(len(batches))]
        yield batches
        turn += 1


def negatives_of_row(
    example: GradedExample, turn: int, rank: int | None, seed: int, slots: Slots | None = None
) -> list[Negative]:
    """The negatives of an example on its turn: written ones of the block's rank, then mined ones.

    An example without a negative of the rank takes the nearest rank it has, the harder one first. Mined negatives go
    round from turn to turn, so that passes see different ones.
    """
    if rank == 0:
        four, place = divmod(turn, len(RANKS))
        rank = sorted(RANKS, key=lambda one: _draw(seed, four, example.id, one))[place]
    ordered = sorted(
        example.written,
        key=lambda n: (_distance(n.rank, rank), n.rank or 99, _draw(seed, turn, example.id, n.id)),
    )
    if rank is None:
        ordered.sort(key=lambda n: _draw(seed, turn, example.id, n.id))
    num_written, num_mined = _slots(example, slots, seed)
    place = turn * num_mined
    mined = (
        [example.mined[(place + offset) % len(example.mined)] for offset in range(num_mined)] if example.mined else []
    )
    return [*ordered[:num_written], *mined[: len(example.mined)]]


def _slots(example: GradedExample, slots: Slots | None, seed: int) -> tuple[int, int]:
    """How many written and mined negatives a row of the example has; one side fills in where the other is short."""
    if slots is None:
        return example.num_written_slots, example.num_mined_slots
    if slots.total is None or slots.ratio is None:
        return slots.written or 0, slots.mined or 0
    # SyNeg's hybrid mix, as releases have it: the ratio on average, at least one written where there is one.
    whole, rest = divmod(slots.total * slots.ratio / (1 + slots.ratio), 1)
    wanted = int(whole) + (_draw(seed, "mix", example.id) / 2**64 < rest)
    written = min(max(wanted, 1), slots.total) if slots.ratio > 0 else 0
    written = max(min(written, len(example.written)), min(slots.total - len(example.mined), len(example.written)))
    return written, min(slots.total - written, len(example.mined))


def _distance(rank: int | None, wanted: int | None) -> int:
    return 0 if wanted is None else abs((rank or 99) - wanted)


def _draw(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def describe_plan(
    steps: Sequence[Step], examples: Sequence[GradedExample], recipe: TrainRecipe
) -> list[dict[str, Any]]:
    """One row a block: its rank, steps and rows, and how many written negatives are of another rank."""
    rows: list[dict[str, Any]] = []
    for block in sorted({step.block for step in steps}):
        mine = [(number, step) for number, step in enumerate(steps, start=1) if step.block == block]
        rank = mine[0][1].rank
        chosen = [
            negative
            for _, step in mine
            for batch in step.batches
            for place in batch.examples
            for negative in negatives_of_row(examples[place], batch.turn, rank, recipe.seed, recipe.negatives)
        ]
        written = [negative for negative in chosen if negative.is_written]
        rows.append(
            {
                "block": block + 1,
                "rank": rank or ("any" if rank is None else "random"),
                "from step": mine[0][0],
                "to step": mine[-1][0],
                "rows": sum(step.num_rows for _, step in mine),
                "written": len(written),
                "of another rank": sum(negative.rank != rank for negative in written) if rank else 0,
                "mined": len(chosen) - len(written),
            }
        )
    return rows
