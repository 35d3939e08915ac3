"""The ordering audit: what a teacher says about the order that the ranks claim.

Candidates stream from the store; what is kept is a few numbers each. Results are grouped by the run that made the
candidates, because two runs over the same pairs are two ways of writing, and each has its own order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, exists, func, select
from sqlalchemy.orm import Session, aliased

from curation.audit.order_statistics import GroupAudit, Negative
from curation.audit.scope import scope_of
from curation.errors import CurationError
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.ledger import Run
from db.tables.texts import Passage, Query
from db.teachers import scores_likeness

_BATCH = 500
Progress = Callable[[int, int | None], None]
# Unit vectors of texts by digest, [texts, dimension]; a text that was never embedded is a row of NaN.
VectorsOf = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(slots=True)
class OrderAudit:
    """The order in a store by one teacher."""

    teacher: str
    version: str
    max_length: int | None
    groups: list[GroupAudit]

    def to_dict(self) -> dict[str, Any]:
        return {
            "teacher": {"name": self.teacher, "version": self.version, "max_length": self.max_length},
            "groups": [group.to_dict() for group in self.groups],
        }


def audit(
    store: Store,
    *,
    teacher: str,
    runs: Sequence[str] = (),
    vectors: VectorsOf | None = None,
    progress: Progress = lambda done, total: None,
) -> OrderAudit:
    """Audit every negative that the teacher (a name; its newest version) has scored.

    Args:
        runs: Names of the runs to audit; all with negatives when empty.
        vectors: Where embeddings by the teacher are had from; without it, similarity to the positive is unknown.

    Raises:
        CurationError: The teacher has scored nothing here, or a run has no negatives.
    """
    with store.read() as session:
        frozen = newest_teacher(session, teacher)
        scope = scope_of(session, runs)
        of_these = (Candidate.role == "negative") & scope.candidates()
        total = session.scalar(select(func.count()).select_from(Candidate).where(of_these))
        groups: dict[int, GroupAudit] = {}
        done = 0
        for examples in _batches(_by_example(_rows(session, frozen.id, scope.candidates()))):
            near = _similarity_to_positive(examples, vectors)
            for rows in examples:
                for run_id in sorted({row.run_id for row in rows}):
                    run = scope.runs[run_id]
                    group = groups.setdefault(run_id, GroupAudit(run.id, run.name, run.kind))
                    _add_example(group, [row for row in rows if row.run_id == run_id], frozen.max_length, near)
                done += len(rows)
            progress(done, total)
    return _report(frozen, list(groups.values()))


def audit_sample(
    store: Store, *, teacher: str, num_runs: int, num_examples: int, run_id: int | None = None, num_worst: int = 10
) -> OrderAudit:
    """As `audit`, but of the newest runs with scored negatives, and of each run its first examples by digest.

    The time it takes does not grow with the negatives of a run: for a page that has to answer soon. With `run_id`, of
    that run alone.
    """
    groups: list[GroupAudit] = []
    with store.read() as session:
        frozen = newest_teacher(session, teacher)
        newest = select(Run).order_by(Run.id.desc())
        for run in session.scalars(newest if run_id is None else newest.where(Run.id == run_id)):
            group = GroupAudit(run.id, run.name, run.kind, num_worst=num_worst)
            for rows in _by_example(_rows(session, frozen.id, _first_of_run(run.id, num_examples))):
                _add_example(group, rows, frozen.max_length, {})
            if group.positive:
                groups.append(group)
            if len(groups) == num_runs:
                break
    return _report(frozen, groups)


def _batches(examples: Iterator[list[Row[Any]]]) -> Iterator[tuple[list[Row[Any]], ...]]:
    while batch := tuple(islice(examples, _BATCH)):
        yield batch


def _by_example(rows: Iterator[Row[Any]]) -> Iterator[list[Row[Any]]]:
    return (list(of_one) for _, of_one in groupby(rows, key=lambda row: row.example_id))


def _report(teacher: Teacher, groups: list[GroupAudit]) -> OrderAudit:
    if not groups:
        raise CurationError(
            f"teacher {teacher.name!r} has scored no negatives: run 'gradus score' after generating or mining"
        )
    for group in groups:
        group.keep_worst()
    ordered = sorted(groups, key=lambda group: (group.kind, group.run))
    return OrderAudit(teacher.name, teacher.version, teacher.max_length, ordered)


def scoring_teachers(session: Session) -> list[str]:
    """Names of the teachers that have scored something, the newest first; margins of training are left out."""
    has_scored = exists().where(Score.teacher_id == Teacher.id)
    newest = select(Teacher.name).where(has_scored, scores_likeness()).order_by(Teacher.id.desc())
    return list(dict.fromkeys(session.scalars(newest)))


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
            Passage.digest,
            positive.digest.label("positive_digest"),
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


def _add_example(
    group: GroupAudit, rows: list[Row[Any]], max_length: int | None, near: dict[tuple[str, str], float]
) -> None:
    limit = max_length or 1 << 30
    negatives = [
        Negative(
            rank=row.rank,
            value=row.value,
            positive_value=row.positive_value,
            length_ratio=row.length / row.positive_length,
            is_truncated=(row.num_tokens or 0) > limit,
            to_positive=near.get((row.digest, row.positive_digest), float("nan")),
        )
        for row in rows
    ]
    first = rows[0]
    is_truncated = (first.positive_tokens or 0) > limit
    group.add_example(first.query, negatives, first.positive_value, is_truncated, first.example_id)


def _similarity_to_positive(
    examples: Sequence[list[Row[Any]]], vectors: VectorsOf | None
) -> dict[tuple[str, str], float]:
    """Cosine by (negative's digest, positive's digest); NaN where either was never embedded."""
    if vectors is None:
        return {}
    pairs = sorted({(row.digest, row.positive_digest) for rows in examples for row in rows})
    digests = sorted({digest for pair in pairs for digest in pair})
    place = {digest: row for row, digest in enumerate(digests)}
    unit = vectors(digests)
    negatives, positives = (unit[[place[pair[side]] for pair in pairs]] for side in (0, 1))
    return dict(zip(pairs, np.einsum("pe,pe->p", negatives, positives).tolist(), strict=True))
