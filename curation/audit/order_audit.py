"""The ordering audit: what a teacher says about the order that the ranks claim.

Candidates stream from the store; what is kept is a few numbers each. Results are grouped by the run that made the
candidates, because two runs over the same pairs are two ways of writing, and each has its own order.
"""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, exists, func, select
from sqlalchemy.orm import Session, aliased

from curation.audit.ordering import CROSS_GRADE_PAIRS, bootstrap_interval, kendall_tau_b, pair_outcomes
from curation.errors import CurationError
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.ledger import Run
from db.tables.texts import Passage, Query

_NUM_WORST = 10
Progress = Callable[[int, int | None], None]


@dataclass(slots=True)
class RankStatistics:
    """Numbers of the candidates at one rank, one entry each."""

    similarity: "array[float]" = field(default_factory=lambda: array("d"))
    positive: "array[float]" = field(default_factory=lambda: array("d"))
    length_ratio: "array[float]" = field(default_factory=lambda: array("d"))
    is_truncated: "array[int]" = field(default_factory=lambda: array("b"))

    def to_dict(self) -> dict[str, Any]:
        values, positive = np.array(self.similarity), np.array(self.positive)
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        return {
            "num": len(values),
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            "quartiles": [float(value) for value in quartiles],
            "above_positive": float((values > positive).mean()),
            "length_ratio": float(np.median(np.array(self.length_ratio))),
            "truncated": float(np.array(self.is_truncated).mean()),
        }


@dataclass(frozen=True, slots=True)
class Inversion:
    """A pair whose easier negative is the more similar one."""

    query: str
    harder_rank: int
    easier_rank: int
    gap: float


@dataclass(slots=True)
class GroupAudit:
    """One run's candidates, by rank (None: mined or imported, no rank)."""

    run: str
    kind: str
    ranks: dict[int | None, RankStatistics] = field(default_factory=dict)
    positive: "array[float]" = field(default_factory=lambda: array("d"))
    positive_is_truncated: "array[int]" = field(default_factory=lambda: array("b"))
    outcomes: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    right: "array[float]" = field(default_factory=lambda: array("d"))
    pairs: "array[float]" = field(default_factory=lambda: array("d"))
    taus: "array[float]" = field(default_factory=lambda: array("d"))
    num_inversions: int = 0
    worst: list[Inversion] = field(default_factory=list)

    def rungs(self) -> list[tuple[str, NDArray[np.float64]]]:
        """(label, similarities) per rung, the positive first: what the ladder draws."""
        ranks = sorted(self.ranks, key=_rank_order)
        negatives = [(rank_label(rank), np.array(self.ranks[rank].similarity)) for rank in ranks]
        return [("positive", np.array(self.positive)), *negatives]

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "kind": self.kind,
            "num_examples": len(self.positive),
            "positive": {
                "mean": float(np.mean(self.positive)),
                "truncated": float(np.mean(self.positive_is_truncated)),
            },
            "ranks": {rank_label(r): self.ranks[r].to_dict() for r in sorted(self.ranks, key=_rank_order)},
            "order": self._order() if sum(self.pairs) else None,
        }

    def _order(self) -> dict[str, Any]:
        right, pairs = np.array(self.right), np.array(self.pairs)
        by_pair = {
            f"N{hard}>N{easy}": float(np.mean(self.outcomes[hard, easy]))
            for hard, easy in CROSS_GRADE_PAIRS
            if (hard, easy) in self.outcomes
        }
        worst = [
            {"query": one.query, "harder": f"N{one.harder_rank}", "easier": f"N{one.easier_rank}", "gap": one.gap}
            for one in self.worst
        ]
        return {
            "accuracy": float(right.sum() / pairs.sum()),
            "interval_95": bootstrap_interval(right, pairs),
            "num_pairs": int(pairs.sum()),
            "by_pair": by_pair,
            "tau_b": float(np.mean(self.taus)) if self.taus else None,
            "num_inversions": self.num_inversions,
            "whole_order_right": float((right == pairs)[pairs > 0].mean()),
            "worst_inversions": worst,
        }


