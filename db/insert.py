"""Bulk inserts that leave rows alone which are already there, in both dialects."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session


def insert_missing(session: Session, table: type[DeclarativeBase] | Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows; one that would break a unique constraint is left out. Returns how many were new.

    All rows need the same keys.
    """
    if not rows:
        return 0
    target = table if isinstance(table, Table) else table.__table__
    assert isinstance(target, Table)
    # One prepared statement for all rows: a VALUES list of this length would be compiled anew each time.
    result = session.connection().execute(
        _insert(session, target), [dict(row) for row in rows], execution_options={"preserve_rowcount": True}
    )
    return result.rowcount


def _insert(session: Session, table: Table) -> Insert:
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
