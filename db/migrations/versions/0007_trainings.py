"""Trainings, with the figures of their steps over all negatives and per rank"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "training",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("release_name", sa.String(length=200), nullable=False),
        sa.Column("release_digest", sa.String(length=64), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("recipe_digest", sa.String(length=64), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("machine", sa.Text(), nullable=True),
        sa.Column("summary", JSON, nullable=False),
        sa.Column("teacher_id", BIG_ID, nullable=True),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("imported_at", TIME, nullable=False),
        sa.CheckConstraint("num_steps >= 0", name=op.f("ck_training_num_steps_from_0")),
        sa.ForeignKeyConstraint(["teacher_id"], ["teacher.id"], name=op.f("fk_training_teacher_id_teacher")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training")),
        sa.UniqueConstraint("digest", name=op.f("uq_training_digest")),
    )
    _steps()


def _steps() -> None:
    op.create_table(
        "training_step",
        sa.Column("training_id", BIG_ID, nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("block", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=True),
        *_figures("loss", "learning_rate", "gradient_norm", "query_gradient_variance", "positive", "written", "mined"),
        sa.Column("num_masked", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["training_id"], ["training.id"], name=op.f("fk_training_step_training_id_training")
        ),
        sa.PrimaryKeyConstraint("training_id", "step", name=op.f("pk_training_step")),
    )  # fmt: skip
    op.create_table(
        "training_rank",
        sa.Column("training_id", BIG_ID, nullable=False),
        sa.Column("label", sa.String(length=10), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("num_negatives", sa.Integer(), nullable=False),
        *_figures("loss", "similarity", "margin", "above_positive", "gradient", "gradient_variance"),
        sa.CheckConstraint("num_negatives >= 1", name=op.f("ck_training_rank_has_negatives")),
        sa.ForeignKeyConstraint(
            ["training_id"], ["training.id"], name=op.f("fk_training_rank_training_id_training")
        ),
        sa.PrimaryKeyConstraint("training_id", "label", "step", name=op.f("pk_training_rank")),
    )  # fmt: skip


def _figures(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Float(53), nullable=True) for name in names]
