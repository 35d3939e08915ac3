"""Everything that the decision page paints of an item, by a fixed number of statements that find their rows by index.

What a session hides is not in the view at all: a blind one carries no origin, grade, rank, run, requirement,
judgement, reason or decision of others, and its candidates stand in a random order. No view says that an item is gold
or a repeat.
"""

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from curation.reviewing.queue import EDITING
from db.digest import counter_uniform
from db.tables.examples import Candidate, Example, Score, Sourcing, Teacher
from db.tables.judgements import Judge, Judgement
from db.tables.ledger import Completion, CompletionBody, Run
from db.tables.review import CurrentDecision, Decision, ItemCandidate, Reviewer, ReviewItem, ReviewSession, Rubric
from db.tables.texts import Passage, Query
from db.teachers import scores_likeness

_MAX_CONTEXT = 16
_MAX_CANDIDATES = 500
_HARDNESS = {"hard": 3, "medium": 2, "easy": 1}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge says of a candidate: relevance 0 to 3, with the words that decide."""

    judge: str
    relevance: int
    evidence: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecisionShown:
    """A decision that stands; `text` is of an edit's child, `by` a pseudonym (None for the person's own)."""

    id: int
    kind: str
    candidate_id: int | None
    grade: str | None
    other_candidate_id: int | None
    note: str | None
    text: str | None
    decided_at: datetime
    by: str | None


@dataclass(frozen=True, slots=True)
class NegativeShown:
    """A negative. `is_asked` is False for one that only stands beside those that are asked about.

    Attributes:
        scores: Similarity to the query by the teachers' names.
        is_inverted: By the axis' teacher it stands on the wrong side of a negative of another grade and the same run
            (False in a blind session).
        is_above_positive: By the axis' teacher it scores higher than the positive.
        decision: The person's own verdict that stands.
        swap: The person's own swap of this one with another that stands.
    """

    id: int
    text: str
    is_asked: bool
    scores: Mapping[str, float]
    is_above_positive: bool
    is_inverted: bool = False
    rank: int | None = None
    grade: str | None = None
    origin: str | None = None
    run: str | None = None
    violated_requirement: str | None = None
    suspicion: float | None = None
    reasons: tuple[str, ...] = ()
    judgements: tuple[Judged, ...] = ()
    decision: DecisionShown | None = None
    swap: DecisionShown | None = None
    others: tuple[DecisionShown, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemView:
    """One item for one person. `axis` names the teacher of the ladder; None where nobody scored.

    `positive_scores` are the positive's by teacher. `decisions` are the person's own on the whole example.
    """

    item_id: int
    session_id: int
    session_name: str
    position: int
    query: str
    positive: str
    positive_scores: Mapping[str, float]
    negatives: tuple[NegativeShown, ...]
    axis: str | None
    rubric: str
    rubric_name: str
    rubric_version: int
    is_blind: bool
    decisions: tuple[DecisionShown, ...]

    @property
    def undecided(self) -> tuple[int, ...]:
        """Asked candidates without a verdict of this person, in the order shown."""
        return tuple(one.id for one in self.negatives if one.is_asked and one.decision is None)


def item_view(session: Session, item_id: int, reviewer: Reviewer, *, axis: str | None = None) -> ItemView:
    """What the page shows of an item to this person.

    Args:
        axis: The teacher of the ladder, by name; default: minilm, or else the one that scored most of these.

    Raises:
        CurationError: There is no such item.
    """
    head = _head(session, item_id)
    rows = _candidates(session, head, item_id)
    keys = [row.passage_id for row in rows]
    scores = _scores(session, head.query_id, [*keys, head.positive_id])
    decisions = _decisions(session, item_id, reviewer.id, with_others=not head.is_blind)
    judged = {} if head.is_blind else _judgements(session, head.query_id, keys)
    axis = _axis(scores, axis)
    positive_scores = scores.get(head.positive_id, {})
    inverted = set() if head.is_blind else _inverted(rows, scores, axis)
    shown = [_negative(row, head, scores, positive_scores, axis, inverted, judged, decisions) for row in rows]
    if head.is_blind:
        shown.sort(key=lambda one: (not one.is_asked, counter_uniform(head.seed, "blind", item_id, one.id)))
    return ItemView(
        item_id=item_id,
        session_id=head.session_id,
        session_name=head.session_name,
        position=head.position,
        query=head.query,
        positive=head.positive,
        positive_scores=positive_scores,
        negatives=tuple(shown),
        axis=axis,
        rubric=head.rubric,
        rubric_name=head.rubric_name,
        rubric_version=head.rubric_version,
        is_blind=head.is_blind,
        decisions=tuple(one for one in decisions[None] if one.by is None),
    )


def _head(session: Session, item_id: int) -> Any:
    head = session.execute(
        select(
            ReviewItem.position, ReviewItem.example_id, ReviewSession.id.label("session_id"),
            ReviewSession.name.label("session_name"), ReviewSession.is_blind, ReviewSession.seed,
            Query.id.label("query_id"), Query.text.label("query"), Passage.id.label("positive_id"),
            Passage.text.label("positive"), Rubric.text.label("rubric"), Rubric.name.label("rubric_name"),
            Rubric.version.label("rubric_version"),
        )
        .select_from(ReviewItem)
        .join(ReviewSession, ReviewSession.id == ReviewItem.session_id)
        .join(Rubric, Rubric.id == ReviewSession.rubric_id)
        .join(Example, Example.id == ReviewItem.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Passage, Passage.id == Example.positive_id)
        .where(ReviewItem.id == item_id)
    ).one_or_none()  # fmt: skip
    if head is None:
        raise CurationError(f"review item {item_id}: there is none with this number")
    return head


def _candidates(session: Session, head: Any, item_id: int) -> list[Any]:
    """The asked negatives, and some others of the example beside them; the hardest first, unranked ones last."""
    asked = and_(ItemCandidate.item_id == item_id, ItemCandidate.candidate_id == Candidate.id)
    rows = session.execute(
        select(
            Candidate.id, Candidate.passage_id, Passage.text, Candidate.rank, Candidate.grade, Candidate.origin,
            Candidate.violated_requirement, Candidate.run_id, Run.name.label("run"),
            ItemCandidate.suspicion, ItemCandidate.reasons, ItemCandidate.item_id.label("asked_by"),
        )
        .select_from(Candidate)
        .join(Passage, Passage.id == Candidate.passage_id)
        .join(Run, Run.id == Candidate.run_id)
        .outerjoin(ItemCandidate, asked)
        .where(Candidate.example_id == head.example_id, Candidate.role == "negative", Run.kind != EDITING)
        .order_by(ItemCandidate.item_id.is_(None), Candidate.rank.is_(None), Candidate.rank, Candidate.id)
        .limit(_MAX_CANDIDATES)
    ).all()  # fmt: skip
    is_asked = [row for row in rows if row.asked_by is not None]
    beside = [row for row in rows if row.asked_by is None][:_MAX_CONTEXT]
    return sorted([*is_asked, *beside], key=lambda row: (row.rank is None, row.rank or 0, row.id))


def _scores(session: Session, query_id: int, passages: Sequence[int]) -> dict[int, dict[str, float]]:
    """Similarity by passage and teacher; of a teacher in several versions the newest that scored speaks.

    Margins of training are told among the reasons.
    """
    found: dict[int, dict[str, float]] = defaultdict(dict)
    rows = session.execute(
        select(Score.passage_id, Teacher.name, Score.value)
        .select_from(Teacher)
        .join(Score, and_(Score.teacher_id == Teacher.id, Score.query_id == query_id, Score.passage_id.in_(passages)))
        .where(scores_likeness())
        .order_by(Teacher.id)
    )
    for passage, teacher, value in rows:
        found[passage][teacher] = value
    return found


def _judgements(session: Session, query_id: int, passages: Sequence[int]) -> dict[int, list[Judged]]:
    found: dict[int, list[Judged]] = defaultdict(list)
    rows = session.execute(
        select(Judgement.passage_id, Judge.model, Judgement.relevance, Judgement.evidence, Judgement.reason)
        .join(Judge, Judge.id == Judgement.judge_id)
        .where(Judgement.query_id == query_id, Judgement.passage_id.in_(passages))
        .order_by(Judgement.id)
    )
    for passage, judge, relevance, evidence, reason in rows:
        found[passage].append(Judged(judge, relevance, evidence, reason))
    return found


def _decisions(
    session: Session, item_id: int, reviewer_id: int, *, with_others: bool
) -> dict[int | None, list[DecisionShown]]:
    """Decisions that stand, by candidate (None: of the whole example): the person's own, and others' where shown."""
    child, edited = aliased(Candidate), aliased(Passage)
    statement = (
        select(Decision, Reviewer.id, Reviewer.pseudonym, edited.text)
        .select_from(CurrentDecision)
        .join(Decision, Decision.id == CurrentDecision.decision_id)
        .join(Reviewer, Reviewer.id == CurrentDecision.reviewer_id)
        .outerjoin(child, and_(child.id == Decision.other_candidate_id, Decision.kind == "edit"))
        .outerjoin(edited, edited.id == child.passage_id)
        .where(CurrentDecision.item_id == item_id)
    )
    if not with_others:
        statement = statement.where(CurrentDecision.reviewer_id == reviewer_id, CurrentDecision.aspect != "settled")
    found: dict[int | None, list[DecisionShown]] = defaultdict(list)
    # Sorted here: asked for the order, a database may walk over all decisions for the sake of it.
    for one, person, pseudonym, text in sorted(session.execute(statement), key=lambda row: row[0].id):
        found[one.candidate_id].append(
            DecisionShown(
                one.id, one.kind, one.candidate_id, one.grade, one.other_candidate_id,
                (one.payload or {}).get("note"), text, one.decided_at,
                None if person == reviewer_id and one.kind != "settle" else pseudonym,
            )
        )  # fmt: skip
    return found


def _axis(scores: Mapping[int, Mapping[str, float]], wanted: str | None) -> str | None:
    counts: dict[str, int] = defaultdict(int)
    for of_passage in scores.values():
        for teacher in of_passage:
            counts[teacher] += 1
    if wanted in counts:
        return wanted
    return min(counts, key=lambda name: (name != "minilm", -counts[name], name), default=None)


def _inverted(rows: Sequence[Any], scores: Mapping[int, Mapping[str, float]], axis: str | None) -> set[int]:
    """Negatives that score on the wrong side of one of another grade that the same run wrote."""
    placed = [
        (row.id, row.run_id, _HARDNESS[row.grade], scores[row.passage_id][axis])
        for row in rows
        if axis is not None and row.grade and axis in scores.get(row.passage_id, {})
    ]
    return {
        key
        for one, run, hardness, score in placed
        for other, other_run, other_hardness, other_score in placed
        if run == other_run and hardness > other_hardness and score < other_score
        for key in (one, other)
    }


def _negative(
    row: Any,
    head: Any,
    scores: Mapping[int, Mapping[str, float]],
    positive_scores: Mapping[str, float],
    axis: str | None,
    inverted: set[int],
    judged: Mapping[int, Sequence[Judged]],
    decisions: Mapping[int | None, Sequence[DecisionShown]],
) -> NegativeShown:
    of_row = decisions.get(row.id, ())
    own = [one for one in of_row if one.by is None]
    own_scores = scores.get(row.passage_id, {})
    is_above = axis is not None and own_scores.get(axis, -2.0) > positive_scores.get(axis, float("inf"))
    open_only: dict[str, Any] = {}
    if not head.is_blind:
        open_only = {
            "is_inverted": row.id in inverted, "rank": row.rank, "grade": row.grade, "origin": row.origin,
            "run": row.run, "suspicion": row.suspicion, "reasons": tuple(row.reasons or ()),
            "violated_requirement": row.violated_requirement,
            "judgements": tuple(judged.get(row.passage_id, ())), "others": tuple(one for one in of_row if one.by),
        }  # fmt: skip
    return NegativeShown(
        id=row.id,
        text=row.text,
        is_asked=row.asked_by is not None,
        scores=own_scores,
        is_above_positive=is_above,
        decision=next((one for one in own if one.kind != "swap"), None),
        swap=next((one for one in own if one.kind == "swap"), None),
        **open_only,
    )


def self_checks(session: Session, item_id: int) -> dict[int, dict[str, Any]]:
    """What the model that wrote a candidate said of it, by candidate: its requirements met or not, and its self-check.

    On demand, because whole completions are read. A candidate that no request made, or whose part of the answer cannot
    be told by its text, is left out; so is everything in a blind session. What stands in it is a model's, only to be
    shown.
    """
    rows = session.execute(
        select(Candidate.id, Passage.text, Completion.id, CompletionBody.body)
        .select_from(ItemCandidate)
        .join(ReviewItem, ReviewItem.id == ItemCandidate.item_id)
        .join(ReviewSession, ReviewSession.id == ReviewItem.session_id)
        .join(Candidate, Candidate.id == ItemCandidate.candidate_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .join(Sourcing, and_(Sourcing.candidate_id == Candidate.id, Sourcing.request_id.is_not(None)))
        .join(Completion, Completion.request_id == Sourcing.request_id)
        .join(CompletionBody, CompletionBody.completion_id == Completion.id)
        .where(ItemCandidate.item_id == item_id, Completion.error.is_(None), ~ReviewSession.is_blind)
        .order_by(Candidate.id, Completion.id)
    )
    answers: dict[int, Any] = {}
    found: dict[int, dict[str, Any]] = {}
    for candidate, text, completion, body in rows:
        if completion not in answers:
            answers[completion] = _parsed(body)
        part = _part_with(answers[completion], text)
        if part is not None:
            found[candidate] = part
    return found


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(zlib.decompress(body))
    except (zlib.error, orjson.JSONDecodeError):  # the answer was mended when it was read: there is nothing to show
        return None


def _part_with(answer: Any, text: str) -> dict[str, Any] | None:
    """The part of an answer that holds this text, without the text."""
    parts = [part for value in (answer.values() if isinstance(answer, dict) else ()) for part in _objects(value)]
    for part in parts:
        if any(isinstance(value, str) and value.strip() == text for value in part.values()):
            return {key: value for key, value in part.items() if not (isinstance(value, str) and value.strip() == text)}
    return None


def _objects(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict):
        return [value]
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
