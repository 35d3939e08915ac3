"""Deciding and undoing, each in one short transaction that keeps events and current decisions together.

A decision stands on a slot that the person holds. Pressing again on what is decided changes nothing and gives back
what stands; a slot that was handed on is refused with what the person wrote, so that nothing is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from curation.errors import CurationError, LeaseLostError
from curation.reviewing.events import NewDecision, new_bulk_id, record, revoke
from curation.reviewing.leases import lock_seat
from curation.reviewing.people import refuse_lower
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.examples import Candidate
from db.tables.review import (
    ASPECT_OF_KIND,
    VERDICTS,
    Assignment,
    CurrentDecision,
    Decision,
    ItemCandidate,
    Reviewer,
    ReviewItem,
    ReviewSession,
    SessionReviewer,
)
from db.tables.texts import Passage

Kind = Literal["keep", "drop", "regrade", "false_negative", "edit", "swap", "accept_all", "skip", "flag"]
Grade = Literal["hard", "medium", "easy"]
_KINDS: tuple[str, ...] = get_args(Kind)
_OUTCOME = {"accept_all": "accepted", "skip": "skipped", "flag": "flagged"}
_MAX_NOTE = 10_000


@dataclass(frozen=True, slots=True)
class Decided:
    """What stands now. `is_new` is False where it stood before; `is_finished` when the slot needs nothing more."""

    decision: Decision
    is_new: bool
    is_finished: bool


@dataclass(frozen=True, slots=True)
class _Slot:
    """A slot under lock, with what of its session decides."""

    assignment: Assignment
    session_id: int
    rubric_id: int
    lease_s: float


def decide(
    session: Session,
    assignment_id: int,
    reviewer: Reviewer,
    kind: Kind,
    candidate_id: int | None = None,
    *,
    shown_at: datetime,
    grade: Grade | None = None,
    other_candidate_id: int | None = None,
    note: str | None = None,
    replaces: int | None = None,
    client_ms: int | None = None,
    now: datetime | None = None,
) -> Decided:
    """Record a decision on a candidate of the item, or (accept_all, skip, flag) on the whole example.

    The last missing verdict finishes the slot; so do accept_all, skip and flag. `accept_all` keeps every candidate
    that has no verdict, by an event each.

    Args:
        shown_at: When the page showed the item.
        grade: The new grade, of `regrade`.
        other_candidate_id: The candidate to swap ranks with, or the edited child (see `edits.put_edit`).
        note: What the person wrote; `flag` needs one.
        replaces: The decision that the person changes, by its id; one that stands no longer is as none.
        client_ms: Milliseconds from paint to press, measured in the page.

    Raises:
        LeaseLostError: The slot is somebody else's by now; `text` holds the note, or the edited text.
        CurationError: The session is closed, the person may not review, or the decision makes no sense.
    """
    now = now or utc_now()
    written = _edited_text(session, other_candidate_id) if kind == "edit" else note
    slot = _locked_slot(session, assignment_id, reviewer, written)
    _refuse_nonsense(session, slot.assignment.item_id, kind, candidate_id, grade, other_candidate_id, note)
    before = _standing(session, slot.assignment.item_id, reviewer.id, kind, candidate_id)
    if before is not None and before.id == replaces and slot.assignment.outcome is None:
        revoke(session, [before], reviewer.id, now)
        before = None
    if before is None and slot.assignment.outcome is not None:
        before = _last_of(session, slot.assignment.item_id, reviewer.id)
    if before is not None:
        return Decided(before, is_new=False, is_finished=slot.assignment.outcome is not None)
    new = NewDecision(
        item_id=slot.assignment.item_id, reviewer_id=reviewer.id, kind=kind, rubric_id=slot.rubric_id, decided_at=now,
        candidate_id=candidate_id, grade=grade, other_candidate_id=other_candidate_id, assignment_id=assignment_id,
        payload=None if note is None else {"note": note}, shown_at=shown_at, client_ms=client_ms,
    )  # fmt: skip
    (decision,) = _accept_all(session, slot, new) if kind == "accept_all" else record(session, slot.session_id, [new])
    outcome = _OUTCOME.get(kind)
    if outcome is None and kind in VERDICTS and not _undecided(session, slot.assignment.item_id, reviewer.id):
        outcome = "decided"
    if outcome is not None:
        finish(session, slot.assignment, outcome, now)
    else:
        slot.assignment.leased_until = now + timedelta(seconds=slot.lease_s)
        session.flush()
    return Decided(decision, is_new=True, is_finished=outcome is not None)


def undo(
    session: Session, reviewer: Reviewer, review_session: ReviewSession, now: datetime | None = None
) -> Decision | None:
    """Take back the person's last decision in the session that still stands, any number of steps; None at the start.

    Its slot is opened again, unless it was handed on meanwhile. What was decided by one press is undone as one.

    Raises:
        CurationError: The session is closed, or the person may not review.
    """
    now = now or utc_now()
    lease_s = _locked_seat(session, review_session.id, reviewer)
    last = session.scalars(
        select(Decision)
        .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(
            CurrentDecision.session_id == review_session.id,
            CurrentDecision.reviewer_id == reviewer.id,
            Decision.assignment_id.is_not(None),
        )
        .order_by(CurrentDecision.decision_id.desc())
        .limit(1)
    ).one_or_none()
    if last is None:
        return None
    together = [last] if last.bulk_id is None else _standing_together(session, last.bulk_id)
    revoke(session, together, reviewer.id, now)
    _reopen(session, last, reviewer.id, now, now + timedelta(seconds=lease_s))
    return next((one for one in together if one.candidate_id is None), last)


def finish(session: Session, assignment: Assignment, outcome: str, now: datetime) -> None:
    """Close a slot under lock, count it, and keep the item's repeat for the same person."""
    assignment.outcome, assignment.finished_at = outcome, now
    _count(session, assignment, 1)
    session.flush()
    repeats = session.execute(
        select(ReviewItem.id, ReviewItem.position).where(
            ReviewItem.session_id == assignment.session_id, ReviewItem.repeats_position == assignment.position
        )
    )
    rows = [
        {
            "session_id": assignment.session_id,
            "item_id": item,
            "position": position,
            "slot": assignment.slot,
            "reviewer_id": assignment.reviewer_id,
        }
        for item, position in repeats
    ]
    if outcome in ("decided", "accepted"):
        insert_missing(session, Assignment, rows)


