"""What people decided in two stores, united: events are added, and what follows from events is recomputed.

Both stores may hold the same session, when one is a copy of the other, and people may have gone on in both. Nothing
that anybody decided is lost: a turn that another person took here gets a further slot, and where one person decided
the same thing in both stores, the later decision stands and the earlier one is undone by an event.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Table, case, delete, func, insert, select, update
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.errors import MergeConflictError
from db.insert import insert_missing
from db.tables.review import (
    ASPECT_OF_KIND,
    CURRENT_DECISION_CHECK,
    Assignment,
    CurrentDecision,
    Decision,
    ReviewItem,
    ReviewSession,
    Rubric,
    SessionReviewer,
)

_LOOKUP = 400
Row = dict[str, Any]


def fit_reviews(writing: Session, table: Table, rows: Sequence[Row]) -> None:
    """Change rows of the other store, whose keys are translated already, so that they fit beside those that are here.

    Raises:
        MergeConflictError: A session of the same name is another one here.
    """
    fitting: dict[str, Callable[[Session, Sequence[Row]], None]] = {
        Rubric.__tablename__: _as_further_versions,
        ReviewSession.__tablename__: _refuse_other_sessions,
        Assignment.__tablename__: _into_slots,
        Decision.__tablename__: _undone_once,
    }
    if table.name in fitting:
        fitting[table.name](writing, rows)


def _as_further_versions(writing: Session, rows: Sequence[Row]) -> None:
    """A rubric that only the other store has, under a version that is free here."""
    here: dict[str, dict[str, int]] = defaultdict(dict)
    for name, digest, version in writing.execute(select(Rubric.name, Rubric.digest, Rubric.version)):
        here[name][digest] = version
    for row in rows:
        known = here[row["name"]]
        if row["digest"] not in known and row["version"] in known.values():
            row["version"] = max(known.values()) + 1
        known.setdefault(row["digest"], row["version"])


def _refuse_other_sessions(writing: Session, rows: Sequence[Row]) -> None:
    names = {row["name"]: row["uid"] for row in rows}
    for name, uid in writing.execute(select(ReviewSession.name, ReviewSession.uid)):
        if names.get(name, uid) != uid:
            raise MergeConflictError(
                f"review session {name!r} is another one in the other store: rename one of them, nothing was merged"
            )


def _into_slots(writing: Session, rows: Sequence[Row]) -> None:
    """Turns of the other store in slots that are the same person's or free here, or else in further ones."""
    here: dict[int, dict[int, Row]] = defaultdict(dict)
    items = sorted({row["item_id"] for row in rows})
    for start in range(0, len(items), _LOOKUP):
        some = Assignment.__table__.c.item_id.in_(items[start : start + _LOOKUP])
        for found in writing.execute(select(Assignment.__table__).where(some)).mappings():
            here[found["item_id"]][found["slot"]] = dict(found)
    # Those that somebody has first: a free one of the other store then meets whatever is left.
    for row in sorted(rows, key=lambda row: row["reviewer_id"] is None):
        slots = here[row["item_id"]]
        if row["reviewer_id"] is None:
            slots.setdefault(row["slot"], row)
            continue
        row["slot"] = _slot_for(row, slots)
        known = slots.get(row["slot"])
        if known is None or "id" not in known:
            slots[row["slot"]] = row
        elif known["reviewer_id"] is None or (known["outcome"] is None and row["outcome"] is not None):
            taken = {name: row[name] for name in ("reviewer_id", "opened_at", "leased_until", "finished_at", "outcome")}
            writing.execute(update(Assignment).where(Assignment.id == known["id"]).values(taken))
            slots[row["slot"]] = known | taken


def _slot_for(row: Row, slots: dict[int, Row]) -> int:
    own = [slot for slot, known in slots.items() if known["reviewer_id"] == row["reviewer_id"]]
    if own:
        return own[0]
    if row["slot"] not in slots:
        return int(row["slot"])
    free = [slot for slot, known in slots.items() if known["reviewer_id"] is None and "id" in known]
    return min(free, default=max(slots) + 1)


def _undone_once(writing: Session, rows: Sequence[Row]) -> None:
    """Where both stores undid the same decision, the event that is here says so already."""
    undone = [row["undoes_id"] for row in rows if row["undoes_id"] is not None]
    here: dict[int | None, str] = {}
    for start in range(0, len(undone), _LOOKUP):
        some = Decision.undoes_id.in_(undone[start : start + _LOOKUP])
        here.update({key: uid for key, uid in writing.execute(select(Decision.undoes_id, Decision.uid).where(some))})
    for row in rows:
        row["uid"] = here.get(row["undoes_id"], row["uid"])


def recompute_reviews(writing: Session) -> None:
    """Current decisions and counts of turns from the events and slots that are here now."""
    _undo_doubles(writing)
    writing.execute(delete(CurrentDecision))
    columns = [column.name for column in CurrentDecision.__table__.columns]
    again = select(*(CURRENT_DECISION_CHECK.c[name] for name in columns))
    writing.execute(insert(CurrentDecision).from_select(columns, again))
    finished = (
        select(func.count())
        .where(
            Assignment.session_id == SessionReviewer.session_id,
            Assignment.reviewer_id == SessionReviewer.reviewer_id,
            Assignment.outcome.is_not(None),
        )
        .scalar_subquery()
    )
    # Claims begin at the front again, because slots may have come free behind where the person was.
    writing.execute(update(SessionReviewer).values(num_finished=finished, cursor=0))
    slots = (
        select(func.count())
        .select_from(Assignment)
        .join(ReviewItem, ReviewItem.id == Assignment.item_id)
        .where(Assignment.session_id == ReviewSession.id, ReviewItem.kind == "regular")
        .scalar_subquery()
    )
    writing.execute(update(ReviewSession).values(num_slots=slots))


def _undo_doubles(writing: Session) -> None:
    """Leave of several decisions of a person on one thing the last; a settled one is nobody's in particular."""
    view = CURRENT_DECISION_CHECK.c
    whose = case((view.aspect == "settled", 0), else_=view.reviewer_id).label("whose")
    rows = writing.execute(
        select(whose, Decision)
        .join(Decision, Decision.id == view.decision_id)
        .order_by(view.item_id, view.candidate_id, view.aspect, whose, Decision.decided_at, Decision.uid),
        execution_options={"yield_per": 2_000},
    )
    undoing: list[Row] = []
    earlier: tuple[Any, Decision] | None = None
    for person, decision in rows:
        about = (decision.item_id, decision.candidate_id, ASPECT_OF_KIND[decision.kind], person)
        if earlier is not None and earlier[0] == about:
            undoing.append(_undoing(earlier[1], decision.decided_at))
        earlier = (about, decision)
    insert_missing(writing, Decision, undoing)


def _undoing(one: Decision, now: datetime) -> Row:
    """The same event in every store that unites the two."""
    return {
        "uid": digest_of(["merged", one.uid])[:32], "item_id": one.item_id, "assignment_id": one.assignment_id,
        "reviewer_id": one.reviewer_id, "kind": "undo", "rubric_id": one.rubric_id, "decided_at": now,
        "undoes_id": one.id, "bulk_id": one.bulk_id,
    }  # fmt: skip