def rank_label(rank: int | None) -> str:
    """N1, N2, ... as in the papers; `mined` for candidates without a rank."""
    return "mined" if rank is None else f"N{rank}"


def _rank_order(rank: int | None) -> int:
    return 1_000 if rank is None else rank


@dataclass(slots=True)
class AuditReport:
    """The audit of a store by one teacher."""

    teacher: str
    version: str
    max_length: int | None
    groups: list[GroupAudit]

    def to_dict(self) -> dict[str, Any]:
        return {
            "teacher": {"name": self.teacher, "version": self.version, "max_length": self.max_length},
            "groups": [group.to_dict() for group in self.groups],
        }


def audit(store: Store, *, teacher: str, progress: Progress = lambda done, total: None) -> AuditReport:
    """Audit every negative that the teacher (a name; its newest version) has scored.

    Raises:
        CurationError: The teacher has scored nothing here.
    """
    with store.read() as session:
        frozen = newest_teacher(session, teacher)
        runs = {key: (name, kind) for key, name, kind in session.execute(select(Run.id, Run.name, Run.kind))}
        total = session.scalar(select(func.count()).select_from(Candidate).where(Candidate.role == "negative"))
        groups: dict[int, GroupAudit] = {}
        done = 0
        for rows in _by_example(_rows(session, frozen.id)):
            for run_id in sorted({row.run_id for row in rows}):
                group = groups.setdefault(run_id, GroupAudit(*runs[run_id]))
                _add_example(group, [row for row in rows if row.run_id == run_id], frozen.max_length)
            done += len(rows)
            progress(done, total)
    return _report(frozen, list(groups.values()))


def audit_sample(store: Store, *, teacher: str, num_runs: int, num_examples: int) -> AuditReport:
    """As `audit`, but of the newest runs with scored negatives, and of each run its first examples by digest.

    The time it takes does not grow with the negatives of a run: for a page that has to answer soon.
    """
    groups: list[GroupAudit] = []
    with store.read() as session:
        frozen = newest_teacher(session, teacher)
        for run in session.scalars(select(Run).order_by(Run.id.desc())):
            group = GroupAudit(run.name, run.kind)
            for rows in _by_example(_rows(session, frozen.id, _first_of_run(run.id, num_examples))):
                _add_example(group, rows, frozen.max_length)
            if group.positive:
                groups.append(group)
            if len(groups) == num_runs:
                break
    return _report(frozen, groups)


def _by_example(rows: Iterator[Row[Any]]) -> Iterator[list[Row[Any]]]:
    return (list(of_one) for _, of_one in groupby(rows, key=lambda row: row.example_id))


def _report(teacher: Teacher, groups: list[GroupAudit]) -> AuditReport:
    if not groups:
        raise CurationError(
            f"teacher {teacher.name!r} has scored no negatives: run 'gradus score' after generating or mining"
        )
    for group in groups:
        _keep_worst(group)
    ordered = sorted(groups, key=lambda group: (group.kind, group.run))
    return AuditReport(teacher.name, teacher.version, teacher.max_length, ordered)


def scoring_teachers(session: Session) -> list[str]:
    """Names of the teachers that have scored something, the newest first."""
    has_scored = exists().where(Score.teacher_id == Teacher.id)
    return list(dict.fromkeys(session.scalars(select(Teacher.name).where(has_scored).order_by(Teacher.id.desc()))))


def newest_teacher(session: Session, name: str) -> Teacher:
    """The newest version of the teacher that has scored something."""
    found = session.scalars(
        select(Teacher)
        .where(Teacher.name == name, exists().where(Score.teacher_id == Teacher.id))
        .order_by(Teacher.id.desc())
        .limit(1)
    ).one_or_none()
    if found is None:
        raise CurationError(f"teacher {name!r} has scored nothing in this store: run 'gradus score' first")
    return found


