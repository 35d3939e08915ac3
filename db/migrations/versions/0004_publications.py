"""A release's publications are events: kind `published`, with endpoint, repository, tag and commit in `details`"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from db.triggers import freeze

revision = "0004"
down_revision = "0003"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
KINDS = "kind in ('retired', 'published')"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("release_event", sa.Column("details", JSON, nullable=True))
        op.drop_constraint(op.f("ck_release_event_kind"), "release_event", type_="check")
        op.create_check_constraint(op.f("ck_release_event_kind"), "release_event", KINDS)
        return
    # SQLite cannot change a check, so the table is made again; dropping the old one drops its triggers.
    op.rename_table("release_event", "release_event_before")
    op.create_table(
        "release_event",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("release_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", JSON, nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(KINDS, name=op.f("ck_release_event_kind")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_release_event_release_id_release")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_event")),
        sa.UniqueConstraint("release_id", "kind", "at", name=op.f("uq_release_event_release_id_kind_at")),
    )
    op.execute(
        "insert into release_event (id, release_id, kind, reason, at) "
        "select id, release_id, kind, reason, at from release_event_before"
    )
    op.drop_table("release_event_before")
    freeze(op.get_bind(), "release_event")
