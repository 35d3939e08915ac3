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
_LOOKUP = 400


@dataclass(frozen=True, slots=True)
class Standing:
    """A passage that stands in audited examples: in `only` one of them, or in several (None)."""

    id: int
    text: str
    only: int | None


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

    def passages(self, session: Session) -> Iterator[list[Standing]]:
        """Pages of the different passages, by id. Texts are looked up by page, so that none is sorted."""
        standing = self.standings()
        first, last = func.min(standing.c.example_id).label("first"), func.max(standing.c.example_id).label("last")
        of_passage = select(standing.c.passage_id, first, last).group_by(standing.c.passage_id)
        for page in pages(session, of_passage.order_by(standing.c.passage_id)):
            texts = passage_texts(session, [row.passage_id for row in page])
            yield [
                Standing(row.passage_id, texts[row.passage_id], row.first if row.first == row.last else None)
                for row in page
            ]


def passage_texts(session: Session, keys: Sequence[int]) -> dict[int, str]:
    """Texts of passages by id."""
    found: dict[int, str] = {}
    for start in range(0, len(keys), _LOOKUP):
        rows = session.execute(select(Passage.id, Passage.text).where(Passage.id.in_(keys[start : start + _LOOKUP])))
        found.update({key: text for key, text in rows})
    return found


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
