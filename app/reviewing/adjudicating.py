"""What lies before an adjudicator: the disputes that are open, one of them in its example, and what a press settles."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from app.reviewing.desk import shown_item
from app.reviewing.ladder_view import Shown
from app.viewing.showing import block, escaped
from curation.reviewing.adjudication import Dispute, Said, dispute_of, disputes, last_settled, settle, unsettle
from curation.reviewing.items import item_view
from curation.reviewing.people import require, reviewer_of
from db.store import Store
from db.tables.review import Decision

_MAX_NOTE = 2_000


@dataclass(frozen=True, slots=True)
class OpenDispute:
    """A dispute with its example as it is painted, and the person's last settlement, which undo takes back."""

    dispute: Dispute
    item: Shown
    last_settled_id: int | None

    @property
    def key(self) -> str:
        return f"{self.dispute.item_id}-{self.dispute.candidate_id}"

    @property
    def edits(self) -> list[Said]:
        """The edits that were proposed, each once."""
        return list({one.child: one for one in self.dispute.said if one.child is not None}.values())


def open_disputes(store: Store, person: str, sessions: Sequence[str] = ()) -> list[int]:
    """Candidates of the disputes that nobody has settled, in the order of examples.

    Raises:
        CurationError: The person is no admin.
    """
    with store.read() as session:
        require(session, reviewer_of(session, person), "admin")
        return [candidate for _, candidate in disputes(session, sessions)]


def open_dispute(
    store: Store,
    person: str,
    candidate_ids: Sequence[int],
    start: int,
    sessions: Sequence[str] = (),
    direction: int = 1,
) -> tuple[int, OpenDispute] | None:
    """The first of these that is a dispute still, from a place on (direction 1) or back (-1), around the end; with its
    place."""
    with store.read() as session:
        reviewer = reviewer_of(session, person)
        for step in range(len(candidate_ids)):
            place = (start + direction * step) % len(candidate_ids)
            dispute = dispute_of(session, candidate_ids[place], sessions)
            if dispute is not None:
                item = shown_item(item_view(session, dispute.item_id, reviewer), 0, {})
                last = last_settled(session, reviewer)
                return place, OpenDispute(dispute, item, last.id if last else None)
    return None


def settle_dispute(
    store: Store, person: str, dispute: Dispute, verdict: str, *, shown_at: datetime, grade: Any = None,
    child_id: int | None = None,
) -> Decision:  # fmt: skip
    """Settle what was painted.

    Raises:
        CurationError: It was settled meanwhile, or the person is no admin.
    """
    with store.write() as session:
        return settle(
            session, dispute.item_id, dispute.candidate_id, verdict, by=reviewer_of(session, person), grade=grade,
            child_id=child_id, shown_at=shown_at,
        )  # fmt: skip


def last_settled_id(store: Store, person: str) -> int | None:
    """The person's last settlement that stands."""
    with store.read() as session:
        last = last_settled(session, reviewer_of(session, person))
        return last.id if last else None


def take_back(store: Store, person: str, painted_last: int) -> int | None:
    """Undo the settlement that was the last when the key was painted; gives its candidate, None where it was undone."""
    with store.write() as session:
        undone = unsettle(session, painted_last, by=reviewer_of(session, person))
        return undone.candidate_id if undone else None


def said_html(dispute: Dispute) -> str:
    """Who said what of the negative, each in a line; people are told by pseudonym."""
    lines = []
    for one in dispute.said:
        what = "keep" if one.outcome == "keep" else one.outcome.replace("_", " ")
        grade = f" as {one.grade}" if one.outcome == "keep" and one.grade else ""
        note = f"<div style='opacity:.75'>{escaped(one.note, _MAX_NOTE)}</div>" if one.note else ""
        text = f"<div style='margin:.2rem 0 0 1rem'>{block(one.text)}</div>" if one.text else ""
        lines.append(f"<li><b>{escape(what + grade)}</b>, {escaped(one.reviewer)}{note}{text}</li>")
    return f"<ul style='margin:.2rem 0'>{''.join(lines)}</ul>"
