"""What is audited: the runs with negatives (all, or those that are named), their examples and their passages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Row, Select, Subquery, exists, func, literal, select, true, union_all
from sqlalchemy.orm import Session

from curation.errors import CurationError
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.texts import Passage

PAGE = 2_000


@dataclass(frozen=True, slots=True)
class Scope:
    """Runs under audit by id; `is_all` when no run was named."""

    runs: dict[int, Run]
    is_all: bool

    def candidates(self) -> ColumnElement[bool]:
        return true() if self.is_all else Candidate.run_id.in_(self.runs)

    def examples(self) -> ColumnElement[bool]:
        of_these = select(Candidate.example_id).where(Candidate.role == "negative", self.candidates())
        return Example.id.in_(of_these)

    def standings(self) -> Subquery:
        """(passage, example, role, run or null): each way in which a passage stands in an audited example."""
        positives = select(
            Example.positive_id.label("passage_id"),
            Example.id.label("example_id"),
            literal("positive").label("role"),
        ).where(self.examples())
        negatives = select(Candidate.passage_id, Candidate.example_id, Candidate.role).where(
            Candidate.role == "negative", self.candidates()
        )
        return union_all(positives, negatives).subquery("standing")

    def passages(self, session: Session) -> Iterator[Sequence[Row]]:
        """Pages of (id, text, the only example or null) of the different passages, by id."""
        standing = self.standings()
        first, last = func.min(standing.c.example_id), func.max(standing.c.example_id)
        of_passage = (
            select(standing.c.passage_id, first.label("first"), last.label("last"))
            .group_by(standing.c.passage_id)
            .subquery()
        )
        statement = (
            select(Passage.id, Passage.text, of_passage.c.first, of_passage.c.last)
            .join(of_passage, of_passage.c.passage_id == Passage.id)
            .order_by(Passage.id)
        )
        yield from pages(session, statement)


def pages(session: Session, statement: Select, size: int = PAGE) -> Iterator[Sequence[Row]]:
    """The rows, page by page, without holding more than one."""
    yield from session.execute(statement, execution_options={"yield_per": size}).partitions()


def scope_of(session: Session, names: Sequence[str]) -> Scope:
    """The named runs (by name), or all with negatives.

    Raises:
        CurationError: A name means no run with negatives.
    """
    has_negatives = exists().where(Candidate.run_id == Run.id, Candidate.role == "negative")
    runs = list(session.scalars(select(Run).where(has_negatives).order_by(Run.kind, Run.name, Run.id)))
    if unknown := sorted(set(names) - {run.name for run in runs}):
        there = ", ".join(sorted({run.name for run in runs})) or "none"
        raise CurationError(f"run {unknown[0]!r} has no negatives in this store; runs with negatives: {there}")
    chosen = {run.id: run for run in runs if not names or run.name in names}
    return Scope(chosen, is_all=not names)
