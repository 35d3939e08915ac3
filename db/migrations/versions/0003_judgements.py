"""Judges and their judgements"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "judge",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("entry", sa.String(length=200), nullable=False),
        sa.Column("prompt_digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge")),
        sa.UniqueConstraint("digest", name=op.f("uq_judge_digest")),
    )
    op.create_table(
        "judgement",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("query_id", BIG_ID, nullable=False),
        sa.Column("passage_id", BIG_ID, nullable=False),
        sa.Column("judge_id", BIG_ID, nullable=False),
        sa.Column("request_id", BIG_ID, nullable=False),
        sa.Column("stage", sa.String(length=10), nullable=False),
        sa.Column("relevance", sa.Integer(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("stage in ('screen', 'confirm')", name=op.f("ck_judgement_stage")),
        sa.CheckConstraint("relevance between 0 and 3", name=op.f("ck_judgement_relevance")),
        sa.CheckConstraint("relevance < 2 or evidence <> ''", name=op.f("ck_judgement_relevant_has_evidence")),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_judgement_query_id_query")),
        sa.ForeignKeyConstraint(["passage_id"], ["passage.id"], name=op.f("fk_judgement_passage_id_passage")),
        sa.ForeignKeyConstraint(["judge_id"], ["judge.id"], name=op.f("fk_judgement_judge_id_judge")),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name=op.f("fk_judgement_request_id_request")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judgement")),
        sa.UniqueConstraint(
            "query_id",
            "passage_id",
            "judge_id",
            "request_id",
            name=op.f("uq_judgement_query_id_passage_id_judge_id_request_id"),
        ),
    )
    op.create_index("ix_judgement_passage_id", "judgement", ["passage_id"])
    op.create_index("ix_judgement_request_id", "judgement", ["request_id"])
