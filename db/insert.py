"""Bulk inserts that leave rows alone which are already there, in both dialects."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

# PostgreSQL's wire protocol takes 65,535 parameters a statement, SQLite 32,766.
_MAX_PARAMETERS = 30_000


def insert_missing(session: Session, table: type[DeclarativeBase] | Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows; one that would break a unique constraint is left out. Returns how many were new.

    All rows need the same keys.
    """
    if not rows:
        return 0
    target = table if isinstance(table, Table) else table.__table__
    assert isinstance(target, Table)
    per_statement = max(1, _MAX_PARAMETERS // len(target.columns))
    num_new = 0
    for start in range(0, len(rows), per_statement):
        statement = _insert(session, target).values([dict(row) for row in rows[start : start + per_statement]])
        # PostgreSQL's driver reports the count only when asked to keep it.
        result = session.connection().execute(statement, execution_options={"preserve_rowcount": True})
        num_new += result.rowcount
    return num_new


def _insert(session: Session, table: Table) -> Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
