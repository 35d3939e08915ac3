"""Review sessions and their decisions, and seeds of 64 bits on PostgreSQL"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from db.triggers import freeze

revision = "0006"
down_revision = "0005"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)
REMEDY = "a change is a new row: a further event, a new version, another session"
CHECK_VIEW = """
create view current_decision_check as
select d.id as decision_id, i.session_id, d.item_id, d.reviewer_id, d.candidate_id, d.kind,
    case when d.kind in ('keep', 'drop', 'regrade', 'false_negative', 'edit') then 'verdict'
        when d.kind = 'swap' then 'order' when d.kind = 'settle' then 'settled' else 'example' end as aspect
from decision d join review_item i on i.id = d.item_id
where d.kind <> 'undo' and not exists (select 1 from decision u where u.undoes_id = d.id)
"""


def upgrade() -> None:
    _people_and_sessions()
    _items()
    _slots()
    _events()
    _current()
    op.execute(CHECK_VIEW)
    for table in ("rubric", "review_item", "item_candidate", "decision"):
        freeze(op.get_bind(), table, REMEDY)
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers have 64 bits
        op.alter_column("run", "seed", type_=sa.BigInteger(), existing_nullable=False)


def _people_and_sessions() -> None:
    op.create_table(
        "reviewer",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(length=300), nullable=False),
        sa.Column("pseudonym", sa.String(length=40), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("role in ('reader', 'reviewer', 'admin')", name=op.f("ck_reviewer_role")),
        sa.CheckConstraint("length(name) > 0", name=op.f("ck_reviewer_name_not_empty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviewer")),
        sa.UniqueConstraint("name", name=op.f("uq_reviewer_name")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_reviewer_pseudonym")),
    )
    op.create_table(
        "rubric",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("ck_rubric_version_from_1")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rubric")),
        sa.UniqueConstraint("name", "digest", name=op.f("uq_rubric_name_digest")),
        sa.UniqueConstraint("name", "version", name=op.f("uq_rubric_name_version")),
    )
    op.create_table(
        "review_session",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("definition", JSON, nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("rubric_id", BIG_ID, nullable=False),
        sa.Column("overlap", sa.Integer(), nullable=False),
        sa.Column("num_slots", sa.Integer(), nullable=False),
        sa.Column("is_blind", sa.Boolean(), nullable=False),
        sa.Column("is_by_invitation", sa.Boolean(), nullable=False),
        sa.Column("lease_s", sa.Float(precision=53), nullable=False),
        sa.Column("seed", BIG_ID, nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("created_by", BIG_ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.CheckConstraint("state in ('open', 'closed')", name=op.f("ck_review_session_state")),
        sa.CheckConstraint("lease_s > 0", name=op.f("ck_review_session_lease_is_positive")),
        sa.CheckConstraint("overlap >= 1", name=op.f("ck_review_session_overlap_from_1")),
        sa.ForeignKeyConstraint(["created_by"], ["reviewer.id"], name=op.f("fk_review_session_created_by_reviewer")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_review_session_rubric_id_rubric")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_session")),
        sa.UniqueConstraint("name", name=op.f("uq_review_session_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_review_session_uid")),
    )


def _items() -> None:
    op.create_table(
        "review_item",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("session_id", BIG_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("example_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("repeats_position", sa.Integer(), nullable=True),
        sa.Column("suspicion", sa.Float(precision=53), nullable=True),
        sa.CheckConstraint(
            "(kind = 'repeat') = (repeats_position is not null)", name=op.f("ck_review_item_repeat_names_its_first")
        ),
        sa.CheckConstraint("kind in ('regular', 'gold', 'repeat')", name=op.f("ck_review_item_kind")),
        sa.CheckConstraint("repeats_position < position", name=op.f("ck_review_item_repeat_comes_later")),
        sa.ForeignKeyConstraint(["example_id"], ["example.id"], name=op.f("fk_review_item_example_id_example")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["review_session.id"], name=op.f("fk_review_item_session_id_review_session")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_item")),
        sa.UniqueConstraint("session_id", "position", name=op.f("uq_review_item_session_id_position")),
    )
    op.create_index("ix_review_item_example_id", "review_item", ["example_id"])
    op.create_index(
        "ix_review_item_repeats_position",
        "review_item",
        ["session_id", "repeats_position"],
        sqlite_where=sa.text("repeats_position is not null"),
        postgresql_where=sa.text("repeats_position is not null"),
    )
    op.create_table(
        "session_reviewer",
        sa.Column("session_id", BIG_ID, nullable=False),
        sa.Column("reviewer_id", BIG_ID, nullable=False),
        sa.Column("is_invited", sa.Boolean(), nullable=False),
        sa.Column("cursor", sa.Integer(), nullable=False),
        sa.Column("num_finished", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["reviewer_id"], ["reviewer.id"], name=op.f("fk_session_reviewer_reviewer_id_reviewer")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["review_session.id"], name=op.f("fk_session_reviewer_session_id_review_session")
        ),
        sa.PrimaryKeyConstraint("session_id", "reviewer_id", name=op.f("pk_session_reviewer")),
    )


def _slots() -> None:
    op.create_table(
        "assignment",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("session_id", BIG_ID, nullable=False),
        sa.Column("item_id", BIG_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("reviewer_id", BIG_ID, nullable=True),
        sa.Column("opened_at", TIME, nullable=True),
        sa.Column("leased_until", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("outcome", sa.String(length=10), nullable=True),
        sa.CheckConstraint(
            "outcome in ('decided', 'accepted', 'skipped', 'flagged')", name=op.f("ck_assignment_outcome")
        ),
        sa.CheckConstraint(
            "(opened_at is null) = (leased_until is null)", name=op.f("ck_assignment_lease_has_a_clock")
        ),
        sa.CheckConstraint(
            "(outcome is null) = (finished_at is null)", name=op.f("ck_assignment_finished_has_an_outcome")
        ),
        sa.CheckConstraint(
            "outcome is null or (reviewer_id is not null and opened_at is not null)",
            name=op.f("ck_assignment_finished_by_someone"),
        ),
        sa.CheckConstraint("slot >= 1", name=op.f("ck_assignment_slot_from_1")),
        sa.ForeignKeyConstraint(["item_id"], ["review_item.id"], name=op.f("fk_assignment_item_id_review_item")),
        sa.ForeignKeyConstraint(["reviewer_id"], ["reviewer.id"], name=op.f("fk_assignment_reviewer_id_reviewer")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["review_session.id"], name=op.f("fk_assignment_session_id_review_session")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignment")),
        sa.UniqueConstraint("item_id", "reviewer_id", name=op.f("uq_assignment_item_id_reviewer_id")),
        sa.UniqueConstraint("item_id", "slot", name=op.f("uq_assignment_item_id_slot")),
    )
    op.create_index(
        "ix_assignment_leased",
        "assignment",
        ["session_id", "leased_until"],
        sqlite_where=sa.text("outcome is null and leased_until is not null"),
        postgresql_where=sa.text("outcome is null and leased_until is not null"),
    )
    op.create_index("ix_assignment_of_reviewer", "assignment", ["session_id", "reviewer_id", "finished_at"])
    op.create_index(
        "ix_assignment_unfinished",
        "assignment",
        ["session_id", "position", "slot"],
        sqlite_where=sa.text("outcome is null"),
        postgresql_where=sa.text("outcome is null"),
    )
    op.create_table(
        "item_candidate",
        sa.Column("item_id", BIG_ID, nullable=False),
        sa.Column("candidate_id", BIG_ID, nullable=False),
        sa.Column("stratum", sa.String(length=100), nullable=True),
        sa.Column("suspicion", sa.Float(precision=53), nullable=True),
        sa.Column("reasons", JSON, nullable=True),
        sa.Column("expected", sa.String(length=20), nullable=True),
        sa.Column("expected_grade", sa.String(length=10), nullable=True),
        sa.CheckConstraint(
            "expected in ('keep', 'drop', 'regrade', 'false_negative')", name=op.f("ck_item_candidate_expected")
        ),
        sa.CheckConstraint(
            "expected_grade in ('hard', 'medium', 'easy')", name=op.f("ck_item_candidate_expected_grade")
        ),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_item_candidate_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(["item_id"], ["review_item.id"], name=op.f("fk_item_candidate_item_id_review_item")),
        sa.PrimaryKeyConstraint("item_id", "candidate_id", name=op.f("pk_item_candidate")),
    )
    op.create_index("ix_item_candidate_candidate_id", "item_candidate", ["candidate_id"])


def _events() -> None:
    op.create_table(
        "decision",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=False),
        sa.Column("item_id", BIG_ID, nullable=False),
        sa.Column("assignment_id", BIG_ID, nullable=True),
        sa.Column("reviewer_id", BIG_ID, nullable=False),
        sa.Column("candidate_id", BIG_ID, nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("verdict", sa.String(length=20), nullable=True),
        sa.Column("grade", sa.String(length=10), nullable=True),
        sa.Column("other_candidate_id", BIG_ID, nullable=True),
        sa.Column("payload", JSON, nullable=True),
        sa.Column("rubric_id", BIG_ID, nullable=False),
        sa.Column("shown_at", TIME, nullable=True),
        sa.Column("decided_at", TIME, nullable=False),
        sa.Column("client_ms", sa.Integer(), nullable=True),
        sa.Column("undoes_id", BIG_ID, nullable=True),
        sa.Column("bulk_id", sa.String(length=32), nullable=True),
        sa.CheckConstraint(
            "(candidate_id is null) = (kind in ('accept_all', 'skip', 'flag', 'undo'))",
            name=op.f("ck_decision_names_what_it_is_about"),
        ),
        sa.CheckConstraint(
            "(kind <> 'regrade' and coalesce(verdict, '') <> 'regrade') or grade is not null",
            name=op.f("ck_decision_regrade_has_a_grade"),
        ),
        sa.CheckConstraint("(kind = 'settle') = (verdict is not null)", name=op.f("ck_decision_settled_has_a_verdict")),
        sa.CheckConstraint(
            "(kind = 'undo') = (undoes_id is not null)", name=op.f("ck_decision_undo_names_its_decision")
        ),
        sa.CheckConstraint(
            "assignment_id is null or kind = 'undo' or shown_at is not null", name=op.f("ck_decision_was_shown")
        ),
        sa.CheckConstraint("grade in ('hard', 'medium', 'easy')", name=op.f("ck_decision_grade")),
        sa.CheckConstraint(
            "kind in ('keep', 'drop', 'regrade', 'false_negative', 'edit', 'swap', 'accept_all', 'skip', 'flag', "
            "'undo', 'settle')",
            name=op.f("ck_decision_kind"),
        ),
        sa.CheckConstraint(
            "kind not in ('swap', 'edit') or other_candidate_id is not null", name=op.f("ck_decision_names_the_other")
        ),
        sa.CheckConstraint(
            "verdict in ('keep', 'drop', 'regrade', 'false_negative', 'edit')", name=op.f("ck_decision_verdict")
        ),
        sa.CheckConstraint("other_candidate_id <> candidate_id", name=op.f("ck_decision_other_is_another")),
        sa.ForeignKeyConstraint(
            ["assignment_id"], ["assignment.id"], name=op.f("fk_decision_assignment_id_assignment")
        ),
        sa.ForeignKeyConstraint(["candidate_id"], ["candidate.id"], name=op.f("fk_decision_candidate_id_candidate")),
        sa.ForeignKeyConstraint(["item_id"], ["review_item.id"], name=op.f("fk_decision_item_id_review_item")),
        sa.ForeignKeyConstraint(
            ["other_candidate_id"], ["candidate.id"], name=op.f("fk_decision_other_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(["reviewer_id"], ["reviewer.id"], name=op.f("fk_decision_reviewer_id_reviewer")),
        sa.ForeignKeyConstraint(["rubric_id"], ["rubric.id"], name=op.f("fk_decision_rubric_id_rubric")),
        sa.ForeignKeyConstraint(["undoes_id"], ["decision.id"], name=op.f("fk_decision_undoes_id_decision")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
        sa.UniqueConstraint("uid", name=op.f("uq_decision_uid")),
        sa.UniqueConstraint("undoes_id", name=op.f("uq_decision_undoes_id")),
    )
    op.create_index("ix_decision_assignment_id", "decision", ["assignment_id"])
    op.create_index(
        "ix_decision_bulk_id",
        "decision",
        ["bulk_id"],
        sqlite_where=sa.text("bulk_id is not null"),
        postgresql_where=sa.text("bulk_id is not null"),
    )
    op.create_index("ix_decision_candidate_id", "decision", ["candidate_id"])
    op.create_index("ix_decision_item_id", "decision", ["item_id"])
    op.create_index("ix_decision_reviewer_id", "decision", ["reviewer_id"])


def _current() -> None:
    op.create_table(
        "current_decision",
        sa.Column("decision_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("session_id", BIG_ID, nullable=False),
        sa.Column("item_id", BIG_ID, nullable=False),
        sa.Column("reviewer_id", BIG_ID, nullable=False),
        sa.Column("candidate_id", BIG_ID, nullable=True),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("aspect", sa.String(length=10), nullable=False),
        sa.ForeignKeyConstraint(
            ["candidate_id"], ["candidate.id"], name=op.f("fk_current_decision_candidate_id_candidate")
        ),
        sa.ForeignKeyConstraint(
            ["decision_id"], ["decision.id"], name=op.f("fk_current_decision_decision_id_decision")
        ),
        sa.ForeignKeyConstraint(["item_id"], ["review_item.id"], name=op.f("fk_current_decision_item_id_review_item")),
        sa.ForeignKeyConstraint(
            ["reviewer_id"], ["reviewer.id"], name=op.f("fk_current_decision_reviewer_id_reviewer")
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["review_session.id"], name=op.f("fk_current_decision_session_id_review_session")
        ),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_current_decision")),
    )
    op.create_index("ix_current_decision_candidate_id", "current_decision", ["candidate_id"])
    op.create_index("ix_current_decision_item_id", "current_decision", ["item_id"])
    op.create_index("ix_current_decision_of_reviewer", "current_decision", ["session_id", "reviewer_id", "decision_id"])
    op.create_index(
        "uq_current_decision_candidate",
        "current_decision",
        ["item_id", "reviewer_id", "candidate_id", "aspect"],
        unique=True,
        sqlite_where=sa.text("candidate_id is not null"),
        postgresql_where=sa.text("candidate_id is not null"),
    )
    op.create_index(
        "uq_current_decision_example",
        "current_decision",
        ["item_id", "reviewer_id", "aspect"],
        unique=True,
        sqlite_where=sa.text("candidate_id is null"),
        postgresql_where=sa.text("candidate_id is null"),
    )
    op.create_index(
        "uq_current_decision_settled",
        "current_decision",
        ["item_id", "candidate_id"],
        unique=True,
        sqlite_where=sa.text("aspect = 'settled'"),
        postgresql_where=sa.text("aspect = 'settled'"),
    )
