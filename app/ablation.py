"""Ablations: the same training but for one thing, over several seeds, measured on the same queries.

Every arm is a training recipe over the release, or over a copy of it with other slots; an arm and a seed are one run.
A run's values stay on disk under a digest of all that decides them, so that a table that was cut off goes on where it
stopped, and asking for one more arm trains that arm alone.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.ablation_course import course_of
from app.ablation_releases import Slotting, slotted_release
from app.errors import AppError
from app.evaluating.measuring import EvaluationSet, Values, opened_model
from app.recipes import checked
from curation.embeddings import any_model_folder, folder_digest
from db.digest import digest_of
from trainer.curriculum import Step, describe_plan, plan_steps
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import read_release

BASE = "before training"
Progress = Callable[[int, int | None], None]
_KEPT = ("training.json", "metrics.jsonl")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training: changes to the base recipe, and to the release's slots; neither where it is not trained."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    slotting: Slotting | None = None
    place: float | None = None  # on the axis of a sweep
    is_trained: bool = True


@dataclass(frozen=True, slots=True)
class Ablation:
    """Arms that are compared, one of them being what the others are compared with.

    Attributes:
        notes: What a reader of the table should know of the arms, a line each.
    """

    name: str
    arms: tuple[Arm, ...]
    reference: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Training:
    """An arm and a seed as they are trained; the recipe's name is a digest of all that decides the weights."""

    recipe: TrainRecipe
    release: Path
    release_digest: str
    weights: str
    steps: Sequence[Step]


def run_ablation(
    ablation: Ablation,
    recipe: TrainRecipe,
    release: Path,
    sets: Sequence[EvaluationSet],
    folder: Path,
    *,
    seeds: Sequence[int],
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Train and measure what is missing in `folder`, and report all.

    An arm that the release has no negatives for is left out before anything is trained, and told.

    Raises:
        AppError, TrainerError: The release cannot be read, or lacks what the arm needs that others are compared with.
    """
    if not seeds:
        raise AppError("seeds: give one or more")
    weights = folder_digest(any_model_folder(recipe.model))
    left_out: dict[str, str] = {}
    trainings: dict[str, list[_Training]] = {}
    for arm in (arm for arm in ablation.arms if arm.is_trained):
        try:
            trainings[arm.name] = [_planned(arm, recipe, release, folder, seed, weights) for seed in seeds]
        except (AppError, TrainerError) as error:
            if arm.name == ablation.reference:
                raise
            left_out[arm.name] = str(error)
            tell(f"{arm.name} is left out: {error}")
    runs: dict[str, list[Values]] = {}
    for arm in (arm for arm in ablation.arms if arm.name not in left_out):
        runs[arm.name] = []
        if not arm.is_trained:
            tell(arm.name)
            runs[arm.name].append(_untrained(arm, recipe.model, weights, sets, folder, progress))
            continue
        for seed, training in zip(seeds, trainings[arm.name], strict=True):
            tell(f"{arm.name}, seed {seed}")
            runs[arm.name].append(_run(arm, training, sets, folder, progress))
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "seeds": list(seeds),
        "notes": list(ablation.notes),
        "left_out": left_out,
    }
    report = report_of_runs(ablation, sets, runs, facts)
    report["training"] = {
        name: {
            **_negatives(several[0]),
            **course_of([folder / "journals" / one.recipe.name for one in several], warmup=recipe.warmup),
        }
        for name, several in trainings.items()
    }
    return report


def _planned(arm: Arm, recipe: TrainRecipe, release: Path, folder: Path, seed: int, weights: str) -> _Training:
    source = slotted_release(release, arm.slotting, folder / "releases", seed, split=recipe.split)
    trained = arm_recipe(arm, recipe, seed)
    read = read_release(source, recipe.split)
    decided = {"recipe": _deciding(trained), "weights": weights, "release": read.digest}
    named = trained.model_copy(update={"name": f"arm-{digest_of(decided)[:12]}"})
    return _Training(named, source, read.digest, weights, plan_steps(named, read.examples))


def _deciding(recipe: TrainRecipe) -> dict[str, Any]:
    """What of a recipe decides the weights."""
    return recipe.model_dump(mode="json", exclude={"name", "checkpoint_every"})


def _negatives(training: _Training) -> dict[str, Any]:
    """Rows of a training and their own negatives, by kind; the ratio of the two where there are both."""
    examples = read_release(training.release, training.recipe.split).examples
    plan = describe_plan(training.steps, examples, training.recipe)
    names = {"rows": "rows", "written": "written", "of another rank": "of_another_rank", "mined": "mined"}
    sums = {name: sum(block[column] for block in plan) for column, name in names.items()}
    return {**sums, "ratio": sums["written"] / sums["mined"] if sums["mined"] and sums["written"] else None}


def _untrained(
    arm: Arm, model: str, weights: str, sets: Sequence[EvaluationSet], folder: Path, progress: Progress
) -> Values:
    decided = {"recipe": None, "weights": weights, "release": None, "sets": _named(sets)}
    return _kept(folder, decided) or _keep(folder, decided, arm.name, measure_sets(model, sets, folder, progress))


def _run(arm: Arm, training: _Training, sets: Sequence[EvaluationSet], folder: Path, progress: Progress) -> Values:
    """Values of an arm and a seed, `SET/METRIC` to units; from disk where they are."""
    decided = {
        "recipe": _deciding(training.recipe),
        "weights": training.weights,
        "release": training.release_digest,
        "sets": _named(sets),
    }
    kept = _kept(folder, decided)
    if kept is not None:
        return kept
    name = training.recipe.name
    values = measure_sets(_trained(training, folder, progress), sets, folder, progress)
    target = folder / "journals" / name
    target.mkdir(parents=True, exist_ok=True)
    for file in _KEPT:
        shutil.copyfile(folder / "models" / name / file, target / file)
    _keep(folder, decided, arm.name, values)
    shutil.rmtree(folder / "models" / name)  # it can be made again; what its training said is kept
    return values


def _named(sets: Sequence[EvaluationSet]) -> list[Any]:
    """What a run's digest knows of the sets: their content, and what of it is measured."""
    return [[one.kind, one.digest, list(one.metrics)] for one in sets]


def _file(folder: Path, decided: Mapping[str, Any]) -> Path:
    return folder / "runs" / f"{digest_of(decided)[:24]}.json"


def _kept(folder: Path, decided: Mapping[str, Any]) -> Values | None:
    path = _file(folder, decided)
    if not path.is_file():
        return None
    columns = orjson.loads(path.read_bytes())["values"]
    return {name: np.array(column, np.float64) for name, column in columns.items()}


def _keep(folder: Path, decided: Mapping[str, Any], arm: str, values: Values) -> Values:
    columns = {key: [None if np.isnan(value) else float(value) for value in column] for key, column in values.items()}
    path = _file(folder, decided)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".partial").write_bytes(orjson.dumps({"arm": arm, **decided, "values": columns}))
    path.with_suffix(".partial").rename(path)
    return values


