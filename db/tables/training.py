"""Trainings and what their steps said: loss, similarity, margin and gradient variance, over the steps and per rank.

A training is one execution, named by the digest of what it says of itself (its training.json); the trainer wrote files,
which were imported. Its margins are scores of the teacher that it names. A figure that was not finite, or that an
earlier version did not write, is null.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Float, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest, Json, UtcTime, utc_now


class Training(Base):
    """`base_model` is what it started from, as the recipe names it; `summary` is training.json without the recipe.

    The release need not be in this store; `teacher_id` is null until its margins came.
    """

    __tablename__ = "training"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("num_steps >= 0", "num_steps_from_0"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    name: Mapped[str] = mapped_column(String(200))
    base_model: Mapped[str] = mapped_column(Text)
    release_name: Mapped[str] = mapped_column(String(200))
    release_digest: Mapped[str] = mapped_column(Digest)
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    recipe_digest: Mapped[str] = mapped_column(Digest)
    num_steps: Mapped[int]
    machine: Mapped[str | None] = mapped_column(Text)
    summary: Mapped[dict[str, Any]] = mapped_column(Json)
    teacher_id: Mapped[int | None] = mapped_column(ForeignKey("teacher.id"))
    started_at: Mapped[datetime | None] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    imported_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class TrainingStep(Base):
    """One step, counted from 0, in its block of the curriculum, from 1; `rank` is null where a block has no one rank.

    Cosines: `positive` of the positives, `written` and `mined` of the negatives, each with its query.
    """

    __tablename__ = "training_step"

    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    block: Mapped[int]
    rank: Mapped[int | None]
    loss: Mapped[float | None] = mapped_column(Float(53))
    learning_rate: Mapped[float | None] = mapped_column(Float(53))
    gradient_norm: Mapped[float | None] = mapped_column(Float(53))
    query_gradient_variance: Mapped[float | None] = mapped_column(Float(53))
    positive: Mapped[float | None] = mapped_column(Float(53))
    written: Mapped[float | None] = mapped_column(Float(53))
    mined: Mapped[float | None] = mapped_column(Float(53))
    num_masked: Mapped[int | None]


class TrainingRank(Base):
    """The negatives of one kind in one step: `label` is their rank as text, or `mined`; means over `num_negatives`."""

    __tablename__ = "training_rank"
    __table_args__ = (CheckConstraint("num_negatives >= 1", "has_negatives"),)

    training_id: Mapped[int] = mapped_column(ForeignKey("training.id"), primary_key=True)
    label: Mapped[str] = mapped_column(String(10), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    num_negatives: Mapped[int]
    loss: Mapped[float | None] = mapped_column(Float(53))
    similarity: Mapped[float | None] = mapped_column(Float(53))
    margin: Mapped[float | None] = mapped_column(Float(53))
    above_positive: Mapped[float | None] = mapped_column(Float(53))
    gradient: Mapped[float | None] = mapped_column(Float(53))
    gradient_variance: Mapped[float | None] = mapped_column(Float(53))


IDENTITY = {
    "training": ("digest",),
    "training_step": ("training_id", "step"),
    "training_rank": ("training_id", "label", "step"),
}
