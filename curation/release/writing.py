"""The folder that a release is written into, beside its place: one call at a time; what the disk refuses is one line.

It appears under the release's name by one rename, which the caller makes; whatever else ends the call leaves nothing.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.errors import CurationError


@contextmanager
def new_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder, `parent`/.NAME.partial, that no other call writes into. It goes, unless it was renamed.

    Raises:
        CurationError: Another call writes there, or the disk has no room, no such place, or no permission.
    """
    partial = parent / f".{name}.partial"
    with disk_errors(parent, name):
        partial.mkdir(parents=True, exist_ok=True)
        held = os.open(partial, os.O_RDONLY)
        try:
            _hold(held, partial, name)
            try:
                _empty(partial)
                yield partial
            finally:
                if _is_still(held, partial):
                    shutil.rmtree(partial, ignore_errors=True)
        finally:
            os.close(held)


@contextmanager
def disk_errors(folder: Path, name: str) -> Iterator[None]:
    """What the disk refuses while a release is written, as one line.

    Raises:
        CurationError: No room, no such place, or no permission.
    """
    try:
        yield
    except OSError as error:
        raise CurationError(
            f"release {name!r} cannot be written to {folder}: {error}; make room there, or name another --folder"
        ) from error


def _hold(held: int, partial: Path, name: str) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system frees it for a call that was killed
    except BlockingIOError as error:
        raise CurationError(f"release {name!r} is being written by another call: wait for it") from error
    if not _is_still(held, partial):
        raise CurationError(f"release {name!r} was just written by another call: run the same command again")


def _is_still(held: int, folder: Path) -> bool:
    """Whether the open folder still has this name."""
    return folder.is_dir() and os.path.samestat(os.fstat(held), folder.stat())


def _empty(folder: Path) -> None:
    """Remove what a call that was killed left."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
