"""Who uploads or collects a batch, and on which run a reservation is booked"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("vendor_batch", sa.Column("holder", sa.String(length=200), nullable=True))
    op.add_column("vendor_batch", sa.Column("held_until", sa.DateTime(timezone=True), nullable=True))
    # Alembic would rebuild SQLite's table, the largest but one, for the sake of the constraint.
    kind = "bigint" if op.get_bind().dialect.name == "postgresql" else "integer"
    op.execute(
        f"alter table request add column reserved_by {kind} constraint fk_request_reserved_by_run references run (id)"
    )
