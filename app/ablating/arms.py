"""The arms of each kind of ablation, around a recipe.

| kind | what changes | after |
|---|---|---|
| curriculum | the schedule | Negative Matters, ACL 2025 long.1501 |
| pooling | mean, last, ATA's three forms | the same |
| mixing | written only, mined only, direct, hybrid | SyNeg, arXiv 2412.17250 |
| ratio | R, written to mined negatives | the same |
| temperature | of the loss | the same |
| negatives | in-batch, random, mined (all, BM25's, a dense teacher's), one rank, hybrid | the same, and NV-Retriever |

NV-Retriever is arXiv 2407.15831. The first arm of a kind is what its others are compared with.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from app.ablating.ablation import BASE, Ablation
from app.ablating.planning import Arm
from app.ablating.slotting import Finder, Slotting
from app.errors import AppError
from trainer.recipe import TrainRecipe

Kind = Literal["curriculum", "pooling", "mixing", "ratio", "temperature", "negatives"]
SCHEDULES = ("easy_to_hard", "fixed:3", "fixed:2", "fixed:4", "fixed:1", "random", "reverse", "mixture")
RATIOS = (0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
TEMPERATURES = (0.005, 0.01, 0.017, 0.02, 0.027, 0.05)
_MIXTURE = {"schedule": "mixture"}


def ablation_of(kind: Kind, recipe: TrainRecipe, slots: int, finders: Sequence[Finder] = ()) -> Ablation:
    """The arms of a kind around a recipe. Where they set negatives, a row has `slots` of them, if nothing else is told.

    Args:
        finders: Who found the release's mined negatives: an arm of `negatives` each, where there are several.

    Raises:
        AppError: Rows have too few slots for the kind.
    """
    notes: tuple[str, ...] = ()
    match kind:
        case "curriculum":
            arms = [Arm(schedule, {"schedule": schedule}) for schedule in SCHEDULES]
        case "pooling":
            arms = [Arm(pooling, {"pooling": pooling}) for pooling in ("log1p", "sum", "mean", "last")]
            arms.append(Arm("log1p, detached", {"pooling": "log1p", "detach_weights": True}))
        case "mixing":
            arms = [Arm(mix, slotting=Slotting(mix, slots)) for mix in ("hybrid", "direct", "synthetic", "mined")]
        case "ratio":
            least = _least_ratio(slots)
            ratios = sorted((ratio for ratio in RATIOS if ratio >= least), key=lambda ratio: ratio != 0.7)
            if least > min(RATIOS):
                notes = (f"one negative of a row is written at least: with {slots} slots, R is {least:g} or more",)
            arms = [Arm(f"R = {ratio:g}", slotting=Slotting("hybrid", slots, ratio), place=ratio) for ratio in ratios]
        case "temperature":
            own = recipe.temperature
            temperatures = [own, *sorted({*TEMPERATURES} - {own})]
            arms = [Arm(f"{value:g}", {"temperature": value}, place=value) for value in temperatures]
        case "negatives":
            arms = list(_negatives(slots, finders))
            notes = (
                f"a row has {slots} negatives of its own, but none in 'in-batch', and one in 'N1 alone' to 'N4 alone' "
                f"(an example has one of each rank), which are compared with {_one_mined(slots)!r} for that",
            )
    return Ablation(kind, (Arm(BASE, is_trained=False), *arms), arms[0].name, notes, by_block=kind == "curriculum")


def _least_ratio(slots: int) -> float:
    """R of rows in which one negative is written and all others are mined."""
    if slots < 2:
        raise AppError(f"ratio: a row of {slots} negative has no room for both kinds; give --slots 2 or more")
    return 1 / (slots - 1)


def _negatives(slots: int, finders: Sequence[Finder]) -> Iterator[Arm]:
    yield Arm("hybrid", slotting=Slotting("hybrid", slots))
    yield Arm("in-batch", {**_MIXTURE, "negatives": {"written": 0, "mined": 0}})
    yield Arm("random", _MIXTURE, Slotting("random", slots))
    yield Arm("mined", _MIXTURE, Slotting("mined", slots))
    if slots > 1:
        yield Arm(_one_mined(slots), _MIXTURE, Slotting("mined", 1))
    # Of one run's negatives, those that a teacher retrieved; a run of that teacher alone gives its purest arm.
    for finder in finders if len(finders) > 1 else ():
        is_alone = [one.teacher for one in finders].count(finder.teacher) == 1
        name = f"mined, found by {finder.teacher}" + ("" if is_alone else f" in {finder.run}")
        yield Arm(name, _MIXTURE, Slotting("mined", slots, finder=finder))
    for rank in (1, 2, 3, 4):
        alone = {"schedule": f"fixed:{rank}", "negatives": {"written": 1, "mined": 0}}
        yield Arm(f"N{rank} alone", alone, twin=_one_mined(slots))


def _one_mined(slots: int) -> str:
    """The arm with as many negatives a row as those of one rank have."""
    return "mined, one a row" if slots > 1 else "mined"
