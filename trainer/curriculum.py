"""The curriculum: which examples, in which order, with negatives of which rank.

A plan is a pure function of (schedule, seed, number of examples, batch size), so it can be printed before training,
is the same on every process, and resumes exactly. Each block is one pass over the examples in its own order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import TrainerError
from trainer.release import GradedExample, Negative

RANKS = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step: indices of examples, and the rank that fills their written slots (None: drawn per row)."""

    block: int
    rank: int | None
    examples: tuple[int, ...]


def ranks_of_blocks(schedule: str, seed: int) -> list[int | None]:
    """The rank of each of the four blocks; `easy_to_hard` is rank 4 first."""
    if schedule == "easy_to_hard":
        return [4, 3, 2, 1]
    if schedule == "reverse":
        return [1, 2, 3, 4]
    if schedule == "mixture":
        return [None] * len(RANKS)
    if schedule == "random":
        # Every row of every block draws its own rank, each rank once per example over the four blocks.
        return [0] * len(RANKS)
    if schedule.startswith("fixed:"):
        return [int(schedule.removeprefix("fixed:"))] * len(RANKS)
    raise TrainerError(f"schedule = {schedule!r}: choose easy_to_hard, reverse, random, mixture or fixed:K")


def plan_batches(schedule: str, *, num_examples: int, batch_size: int, seed: int) -> list[Batch]:
    """Every step of the training, in order. A block's last batch may be smaller; a lone row joins the one before."""
    batches = []
    for block, rank in enumerate(ranks_of_blocks(schedule, seed)):
        order = np.random.default_rng([seed, block]).permutation(num_examples).tolist()
        starts = list(range(0, num_examples, batch_size))
        if len(starts) > 1 and num_examples - starts[-1] == 1:
            starts.pop()  # a batch of one has no other row's positive to learn from
        for start, end in zip(starts, [*starts[1:], num_examples], strict=True):
            batches.append(Batch(block, rank, tuple(order[start:end])))
    return batches


def negatives_of_row(example: GradedExample, batch: Batch, seed: int) -> list[Negative]:
    """The negatives of an example in a batch: written ones of the block's rank, then mined ones.

    An example without a negative of the rank takes the nearest rank it has, the harder one first. Mined negatives go
    round from block to block, so that passes see different ones.
    """
    rank = batch.rank
    if rank == 0:
        turn = (_draw(seed, example.id) + batch.block) % len(RANKS)
        rank = RANKS[turn]
    ordered = sorted(
        example.written,
        key=lambda n: (_distance(n.rank, rank), n.rank or 99, _draw(seed, batch.block, example.id, n.id)),
    )
    written = ordered[: example.num_written_slots]
    num, place = example.num_mined_slots, batch.block * example.num_mined_slots
    mined = [example.mined[(place + offset) % len(example.mined)] for offset in range(num)] if example.mined else []
    return [*written, *mined]


def _distance(rank: int | None, wanted: int | None) -> int:
    return 0 if wanted is None else abs((rank or 99) - wanted)


def _draw(*key: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")


def describe_plan(batches: Sequence[Batch], examples: Sequence[GradedExample], seed: int) -> list[dict[str, Any]]:
    """One row a block: its rank, steps and rows, and how many written negatives are of another rank."""
    rows: list[dict[str, Any]] = []
    for block in sorted({batch.block for batch in batches}):
        mine = [batch for batch in batches if batch.block == block]
        chosen = [n for batch in mine for i in batch.examples for n in negatives_of_row(examples[i], batch, seed)]
        rank = mine[0].rank
        written = [negative for negative in chosen if negative.rank is not None]
        rows.append(
            {
                "block": block + 1,
                "rank": rank or ("drawn" if rank is None else "random"),
                "steps": len(mine),
                "rows": sum(len(batch.examples) for batch in mine),
                "written": len(written),
                "of another rank": sum(negative.rank != rank for negative in written) if rank else 0,
                "mined": len(chosen) - len(written),
            }
        )
    return rows