def _first_of_run(run: int, num_examples: int) -> ColumnElement[bool]:
    """The run's negatives in its first examples by digest, which is as good as drawn."""
    is_of_run = (Candidate.run_id == run) & (Candidate.role == "negative")
    has_some = select(Candidate.example_id).where(is_of_run)
    first = select(Example.id).where(Example.id.in_(has_some)).order_by(Example.digest).limit(num_examples)
    return is_of_run & Candidate.example_id.in_(first)


def _rows(session: Session, teacher: int, of: ColumnElement[bool] | None = None) -> Iterator[Row[Any]]:
    """Scored negatives (all, or `of` some) with their positive's numbers, example by example."""
    of_positive, positive = aliased(Score), aliased(Passage)
    statement = (
        select(
            Candidate.example_id,
            Candidate.run_id,
            Candidate.rank,
            Score.value,
            Score.num_tokens,
            func.length(Passage.text).label("length"),
            of_positive.value.label("positive_value"),
            of_positive.num_tokens.label("positive_tokens"),
            func.length(positive.text).label("positive_length"),
            Query.text.label("query"),
        )
        .join(Example, Candidate.example_id == Example.id)
        .join(Query, Example.query_id == Query.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .join(positive, Example.positive_id == positive.id)
        .join(
            Score,
            (Score.teacher_id == teacher)
            & (Score.query_id == Example.query_id)
            & (Score.passage_id == Candidate.passage_id),
        )
        .join(
            of_positive,
            (of_positive.teacher_id == teacher)
            & (of_positive.query_id == Example.query_id)
            & (of_positive.passage_id == Example.positive_id),
        )
        .where(Candidate.role == "negative", *([] if of is None else [of]))
        # By content, not by keys: the same rows in another store give the same figures to the last bit.
        .order_by(Example.digest, Candidate.rank, Passage.digest)
    )
    yield from session.execute(statement, execution_options={"yield_per": 5_000})


def _add_example(group: GroupAudit, rows: list[Row[Any]], max_length: int | None) -> None:
    limit = max_length or 1 << 30
    group.positive.append(rows[0].positive_value)
    group.positive_is_truncated.append((rows[0].positive_tokens or 0) > limit)
    for row in rows:
        rung = group.ranks.setdefault(row.rank, RankStatistics())
        rung.similarity.append(row.value)
        rung.positive.append(row.positive_value)
        rung.length_ratio.append(row.length / row.positive_length)
        rung.is_truncated.append((row.num_tokens or 0) > limit)
    ranked = [row for row in rows if row.rank is not None]
    outcomes = pair_outcomes([row.rank for row in ranked], [row.value for row in ranked])
    for pair, values in outcomes.items():
        group.outcomes.setdefault(pair, []).extend(values)
    group.right.append(sum(sum(values) for values in outcomes.values()))
    group.pairs.append(sum(len(values) for values in outcomes.values()))
    tau = kendall_tau_b([row.rank for row in ranked], [row.value for row in ranked])
    if tau is not None:
        group.taus.append(tau)
    _note_inversions(group, ranked)


def _note_inversions(group: GroupAudit, ranked: list[Row[Any]]) -> None:
    for index, harder in enumerate(ranked):
        for easier in ranked[index + 1 :]:
            if (harder.rank, easier.rank) in CROSS_GRADE_PAIRS and easier.value > harder.value:
                group.num_inversions += 1
                gap = round(easier.value - harder.value, 6)
                group.worst.append(Inversion(harder.query, harder.rank, easier.rank, gap))
    if len(group.worst) > 4 * _NUM_WORST:
        _keep_worst(group)


def _keep_worst(group: GroupAudit) -> None:
    group.worst = sorted(group.worst, key=lambda one: (-one.gap, one.query))[:_NUM_WORST]
