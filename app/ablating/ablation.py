"""Ablations: the same training but for one thing, over several seeds, measured on the same queries.

Every arm is a training recipe over the release, or over a copy of it with other slots; an arm and a seed are one run.
A run's values stay on disk under a digest of all that decides them, so that a table that was cut off goes on where it
stopped, and asking for one more arm trains that arm alone.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from app.ablating.course import course_of
from app.ablating.planning import Arm, Training, deciding, plan_trainings
from app.errors import AppError
from app.evaluating.measuring import EvaluationSet, Values, opened_model
from app.evaluating.prompting import Prompts, require_instructions
from app.training import start_folder
from curation.embeddings import folder_digest
from db.digest import digest_of
from trainer.prompting import INSTRUCTION, shared_instruction
from trainer.recipe import TrainRecipe
from trainer.release import read_release

BASE = "before training"
Progress = Callable[[int, int | None], None]
Tell = Callable[[str], None]
ByStep = Mapping[int, Values]
"""Values of a run after so many steps, ascending: the last is the end, 0 the model before training."""
_KEPT = ("training.json", "metrics.jsonl")


@dataclass(frozen=True, slots=True)
class Ablation:
    """Arms that are compared, one of them being what the others are compared with.

    Attributes:
        notes: What a reader of the table should know of the arms, a line each.
        by_block: Whether arms are measured after each block of their schedule, and not at the end alone.
    """

    name: str
    arms: tuple[Arm, ...]
    reference: str
    notes: tuple[str, ...] = ()
    by_block: bool = False


def run_ablation(
    ablation: Ablation,
    recipe: TrainRecipe,
    release: Path,
    sets: Sequence[EvaluationSet],
    folder: Path,
    *,
    seeds: Sequence[int],
    tell: Tell = lambda line: None,
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
    trainings, left_out = plan_trainings(
        ablation.arms, ablation.reference, recipe, release, folder,
        seeds=seeds, by_block=ablation.by_block, weights=weights,
    )  # fmt: skip
    if not (start / "modules.json").is_file():
        why = f"{recipe.model} is a plain transformer, which embeds no text before it is trained"
        left_out |= {arm.name: why for arm in ablation.arms if not arm.is_trained}
    for name, why in left_out.items():
        tell(f"{name} is left out: {why}")
    runs: dict[str, list[ByStep]] = {}
    for arm in (arm for arm in ablation.arms if arm.name not in left_out):
        if not arm.is_trained:
            tell(arm.name)
            runs[arm.name] = [{0: _untrained(arm, start, weights, sets, folder, prompts, progress)}]
            continue
        runs[arm.name] = []
        for seed, training in zip(seeds, trainings[arm.name], strict=True):
            tell(f"{arm.name}, seed {seed}")
            runs[arm.name].append(_run(arm, training, sets, folder, prompts, progress, tell))
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "seeds": list(seeds),
        "notes": list(ablation.notes),
        "left_out": left_out,
    }
    report = report_of_runs(ablation, sets, runs, facts)
    report["training"] = {name: _told(several, folder, recipe.warmup) for name, several in trainings.items()}
    if ablation.name == "ratio":
        for row in (row for one in report["sets"] for row in one["arms"] if row["arm"] in trainings):
            row["place"] = report["training"][row["arm"]]["ratio"]  # as it came out of what the release has
    return report


def _told(trainings: Sequence[Training], folder: Path, warmup: float) -> dict[str, Any]:
    """What an arm was trained on, as it came out with the first seed, and how its trainings went."""
    journals = [folder / "journals" / one.recipe.name for one in trainings]
    return {**trainings[0].negatives(), **course_of(journals, warmup=warmup)}


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
    training: Training,
    sets: Sequence[EvaluationSet],
    folder: Path,
    prompts: Prompts,
    progress: Progress,
    tell: Tell,
) -> ByStep:
    """Values of an arm and a seed after each of its stops, `SET/METRIC` to units; from disk where they are."""
    decided: dict[str, Any] = {
        "recipe": deciding(training.recipe),
        "weights": training.weights,
        "release": training.release_digest,
        "sets": _named(sets),
    }
    if prompts.takes_instruction:
        decided["instruction"] = prompts.instruction
    *before, end = training.stops
    # What was measured at the end does not depend on how often it was before.
    decided_at = {stop: {**decided, "after": stop} for stop in before} | {end: decided}
    kept = {stop: values for stop in training.stops if (values := _kept(folder, decided_at[stop])) is not None}
    if len(kept) == len(training.stops):
        shutil.rmtree(_model(training, folder), ignore_errors=True)  # of a call that was cut off just before
        return kept
    model = _trained(training, folder, progress, tell)
    target = folder / "journals" / training.recipe.name
    target.mkdir(parents=True, exist_ok=True)
    for file in _KEPT:
        shutil.copyfile(model / file, target / file)
    for stop in (stop for stop in training.stops if stop not in kept):
        of_stop = model if stop == end else model / "steps" / str(stop)
        values = measure_sets(str(of_stop), sets, folder, progress, prompts)
        kept[stop] = _keep(folder, decided_at[stop], arm.name, values)
    shutil.rmtree(model)  # it can be made again; what its training said is kept
    return dict(sorted(kept.items()))


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


def _trained(training: Training, folder: Path, progress: Progress, tell: Tell) -> Path:
    """The trained model's folder, with the model after each earlier stop in it."""
    from trainer.training import train

    recipe, output, before = training.recipe, _model(training, folder), training.stops[:-1]
    if not all((output / "steps" / str(stop)).is_dir() for stop in before):
        shutil.rmtree(output, ignore_errors=True)  # trained for an ablation that needs the end alone
    output.parent.mkdir(parents=True, exist_ok=True)
    start = start_folder(recipe)
    return train(recipe, training.release, start, output=output, keep_after=before, progress=progress, tell=tell).folder


