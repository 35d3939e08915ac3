"""Ablations: the same training but for one thing, over several seeds, measured on the same queries.

Every arm is a training recipe over the release, or over a copy of it with other slots; an arm and a seed are one run.
A run's values stay on disk under a digest of all that decides them, so that a table that was cut off goes on where it
stopped, and asking for one more arm trains that arm alone.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.ablation_course import course_of
from app.ablation_releases import Slotting, slotted_release
from app.errors import AppError
from app.evaluating.measuring import EvaluationSet, Values, opened_model
from app.evaluating.prompting import Prompts, require_instructions
from app.recipes import checked
from app.training import start_folder
from curation.embeddings import folder_digest
from db.digest import digest_of
from trainer.curriculum import Step, describe_plan, plan_steps
from trainer.errors import TrainerError
from trainer.prompting import INSTRUCTION, shared_instruction
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
    twin: str | None = None  # another arm that it is compared with too
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
    instruction: str | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Train and measure what is missing in `folder`, and report all.

    An arm that the release has no negatives for is left out before anything is trained, and told. The model before
    training is asked with the recipe's prompts where it has any, as trained ones are, else with its own.

    Args:
        instruction: Of queries that have none of their own, where the recipe's prompt has a place for one.

    Raises:
        AppError, TrainerError: The release cannot be read, or lacks what the arm needs that others are compared with.
    """
    if not seeds:
        raise AppError("seeds: give one or more")
    start = start_folder(recipe)
    weights = folder_digest(start)
    prompts = _recipe_prompts(recipe, release, instruction)
    require_instructions([(recipe.name, prompts)], [(one.data, one.has_instructions) for one in sets])
    trainings, left_out = _plan(ablation, recipe, release, folder, seeds, weights)
    if not (start / "modules.json").is_file():
        why = f"{recipe.model} is a plain transformer, which embeds no text before it is trained"
        left_out |= {arm.name: why for arm in ablation.arms if not arm.is_trained}
    for name, why in left_out.items():
        tell(f"{name} is left out: {why}")
    runs: dict[str, list[Values]] = {}
    for arm in (arm for arm in ablation.arms if arm.name not in left_out):
        runs[arm.name] = []
        if not arm.is_trained:
            tell(arm.name)
            runs[arm.name].append(_untrained(arm, start, weights, sets, folder, prompts, progress))
            continue
        for seed, training in zip(seeds, trainings[arm.name], strict=True):
            tell(f"{arm.name}, seed {seed}")
            runs[arm.name].append(_run(arm, training, sets, folder, prompts, progress))
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
    if ablation.name == "ratio":
        for row in (row for one in report["sets"] for row in one["arms"] if row["arm"] in trainings):
            row["place"] = report["training"][row["arm"]]["ratio"]  # as it came out of what the release has
    return report


def _plan(
    ablation: Ablation, recipe: TrainRecipe, release: Path, folder: Path, seeds: Sequence[int], weights: str
) -> tuple[dict[str, list[_Training]], dict[str, str]]:
    """The trainings of each arm, one a seed; and why other arms are left out."""
    trainings: dict[str, list[_Training]] = {}
    left_out: dict[str, str] = {}
    for arm in (arm for arm in ablation.arms if arm.is_trained):
        try:
            planned = [_planned(arm, recipe, release, folder, seed, weights) for seed in seeds]
            trainings[arm.name] = _require_other(planned, trainings)
        except (AppError, TrainerError) as error:
            if arm.name == ablation.reference:
                raise
            left_out[arm.name] = str(error)
    return trainings, left_out


def _planned(arm: Arm, recipe: TrainRecipe, release: Path, folder: Path, seed: int, weights: str) -> _Training:
    source = slotted_release(release, arm.slotting, folder / "releases", seed, split=recipe.split)
    trained = arm_recipe(arm, recipe, seed)
    read = read_release(source, recipe.split)
    decided = {"recipe": _deciding(trained), "weights": weights, "release": read.digest}
    named = trained.model_copy(update={"name": f"arm-{digest_of(decided)[:12]}"})
    return _Training(named, source, read.digest, weights, plan_steps(named, read.examples))


def _require_other(planned: list[_Training], known: Mapping[str, list[_Training]]) -> list[_Training]:
    """The trainings of an arm, refused where those of another arm would be the very same: one point drawn twice."""
    mine = [_rows(training) for training in planned]
    for name, others in known.items():
        if mine == [_rows(training) for training in others]:
            raise AppError(
                f"its rows are those of {name!r}, as the release has no negatives that would tell them apart"
            )
    return planned


