"""Claiming the next item: a lease by the clock on one slot of it.

A claim is one short write of a fixed number of statements, each of which finds its row by an index, whatever the size
of the store: what the person has open, else a slot whose lease ran out, else the next slot that nobody had, from the
person's cursor on. On SQLite the writer's turn keeps two claims apart (BEGIN IMMEDIATE, so call it inside
`Store.write()`); on PostgreSQL row locks do, and rows that another claim holds are passed over.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from curation.reviewing.people import refuse_lower
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.review import Assignment, Reviewer, ReviewItem, ReviewSession, SessionReviewer


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot that is the person's until `leased_until`; `is_resumed` when it was theirs before."""

    assignment_id: int
    item_id: int
    leased_until: datetime
    is_resumed: bool


def claim(
    session: Session, review_session: ReviewSession, reviewer: Reviewer, now: datetime | None = None
) -> Claim | None:
    """The item that this person decides next, leased to them; None when there is none for them now.

    What they have open comes first, the last opened on top, so that a reload or another device resumes; then what
    others let run out, the oldest first; then the order of the queue. Nobody gets an item twice.

    Raises:
        CurationError: The session is closed, the person may not review, or was not invited.
    """
    now = now or utc_now()
    lease_s = _take_a_seat(session, review_session.id, reviewer.id)
    cursor = lock_seat(session, review_session.id, reviewer.id)
    until = now + timedelta(seconds=lease_s)
    found, is_resumed = _mine(session, review_session.id, reviewer.id), True
    if found is None:
        found, is_resumed = _run_out(session, review_session.id, reviewer.id, now), False
    if found is None:
        found = _fresh(session, review_session.id, reviewer.id, Assignment.position >= cursor)
        if found is None:
            # Behind the cursor only what came free out of turn can stand: a repeat kept for this person, a slot that
            # another claim held at that moment.
            found = _fresh(session, review_session.id, reviewer.id, Assignment.position < cursor)
        elif found.position != cursor:
            _set_seat(session, review_session.id, reviewer.id, {"cursor": found.position})
    if found is None:
        return None
    values: dict[str, Any] = {"reviewer_id": reviewer.id, "leased_until": until}
    if not is_resumed:
        values["opened_at"] = now
    session.execute(update(Assignment).where(Assignment.id == found.id).values(values))
    return Claim(found.id, found.item_id, until, is_resumed)


def release_lease(session: Session, assignment_id: int, reviewer: Reviewer, now: datetime | None = None) -> bool:
    """Give an unfinished slot back at once: whoever claims next may have it. False when it is no longer the person's.

    Until somebody takes it the person resumes it, with all that was decided.
    """
    mine = (Assignment.id == assignment_id) & (Assignment.reviewer_id == reviewer.id) & Assignment.outcome.is_(None)
    held = mine & Assignment.leased_until.is_not(None)
    change = update(Assignment).where(held).values(leased_until=now or utc_now()).returning(Assignment.id)
    return session.scalar(change, execution_options={"synchronize_session": False}) is not None


def _take_a_seat(session: Session, session_id: int, reviewer_id: int) -> float:
    """Seconds of a lease, once it is clear that this person may take part; their row in the session is there then."""
    columns = (
        ReviewSession.name, ReviewSession.state, ReviewSession.lease_s, ReviewSession.is_by_invitation,
        Reviewer.name, Reviewer.role, Reviewer.is_active, SessionReviewer.is_invited,
    )  # fmt: skip
    seat = and_(SessionReviewer.session_id == ReviewSession.id, SessionReviewer.reviewer_id == Reviewer.id)
    row = session.execute(
        select(*columns)
        .select_from(ReviewSession)
        .join(Reviewer, Reviewer.id == reviewer_id)
        .outerjoin(SessionReviewer, seat)
        .where(ReviewSession.id == session_id)
    ).one()
    name, state, lease_s, is_by_invitation, person, role, is_active, is_invited = row
    refuse_lower(person, role, is_active, "reviewer")
    if state != "open":
        raise CurationError(f"the review session {name!r} is closed: no more decisions are taken")
    if is_by_invitation and not is_invited:
        raise CurationError(f"{person!r} was not invited to the review session {name!r}: ask an admin")
    if is_invited is None:
        put_seat(session, session_id, reviewer_id, is_invited=False)
    return float(lease_s)


