"""Putting trainings and the figures of their steps into the store, and reading them again as the trainer wrote them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.training import Training, TrainingRank, TrainingStep

_STEP = ("step", "block", "rank", "loss", "learning_rate", "gradient_norm", "query_gradient_variance", "positive",
         "written", "mined")  # fmt: skip
_RANK = ("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance")


@dataclass(frozen=True, slots=True)
class NewTraining:
    """A training as its files tell. `steps` are the lines of metrics.jsonl, in order, with every key."""

    summary: Mapping[str, Any]
    machine: str | None
    started_at: datetime | None
    finished_at: datetime | None
    steps: Sequence[Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """Names the training in every store: two executions of one recipe say other things of themselves."""
        return digest_of(self.summary)


@dataclass(frozen=True, slots=True)
class TrainingName:
    """A training in a list."""

    id: int
    name: str
    digest: str


def put_training(session: Session, new: NewTraining) -> tuple[Training, bool]:
    """The training's row, and whether it is new: all of its steps come with it, once."""
    summary = {**new.summary}
    recipe = summary.pop("recipe")
    row = {
        "digest": new.digest, "name": recipe["name"], "base_model": recipe["model"], "recipe": recipe,
        "recipe_digest": digest_of(recipe), "release_name": summary["release"],
        "release_digest": summary["release_digest"], "num_steps": len(new.steps), "machine": new.machine,
        "summary": summary, "teacher_id": None, "started_at": new.started_at, "finished_at": new.finished_at,
        "imported_at": utc_now(),
    }  # fmt: skip
    is_new = bool(insert_missing(session, Training, [row]))
    training = session.scalars(select(Training).where(Training.digest == new.digest)).one()
    if is_new:
        insert_missing(session, TrainingStep, [_step_row(training.id, step) for step in new.steps])
        insert_missing(session, TrainingRank, [row for step in new.steps for row in _rank_rows(training.id, step)])
    return training, is_new


def _step_row(training: int, step: Mapping[str, Any]) -> dict[str, Any]:
    return {"training_id": training, "num_masked": step["masked"], **{name: step[name] for name in _STEP}}


def _rank_rows(training: int, step: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "training_id": training, "step": step["step"], "label": label, "num_negatives": values["negatives"],
            **{name: values[name] for name in _RANK},
        }
        for label, values in step["ranks"].items()
    ]  # fmt: skip


def training_names(session: Session, limit: int = 500) -> list[TrainingName]:
    """The trainings that were imported last, the newest first."""
    newest = select(Training.id, Training.name, Training.digest).order_by(Training.id.desc()).limit(limit)
    return [TrainingName(*row) for row in session.execute(newest)]


def training_steps(session: Session, training_id: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl again, in order."""
    by_step: dict[int, dict[str, dict[str, Any]]] = {}
    ranks = select(TrainingRank.step, TrainingRank.label, TrainingRank.num_negatives, *_columns(TrainingRank, _RANK))
    in_order = ranks.where(TrainingRank.training_id == training_id).order_by(TrainingRank.step, TrainingRank.label)
    for step, label, num, *values in session.execute(in_order):
        of_step = by_step.setdefault(step, {})
        of_step[label] = {"negatives": num, **dict(zip(_RANK, values, strict=True))}
    steps = select(TrainingStep.num_masked, *_columns(TrainingStep, _STEP)).order_by(TrainingStep.step)
    return [
        {**dict(zip(_STEP, values, strict=True)), "masked": masked, "ranks": by_step.get(values[0], {})}
        for masked, *values in session.execute(steps.where(TrainingStep.training_id == training_id))
    ]


def _columns(table: type[TrainingStep] | type[TrainingRank], names: Sequence[str]) -> list[Any]:
    return [getattr(table, name) for name in names]
