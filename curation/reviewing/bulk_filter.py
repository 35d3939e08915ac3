"""Which negatives of a review session a bulk decision is about, and what was decided on each of them by now."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from curation.reviewing.recipe import Grade, Name, Origin
from db.tables.examples import Candidate, Example
from db.tables.review import CurrentDecision, Decision, ItemCandidate, Reviewer, ReviewItem, ReviewSession
from db.tables.texts import Passage, Query

Verdict = Literal["keep", "drop", "regrade", "false_negative"]
_PAGE = 1_000


class BulkFilter(BaseModel):
    """Which of a session's negatives are meant; what is left out lets everything through.

    Attributes:
        text: Searched, whatever its case, in the query and the negative.
        reason: Searched, whatever its case, in the reasons for suspicion.
        min_suspicion: At least this suspicious, 0 to 1; so is `max_suspicion` the most.
        decided: `no` leaves out what anybody has a verdict on, `yes` what nobody has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: Name
    grades: tuple[Grade, ...] = ()
    origins: tuple[Origin, ...] = ()
    languages: tuple[Name, ...] = ()
    text: Name | None = None
    reason: Name | None = None
    min_suspicion: float | None = Field(default=None, ge=0, le=1)
    max_suspicion: float | None = Field(default=None, ge=0, le=1)
    decided: Literal["any", "no", "yes"] = "any"


class BulkDecision(BaseModel):
    """What is to hold of each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    grade: Grade | None = None

    @model_validator(mode="after")
    def _regrade_has_a_grade(self) -> "BulkDecision":
        if (self.verdict == "regrade") != (self.grade is not None):
            raise ValueError(f"grade = {self.grade!r}: 'regrade' needs hard, medium or easy, nothing else takes one")
        return self


class BulkRecipe(BaseModel):
    """A bulk decision as a file gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    filter: BulkFilter
    decision: BulkDecision


@dataclass(frozen=True, slots=True)
class Match:
    """A negative that matches: who settled it, the person's own decision, how many others say something else."""

    item_id: int
    candidate_id: int
    example_id: int
    settled: int | None
    own: int | None
    own_label: str | None
    num_against: int


def matches(
    session: Session, review_session: ReviewSession, wanted: BulkFilter, what: BulkDecision, by: Reviewer
) -> Iterator[list[Match]]:
    """Pages of the session's negatives that match, in the order of items."""
    text, reason = wanted.text and wanted.text.casefold(), wanted.reason and wanted.reason.casefold()
    statement = _matching(review_session, wanted, what, by).limit(_PAGE)
    last_item, last = 0, 0
    while True:
        later = or_(
            ItemCandidate.item_id > last_item,
            and_(ItemCandidate.item_id == last_item, ItemCandidate.candidate_id > last),
        )
        page = session.execute(statement.where(ItemCandidate.item_id >= last_item, later)).all()
        if not page:
            return
        last_item, last = page[-1].item_id, page[-1].candidate_id
        # Searched here and not in SQL, whose lower() knows ASCII only on SQLite.
        yield [
            Match(row.item_id, row.candidate_id, row.example_id, row.settled, row.own,
                 None if row.own is None else label_of(row.own_kind, row.own_grade), row.num_against)
            for row in page
            if (not text or text in row.query.casefold() or text in row.negative.casefold())
            and (not reason or any(reason in one.casefold() for one in row.reasons or ()))
        ]  # fmt: skip


def _matching(review_session: ReviewSession, wanted: BulkFilter, what: BulkDecision, by: Reviewer) -> Select[Any]:
    settled, own, own_decision = aliased(CurrentDecision), aliased(CurrentDecision), aliased(Decision)
    statement: Any = (
        select(
            ItemCandidate.item_id, ItemCandidate.candidate_id, ReviewItem.example_id, ItemCandidate.reasons,
            Query.text.label("query"), Passage.text.label("negative"), settled.decision_id.label("settled"),
            own.decision_id.label("own"), own_decision.kind.label("own_kind"), own_decision.grade.label("own_grade"),
            _num_against(what, by).label("num_against"),
        )
        .join(ReviewItem, ReviewItem.id == ItemCandidate.item_id)
        .join(Candidate, Candidate.id == ItemCandidate.candidate_id)
        .join(Example, Example.id == Candidate.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .outerjoin(settled, and_(_of(settled), settled.aspect == "settled"))
        .outerjoin(own, and_(_of(own), own.aspect == "verdict", own.reviewer_id == by.id))
        .outerjoin(own_decision, own_decision.id == own.decision_id)
        .where(ReviewItem.session_id == review_session.id, ReviewItem.kind == "regular", *_conditions(wanted))
        .order_by(ItemCandidate.item_id, ItemCandidate.candidate_id)
    )  # fmt: skip
    return cast(Select[Any], statement)


def _of(current: Any) -> ColumnElement[bool]:
    return and_(current.item_id == ItemCandidate.item_id, current.candidate_id == ItemCandidate.candidate_id)


def _num_against(what: BulkDecision, by: Reviewer) -> Any:
    """Others' verdicts on the negative that say something else."""
    current, decision = aliased(CurrentDecision), aliased(Decision)
    says_else = or_(decision.kind != what.verdict, func.coalesce(decision.grade, "") != (what.grade or ""))
    return (
        select(func.count())
        .select_from(current)
        .join(decision, decision.id == current.decision_id)
        .where(_of(current), current.aspect == "verdict", current.reviewer_id != by.id, says_else)
        .scalar_subquery()
    )


def _conditions(wanted: BulkFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.grades:
        conditions.append(Candidate.grade.in_(wanted.grades))
    if wanted.origins:
        conditions.append(Candidate.origin.in_(wanted.origins))
    if wanted.languages:
        conditions.append(Example.language.in_(wanted.languages))
    if wanted.min_suspicion is not None:
        conditions.append(ItemCandidate.suspicion >= wanted.min_suspicion)
    if wanted.max_suspicion is not None:
        conditions.append(ItemCandidate.suspicion <= wanted.max_suspicion)
    if wanted.decided != "any":
        anybody = aliased(CurrentDecision)
        is_decided = exists().where(_of(anybody), anybody.aspect == "verdict")
        conditions.append(is_decided if wanted.decided == "yes" else ~is_decided)
    return conditions


def label_of(kind: str, grade: str | None) -> str:
    """A decision in words."""
    return f"{kind} {grade}" if grade else kind
