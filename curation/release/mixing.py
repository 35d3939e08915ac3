"""How machine-written and mined negatives share an example's slots.

R is the ratio of machine-written to mined negatives (SyNeg, arXiv 2412.17250, best at 0.7). `hybrid` meets R on
average inside every example and keeps at least one machine-written negative where there is one; `direct` pools over
the dataset, so that an example holds one kind only; `synthetic` and `mined` are the pure controls. Draws are
counter-based: they depend on the seed and the example's digest alone.
"""

from typing import Literal

from db.digest import counter_uniform

MixKind = Literal["hybrid", "direct", "synthetic", "mined"]


def share_of_synthetic(ratio: float) -> float:
    """R as a share of all negatives: 0.7 synthetic to 1 mined is 0.41."""
    return ratio / (1 + ratio)


def wanted_synthetic(kind: MixKind, *, ratio: float, slots: int, seed: int, example: str) -> int:
    """How many of an example's slots the mix gives to machine-written negatives, before supply is looked at."""
    if kind in ("synthetic", "mined"):
        return slots if kind == "synthetic" else 0
    share, draw = share_of_synthetic(ratio), counter_uniform(seed, "mix", example)
    if kind == "direct":
        return slots if draw < share else 0
    whole, rest = divmod(slots * share, 1)
    return max(1, int(whole) + (draw < rest))


def fill_slots(
    kind: MixKind, *, ratio: float, slots: int, num_synthetic: int, num_mined: int, seed: int, example: str
) -> tuple[int, int]:
    """(machine-written, mined) slots of an example with this supply.

    The hybrid and direct mixes let one side fill in where the other is short; the pure ones stay short.
    """
    wanted = wanted_synthetic(kind, ratio=ratio, slots=slots, seed=seed, example=example)
    synthetic = min(wanted, num_synthetic)
    if kind == "synthetic":
        return synthetic, 0
    mined = min(slots - synthetic, num_mined)
    if kind == "mined":
        return 0, mined
    return min(num_synthetic, slots - mined), mined
