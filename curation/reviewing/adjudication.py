"""Where people disagree, and how an admin settles it: by an event of its own that overwrites nobody's decision.

A dispute may lie in one session or between two. It is settled on the example's newest item, under that session's
rubric; a session that is closed can still be settled.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.reviewing.decisions import Grade
from curation.reviewing.events import NewDecision, record, revoke
from curation.reviewing.people import require
from curation.reviewing.verdicts import Verdict, Verdicts
from db.tables.base import utc_now
from db.tables.examples import Candidate, Example
from db.tables.review import (
    VERDICTS,
    CurrentDecision,
    Decision,
    ItemCandidate,
    Reviewer,
    ReviewItem,
    ReviewSession,
    Rubric,
)
from db.tables.texts import Passage, Query

_MAX_NOTE = 10_000


@dataclass(frozen=True, slots=True)
class Said:
    """What one person said of a disputed negative, by pseudonym; `text` is of an edit, `note` as they wrote it.

    `grade` is None where the person said nothing of it, as one who keeps it in a blind session.
    """

    reviewer: str
    outcome: str
    grade: str | None
    child: int | None
    text: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Dispute:
    """A negative on which people disagree, with everything that a person needs to settle it."""

    item_id: int
    candidate_id: int
    session: str
    rubric: str
    query: str
    positive: str
    text: str
    grade: str | None
    rank: int | None
    said: tuple[Said, ...]


def disputes(session: Session, sessions: Collection[str] = ()) -> Iterator[tuple[int, int]]:
    """(example, candidate) of every dispute that nobody has settled, in the order of examples, page by page.

    Args:
        sessions: Names of the review sessions that count; all when empty.

    Raises:
        CurationError: A name is no review session's.
    """
    verdicts = Verdicts(session, sessions=sessions)
    for page in verdicts.reviewed_examples():
        by_example = verdicts.by_example(page)
        for example in page:
            found = by_example.get(example, {})
            yield from ((example, key) for key in sorted(found) if found[key].state == "disputed")


def dispute_of(session: Session, candidate_id: int, sessions: Collection[str] = ()) -> Dispute | None:
    """A dispute as a page shows it; None where it is none (any more)."""
    example = session.scalar(select(Candidate.example_id).where(Candidate.id == candidate_id))
    if example is None:
        return None
    verdict = Verdicts(session, sessions=sessions).of_examples([example]).get(candidate_id)
    if verdict is None or verdict.state != "disputed":
        return None
    item, review_session, rubric = _newest_item(session, candidate_id, sessions)
    row = session.execute(
        select(Query.text, Passage.text, Candidate.grade, Candidate.rank, Example.positive_id)
        .select_from(Candidate)
        .join(Example, Example.id == Candidate.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .where(Candidate.id == candidate_id)
    ).one()
    query, text, grade, rank, positive_id = row
    positive = session.scalars(select(Passage.text).where(Passage.id == positive_id)).one()
    return Dispute(
        item, candidate_id, review_session.name, f"{rubric.name} v{rubric.version}", query, positive, text, grade, rank,
        _said(session, verdict),
    )  # fmt: skip


def _newest_item(session: Session, candidate_id: int, sessions: Collection[str]) -> tuple[int, ReviewSession, Rubric]:
    """The newest regular item that asks about the candidate, with its session and rubric."""
    named = [ReviewSession.name.in_(sessions)] if sessions else []
    row = session.execute(
        select(ReviewItem.id, ReviewSession, Rubric)
        .join(ItemCandidate, ItemCandidate.item_id == ReviewItem.id)
        .join(ReviewSession, ReviewSession.id == ReviewItem.session_id)
        .join(Rubric, Rubric.id == ReviewSession.rubric_id)
        .where(ItemCandidate.candidate_id == candidate_id, ReviewItem.kind == "regular", *named)
        .order_by(ReviewItem.id.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        raise CurationError(f"candidate {candidate_id} is asked about by no review session: nothing to settle")
    return row[0], row[1], row[2]


def _said(session: Session, verdict: Verdict) -> tuple[Said, ...]:
    children = {word.child for word in verdict.words if word.child is not None}
    texts: dict[int, str] = {
        key: text
        for key, text in session.execute(
            select(Candidate.id, Passage.text)
            .join(Passage, Passage.id == Candidate.passage_id)
            .where(Candidate.id.in_(children))
        )
    }
    uids = [event.uid for word in verdict.words for event in word.events]
    notes: dict[str, Any] = {
        uid: (payload or {}).get("note")
        for uid, payload in session.execute(select(Decision.uid, Decision.payload).where(Decision.uid.in_(uids)))
    }
    return tuple(
        Said(
            word.reviewer, word.outcome, word.grade if word.has_grade else None, word.child, texts.get(word.child or 0),
            next((notes[event.uid] for event in word.events if notes.get(event.uid)), None),
        )
        for word in verdict.words
    )  # fmt: skip


def settle(
    session: Session,
    item_id: int,
    candidate_id: int,
    verdict: str,
    *,
    by: Reviewer,
    grade: Grade | None = None,
    child_id: int | None = None,
    note: str | None = None,
    shown_at: datetime | None = None,
    now: datetime | None = None,
) -> Decision:
    """Say what holds of a negative, whatever people decided: their decisions stay as they are.

    Args:
        verdict: keep, drop, regrade, false_negative or edit.
        grade: The grade that holds, of `regrade`.
        child_id: The edited child that takes its place, of `edit`; one that somebody proposed.
        shown_at: When the page showed the dispute.

    Raises:
        CurationError: `by` is no admin, the verdict makes no sense, or it is settled already.
    """
    require(session, by, "admin")
    review_session = session.scalars(
        select(ReviewSession)
        .join(ReviewItem, ReviewItem.session_id == ReviewSession.id)
        .join(ItemCandidate, ItemCandidate.item_id == ReviewItem.id)
        .where(ReviewItem.id == item_id, ItemCandidate.candidate_id == candidate_id)
    ).one_or_none()
    if review_session is None:
        raise CurationError(f"candidate {candidate_id} is not asked about by item {item_id}")
    _refuse_nonsense(session, candidate_id, verdict, grade, child_id, note)
    settled = session.scalars(
        select(CurrentDecision.decision_id).where(
            CurrentDecision.item_id == item_id,
            CurrentDecision.candidate_id == candidate_id,
            CurrentDecision.aspect == "settled",
        )
    ).one_or_none()
    if settled is not None:
        raise CurationError(f"candidate {candidate_id} was settled meanwhile: undo that first")
    new = NewDecision(
        item_id=item_id, reviewer_id=by.id, kind="settle", rubric_id=review_session.rubric_id,
        decided_at=now or utc_now(), candidate_id=candidate_id, verdict=verdict, grade=grade,
        other_candidate_id=child_id, payload=None if note is None else {"note": note}, shown_at=shown_at,
    )  # fmt: skip
    try:
        with session.begin_nested():
            (decision,) = record(session, review_session.id, [new])
    except IntegrityError as error:
        # Another admin's transaction ended between the look and the write.
        raise CurationError(f"candidate {candidate_id} was settled meanwhile: undo that first") from error
    return decision


def _refuse_nonsense(
    session: Session, candidate_id: int, verdict: str, grade: str | None, child_id: int | None, note: str | None
) -> None:
    if verdict not in VERDICTS:
        raise CurationError(f"verdict = {verdict!r}: give one of {', '.join(VERDICTS)}")
    if (grade is not None) != (verdict == "regrade") or grade not in (None, *get_args(Grade)):
        raise CurationError(f"grade = {grade!r}: 'regrade' needs hard, medium or easy, and nothing else takes one")
    if (child_id is not None) != (verdict == "edit"):
        raise CurationError(f"child_id = {child_id!r}: 'edit' needs the child that holds, and nothing else takes one")
    if note is not None and len(note) > _MAX_NOTE:
        raise CurationError(f"the note has {len(note):,} characters, at most {_MAX_NOTE:,} are kept")
    if child_id is not None:
        child, parent = session.get(Candidate, child_id), session.get_one(Candidate, candidate_id)
        if child is None or (child.example_id, child.parent_passage_id) != (parent.example_id, parent.passage_id):
            raise CurationError(f"candidate {child_id} is not an edit of candidate {candidate_id}")


def last_settled(session: Session, by: Reviewer) -> Decision | None:
    """This admin's newest settlement that stands."""
    return session.scalars(
        select(Decision)
        .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(CurrentDecision.aspect == "settled", CurrentDecision.reviewer_id == by.id)
        .order_by(Decision.id.desc())
        .limit(1)
    ).one_or_none()


def unsettle(session: Session, decision_id: int, *, by: Reviewer, now: datetime | None = None) -> Decision | None:
    """Take a settlement back, by an event; the dispute is open again. None where that was done already.

    Raises:
        CurationError: `by` is no admin, or the decision settles nothing.
    """
    require(session, by, "admin")
    decision = session.get(Decision, decision_id, with_for_update=True)
    if decision is None or decision.kind != "settle":
        raise CurationError(f"decision {decision_id} settles nothing")
    if session.get(CurrentDecision, decision_id) is None:
        return None
    revoke(session, [decision], by.id, now or utc_now())
    return decision
