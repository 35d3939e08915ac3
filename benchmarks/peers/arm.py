"""What every arm shares: the command line, the request file, and the measuring of the whole process tree.

An arm is a script that hands `run` one function: it sends a job's requests through one client library and returns how
many good answers came back. `run` starts that function in a child process of its own, so that the measuring costs the
measured process nothing, and prints one JSON line: answers, wall_s, cpu_s, peak_mb. They are those of the whole job,
imports included; subtract a job of 20 requests for the cost per request. Linux only; to kill a run, kill its group.
"""

import argparse
import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHILD = "PEERS_ARM_CHILD"  # set in the child that sends
_SAMPLE_EVERY_S = 0.2
_ORPHAN_GRACE_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


@dataclass(frozen=True, slots=True)
class Job:
    """Requests to send, one Chat Completions body a line."""

    base_url: str
    lines: list[bytes]
    concurrency: int
    workdir: Path

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def prompts(self) -> tuple[list[str], dict[str, Any]]:
        """The prompts, and the parameters that all requests share, "model" among them.

        For peers that take a column of prompts and set the parameters once a run.
        """
        prompts, shared = [], None
        for number, body in enumerate(self.bodies(), 1):
            messages = body.pop("messages")
            if len(messages) != 1 or messages[0]["role"] != "user":
                raise ValueError(
                    f"line {number}: messages must be one user message, for this arm sends one prompt each"
                )
            if shared is not None and body != shared:
                raise ValueError(
                    f"line {number}: all but messages must be as in line 1, for this arm sets it once a run"
                )
            shared = body
            prompts.append(messages[0]["content"])
        if shared is None:
            raise ValueError("the request file is empty: give at least one line")
        return prompts, shared


def is_good(answer: str | None) -> bool:
    """Whether an answer is a JSON object that says something."""
    try:
        content = json.loads(answer or "")
    except ValueError:
        return False
    return isinstance(content, dict) and bool(content)


def run(send: Callable[[Job], int]) -> None:
    """Body of an arm's script: measures `send` on the job of the command line; exits 1 if answers are missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True, help="ends with /v1")
    parser.add_argument("--requests", required=True, type=Path, help="JSONL, one Chat Completions body a line")
    parser.add_argument("--concurrency", required=True, type=int)
    parser.add_argument("--workdir", required=True, type=Path, help="the peer's home folder; new for a fresh run")
    options = parser.parse_args()

    workdir = options.workdir.resolve()
    answers_file = workdir / "answers"
    lines = options.requests.read_bytes().splitlines()
    if os.environ.get(_CHILD):
        answers_file.write_text(str(send(Job(options.base_url, lines, options.concurrency, workdir))))
        return
    workdir.mkdir(parents=True, exist_ok=True)
    answers_file.unlink(missing_ok=True)
    figures = _measure_again(workdir)
    answers = int(answers_file.read_text()) if answers_file.exists() else 0
    print(json.dumps({"answers": answers, **figures}))
    sys.exit(answers != len(lines))


def _measure_again(workdir: Path) -> dict[str, float]:
    """Runs this very command as a child at home in `workdir`; its output goes to stderr."""
    # Processes that the child leaves behind become ours, so that their time is counted too.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    start = time.perf_counter()
    # The environment's own HOME and XDG folders would carry caches from run to run.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_"))}
    child = subprocess.Popen(
        [sys.executable, *sys.argv], stdout=sys.stderr, env={**kept, "HOME": str(workdir), _CHILD: "1"}
    )
    peak_kb = 0
    while child.poll() is None:
        peak_kb = max(peak_kb, sum(map(_memory_kb, _descendants(os.getpid()))))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_SAMPLE_EVERY_S)
    wall_s = time.perf_counter() - start
    _reap_orphans()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    # ru_maxrss, of the largest single process, sees the peaks between two samples.
    peak_kb = max(peak_kb, usage.ru_maxrss)
    return {
        "wall_s": round(wall_s, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_mb": round(peak_kb / 1024, 1),
    }


def _reap_orphans() -> None:
    """Waits for what the child left behind, and ends what does not end by itself."""
    deadline = time.monotonic() + _ORPHAN_GRACE_S
    with contextlib.suppress(ChildProcessError):  # none left
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                if time.monotonic() > deadline:
                    for orphan in _descendants(os.getpid()):
                        os.kill(orphan, 9)
                time.sleep(0.01)


def _descendants(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # ended meanwhile
        return []
    return children + [below for child in children for below in _descendants(child)]


def _memory_kb(pid: int) -> int:
    """Proportional set size: pages that processes share after a fork count once."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # ended meanwhile
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
