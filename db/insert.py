"""Bulk inserts that leave rows alone which are already there, in both dialects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.schema import ScalarElementColumnDefault


def as_row(value: Any) -> dict[str, Any]:
    """A slotted dataclass of plain values as a row; `dataclasses.asdict` would deep-copy each of them."""
    return {name: getattr(value, name) for name in value.__slots__}


def insert_missing(session: Session, table: type[DeclarativeBase] | Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows; one that would break a unique constraint is left out. Returns how many were new.

    All rows need the same keys; columns that are left out are null or have a default value.
    """
    if not rows:
        return 0
    target = table if isinstance(table, Table) else table.__table__
    assert isinstance(target, Table)
    connection = session.connection()
    statement = _prepared(connection.dialect, target, frozenset(rows[0]))
    # The driver gets the rows as they are: SQLAlchemy would build and check a parameter set for each of them, which
    # takes as long as the insert itself.
    values = [statement.parameters(row) for row in rows]
    if connection.dialect.paramstyle == "qmark":
        return connection.exec_driver_sql(statement.sql, values).rowcount
    named = [dict(zip(statement.names, row, strict=True)) for row in values]
    return connection.exec_driver_sql(statement.sql, named, execution_options={"preserve_rowcount": True}).rowcount


@dataclass(frozen=True, slots=True)
class _Statement:
    """An insert, the columns in the order of its parameters, their converters, and values of columns not given."""

    sql: str
    names: tuple[str, ...]
    converters: tuple[tuple[int, Any], ...]
    defaults: Mapping[str, Any]

    def parameters(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        given = {**self.defaults, **row} if self.defaults else row
        values = [given[name] for name in self.names]
        for place, convert in self.converters:
            values[place] = convert(values[place])
        return tuple(values)


@lru_cache(maxsize=128)
def _prepared(dialect: Dialect, table: Table, given: frozenset[str]) -> _Statement:
    insert = postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)
    compiled = insert.on_conflict_do_nothing().compile(dialect=dialect, column_keys=sorted(given))
    names = tuple(compiled.positiontup or compiled.params)
    types = [table.columns[name].type.dialect_impl(dialect) for name in names]
    converters = [(place, type_.bind_processor(dialect)) for place, type_ in enumerate(types)]
    return _Statement(
        str(compiled),
        names,
        tuple((place, convert) for place, convert in converters if convert is not None),
        {name: _default(table, name) for name in names if name not in given},
    )


def _default(table: Table, name: str) -> Any:
    default = table.columns[name].default
    assert isinstance(default, ScalarElementColumnDefault), f"{table.name}.{name} has to be given"
    return default.arg
