"""A consistent copy of a store while others read and write it."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from db.errors import StoreError
from db.merge import merge
from db.store import Store


def backup(store: Store, target: Path, *, progress: Callable[[int, int | None], None]) -> Path:
    """Copy the store into a new SQLite file; a server's store becomes one too, so that it can be carried away.

    Raises:
        StoreError: The target exists already, or cannot be written.
    """
    if target.exists():
        raise StoreError(f"{target} exists: name a new file, a backup never overwrites")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    if store.sqlite_path is not None:
        _copy_file(store.sqlite_path, partial, progress)
    else:
        copy = Store.open(f"sqlite:///{partial}")
        merge(copy, store, progress=progress)
        copy.close()
    partial.rename(target)
    return target


def _copy_file(source: Path, target: Path, progress: Callable[[int, int | None], None]) -> None:
    reading, writing = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reading.backup(
            writing, pages=4096, progress=lambda _status, remaining, total: progress(total - remaining, total)
        )
    except sqlite3.Error as error:
        raise StoreError(f"cannot copy {source} to {target}: {error}") from error
    finally:
        reading.close()
        writing.close()
