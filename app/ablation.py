"""Ablations: the same training but for one thing, over several seeds, measured on the same queries.

Every arm is a training recipe over the release, or over a copy of it with other slots; an arm and a seed are one run.
A run's values stay on disk under a digest of all that decides them, so that a table that was cut off goes on where it
stopped, and asking for one more arm trains that arm alone.

| kind | what changes | after |
|---|---|---|
| curriculum | the schedule | Negative Matters, ACL 2025 long.1501 |
| pooling | mean, last, ATA's three forms | the same |
| mixing | written only, mined only, direct, hybrid | SyNeg, arXiv 2412.17250 |
| ratio | R, written to mined negatives | the same |
| temperature | of the loss | the same |
| negatives | in-batch, random, mined, one rank, hybrid | the same, and NV-Retriever, arXiv 2407.15831 |
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from app.ablation_releases import Slotting, slotted_release
from app.errors import AppError
from app.evaluating.measuring import EvaluationSet, Values, opened_model
from app.recipes import checked
from curation.embeddings import any_model_folder, folder_digest
from db.digest import digest_of
from trainer.recipe import TrainRecipe
from trainer.release import read_release

Kind = Literal["curriculum", "pooling", "mixing", "ratio", "temperature", "negatives"]
RATIOS = (0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5)
TEMPERATURES = (0.005, 0.01, 0.017, 0.02, 0.027, 0.05)
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
    """Arms that are compared, the first trained one being what the others are compared with."""

    name: str
    arms: tuple[Arm, ...]
    reference: str


def ablation_of(kind: Kind, recipe: TrainRecipe, slots: int) -> Ablation:
    """The arms of a kind around a recipe; each keeps the number of negatives of a row, `slots`."""
    base = Arm(BASE, is_trained=False)
    arms: dict[str, Arm] = {}

    def add(name: str, changes: Mapping[str, Any] | None = None, **more: Any) -> None:
        arms[name] = Arm(name, changes or {}, **more)

    match kind:
        case "curriculum":
            for schedule in (
                "easy_to_hard",
                *(f"fixed:{rank}" for rank in (3, 2, 4, 1)),
                "random",
                "reverse",
                "mixture",
            ):
                add(schedule, {"schedule": schedule})
        case "pooling":
            for pooling in ("log1p", "sum", "mean", "last"):
                add(pooling, {"pooling": pooling})
            add("log1p, detached", {"pooling": "log1p", "detach_weights": True})
        case "mixing":
            add("hybrid", slotting=Slotting("hybrid", slots, 0.7))
            for mix in ("direct", "synthetic", "mined"):
                add(mix, slotting=Slotting(mix, slots, 0.7))
        case "ratio":
            for ratio in sorted(RATIOS, key=lambda one: one != 0.7):
                add(f"R = {ratio:g}", slotting=Slotting("hybrid", slots, ratio), place=ratio)
        case "temperature":
            for temperature in sorted({*TEMPERATURES, recipe.temperature}, key=lambda t: (t != recipe.temperature, t)):
                add(f"{temperature:g}", {"temperature": temperature}, place=temperature)
        case "negatives":
            add("hybrid", slotting=Slotting("hybrid", slots, 0.7))
            add("in-batch", {"schedule": "mixture", "negatives": {"written": 0, "mined": 0}})
            add("random", {"schedule": "mixture"}, slotting=Slotting("random", slots))
            add("mined", {"schedule": "mixture"}, slotting=Slotting("mined", slots))
            for rank in (1, 2, 3, 4):
                add(f"N{rank} alone", {"schedule": f"fixed:{rank}", "negatives": {"written": 1, "mined": 0}})
    first = next(iter(arms))
    return Ablation(kind, (base, *arms.values()), first)


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

    Raises:
        TrainerError: The release cannot be read, or lacks what an arm needs.
    """
    if not seeds:
        raise AppError("seeds: give one or more")
    runs: dict[str, list[Values]] = {}
    for arm in ablation.arms:
        runs[arm.name] = []
        for seed in seeds if arm.is_trained else seeds[:1]:
            tell(f"{arm.name}, seed {seed}" if arm.is_trained else arm.name)
            runs[arm.name].append(_run(arm, recipe, release, sets, folder, seed, progress))
    return report_of_runs(ablation, sets, runs, {"recipe": recipe.model_dump(mode="json"), "seeds": list(seeds)})


