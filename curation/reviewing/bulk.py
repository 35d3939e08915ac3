"""One decision on many negatives at once: a filter, a preview of what would change, an event for each row.

Bulk works on what a review session asks about, so that a rubric stands behind every event. It never touches what was
settled. The person's own decisions on these negatives give way, and stand again when the whole is undone as one.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from curation.reviewing.bulk_filter import BulkDecision, BulkFilter, Match, label_of, matches
from curation.reviewing.events import NewDecision, new_bulk_id, record, revoke
from curation.reviewing.people import require
from curation.reviewing.sessions import session_named
from db.tables.base import utc_now
from db.tables.examples import Candidate, Example
from db.tables.review import CurrentDecision, Decision, Reviewer, ReviewItem, ReviewSession
from db.tables.texts import Passage, Query

_PAGE = 1_000
_NUM_ROWS = 20
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Preview:
    """What a bulk decision would change.

    Attributes:
        num: Negatives that would get the decision, in `num_examples` examples.
        num_same: More that the person decided so already; they are left alone.
        num_own: Of `num`, those on which the person's own decision would be taken back.
        num_against: Of `num`, those on which somebody else decided otherwise: they would be disputed.
        num_settled: More that match, and were settled: they are left alone.
        now: Of `num`, how many have which decision of the person by now.
        rows: The first of them: query, text, grade, own decision.
        mark: The newest decision of the session; a preview is of this moment.
    """

    num: int
    num_examples: int
    num_same: int
    num_own: int
    num_against: int
    num_settled: int
    now: dict[str, int]
    rows: list[dict[str, Any]]
    mark: int


@dataclass(frozen=True, slots=True)
class Applied:
    """A bulk decision that was made: `bulk_id` undoes it as one."""

    bulk_id: str
    num: int
    num_taken_back: int


def preview(session: Session, wanted: BulkFilter, what: BulkDecision, by: Reviewer) -> Preview:
    """What the decision would change, as of now; nothing is written.

    Raises:
        CurationError: There is no such session.
    """
    review_session = session_named(session, wanted.session)
    num: Counter[str] = Counter()
    now: Counter[str] = Counter()
    examples: set[int] = set()
    first: list[Match] = []
    for page in matches(session, review_session, wanted, what, by):
        for row in page:
            if row.settled is not None:
                num["settled"] += 1
            elif row.own_label == label_of(what.verdict, what.grade):
                num["same"] += 1
            else:
                num["all"] += 1
                num["own"] += row.own is not None
                num["against"] += row.num_against > 0
                now[row.own_label or "no decision"] += 1
                examples.add(row.example_id)
                if len(first) < _NUM_ROWS:
                    first.append(row)
    return Preview(
        num["all"], len(examples), num["same"], num["own"], num["against"], num["settled"], dict(sorted(now.items())),
        _texts(session, first), _mark(session, review_session),
    )  # fmt: skip


def apply(
    session: Session, wanted: BulkFilter, what: BulkDecision, by: Reviewer, *, mark: int, now: datetime | None = None,
    shown_at: datetime | None = None,
) -> Applied:  # fmt: skip
    """Decide on every negative that matches, one event each.

    Args:
        mark: The preview's: what was decided in the session since refuses the whole.

    Raises:
        CurationError: `by` is no admin, the session is closed, nothing matches, or the preview is out of date.
    """
    require(session, by, "admin")
    review_session = session_named(session, wanted.session)
    # Bulk decisions of a session take turns, and on PostgreSQL wait for each other here.
    session.execute(select(ReviewSession.id).where(ReviewSession.id == review_session.id).with_for_update())
    if review_session.state != "open":
        raise CurationError(f"the review session {wanted.session!r} is closed: nothing was recorded")
    if _mark(session, review_session) != mark:
        raise CurationError(f"people decided in {wanted.session!r} since the preview: look at what would change again")
    now, bulk_id, num, taken_back = now or utc_now(), new_bulk_id(), 0, 0
    label = label_of(what.verdict, what.grade)
    for page in matches(session, review_session, wanted, what, by):
        rows = [row for row in page if row.settled is None and row.own_label != label]
        own = {
            one.id: one
            for one in session.scalars(select(Decision).where(Decision.id.in_([row.own for row in rows if row.own])))
        }
        revoke(session, list(own.values()), by.id, now)
        record(session, review_session.id, [
            NewDecision(
                item_id=row.item_id, reviewer_id=by.id, kind=what.verdict, rubric_id=review_session.rubric_id,
                decided_at=now, candidate_id=row.candidate_id, grade=what.grade, shown_at=shown_at, bulk_id=bulk_id,
                payload={"instead_of": own[row.own].uid} if row.own else None,
            )
            for row in rows
        ])  # fmt: skip
        num, taken_back = num + len(rows), taken_back + len(own)
    if not num:
        raise CurationError("nothing matches that is not decided so already: widen the filter")
    return Applied(bulk_id, num, taken_back)


def undo_bulk(session: Session, bulk_id: str, by: Reviewer, *, now: datetime | None = None) -> int:
    """Take every decision of a bulk back that still stands, by an event each, and let what gave way stand again.
    Returns how many were taken back.

    Args:
        bulk_id: Or its beginning, as long as only one begins so.

    Raises:
        CurationError: `by` is no admin, or there is no such bulk.
    """
    require(session, by, "admin")
    now, num, last = now or utc_now(), 0, 0
    bulk_id = _whole_id(session, bulk_id)
    made = select(Decision).where(
        Decision.bulk_id == bulk_id, Decision.kind != "undo", Decision.assignment_id.is_(None)
    )
    standing = made.join(CurrentDecision, CurrentDecision.decision_id == Decision.id).order_by(Decision.id).limit(_PAGE)
    while page := session.scalars(standing.where(Decision.id > last)).all():
        last = page[-1].id
        revoke(session, page, by.id, now)
        _let_stand_again(session, page, now)
        num += len(page)
    return num


def _whole_id(session: Session, beginning: str) -> str:
    begins_so = Decision.bulk_id.startswith(beginning, autoescape=True) & Decision.assignment_id.is_(None)
    found = session.scalars(select(Decision.bulk_id).where(begins_so).distinct().limit(2)).all()
    if len(found) != 1 or found[0] is None or not beginning:
        what = "several begin so" if len(found) > 1 else "there is none"
        raise CurationError(f"bulk {beginning!r}: {what}; 'gradus review bulk' lists them")
    return found[0]


def _let_stand_again(session: Session, undone: Sequence[Decision], now: datetime) -> None:
    """Decisions that gave way to these are made again as they were, unless the person has decided anew since."""
    uids = [one.payload["instead_of"] for one in undone if one.payload and "instead_of" in one.payload]
    other = aliased(CurrentDecision)
    is_free = ~exists().where(
        other.item_id == Decision.item_id,
        other.reviewer_id == Decision.reviewer_id,
        other.candidate_id == Decision.candidate_id,
        other.aspect == "verdict",
    )
    gave_way = session.execute(
        select(Decision, ReviewItem.session_id)
        .join(ReviewItem, ReviewItem.id == Decision.item_id)
        .where(Decision.uid.in_(uids), is_free)
        .order_by(Decision.id)
    ).all()
    for session_id in {session_id for _, session_id in gave_way}:
        record(session, session_id, [_again(one, now) for one, of in gave_way if of == session_id])


def _again(one: Decision, now: datetime) -> NewDecision:
    return NewDecision(
        item_id=one.item_id, reviewer_id=one.reviewer_id, kind=one.kind, rubric_id=one.rubric_id, decided_at=now,
        candidate_id=one.candidate_id, grade=one.grade, other_candidate_id=one.other_candidate_id,
        payload=(one.payload or {}) | {"again": one.uid}, assignment_id=one.assignment_id, shown_at=one.shown_at,
        bulk_id=one.bulk_id,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bulk:
    """A bulk decision in a list: who, what, when, on how many, and how many of them still stand."""

    bulk_id: str
    session: str
    reviewer: str
    decision: str
    at: datetime
    num: int
    num_standing: int


def bulks(session: Session, *, limit: int = 50) -> list[Bulk]:
    """Bulk decisions, the newest first."""
    rows = session.execute(
        select(
            Decision.bulk_id, ReviewSession.name, Reviewer.pseudonym, Decision.kind, Decision.grade,
            func.max(Decision.decided_at), func.count(Decision.candidate_id.distinct()),
            func.count(CurrentDecision.decision_id),
        )
        .join(ReviewItem, ReviewItem.id == Decision.item_id)
        .join(ReviewSession, ReviewSession.id == ReviewItem.session_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .outerjoin(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(Decision.bulk_id.is_not(None), Decision.assignment_id.is_(None), Decision.kind != "undo")
        .group_by(Decision.bulk_id, ReviewSession.name, Reviewer.pseudonym, Decision.kind, Decision.grade)
        .order_by(func.max(Decision.id).desc())
        .limit(limit)
    )  # fmt: skip
    return [
        Bulk(key or "", name, who, label_of(kind, grade), at, num, num_standing)
        for key, name, who, kind, grade, at, num, num_standing in rows
    ]


def _mark(session: Session, review_session: ReviewSession) -> int:
    """The session's newest event."""
    of_session = select(func.max(Decision.id)).join(ReviewItem, ReviewItem.id == Decision.item_id)
    return session.scalar(of_session.where(ReviewItem.session_id == review_session.id)) or 0


def _texts(session: Session, rows: Sequence[Match]) -> list[dict[str, Any]]:
    """What a person looks at before they decide on all of it; texts are cut."""
    found = {
        key: (query, text, grade, origin)
        for key, query, text, grade, origin in session.execute(
            select(Candidate.id, Query.text, Passage.text, Candidate.grade, Candidate.origin)
            .join(Example, Example.id == Candidate.example_id)
            .join(Query, Query.id == Example.query_id)
            .join(Passage, Passage.id == Candidate.passage_id)
            .where(Candidate.id.in_([row.candidate_id for row in rows]))
        )
    }
    shown = []
    for row in rows:
        query, text, grade, origin = found[row.candidate_id]
        texts = {"query": query[:_SHOWN], "text": text[:_SHOWN], "grade": grade, "origin": origin}
        shown.append({**texts, "decided": row.own_label, "num_against": row.num_against})
    return shown
