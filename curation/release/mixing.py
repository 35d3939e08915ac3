"""How machine-written and mined negatives share an example's slots.

R is the ratio of machine-written to mined negatives (SyNeg, arXiv 2412.17250, best at 0.7). `hybrid` meets R on
average inside every example and keeps at least one machine-written negative where there is one; `direct` pools over
the dataset, so that an example holds one kind only; `synthetic` and `mined` are the pure controls. Quotas bound how
many slots of a row an origin or a grade may take. Draws are counter-based: they depend on the seed and the example's
digest alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from db.digest import counter_uniform

MixKind = Literal["hybrid", "direct", "synthetic", "mined"]
Quota = Literal["hard", "medium", "easy", "synthetic", "edited", "mined", "corpus"]


One = TypeVar("One")


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
    kind: MixKind,
    written: Sequence[One],
    mined: Sequence[One],
    *,
    ratio: float,
    slots: int,
    seed: int,
    example: str,
    quotas: Mapping[Quota, int],
    names_of: Callable[[One], Iterable[str | None]],
) -> tuple[list[One], list[One]]:
    """The (machine-written, mined) negatives of an example's slots, each taken from the front of its supply.

    The hybrid and direct mixes let one side fill in where the other is short; the pure ones stay short. A quota is
    never exceeded, whatever stays empty for it; it bounds what `names_of` a negative gives, its origin and its grade.
    """
    used: Counter[str] = Counter()
    limits = {str(name): most for name, most in quotas.items()} if quotas else {}

    def take(supply: Sequence[One], most: int) -> list[One]:
        if not limits:
            return list(supply[:most])
        taken: list[One] = []
        for one in supply:
            if len(taken) == most:
                break
            names = [name for name in names_of(one) if name]
            if all(used[name] < limits.get(name, slots) for name in names):
                used.update(names)
                taken.append(one)
        return taken

    drawn = take(written, wanted_synthetic(kind, ratio=ratio, slots=slots, seed=seed, example=example))
    if kind == "synthetic":
        return drawn, []
    others = take(mined, slots - len(drawn))
    if kind != "mined" and len(drawn) + len(others) < slots and len(drawn) < len(written):
        rest = [one for one in written if not any(one is other for other in drawn)]
        drawn += take(rest, slots - len(drawn) - len(others))
    return drawn, others
