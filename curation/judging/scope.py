"""Which pairs of a query and a passage a judge is asked about, in pages by id.

Machine-written negatives are exempt from positive-aware ceilings, because a near-miss is meant to score high: they are
what is judged by default. A collection's own judged pairs can be judged too, to see how far a judge agrees with people.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Select, exists, null, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from db.tables.examples import Candidate, Example, Task
from db.tables.judgements import Judgement
from db.tables.ledger import Run
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query

_PAGE = 1_000
Origin = Literal["synthetic", "edited", "mined", "corpus"]
Grade = Literal["hard", "medium", "easy"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NegativesScope(_Table):
    """Negatives by origin, run and grade; an empty list means all."""

    source: Literal["negatives"] = "negatives"
    origins: tuple[Origin, ...] = Field(default=("synthetic", "edited"), min_length=1)
    runs: tuple[str, ...] = ()
    grades: tuple[Grade, ...] = ()


class QrelsScope(_Table):
    """Pairs that a collection's people have judged."""

    source: Literal["qrels"]
    collection: str
    split: str


Scope = Annotated[NegativesScope | QrelsScope, Field(discriminator="source")]


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage with what names them in every store; `task` is the example's own instruction."""

    query_id: int
    passage_id: int
    query_digest: str
    passage_digest: str
    query: str
    passage: str
    task: str | None


@dataclass(frozen=True, slots=True)
class Passed:
    """Only pairs that this judge, screening, graded at least `threshold`."""

    judge_id: int
    threshold: int


def pages_of(session: Session, scope: Scope, passed: Passed | None = None) -> Iterator[list[Pair]]:
    """The scope's pairs in pages, in the order of ids. A pair of two examples comes twice; callers know it by its key.

    Raises:
        CurationError: The scope names a run or a collection that the store does not have.
    """
    statement, key = _statement(session, scope)
    if passed is not None:
        statement = statement.where(_has_passed(passed))
    last = 0
    while rows := session.execute(statement.where(key > last).order_by(key).limit(_PAGE)).all():
        last = rows[-1][0]
        yield [Pair(*row[1:]) for row in rows]


def _statement(session: Session, scope: Scope) -> tuple[Select[*tuple[Any, ...]], ColumnElement[int]]:
    columns = (Query.id, Passage.id, Query.digest, Passage.digest, Query.text, Passage.text)
    if isinstance(scope, QrelsScope):
        return _qrels(session, scope, columns), Qrel.id.expression
    statement = (
        select(Candidate.id, *columns, Task.instruction)
        .select_from(Candidate)
        .join(Example, Candidate.example_id == Example.id)
        .join(Query, Example.query_id == Query.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .outerjoin(Task, Example.task_id == Task.id)
        .where(*negatives_in(session, scope))
    )
    return statement, Candidate.id.expression


def negatives_in(session: Session, scope: NegativesScope) -> list[ColumnElement[bool]]:
    """Conditions on `Candidate` for this scope.

    Raises:
        CurationError: There is no run of this name.
    """
    conditions: list[ColumnElement[bool]] = [Candidate.role == "negative", Candidate.origin.in_(scope.origins)]
    if scope.grades:
        conditions.append(Candidate.grade.in_(scope.grades))
    if scope.runs:
        conditions.append(Candidate.run_id.in_(run_ids(session, scope.runs)))
    return conditions


def run_ids(session: Session, names: tuple[str, ...]) -> list[int]:
    """Ids of all runs with these names.

    Raises:
        CurationError: A name is no run's.
    """
    rows = session.execute(select(Run.name, Run.id).where(Run.name.in_(names))).all()
    if unknown := sorted(set(names) - {name for name, _ in rows}):
        raise CurationError(f"runs = {unknown[0]!r}: no such run in the store; see 'gradus status'")
    return [key for _, key in rows]


def _qrels(session: Session, scope: QrelsScope, columns: tuple[Any, ...]) -> Select[*tuple[Any, ...]]:
    known = select(Collection.id).where(Collection.name == scope.collection)
    collection = session.scalar(known)
    if collection is None:
        raise CurationError(f"collection = {scope.collection!r} is not in the store: run 'gradus import' first")
    return (
        select(Qrel.id, *columns, null())
        .select_from(Qrel)
        .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        .join(Document, Qrel.document_id == Document.id)
        .join(Query, CollectionQuery.query_id == Query.id)
        .join(Passage, Document.passage_id == Passage.id)
        .where(CollectionQuery.collection_id == collection, Qrel.split == scope.split)
    )


def _has_passed(passed: Passed) -> ColumnElement[bool]:
    return exists().where(
        Judgement.query_id == Query.id,
        Judgement.passage_id == Passage.id,
        Judgement.judge_id == passed.judge_id,
        Judgement.relevance >= passed.threshold,
    )
