"""What an ablation trains: recipe, release and steps of each arm and seed, named by all that decides the weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from app.ablating.slotting import Slotting, slotted_release
from app.errors import AppError
from app.recipes import checked
from db.digest import digest_of
from trainer.curriculum import Step, describe_plan, plan_steps
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import read_release


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training: changes to the base recipe, and to the release's slots; neither where it is not trained."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    slotting: Slotting | None = None
    place: float | None = None  # on the axis of a sweep
    twin: str | None = None  # another arm that it is compared with too
    is_trained: bool = True


@dataclass(frozen=True, slots=True)
class Training:
    """An arm and a seed as they are trained; the recipe's name is a digest of all that decides the weights.

    Attributes:
        stops: Steps after which the model is measured, ascending; the last is the end.
    """

    recipe: TrainRecipe
    release: Path
    release_digest: str
    weights: str
    steps: Sequence[Step]
    stops: tuple[int, ...]

    def negatives(self) -> dict[str, Any]:
        """Rows and their own negatives, by kind; the ratio of written to mined where there are both."""
        examples = read_release(self.release, self.recipe.split).examples
        plan = describe_plan(self.steps, examples, self.recipe)
        names = {"rows": "rows", "written": "written", "of another rank": "of_another_rank", "mined": "mined"}
        sums = {name: sum(block[column] for block in plan) for column, name in names.items()}
        return {**sums, "ratio": sums["written"] / sums["mined"] if sums["mined"] and sums["written"] else None}


def plan_trainings(
    arms: Sequence[Arm],
    reference: str,
    recipe: TrainRecipe,
    release: Path,
    folder: Path,
    *,
    seeds: Sequence[int],
    by_block: bool,
    weights: str,
) -> tuple[dict[str, list[Training]], dict[str, str]]:
    """The trainings of each arm, one a seed; and why other arms are left out.

    Args:
        reference: The arm that others are compared with, which is never left out.
        by_block: Whether models are measured after each block, and not at the end alone.
        weights: Digest of the model that all start from.

    Raises:
        AppError, TrainerError: The release cannot be read, or lacks what `reference` needs.
    """
    trainings: dict[str, list[Training]] = {}
    left_out: dict[str, str] = {}
    for arm in (arm for arm in arms if arm.is_trained):
        try:
            planned = [_planned(arm, recipe, release, folder, seed, by_block, weights) for seed in seeds]
            trainings[arm.name] = _require_other(planned, trainings)
        except (AppError, TrainerError) as error:
            if arm.name == reference:
                raise
            left_out[arm.name] = str(error)
    return trainings, left_out


def arm_recipe(arm: Arm, recipe: TrainRecipe, seed: int) -> TrainRecipe:
    """The recipe of an arm and a seed.

    Raises:
        RecipeError: The base recipe and the arm do not go together.
    """
    fields = recipe.model_dump(mode="json") | dict(arm.changes) | {"seed": seed}
    if arm.slotting is not None:
        fields["negatives"] = None  # the copy's own slots
    return checked(fields, TrainRecipe, f"arm {arm.name!r}: ")


def deciding(recipe: TrainRecipe) -> dict[str, Any]:
    """What of a recipe decides the weights."""
    return recipe.model_dump(mode="json", exclude={"name", "checkpoint_every"})


def _planned(
    arm: Arm, recipe: TrainRecipe, release: Path, folder: Path, seed: int, by_block: bool, weights: str
) -> Training:
    source = slotted_release(release, arm.slotting, folder / "releases", seed, split=recipe.split)
    trained = arm_recipe(arm, recipe, seed)
    read = read_release(source, recipe.split)
    decided = {"recipe": deciding(trained), "weights": weights, "release": read.digest}
    named = trained.model_copy(update={"name": f"arm-{digest_of(decided)[:12]}"})
    steps = plan_steps(named, read.examples)
    borders = [
        number for number, (step, after) in enumerate(pairwise(steps), 1) if by_block and step.block < after.block
    ]
    return Training(named, source, read.digest, weights, steps, (*borders, len(steps)))


def _require_other(planned: list[Training], known: Mapping[str, list[Training]]) -> list[Training]:
    """The trainings of an arm, refused where those of another arm would be the very same: one point drawn twice."""
    mine = [_rows(training) for training in planned]
    for name, others in known.items():
        if mine == [_rows(training) for training in others]:
            raise AppError(
                f"its rows are those of {name!r}, as the release has no negatives that would tell them apart"
            )
    return planned


def _rows(training: Training) -> tuple[str, str]:
    """What is trained on, by content: copies of a release with other slots may come out the same."""
    files = orjson.loads((training.release / "manifest.json").read_bytes())["files"]
    graded = {name: file["sha256"] for name, file in files.items() if name.startswith("graded/")}
    return digest_of(deciding(training.recipe)), digest_of(graded)
