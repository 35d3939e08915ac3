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
    if must_exist and (path := _missing_file(url)):
        raise AppError(
            f"there is no store at {path}: mend --store or GRADUS_STORE, or make one with 'gradus import' first"
        )
    store = Store.open(url)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def opened_if_there(url: str | None = None) -> "Iterator[Store | None]":
    """The store at the URL or the default one, for what a command can do without; None where nobody made one."""
    from app.settings import Settings

    if url is None and Settings().store is None and _missing_file(Settings().store_url):
        yield None
        return
    with opened_store(url, must_exist=True) as store:
        yield store


def _missing_file(url: str) -> str | None:
    """The SQLite file that the URL names, where it is not there."""
    scheme, mark, path = url.partition(":///")
    is_file = mark and scheme.partition("+")[0] == "sqlite" and path
    return path if is_file and not Path(path.partition("?")[0]).exists() else None