def _model(training: Training, folder: Path) -> Path:
    return folder / "models" / training.recipe.name


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
    ablation: Ablation, sets: Sequence[EvaluationSet], runs: Mapping[str, Sequence[ByStep]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Each arm's main metric by seed on every set, and differences, paired by unit: in each sample
    the statistic is taken of every seed and averaged."""
    reports = []
    for number, one in enumerate(sets):
        metric = one.metrics[0]
        of_arm = {
            name: [{step: _of_set(values, number) for step, values in by_step.items()} for by_step in several]
            for name, several in runs.items() if several
        }  # fmt: skip
        ends = {
            name: {metric: np.stack([by_step[max(by_step)][metric] for by_step in several])}
            for name, several in of_arm.items()
        }
        rows = []
        for arm in ablation.arms:
            if arm.name not in ends:
                continue
            row = {"arm": arm.name, "place": arm.place, **_means(one, of_arm[arm.name])}
            for against in dict.fromkeys((BASE, ablation.reference, arm.twin)) if arm.is_trained else ():
                if against in ends and against != arm.name:
                    row[f"against {against}"] = one.difference(ends[against], ends[arm.name], [metric])[metric]
            rows.append(row)
        reports.append(
            {"data": one.data, "split": one.split, "digest": one.digest, "metric": metric, "unit": one.unit,
             "num_units": one.num_units, "arms": rows}
        )  # fmt: skip
    return {"ablation": ablation.name, "reference": ablation.reference, **facts, "sets": reports}


def _means(one: EvaluationSet, runs: Sequence[ByStep]) -> dict[str, Any]:
    """The main metric of an arm at the end, by seed and its mean, and the mean after each step that it was measured at,
    which is the same for all seeds."""
    metric = one.metrics[0]
    by_seed = [[one.summary(values)[metric] for values in by_step.values()] for by_step in runs]
    means = np.mean(by_seed, axis=0)
    return {
        "by_seed": [values[-1] for values in by_seed],
        "mean": float(means[-1]),
        "by_step": {"step": list(runs[0]), "mean": means.tolist()},
    }


def _of_set(values: Values, number: int) -> Values:
    prefix = f"{number}/"
    return {name.removeprefix(prefix): column for name, column in values.items() if name.startswith(prefix)}
