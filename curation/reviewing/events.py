"""Writing decisions: events and the table of current ones, always in one transaction.

Everything that decides (the page, bulk, adjudication) writes through here, so that `current_decision` can never differ
from what the events say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from db.insert import as_row
from db.tables.review import ASPECT_OF_KIND, CurrentDecision, Decision

_LOOKUP = 400


@dataclass(frozen=True, slots=True)
class NewDecision:
    """A decision to be recorded; the fields are the columns of `decision`."""

    item_id: int
    reviewer_id: int
    kind: str
    rubric_id: int
    decided_at: datetime
    candidate_id: int | None = None
    verdict: str | None = None
    grade: str | None = None
    other_candidate_id: int | None = None
    payload: dict[str, Any] | None = None
    assignment_id: int | None = None
    shown_at: datetime | None = None
    client_ms: int | None = None
    bulk_id: str | None = None


def new_bulk_id() -> str:
    """What events that are undone as one have in common."""
    return uuid4().hex


def record(session: Session, session_id: int, decisions: Sequence[NewDecision]) -> list[Decision]:
    """Write decisions of one review session, and make them the current ones.

    Raises:
        sqlalchemy.exc.IntegrityError: The person has decided that aspect of that candidate of that item already;
            callers look first, under the lock of the item's slot.
    """
    if not decisions:
        return []
    uids = [uuid4().hex for _ in decisions]
    rows = [{"uid": uid, **as_row(one)} for uid, one in zip(uids, decisions, strict=True)]
    session.execute(insert(Decision), rows)
    found: dict[str, Decision] = {}
    for start in range(0, len(uids), _LOOKUP):
        some = Decision.uid.in_(uids[start : start + _LOOKUP])
        found.update({one.uid: one for one in session.scalars(select(Decision).where(some))})
    events = [found[uid] for uid in uids]
    current = [
        {
            "decision_id": one.id,
            "session_id": session_id,
            "item_id": one.item_id,
            "reviewer_id": one.reviewer_id,
            "candidate_id": one.candidate_id,
            "kind": one.kind,
            "aspect": ASPECT_OF_KIND[one.kind],
        }
        for one in events
    ]
    session.execute(insert(CurrentDecision), current)
    return events


def revoke(session: Session, decisions: Sequence[Decision], reviewer_id: int, now: datetime) -> None:
    """Undo decisions by events of their own; none of them is current any more.

    Raises:
        sqlalchemy.exc.IntegrityError: One of them was undone already.
    """
    if not decisions:
        return
    undoing = [
        {
            "uid": uuid4().hex,
            "item_id": one.item_id,
            "assignment_id": one.assignment_id,
            "reviewer_id": reviewer_id,
            "kind": "undo",
            "rubric_id": one.rubric_id,
            "decided_at": now,
            "undoes_id": one.id,
            "bulk_id": one.bulk_id,
        }
        for one in decisions
    ]
    session.execute(insert(Decision), undoing)
    ids = [one.id for one in decisions]
    for start in range(0, len(ids), _LOOKUP):
        session.execute(delete(CurrentDecision).where(CurrentDecision.decision_id.in_(ids[start : start + _LOOKUP])))
