"""Opening the store that a command was told to use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from db.store import Store


@contextmanager
def opened_store(url: str | None) -> "Iterator[Store]":
    """The store at the URL, or the default one; closed afterwards."""
    from app.settings import Settings
    from db.store import Store

    store = Store.open(url or Settings().store_url)
    try:
        yield store
    finally:
        store.close()
