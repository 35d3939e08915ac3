"""The first schema"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from db.triggers import freeze

revision = "0001"
down_revision = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "collection",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("licence", sa.String(length=200), nullable=True),
        sa.Column("attribution", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collection")),
        sa.UniqueConstraint("name", name=op.f("uq_collection_name")),
    )
    op.create_table(
        "passage",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.CheckConstraint("length(text) > 0", name=op.f("ck_passage_text_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_passage")),
        sa.UniqueConstraint("digest", name=op.f("uq_passage_digest")),
    )
    op.create_table(
        "query",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.CheckConstraint("length(text) > 0", name=op.f("ck_query_text_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_query")),
        sa.UniqueConstraint("digest", name=op.f("uq_query_digest")),
    )
    op.create_table(
        "release",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("manifest", JSON, nullable=False),
        sa.Column("parent_id", BIG_ID, nullable=True),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["release.id"], name=op.f("fk_release_parent_id_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
        sa.UniqueConstraint("name", name=op.f("uq_release_name")),
    )
    op.create_table(
        "request",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=300), nullable=False),
        sa.Column("sample_index", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(state = 'leased') = (leased_until is not null)", name=op.f("ck_request_lease_has_a_clock")
        ),
        sa.CheckConstraint("state in ('pending', 'leased', 'done', 'failed')", name=op.f("ck_request_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
        sa.UniqueConstraint("digest", name=op.f("uq_request_digest")),
    )
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_request_state"), ["state"], unique=False)

    op.create_table(
        "run",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=30), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("recipe", JSON, nullable=False),
        sa.Column("recipe_digest", sa.String(length=64), nullable=False),
        sa.Column("code_version", sa.String(length=50), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("totals", JSON, nullable=True),
        sa.CheckConstraint("state in ('running', 'finished', 'failed')", name=op.f("ck_run_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("kind", "recipe_digest", name=op.f("uq_run_kind_recipe_digest")),
    )
    op.create_table(
        "task",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("task_type", sa.String(length=30), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("digest", name=op.f("uq_task_digest")),
    )
    op.create_table(
        "teacher",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=30), nullable=False),
        sa.Column("max_length", sa.Integer(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teacher")),
        sa.UniqueConstraint("digest", name=op.f("uq_teacher_digest")),
    )
    op.create_table(
        "collection_query",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("collection_id", BIG_ID, nullable=False),
        sa.Column("external_id", sa.String(length=500), nullable=False),
        sa.Column("query_id", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_collection_query_collection_id_collection")
        ),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_collection_query_query_id_query")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collection_query")),
        sa.UniqueConstraint("collection_id", "external_id", name=op.f("uq_collection_query_collection_id_external_id")),
    )
    with op.batch_alter_table("collection_query", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_collection_query_query_id"), ["query_id"], unique=False)

    op.create_table(
        "completion",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("request_id", BIG_ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("engine", sa.String(length=50), nullable=False),
        sa.Column("model_reported", sa.String(length=300), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("finish_reason", sa.String(length=50), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("cached_tokens", sa.Integer(), nullable=True),
        sa.Column("cache_write_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Float(precision=53), nullable=True),
        sa.Column("latency_s", sa.Float(precision=53), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name=op.f("fk_completion_request_id_request")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completion")),
        sa.UniqueConstraint("request_id", "attempt", name=op.f("uq_completion_request_id_attempt")),
    )
    op.create_table(
        "document",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("collection_id", BIG_ID, nullable=False),
        sa.Column("external_id", sa.String(length=500), nullable=False),
        sa.Column("passage_id", BIG_ID, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("licence", sa.String(length=200), nullable=True),
        sa.ForeignKeyConstraint(
            ["collection_id"], ["collection.id"], name=op.f("fk_document_collection_id_collection")
        ),
        sa.ForeignKeyConstraint(["passage_id"], ["passage.id"], name=op.f("fk_document_passage_id_passage")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_document")),
        sa.UniqueConstraint("collection_id", "external_id", name=op.f("uq_document_collection_id_external_id")),
    )
    with op.batch_alter_table("document", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_document_passage_id"), ["passage_id"], unique=False)

    op.create_table(
        "example",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("query_id", BIG_ID, nullable=False),
        sa.Column("positive_id", BIG_ID, nullable=False),
        sa.Column("task_id", BIG_ID, nullable=True),
        sa.Column("collection_id", BIG_ID, nullable=True),
        sa.Column("origin", sa.String(length=10), nullable=False),
        sa.Column("language", sa.String(length=30), nullable=True),
        sa.CheckConstraint("origin in ('corpus', 'synthetic')", name=op.f("ck_example_origin")),
        sa.ForeignKeyConstraint(["collection_id"], ["collection.id"], name=op.f("fk_example_collection_id_collection")),
        sa.ForeignKeyConstraint(["positive_id"], ["passage.id"], name=op.f("fk_example_positive_id_passage")),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_example_query_id_query")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_example_task_id_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_example")),
        sa.UniqueConstraint("digest", name=op.f("uq_example_digest")),
        sa.UniqueConstraint("query_id", "positive_id", name=op.f("uq_example_query_id_positive_id")),
    )
    with op.batch_alter_table("example", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_example_positive_id"), ["positive_id"], unique=False)

    op.create_table(
        "rejection",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("run_id", BIG_ID, nullable=False),
        sa.Column("subject", sa.String(length=600), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=100), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_rejection_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejection")),
        sa.UniqueConstraint(
            "run_id",
            "subject",
            "position",
            "reason",
            name=op.f("uq_rejection_run_id_subject_position_reason"),
        ),
    )
    op.create_table(
        "release_event",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("release_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind in ('retired')", name=op.f("ck_release_event_kind")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_release_event_release_id_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_event")),
        sa.UniqueConstraint("release_id", "kind", "at", name=op.f("uq_release_event_release_id_kind_at")),
    )
    op.create_table(
        "request_body",
        sa.Column("request_id", BIG_ID, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name=op.f("fk_request_body_request_id_request")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_body")),
    )
    op.create_table(
        "score",
        sa.Column("teacher_id", BIG_ID, nullable=False),
        sa.Column("query_id", BIG_ID, nullable=False),
        sa.Column("passage_id", BIG_ID, nullable=False),
        sa.Column("value", sa.Float(precision=53), nullable=False),
        sa.Column("num_tokens", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["passage_id"], ["passage.id"], name=op.f("fk_score_passage_id_passage")),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_score_query_id_query")),
        sa.ForeignKeyConstraint(["teacher_id"], ["teacher.id"], name=op.f("fk_score_teacher_id_teacher")),
        sa.PrimaryKeyConstraint("teacher_id", "query_id", "passage_id", name=op.f("pk_score")),
    )
    op.create_table(
        "candidate",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("example_id", BIG_ID, nullable=False),
        sa.Column("passage_id", BIG_ID, nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("grade", sa.String(length=10), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("origin", sa.String(length=10), nullable=False),
        sa.Column("violated_requirement", sa.Text(), nullable=True),
        sa.Column("parent_passage_id", BIG_ID, nullable=True),
        sa.Column("run_id", BIG_ID, nullable=False),
        sa.CheckConstraint("grade in ('hard', 'medium', 'easy')", name=op.f("ck_candidate_grade")),
        sa.CheckConstraint(
            "origin <> 'edited' or parent_passage_id is not null",
            name=op.f("ck_candidate_edited_has_a_parent"),
        ),
        sa.CheckConstraint("origin in ('corpus', 'synthetic', 'mined', 'edited')", name=op.f("ck_candidate_origin")),
        sa.CheckConstraint(
            "role = 'negative' or (grade is null and rank is null)",
            name=op.f("ck_candidate_positive_has_no_grade"),
        ),
        sa.CheckConstraint("role in ('positive', 'negative')", name=op.f("ck_candidate_role")),
        sa.CheckConstraint("parent_passage_id <> passage_id", name=op.f("ck_candidate_not_its_own_parent")),
        sa.CheckConstraint("rank >= 1", name=op.f("ck_candidate_rank_from_1")),
        sa.ForeignKeyConstraint(["example_id"], ["example.id"], name=op.f("fk_candidate_example_id_example")),
        sa.ForeignKeyConstraint(
            ["parent_passage_id"], ["passage.id"], name=op.f("fk_candidate_parent_passage_id_passage")
        ),
        sa.ForeignKeyConstraint(["passage_id"], ["passage.id"], name=op.f("fk_candidate_passage_id_passage")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_candidate_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_candidate")),
        sa.UniqueConstraint("example_id", "passage_id", name=op.f("uq_candidate_example_id_passage_id")),
    )
    with op.batch_alter_table("candidate", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_candidate_passage_id"), ["passage_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_candidate_run_id"), ["run_id"], unique=False)

    op.create_table(
        "completion_body",
        sa.Column("completion_id", BIG_ID, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["completion_id"], ["completion.id"], name=op.f("fk_completion_body_completion_id_completion")
        ),
        sa.PrimaryKeyConstraint("completion_id", name=op.f("pk_completion_body")),
    )
    op.create_table(
        "qrel",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("collection_query_id", BIG_ID, nullable=False),
        sa.Column("document_id", BIG_ID, nullable=False),
        sa.Column("split", sa.String(length=50), nullable=False),
        sa.Column("relevance", sa.Integer(), nullable=False),
        sa.CheckConstraint("relevance >= 0", name=op.f("ck_qrel_relevance_not_negative")),
        sa.ForeignKeyConstraint(
            ["collection_query_id"],
            ["collection_query.id"],
            name=op.f("fk_qrel_collection_query_id_collection_query"),
        ),
        sa.ForeignKeyConstraint(["document_id"], ["document.id"], name=op.f("fk_qrel_document_id_document")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_qrel")),
        sa.UniqueConstraint(
            "collection_query_id",
            "document_id",
            "split",
            name=op.f("uq_qrel_collection_query_id_document_id_split"),
        ),
    )
    with op.batch_alter_table("qrel", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_qrel_document_id"), ["document_id"], unique=False)

    op.create_table(
        "run_request",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("run_id", BIG_ID, nullable=False),
        sa.Column("request_id", BIG_ID, nullable=False),
        sa.Column("plan_index", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("attributes", JSON, nullable=False),
        sa.Column("source", JSON, nullable=False),
        sa.Column("example_id", BIG_ID, nullable=True),
        sa.Column("outcome", sa.String(length=10), nullable=True),
        sa.Column("num_accepted", sa.Integer(), nullable=False),
        sa.CheckConstraint("outcome in ('accepted', 'partial', 'rejected')", name=op.f("ck_run_request_outcome")),
        sa.ForeignKeyConstraint(["example_id"], ["example.id"], name=op.f("fk_run_request_example_id_example")),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name=op.f("fk_run_request_request_id_request")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_request_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_request")),
        sa.UniqueConstraint("run_id", "plan_index", name=op.f("uq_run_request_run_id_plan_index")),
        sa.UniqueConstraint("run_id", "request_id", name=op.f("uq_run_request_run_id_request_id")),
    )
    with op.batch_alter_table("run_request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_request_request_id"), ["request_id"], unique=False)

    op.create_table(
        "release_item",
        sa.Column("release_id", BIG_ID, nullable=False),
        sa.Column("candidate_id", BIG_ID, nullable=False),
        sa.Column("split", sa.String(length=20), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_release_item_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_release_item_release_id_release")),
        sa.PrimaryKeyConstraint("release_id", "candidate_id", name=op.f("pk_release_item")),
    )
    op.create_table(
        "sourcing",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("candidate_id", BIG_ID, nullable=False),
        sa.Column("run_id", BIG_ID, nullable=False),
        sa.Column("request_id", BIG_ID, nullable=True),
        sa.Column("teacher_id", BIG_ID, nullable=True),
        sa.Column("retrieval_rank", sa.Integer(), nullable=True),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.Column("threshold", sa.Float(precision=53), nullable=True),
        sa.CheckConstraint("request_id is null or teacher_id is null", name=op.f("ck_sourcing_one_way_of_finding")),
        sa.ForeignKeyConstraint(["candidate_id"], ["candidate.id"], name=op.f("fk_sourcing_candidate_id_candidate")),
        sa.ForeignKeyConstraint(["request_id"], ["request.id"], name=op.f("fk_sourcing_request_id_request")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_sourcing_run_id_run")),
        sa.ForeignKeyConstraint(["teacher_id"], ["teacher.id"], name=op.f("fk_sourcing_teacher_id_teacher")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sourcing")),
    )
    with op.batch_alter_table("sourcing", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sourcing_run_id"), ["run_id"], unique=False)
        batch_op.create_index(
            "uq_sourcing_import",
            ["candidate_id", "run_id"],
            unique=True,
            sqlite_where=sa.text("teacher_id is null and request_id is null"),
            postgresql_where=sa.text("teacher_id is null and request_id is null"),
        )
        batch_op.create_index(
            "uq_sourcing_request",
            ["candidate_id", "run_id", "request_id"],
            unique=True,
            sqlite_where=sa.text("request_id is not null"),
            postgresql_where=sa.text("request_id is not null"),
        )
        batch_op.create_index(
            "uq_sourcing_teacher",
            ["candidate_id", "run_id", "teacher_id"],
            unique=True,
            sqlite_where=sa.text("teacher_id is not null"),
            postgresql_where=sa.text("teacher_id is not null"),
        )
    for table in ("release", "release_item", "release_event"):
        freeze(op.get_bind(), table)
