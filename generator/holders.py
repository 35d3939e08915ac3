"""Who may hold a request: a process, a batch at a vendor, or a file of requests that somebody takes away to answer.

A process is named so that others on its machine can tell whether it still runs. What a batch or a file holds waits for
it, however long: to ask it otherwise would be to pay twice.
"""

import os
import socket
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from db.digest import digest_text

_LONGEST = 200
BATCH = "batch:"
FILE = "file:"


def this_process() -> str:
    """A name of its own for each desk of this process."""
    return f"{_machine()}:{os.getpid()}:{_started(os.getpid())}:{uuid4().hex[:8]}"


def batch_holder(digest: str) -> str:
    return f"{BATCH}{digest}"


def file_holder(path: Path) -> str:
    """A file of requests on this machine. One whose name is too long to be stored is never found to be gone."""
    name = f"{FILE}{_host()}:{path.resolve()}"
    return name if len(name) <= _LONGEST else f"{FILE}{_host()}:{digest_text(name)}"


def file_of(holder: str) -> Path | None:
    """The file of requests that a holder names; None for any other holder, or one of another machine."""
    if not holder.startswith(f"{FILE}{_host()}:"):
        return None
    path = Path(holder.removeprefix(f"{FILE}{_host()}:"))
    return path if path.is_absolute() else None


def waits_for_outside(holder: str) -> bool:
    """Whether a batch or a file holds it, whose lease no clock ends."""
    return holder.startswith((BATCH, FILE))


def is_dead(holder: str) -> bool:
    """Whether the holder is a process or file of this machine that is gone; of another machine's process we know only
    its clock."""
    if (path := file_of(holder)) is not None:
        return not path.exists()
    machine, _, rest = holder.partition(":")
    pid, _, rest = rest.partition(":")
    if machine != _machine() or not pid.isdigit() or not Path("/proc").is_dir():
        return False
    return _started(int(pid)) != rest.partition(":")[0]


def _host() -> str:
    return socket.gethostname().replace(":", "")


def _machine() -> str:
    """This boot of this machine, and this process' view of its process numbers; two containers differ."""
    parts = [_host()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13])
        parts.append(Path("/proc/self/ns/pid").readlink().name)
    return "-".join(part.replace(":", "") for part in parts)


def _started(pid: int) -> str:
    """When the process began, in clock ticks since boot: numbers are given out again, this is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
