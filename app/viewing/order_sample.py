"""What the pages show of the order in one run: figures of a bounded sample, so that a page answers soon in any store.

A whole-store audit belongs to `gradus audit`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from curation.audit.order_audit import audit_sample
from curation.audit.order_statistics import GroupAudit, Inversion, rank_label
from curation.audit.ordering import GRADE_OF_RANK
from curation.audit.run_leaks import LeakMeter
from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Run
from db.tables.releases import Release

NUM_EXAMPLES = 500
NUM_INVERSIONS = 100
LEAK_TEXTS = 300
_NUM_BINS = 40


@dataclass(frozen=True, slots=True)
class OrderSample:
    """One run's order: `rungs` and `bins` are rows for charts, `figures` the audit's own dictionary."""

    run: str
    num_examples: int
    teacher: str
    max_length: int | None
    rungs: list[dict[str, Any]]
    bins: list[dict[str, Any]]
    figures: dict[str, Any]
    inversions: list[Inversion]


def audited_runs(session: Session, limit: int = 200) -> list[tuple[int, str]]:
    """(id, name with its kind) of the newest runs that brought negatives, those that write them by rank first."""
    has_some = exists().where(Candidate.run_id == Run.id, Candidate.role == "negative")
    newest = select(Run.id, Run.name, Run.kind).where(has_some).order_by(Run.kind != "generate", Run.id.desc())
    return [(key, f"{name} ({kind})") for key, name, kind in session.execute(newest.limit(limit))]


def order_samples(
    store: Store, teacher: str, *, num_runs: int = 1, run_id: int | None = None, num_examples: int = NUM_EXAMPLES
) -> list[OrderSample]:
    """The order in the newest runs, or in one, by its first examples by digest.

    Raises:
        CurationError: The teacher has scored nothing of it.
    """
    report = audit_sample(
        store, teacher=teacher, num_runs=num_runs, num_examples=num_examples, run_id=run_id, num_worst=NUM_INVERSIONS
    )
    return [_sample(group, report.teacher, report.max_length) for group in report.groups]


def _sample(group: GroupAudit, teacher: str, max_length: int | None) -> OrderSample:
    rungs = group.rungs()
    low = min(float(values.min()) for _, values in rungs)
    high = max(float(values.max()) for _, values in rungs)
    edges = np.linspace(low, max(high, low + 1e-6), _NUM_BINS + 1)
    rows, bins = [], []
    for label, values in rungs:
        lower, middle, upper = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
        facts = {"rung": label, "grade": grade_of(label)}
        numbers = {"mean": float(values.mean()), "lower": lower, "median": middle, "upper": upper}
        rows.append({**facts, "num": len(values), **numbers})
        counts, _ = np.histogram(values, edges)
        middles = (edges[:-1] + edges[1:]) / 2
        bins += [
            {**facts, "similarity": round(float(at), 4), "share": round(float(num) / len(values), 5)}
            for at, num in zip(middles, counts, strict=True)
        ]
    return OrderSample(
        group.run, len(group.positive), teacher, max_length, rows, bins, group.to_dict(), group.worst
    )  # fmt: skip


def grade_of(label: str) -> str:
    """What a rung means: positive, a grade, or mined."""
    return GRADE_OF_RANK.get(int(label[1:]), "easy") if label[1:].isdigit() else label


def sampled_leaks(store: Store, run_id: int, max_texts: int = LEAK_TEXTS) -> dict[str, Any]:
    """Both kinds of leak of a run with their causes, on at most so many texts of a set."""
    with store.read() as session:
        return LeakMeter(session, max_texts=max_texts, rank_label=rank_label).measure(run_id).to_dict()


def released_leaks(session: Session, run: str, limit: int = 20) -> tuple[str, dict[str, Any]] | None:
    """(release, leaks of the run) as the newest release with an audit of this run froze them; None without one."""
    newest = select(Release.name, Release.manifest).order_by(Release.id.desc()).limit(limit)
    for name, manifest in session.execute(newest):
        for group in (manifest.get("audit") or {}).get("groups", ()):
            if group.get("run") == run and group.get("leaks"):
                return name, group["leaks"]
    return None
