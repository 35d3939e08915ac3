"""Reading many rows by key: one statement, prepared once, whatever the number of keys, and plain rows.

A list of keys as separate parameters, and rows that pass through the ORM, take longer than the database itself.
"""

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import ARRAY, BigInteger, ColumnElement, Row, any_, bindparam, func, select
from sqlalchemy.orm import Session


def among(session: Session, column: Any) -> ColumnElement[bool]:
    """The column's value is one of the keys that `read` is given."""
    if session.get_bind().dialect.name == "postgresql":
        matches: ColumnElement[bool] = column == any_(bindparam("keys", type_=ARRAY(BigInteger)))
        return matches
    listed = func.json_each(bindparam("keys")).table_valued("value")
    within: ColumnElement[bool] = column.in_(select(listed.c.value))
    return within


def read(session: Session, statement: Any, keys: Sequence[int]) -> list[tuple[Any, ...]]:
    """Rows of a statement with `among`, for these keys, in no order: the driver's own tuples, whose columns need to be
    numbers, texts or NULL."""
    result = session.connection().execute(statement, _given(session, keys))
    try:
        return list(result.cursor.fetchall())
    finally:
        result.close()


def read_rows(session: Session, statement: Any, keys: Sequence[int]) -> Sequence[Row[Any]]:
    """The same with named columns of any type."""
    return session.connection().execute(statement, _given(session, keys)).all()


def _given(session: Session, keys: Sequence[int]) -> dict[str, Any]:
    is_postgres = session.get_bind().dialect.name == "postgresql"
    return {"keys": list(keys) if is_postgres else orjson.dumps(list(keys)).decode()}
