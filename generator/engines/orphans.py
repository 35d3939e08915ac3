"""Ends processes whose maker is gone; a program of its own, because a killed process cannot do it.

Usage: python orphans.py PID... with the maker holding the other end of its standard input.
"""

import os
import signal
import sys
import time
from contextlib import suppress

_PATIENCE_S = 10.0


def end_when_alone(pids: list[int]) -> None:
    """Wait for the end of standard input, which comes however the maker ends; then ask to end, then kill."""
    sys.stdin.buffer.read()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _PATIENCE_S
        while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    end_when_alone([int(pid) for pid in sys.argv[1:]])
