"""Budgets held across processes, leases with a holder, and batches at a vendor"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    for name, kind in (("usd", sa.Float(53)), ("tokens", sa.BigInteger())):
        for what in ("spent", "reserved"):
            op.add_column("run", sa.Column(f"{what}_{name}", kind, nullable=False, server_default="0"))
        op.add_column("request", sa.Column(f"reserved_{name}", kind, nullable=True))
    op.add_column("request", sa.Column("lease_holder", sa.String(length=200), nullable=True))
    op.create_index("ix_request_lease_holder", "request", ["lease_holder"])
    op.add_column("run_request", sa.Column("notes", JSON, nullable=True))
    op.create_index("uq_run_request_run_id_custom_id", "run_request", ["run_id", "custom_id"], unique=True)
    if op.get_bind().dialect.name == "postgresql":  # SQLite's integers are 64 bits wide whatever their name
        op.alter_column("run_request", "plan_index", type_=sa.BigInteger())
    op.create_table(
        "vendor_batch",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("run_id", BIG_ID, nullable=False),
        sa.Column("external_id", sa.String(length=200), nullable=True),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("num_requests", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state in ('submitting', 'submitted', 'collected', 'failed')", name=op.f("ck_vendor_batch_state")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_vendor_batch_run_id_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vendor_batch")),
        sa.UniqueConstraint("digest", name=op.f("uq_vendor_batch_digest")),
    )
    op.create_index("ix_vendor_batch_run_id", "vendor_batch", ["run_id"])