def arm_recipe(arm: Arm, recipe: TrainRecipe, seed: int) -> TrainRecipe:
    """The recipe of an arm and a seed.

    Raises:
        RecipeError: The base recipe and the arm do not go together.
    """
    fields = recipe.model_dump(mode="json") | dict(arm.changes) | {"seed": seed}
    if arm.slotting is not None:
        fields["negatives"] = None  # the copy's own slots
    return checked(fields, TrainRecipe, f"arm {arm.name!r}: ")


def _trained(training: _Training, folder: Path, progress: Progress) -> str:
    from trainer.training import train

    recipe, models = training.recipe, folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    start = any_model_folder(recipe.model)
    return str(train(recipe, training.release, start, output=models / recipe.name, progress=progress).folder)


def measure_sets(model: str, sets: Sequence[EvaluationSet], folder: Path, progress: Progress) -> Values:
    """Every set's values of a model; its embeddings lie in `folder` while it is measured."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=folder) as embeddings:
        opened = opened_model(model, Path(embeddings))
        return {
            f"{number}/{name}": column
            for number, one in enumerate(sets)
            for name, column in one.measure(opened, progress).items()
        }


def report_of_runs(
    ablation: Ablation, sets: Sequence[EvaluationSet], runs: Mapping[str, Sequence[Values]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Each arm's main metric by seed on every set, and differences: values averaged over seeds, then paired by unit."""
    reports = []
    for number, one in enumerate(sets):
        metric = one.metrics[0]
        of_arm = {name: [_of_set(values, number) for values in several] for name, several in runs.items()}
        mean = {name: {metric: np.mean([values[metric] for values in several], axis=0)} for name, several in
                of_arm.items() if several}  # fmt: skip
        rows = []
        for arm in ablation.arms:
            if arm.name not in mean:
                continue
            by_seed = [one.summary(values)[metric] for values in of_arm[arm.name]]
            row: dict[str, Any] = {
                "arm": arm.name,
                "place": arm.place,
                "by_seed": by_seed,
                "mean": float(np.mean(by_seed)),
            }
            for against in (BASE, ablation.reference) if arm.is_trained else ():
                if against in mean and against != arm.name:
                    row[f"against {against}"] = one.difference(mean[against], mean[arm.name], [metric])[metric]
            rows.append(row)
        reports.append(
            {"data": one.data, "split": one.split, "digest": one.digest, "metric": metric, "unit": one.unit,
             "num_units": one.num_units, "arms": rows}
        )  # fmt: skip
    return {"ablation": ablation.name, "reference": ablation.reference, **facts, "sets": reports}


def _of_set(values: Values, number: int) -> Values:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): column for name, column in values.items() if name.startswith(prefix)}
