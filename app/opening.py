"""Opening the store that a command was told to use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import AppError

if TYPE_CHECKING:
    from db.store import Store


@contextmanager
def opened_store(url: str | None, *, must_exist: bool = False) -> "Iterator[Store]":
    """The store at the URL, or the default one; closed afterwards.

    Raises:
        AppError: There is no such file, and the command only looks: a slip in the name must not make an empty store.
    """
    from app.settings import Settings
    from db.store import Store

    url = url or Settings().store_url
    if must_exist and (path := missing_file(url)):
        raise AppError(
            f"there is no store at {path}: mend --store or GRADUS_STORE, or make one with 'gradus import' first"
        )
    store = Store.open(url)
    try:
        yield store
    finally:
        store.close()


def missing_file(url: str) -> str | None:
    """The SQLite file that the URL names, where it is not there."""
    scheme, mark, path = url.partition(":///")
    is_file = mark and scheme.partition("+")[0] == "sqlite" and path
    return path if is_file and not Path(path.partition("?")[0]).exists() else None