def _run(
    arm: Arm,
    recipe: TrainRecipe,
    release: Path,
    sets: Sequence[EvaluationSet],
    folder: Path,
    seed: int,
    progress: Progress,
) -> Values:
    """Values of an arm and a seed, `SET/METRIC` to units; from disk where they are."""
    source = slotted_release(release, arm.slotting, folder / "releases", seed) if arm.is_trained else release
    trained = arm_recipe(arm, recipe, seed)
    decided = {
        "recipe": trained.model_dump(mode="json", exclude={"name", "checkpoint_every"}) if arm.is_trained else None,
        "weights": folder_digest(any_model_folder(recipe.model)),
        "release": read_release(source, recipe.split).digest if arm.is_trained else None,
        "sets": [[one.data, one.split, one.num_units, list(one.metrics), dict(one.facts)] for one in sets],
    }
    path = folder / "runs" / f"{digest_of(decided)[:24]}.json"
    if path.is_file():
        return {
            name: np.array(column, np.float64) for name, column in orjson.loads(path.read_bytes())["values"].items()
        }
    name = trained.name
    model = _trained(trained, source, folder, progress) if arm.is_trained else recipe.model
    values = measure_sets(model, sets, folder / "embeddings", progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {key: [None if np.isnan(value) else float(value) for value in column] for key, column in values.items()}
    path.with_suffix(".partial").write_bytes(
        orjson.dumps({"arm": arm.name, "seed": seed, "name": name, **decided, "values": columns})
    )
    path.with_suffix(".partial").rename(path)
    if arm.is_trained:
        _keep_the_journal(folder / "models" / name, folder / "journals" / name)
    return values


def arm_recipe(arm: Arm, recipe: TrainRecipe, seed: int) -> TrainRecipe:
    """The recipe of an arm and a seed.

    Raises:
        RecipeError: The base recipe and the arm do not go together.
    """
    fields = recipe.model_dump(mode="json") | dict(arm.changes) | {"seed": seed}
    if arm.slotting is not None:
        fields["negatives"] = None  # the copy's own slots
    digest = digest_of({name: value for name, value in fields.items() if name != "name"})[:12]
    return checked(fields | {"name": f"arm-{digest}"}, TrainRecipe, f"arm {arm.name!r}: ")


def _trained(recipe: TrainRecipe, release: Path, folder: Path, progress: Progress) -> str:
    from trainer.training import train

    (folder / "models").mkdir(parents=True, exist_ok=True)
    start = any_model_folder(recipe.model)
    return str(train(recipe, release, start, output=folder / "models" / recipe.name, progress=progress).folder)


def measure_sets(model: str, sets: Sequence[EvaluationSet], folder: Path, progress: Progress) -> Values:
    """Every set's values of a model; its embeddings lie in `folder` while it is measured."""
    opened = opened_model(model, folder)
    values = {f"{number}/{name}": column for number, one in enumerate(sets) for name, column in
              one.measure(opened, progress).items()}  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    return values


def _keep_the_journal(model: Path, target: Path) -> None:
    """Weights of an arm are not kept, they can be made again; what its training said is."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _KEPT:
        shutil.copyfile(model / name, target / name)
    shutil.rmtree(model)


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
            {"data": one.data, "split": one.split, "metric": metric, "unit": one.unit, "num_units": one.num_units,
             "arms": rows}
        )  # fmt: skip
    return {"ablation": ablation.name, "reference": ablation.reference, **facts, "sets": reports}


def _of_set(values: Values, number: int) -> Values:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): column for name, column in values.items() if name.startswith(prefix)}