def _locked_slot(session: Session, assignment_id: int, reviewer: Reviewer, text: str | None) -> _Slot:
    row = session.execute(
        select(ReviewSession, Reviewer)
        .select_from(Assignment)
        .join(ReviewSession, ReviewSession.id == Assignment.session_id)
        .join(Reviewer, Reviewer.id == reviewer.id)
        .where(Assignment.id == assignment_id),
        execution_options={"populate_existing": True},
    ).one_or_none()
    if row is None:
        raise CurationError(f"assignment {assignment_id}: there is none with this number")
    review_session, person = row
    refuse_lower(person.name, person.role, person.is_active, "reviewer")
    if review_session.state != "open":
        raise CurationError(f"the review session {review_session.name!r} is closed: nothing was recorded{_kept(text)}")
    # The seat first and then the slot, as in a claim and in an undo: two devices of a person never wait in a circle.
    lock_seat(session, review_session.id, reviewer.id)
    assignment = _locked(session, assignment_id)
    if assignment.reviewer_id != reviewer.id or assignment.opened_at is None:
        raise LeaseLostError(
            "this item was handed to somebody else because the lease ran out; nothing was recorded now, what you "
            "decided on it before stands" + _kept(text),
            text=text,
        )
    return _Slot(assignment, review_session.id, review_session.rubric_id, review_session.lease_s)


def _locked(session: Session, assignment_id: int | None) -> Assignment:
    return session.scalars(
        select(Assignment).where(Assignment.id == assignment_id).with_for_update(),
        execution_options={"populate_existing": True},
    ).one()


def _edited_text(session: Session, child_id: int | None) -> str | None:
    child = select(Passage.text).join(Candidate, Candidate.passage_id == Passage.id).where(Candidate.id == child_id)
    return session.scalar(child)


def _kept(text: str | None) -> str:
    return f". Your text: {text}" if text else ""


def _refuse_nonsense(
    session: Session,
    item_id: int,
    kind: str,
    candidate_id: int | None,
    grade: str | None,
    other_candidate_id: int | None,
    note: str | None,
) -> None:
    if kind not in _KINDS:
        raise CurationError(f"kind = {kind!r}: give one of {', '.join(_KINDS)}")
    if (grade is not None) != (kind == "regrade") or grade not in (None, *get_args(Grade)):
        raise CurationError(f"grade = {grade!r}: 'regrade' needs hard, medium or easy, and nothing else takes one")
    if (other_candidate_id is not None) != (kind in ("swap", "edit")):
        raise CurationError(f"other_candidate_id = {other_candidate_id!r}: 'swap' and 'edit' need one, nothing else")
    if kind == "flag" and not (note and note.strip()):
        raise CurationError("a flag needs a note that says what is wrong")
    if note is not None and "\x00" in note:
        raise CurationError("the note holds a NUL character, which no database can store: take it out")
    if note is not None and len(note) > _MAX_NOTE:
        raise CurationError(f"the note has {len(note):,} characters, at most {_MAX_NOTE:,} are kept")
    if (candidate_id is None) != (kind in _OUTCOME):
        raise CurationError(f"{kind!r} is of {'the whole example' if kind in _OUTCOME else 'one candidate'}")
    if candidate_id is not None:
        _refuse_strangers(session, item_id, kind, candidate_id, other_candidate_id)


