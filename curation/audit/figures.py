"""The whole audit as one report: order by every scorer, leaks, openings, duplicates, contamination, diversity.

This is what the terminal, the JSON, the HTML report and the gates of a release read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from curation.audit.contamination import Contamination, Watch, contamination, evaluation_of
from curation.audit.diversity import Cell, diversity
from curation.audit.duplicates import SHINGLE_WORDS, Found, duplicates_across, duplicates_within
from curation.audit.openings import Openings, repeated_openings
from curation.audit.order_audit import OrderAudit, VectorsOf, audit, newest_teacher
from curation.audit.order_statistics import rank_label
from curation.audit.run_leaks import LeakMeter, RunLeaks
from curation.audit.scope import scope_of
from db.store import Store

MAX_LEAK_TEXTS = 2_000
Progress = Callable[[int, int | None], None]


@dataclass(slots=True)
class AuditReport:
    """Every figure of the audit; `order` by the first teacher is the one that stands at the top."""

    order: OrderAudit
    more_orders: list[OrderAudit]
    leaks: dict[int, RunLeaks]
    openings: dict[int, Openings]
    within: Found
    across: Found
    contamination: Contamination
    diversity: list[Cell]
    unscored_runs: list[str]
    max_leak_texts: int

    def to_dict(self) -> dict[str, Any]:
        audited = self.order.to_dict()
        for group, figures in zip(self.order.groups, audited["groups"], strict=True):
            figures["leaks"] = self.leaks[group.run_id].to_dict()
            figures["openings"] = self.openings[group.run_id].to_dict()
        return {
            **audited,
            "scorers": [order.to_dict() for order in self.more_orders],
            "unscored_runs": self.unscored_runs,
            "max_leak_texts": self.max_leak_texts,
            "duplicates": {"within_examples": self.within.to_dict(), "across_examples": self.across.to_dict()},
            "contamination": self.contamination.to_dict(),
            "diversity": [cell.to_dict() for cell in self.diversity],
        }


def audit_figures(
    store: Store,
    *,
    teacher: str,
    more_teachers: Sequence[str] = (),
    runs: Sequence[str] = (),
    evaluation: Sequence[str] = (),
    vectors_of: Callable[[str, str], VectorsOf | None] = lambda name, version: None,
    max_leak_texts: int = MAX_LEAK_TEXTS,
    seed: int = 0,
    stage: Callable[[str], Progress] = lambda what: lambda done, total: None,
) -> AuditReport:
    """Audit the runs with negatives (all, or those that are named).

    Args:
        teacher: Whose scores stand at the top (a name; its newest version); `more_teachers` stand beside it.
        evaluation: `COLLECTION` or `COLLECTION:SPLIT` that must not stand in the examples; all dev and test splits
            when empty.
        vectors_of: Where a teacher's embeddings are had from, by its name and version; for similarity to the positive.
        max_leak_texts: Most texts of a set when leaks are measured, drawn by digest.
        stage: Told what is being done; gives what is told how far it is.

    Raises:
        CurationError: The teacher has scored nothing, or a run or evaluation split is not in the store.
    """
    with store.read() as session:
        scope = scope_of(session, runs)
        held_out = evaluation_of(session, evaluation)
    orders = [
        _order(store, name, runs, vectors_of, stage(f"Order by {name}"))
        for name in dict.fromkeys([teacher, *more_teachers])
    ]
    with store.read() as session:
        # Memory is freed as the stages pass; each holds a few bytes a text.
        within = duplicates_within(session, scope, progress=stage("Duplicates within examples"))
        watch = Watch(held_out.positives, SHINGLE_WORDS)
        across = duplicates_across(session, scope, look=watch.look, progress=stage("Duplicates across examples"))
        found = contamination(session, scope, held_out, watch)
        groups = orders[0].groups
        progress = stage("Leaks")
        meter = LeakMeter(session, max_texts=max_leak_texts, seed=seed, rank_label=rank_label)
        leaks: dict[int, RunLeaks] = {}
        for done, group in enumerate(groups):
            progress(done, len(groups))
            leaks[group.run_id] = meter.measure(group.run_id)
        stage("Openings and diversity")
        openings = {group.run_id: repeated_openings(session, group.run_id) for group in groups}
        cells = diversity(session, scope)
    scored = {group.run_id for group in groups}
    unscored = [run.name for key, run in scope.runs.items() if key not in scored]
    return AuditReport(orders[0], orders[1:], leaks, openings, within, across, found, cells, unscored, max_leak_texts)


def _order(
    store: Store,
    teacher: str,
    runs: Sequence[str],
    vectors_of: Callable[[str, str], VectorsOf | None],
    progress: Progress,
) -> OrderAudit:
    with store.read() as session:
        version = newest_teacher(session, teacher).version
    return audit(store, teacher=teacher, runs=runs, vectors=vectors_of(teacher, version), progress=progress)