def _rows(training: _Training) -> tuple[str, str]:
    """What is trained on, by content: copies of a release with other slots may come out the same."""
    files = orjson.loads((training.release / "manifest.json").read_bytes())["files"]
    graded = {name: file["sha256"] for name, file in files.items() if name.startswith("graded/")}
    return digest_of(_deciding(training.recipe)), digest_of(graded)


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


def _recipe_prompts(recipe: TrainRecipe, release: Path, instruction: str | None) -> Prompts:
    """What the recipe's models are asked with; an instruction that all its examples share is known."""
    if instruction is None and INSTRUCTION in recipe.query_prompt:
        instruction = shared_instruction(recipe, read_release(release, recipe.split).examples)
    return Prompts(recipe.query_prompt, recipe.passage_prompt, instruction)


def _untrained(
    arm: Arm,
    start: Path,
    weights: str,
    sets: Sequence[EvaluationSet],
    folder: Path,
    prompts: Prompts,
    progress: Progress,
) -> Values:
    decided: dict[str, Any] = {"recipe": None, "weights": weights, "release": None, "sets": _named(sets)}
    if prompts != Prompts():  # a model that is asked with its own is found as before there were others
        decided["prompts"] = asdict(prompts)
    kept = _kept(folder, decided)
    return kept or _keep(folder, decided, arm.name, measure_sets(str(start), sets, folder, progress, prompts))


def _run(
    arm: Arm,
    training: _Training,
    sets: Sequence[EvaluationSet],
    folder: Path,
    prompts: Prompts,
    progress: Progress,
) -> Values:
    """Values of an arm and a seed, `SET/METRIC` to units; from disk where they are."""
    decided: dict[str, Any] = {
        "recipe": _deciding(training.recipe),
        "weights": training.weights,
        "release": training.release_digest,
        "sets": _named(sets),
    }
    if prompts.takes_instruction:
        decided["instruction"] = prompts.instruction
    kept = _kept(folder, decided)
    if kept is not None:
        return kept
    name = training.recipe.name
    values = measure_sets(_trained(training, folder, progress), sets, folder, progress, prompts)
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
    start, output = start_folder(recipe), models / recipe.name
    return str(train(recipe, training.release, start, output=output, progress=progress).folder)


def measure_sets(
    model: str, sets: Sequence[EvaluationSet], folder: Path, progress: Progress, prompts: Prompts
) -> Values:
    """Every set's values of a model, asked with these prompts, or with its own where these are empty.

    Its embeddings lie in `folder` meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="embeddings-", dir=folder) as embeddings:
        given = prompts if prompts.query or prompts.document else None
        opened = opened_model(model, Path(embeddings), otherwise=prompts, prompts=given)
        require_instructions([(model, opened.prompts)], [(one.data, one.has_instructions) for one in sets])
        return {
            f"{number}/{name}": column
            for number, one in enumerate(sets)
            for name, column in one.measure(opened, progress).items()
        }


def report_of_runs(
    ablation: Ablation, sets: Sequence[EvaluationSet], runs: Mapping[str, Sequence[Values]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Each arm's main metric by seed on every set, and differences, paired by unit: in each sample
    the statistic is taken of every seed and averaged."""
    reports = []
    for number, one in enumerate(sets):
        metric = one.metrics[0]
        of_arm = {name: [_of_set(values, number) for values in several] for name, several in runs.items()}
        seeds = {name: {metric: np.stack([values[metric] for values in several])} for name, several in
                 of_arm.items() if several}  # fmt: skip
        rows = []
        for arm in ablation.arms:
            if arm.name not in seeds:
                continue
            by_seed = [one.summary(values)[metric] for values in of_arm[arm.name]]
            row: dict[str, Any] = {
                "arm": arm.name,
                "place": arm.place,
                "by_seed": by_seed,
                "mean": float(np.mean(by_seed)),
            }
            for against in dict.fromkeys((BASE, ablation.reference, arm.twin)) if arm.is_trained else ():
                if against in seeds and against != arm.name:
                    row[f"against {against}"] = one.difference(seeds[against], seeds[arm.name], [metric])[metric]
            rows.append(row)
        reports.append(
            {"data": one.data, "split": one.split, "digest": one.digest, "metric": metric, "unit": one.unit,
             "num_units": one.num_units, "arms": rows}
        )  # fmt: skip
    return {"ablation": ablation.name, "reference": ablation.reference, **facts, "sets": reports}


def _of_set(values: Values, number: int) -> Values:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): column for name, column in values.items() if name.startswith(prefix)}