def _refuse_strangers(
    session: Session, item_id: int, kind: str, candidate_id: int, other_candidate_id: int | None
) -> None:
    """The candidates have to be those that the item asks about; an edit's child has to descend from its parent."""
    wanted = [candidate_id, *([other_candidate_id] if kind == "swap" and other_candidate_id else [])]
    asked = set(
        session.scalars(
            select(ItemCandidate.candidate_id).where(
                ItemCandidate.item_id == item_id, ItemCandidate.candidate_id.in_(wanted)
            )
        )
    )
    for one in wanted:
        if one not in asked:
            raise CurationError(f"candidate {one} is not asked about by this item")
    if kind == "swap" and candidate_id == other_candidate_id:
        raise CurationError(f"candidate {candidate_id} cannot swap with itself")
    if kind == "edit":
        parent = select(Candidate.example_id, Candidate.passage_id).where(Candidate.id == candidate_id).subquery()
        is_child = exists().where(
            Candidate.id == other_candidate_id,
            Candidate.example_id == parent.c.example_id,
            Candidate.parent_passage_id == parent.c.passage_id,
        )
        if not session.scalar(select(is_child)):
            raise CurationError(f"candidate {other_candidate_id} is not an edit of candidate {candidate_id}")


def _standing(session: Session, item_id: int, reviewer_id: int, kind: str, candidate_id: int | None) -> Decision | None:
    is_of = (
        CurrentDecision.candidate_id.is_(None) if candidate_id is None else CurrentDecision.candidate_id == candidate_id
    )
    return session.scalars(
        select(Decision)
        .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(
            CurrentDecision.item_id == item_id,
            CurrentDecision.reviewer_id == reviewer_id,
            CurrentDecision.aspect == ASPECT_OF_KIND[kind],
            is_of,
        )
    ).one_or_none()


def _last_of(session: Session, item_id: int, reviewer_id: int) -> Decision | None:
    standing = session.scalars(
        select(Decision)
        .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(CurrentDecision.item_id == item_id, CurrentDecision.reviewer_id == reviewer_id)
    )
    # Sought here: asked for the last one, a database may walk over all decisions for the sake of the order.
    return max(standing, key=lambda one: one.id, default=None)


def _undecided(session: Session, item_id: int, reviewer_id: int) -> Sequence[int]:
    """Candidates of the item on which the person has no verdict."""
    decided = exists().where(
        CurrentDecision.item_id == item_id,
        CurrentDecision.reviewer_id == reviewer_id,
        CurrentDecision.candidate_id == ItemCandidate.candidate_id,
        CurrentDecision.aspect == "verdict",
    )
    asked = select(ItemCandidate.candidate_id).where(ItemCandidate.item_id == item_id, ~decided)
    return session.scalars(asked.order_by(ItemCandidate.candidate_id)).all()


def _accept_all(session: Session, slot: _Slot, whole: NewDecision) -> list[Decision]:
    """The event of the whole example, with a `keep` for each candidate that has no verdict; gives the first."""
    together = new_bulk_id()
    undecided = _undecided(session, whole.item_id, whole.reviewer_id)
    keeps = [replace(whole, kind="keep", candidate_id=one, payload=None, bulk_id=together) for one in undecided]
    return record(session, slot.session_id, [replace(whole, bulk_id=together), *keeps])[:1]


def _locked_seat(session: Session, session_id: int, reviewer: Reviewer) -> float:
    """Seconds of a lease; the person's row in the session is locked, so that two undos take turns."""
    row: Any = session.execute(
        select(ReviewSession.name, ReviewSession.state, ReviewSession.lease_s, Reviewer.name, Reviewer.role,
               Reviewer.is_active)
        .select_from(ReviewSession)
        .join(Reviewer, Reviewer.id == reviewer.id)
        .where(ReviewSession.id == session_id)
    ).one()  # fmt: skip
    name, state, lease_s, person, role, is_active = row
    refuse_lower(person, role, is_active, "reviewer")
    if state != "open":
        raise CurationError(f"the review session {name!r} is closed: nothing was undone")
    lock_seat(session, session_id, reviewer.id)
    return float(lease_s)


def _standing_together(session: Session, bulk_id: str) -> list[Decision]:
    together = session.scalars(
        select(Decision)
        .join(CurrentDecision, CurrentDecision.decision_id == Decision.id)
        .where(Decision.bulk_id == bulk_id)
    )
    return sorted(together, key=lambda one: one.id)


def _reopen(session: Session, decision: Decision, reviewer_id: int, now: datetime, until: datetime) -> None:
    assignment = _locked(session, decision.assignment_id)
    if assignment.reviewer_id != reviewer_id:
        return
    if assignment.outcome is not None:
        _count(session, assignment, -1)
    assignment.outcome = assignment.finished_at = None
    assignment.opened_at, assignment.leased_until = now, until
    session.flush()


def _count(session: Session, assignment: Assignment, change: int) -> None:
    """Kept beside the slots, because counting them would cost more the longer the queue is."""
    seat = (SessionReviewer.session_id == assignment.session_id) & (
        SessionReviewer.reviewer_id == assignment.reviewer_id
    )
    session.execute(
        update(SessionReviewer).where(seat).values(num_finished=SessionReviewer.num_finished + change),
        execution_options={"synchronize_session": False},
    )
