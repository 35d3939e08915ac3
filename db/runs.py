"""Runs: what was executed, from which resolved recipe, by which code, with what result."""

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.ledger import Rejection, Run


@dataclass(frozen=True, slots=True)
class Rejected:
    """One refused row, completion or candidate. `subject` names it (corpus.jsonl:17, a custom id)."""

    subject: str
    position: int
    reason: str
    detail: str


@cache
def code_version() -> str:
    """Version of the installed package, and the commit when run from a checkout."""
    version = metadata.version("gradus")
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}+{commit}"


def start_run(session: Session, kind: str, name: str, recipe: dict[str, Any], seed: int) -> Run:
    """The run of this kind and recipe: the one that is there, so that it resumes, or a new one."""
    digest = digest_of(recipe)
    known = select(Run).where(Run.kind == kind, Run.recipe_digest == digest)
    run = session.scalar(known)
    if run is None:
        # Two processes may begin the same run at the same moment; both get the one row.
        row = {
            "kind": kind,
            "name": name,
            "recipe": recipe,
            "recipe_digest": digest,
            "seed": seed,
            "code_version": code_version(),
            "started_at": utc_now(),
        }
        insert_missing(session, Run, [{**row, "state": "running"}])
        run = session.scalars(known).one()
    return run


def finish_run(session: Session, run: Run, totals: dict[str, Any], *, state: str = "finished") -> None:
    """Record how the run ended. The same end again writes nothing."""
    stored = session.merge(run, load=True)
    if stored.state == state and stored.totals == totals:
        return
    stored.state, stored.totals, stored.finished_at = state, totals, utc_now()


def add_rejections(session: Session, run_id: int, rows: Sequence[Rejected]) -> int:
    """Record refusals; one that is recorded already is left alone. Returns how many were new."""
    return insert_missing(session, Rejection, [{"run_id": run_id, **asdict(row)} for row in rows])
