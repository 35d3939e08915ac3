"""Transactions that are tried again when the database ends them for the sake of another's: a deadlock, or a lock that
never came. Two processes that drain one run meet both."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from db.store import Store
from generator.errors import EngineStopped

_TRIES = 5
_GAVE_WAY = frozenset({"40P01", "40001", "55P03"})
_Result = TypeVar("_Result")


def in_transaction(store: Store, work: Callable[[Session], _Result]) -> _Result:
    """What `work` returns, committed; it is called again when the database made it give way.

    Raises:
        EngineStopped: It gave way again and again.
    """
    for turn in range(_TRIES):
        try:
            with store.write() as session:
                return work(session)
        except OperationalError as error:
            if not _gave_way(error):
                raise
            failure = error
            time.sleep(0.02 * 2**turn * random.random())
    raise EngineStopped(f"the store cannot be written ({first_line(failure)}); run again to go on") from failure


def _gave_way(error: OperationalError) -> bool:
    return getattr(error.orig, "sqlstate", None) in _GAVE_WAY or "database is locked" in str(error.orig)


def first_line(error: SQLAlchemyError) -> str:
    """What the database said, in one line."""
    told = getattr(error, "orig", None) or error
    return (str(told).strip() or type(told).__name__).splitlines()[0][:300]