def put_seat(session: Session, session_id: int, reviewer_id: int, *, is_invited: bool) -> None:
    """The person's row in the session, and their own slots of its gold items."""
    # Those who join at the same moment take turns, so that each gets a slot number of their own.
    session.execute(select(ReviewSession.id).where(ReviewSession.id == session_id).with_for_update())
    row = {"session_id": session_id, "reviewer_id": reviewer_id, "is_invited": is_invited}
    if not insert_missing(session, SessionReviewer, [{**row, "cursor": 0, "num_finished": 0}]):
        return
    slot = session.scalar(select(func.count()).where(SessionReviewer.session_id == session_id)) or 1
    gold = select(ReviewItem.id, ReviewItem.position).where(
        ReviewItem.session_id == session_id, ReviewItem.kind == "gold"
    )
    own = {"session_id": session_id, "slot": slot, "reviewer_id": reviewer_id}
    rows = [{"item_id": item, "position": position, **own} for item, position in session.execute(gold)]
    insert_missing(session, Assignment, rows)


def lock_seat(session: Session, session_id: int, reviewer_id: int) -> int:
    """Where the person's claims begin. The row stays locked: two devices of one person take turns."""
    seat = (SessionReviewer.session_id == session_id) & (SessionReviewer.reviewer_id == reviewer_id)
    return session.scalars(select(SessionReviewer.cursor).where(seat).with_for_update()).one_or_none() or 0


def _set_seat(session: Session, session_id: int, reviewer_id: int, values: dict[str, Any]) -> None:
    seat = (SessionReviewer.session_id == session_id) & (SessionReviewer.reviewer_id == reviewer_id)
    session.execute(update(SessionReviewer).where(seat).values(values))


def _slots(session_id: int) -> Select[int, int, int]:
    columns = select(Assignment.id, Assignment.item_id, Assignment.position)
    return columns.where(Assignment.session_id == session_id, Assignment.outcome.is_(None)).limit(1)


def _mine(session: Session, session_id: int, reviewer_id: int) -> Any:
    """What the person has open, run out or not, as long as nobody else took it."""
    return session.execute(
        _slots(session_id)
        .where(
            Assignment.reviewer_id == reviewer_id, Assignment.finished_at.is_(None), Assignment.opened_at.is_not(None)
        )
        .order_by(Assignment.opened_at.desc(), Assignment.position)
        .with_for_update(of=Assignment)
    ).one_or_none()


def _run_out(session: Session, session_id: int, reviewer_id: int, now: datetime) -> Any:
    """The slot whose lease ran out first."""
    return session.execute(
        _slots(session_id)
        .where(Assignment.leased_until <= now, ~_had(reviewer_id))
        .order_by(Assignment.leased_until)
        .with_for_update(skip_locked=True, of=Assignment)
    ).one_or_none()


def _fresh(session: Session, session_id: int, reviewer_id: int, where: ColumnElement[bool]) -> Any:
    """The first slot in the queue's order that nobody had: free, or a repeat that is kept for this person."""
    is_open = or_(Assignment.reviewer_id.is_(None), Assignment.reviewer_id == reviewer_id)
    return session.execute(
        _slots(session_id)
        .where(where, Assignment.leased_until.is_(None), is_open, ~_had(reviewer_id))
        .order_by(Assignment.position, Assignment.slot)
        .with_for_update(skip_locked=True, of=Assignment)
    ).one_or_none()


def _had(reviewer_id: int) -> ColumnElement[bool]:
    """Does the person hold another slot of the same item? Not within an `or`: PostgreSQL would gather all of them."""
    other = aliased(Assignment)
    return exists().where(
        other.item_id == Assignment.item_id, other.reviewer_id == reviewer_id, other.id != Assignment.id
    )
