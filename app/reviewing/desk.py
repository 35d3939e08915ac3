"""What the decision page shows next and what a press does: claim, view, the negative in question, decide, undo.

The page keeps nothing that a reload would lose: where a person stands is read from the store at every paint. A press
names the slot and the candidate that were painted, so that it can only decide what was seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.reviewing.ladder_view import Rung, Shown
from curation.errors import CurationError
from curation.reviewing.decisions import Decided, Grade, Kind, decide, undo
from curation.reviewing.edits import Rescored, Scoring, put_edit, rescore
from curation.reviewing.items import ItemView, NegativeShown, item_view, self_checks
from curation.reviewing.leases import claim
from curation.reviewing.people import reviewer_of
from curation.reviewing.sessions import Progress, progress_of
from db.store import Store
from db.tables.review import CurrentDecision, Decision, Reviewer, ReviewSession


@dataclass(frozen=True, slots=True)
class Seat:
    """A person in a review session."""

    session_id: int
    person: str


@dataclass(frozen=True, slots=True)
class Desk:
    """What lies before a person.

    Attributes:
        asked: Candidates that the item asks about, in the order shown; those among them without a verdict are `open`.
        standing: The verdict of this person by candidate, and the swap by candidate, by the ids of their decisions.
        last_decision_id: The person's last decision in the session that still stands, which undo takes back.
    """

    seat: Seat
    assignment_id: int
    item_id: int
    item: Shown
    asked: tuple[int, ...]
    standing: Mapping[int, int]
    swaps: Mapping[int, int]
    last_decision_id: int | None
    rubric: str
    rubric_title: str


@dataclass(frozen=True, slots=True)
class Press:
    """A key's decision; `candidate_id` is missing where the whole example is meant."""

    kind: Kind
    grade: Grade | None = None


def open_desk(
    store: Store, seat: Seat, *, is_detailed: bool = False, now: datetime | None = None
) -> tuple[Desk | None, Progress, int | None]:
    """Claim or resume the person's item; (None when nothing is left, progress, the last decision that stands).

    `is_detailed` also reads what the model that wrote a negative said of it.
    """
    with store.write() as session:
        review_session, reviewer = _seated(session, seat)
        claimed = claim(session, review_session, reviewer, now)
    # The view is read outside of the write, where it keeps nobody waiting.
    with store.read() as session:
        last = _last_decision(session, review_session.id, reviewer.id)
        progress = progress_of(session, review_session.id, reviewer)
        if claimed is None:
            return None, progress, last
        view = item_view(session, claimed.item_id, reviewer)
        # What its writer said tells that a text is synthetic, and which grade it was meant to have.
        checks = self_checks(session, claimed.item_id) if is_detailed and not view.is_blind else {}
    desk = Desk(
        seat=seat,
        assignment_id=claimed.assignment_id,
        item_id=claimed.item_id,
        item=shown_item(view, claimed.assignment_id, checks),
        asked=tuple(one.id for one in view.negatives if one.is_asked),
        standing={one.id: one.decision.id for one in view.negatives if one.decision is not None},
        swaps={one.id: one.swap.id for one in view.negatives if one.swap is not None},
        last_decision_id=last,
        rubric=view.rubric,
        rubric_title=f"{view.rubric_name}, version {view.rubric_version}",
    )
    return desk, progress, last


def press(
    store: Store,
    desk: Desk,
    what: Press,
    candidate_id: int | None,
    *,
    shown_at: datetime,
    other_candidate_id: int | None = None,
    note: str | None = None,
) -> Decided:
    """Decide as pressed; a negative that was painted as decided is decided anew.

    Raises:
        LeaseLostError: Somebody else has the item by now; its `text` is the note.
        CurationError: The decision is refused.
    """
    standing = desk.swaps if what.kind == "swap" else desk.standing
    with store.write() as session:
        _, reviewer = _seated(session, desk.seat)
        return decide(
            session,
            desk.assignment_id,
            reviewer,
            what.kind,
            candidate_id,
            shown_at=shown_at,
            grade=what.grade,
            other_candidate_id=other_candidate_id,
            note=note,
            replaces=None if candidate_id is None else standing.get(candidate_id),
        )


def step_back(store: Store, seat: Seat, painted_last: int | None) -> Decision | None:
    """Undo the last decision, if it is still the one that was the last when the key was painted: pressing twice before
    the page has followed undoes one step."""
    with store.write() as session:
        review_session, reviewer = _seated(session, seat)
        if painted_last is None or _last_decision(session, review_session.id, reviewer.id) != painted_last:
            return None
        return undo(session, reviewer, review_session)


def focus_of(desk: Desk, wanted: int | None, after: int | None) -> int:
    """The negative in question: the wanted one, else the first without a verdict after `after`, else before it."""
    if wanted in desk.asked:
        return wanted
    start = desk.asked.index(after) + 1 if after in desk.asked else 0
    turned = desk.asked[start:] + desk.asked[:start]
    return next((one for one in turned if one not in desk.standing), turned[0])


def stepped(desk: Desk, focus: int, step: int) -> int:
    """The asked negative that many places on, around the end."""
    return desk.asked[(desk.asked.index(focus) + step) % len(desk.asked)]


def swap_partner(desk: Desk, focus: int) -> tuple[int, str] | None:
    """The next asked negative of the ladder, with its label: who swaps ranks with the one in question."""
    after = desk.asked[desk.asked.index(focus) + 1 :]
    labels = {rung.candidate_id: rung.label for rung in desk.item.rungs}
    return (after[0], labels[after[0]]) if after else None


def rescored(store: Store, desk: Desk, candidate_id: int, text: str, scoring: Scoring) -> Rescored:
    """What the teachers say of an edited text; nothing is written.

    Raises:
        CurationError: The text is refused.
    """
    with store.read() as session:
        return rescore(session, desk.item_id, candidate_id, text, scoring)


def accept_edit(store: Store, desk: Desk, edit: Rescored, *, shown_at: datetime) -> Decided:
    """Put the edited text beside its parent and decide for it, in one transaction.

    Raises:
        LeaseLostError: Somebody else has the item by now.
        CurationError: The decision is refused, or the negative was decided meanwhile.
    """
    with store.write() as session:
        _, reviewer = _seated(session, desk.seat)
        decided = decide(
            session,
            desk.assignment_id,
            reviewer,
            "edit",
            edit.candidate_id,
            shown_at=shown_at,
            other_candidate_id=put_edit(session, desk.item_id, reviewer, edit),
            replaces=desk.standing.get(edit.candidate_id),
        )
        if not decided.is_new:
            # Refused as a whole: a child without a decision would stay in the store.
            raise CurationError("you decided this negative elsewhere meanwhile; the edit was not recorded")
        return decided


def shown_item(view: ItemView, assignment_id: int, checks: Mapping[int, Mapping[str, Any]]) -> Shown:
    """The view as it is painted."""
    labels = _labels(view)
    rungs = tuple(_rung(one, view, labels, checks.get(one.id, {})) for one in view.negatives)
    similarity = view.positive_scores.get(view.axis) if view.axis else None
    return Shown(f"{assignment_id}-{view.item_id}", view.query, view.positive, similarity, rungs, view.axis)


def _labels(view: ItemView) -> dict[int, str]:
    """N and the rank; with a letter for the run where several runs wrote negatives. What has no rank is numbered."""
    runs = sorted({one.run for one in view.negatives if one.run and one.rank})
    letters = {run: chr(ord("a") + place % 26) for place, run in enumerate(runs)} if len(runs) > 1 else {}
    return {
        one.id: f"N{one.rank}{letters.get(one.run or '', '')}" if one.rank else f"#{number}"
        for number, one in enumerate(view.negatives, 1)
    }


def _rung(one: NegativeShown, view: ItemView, labels: Mapping[int, str], check: Mapping[str, Any]) -> Rung:
    has_runs = len({other.run for other in view.negatives}) > 1
    return Rung(
        candidate_id=one.id,
        label=labels[one.id],
        grade=one.grade,
        origin=one.origin,
        text=one.text,
        similarity=one.scores.get(view.axis) if view.axis else None,
        run=one.run if has_runs else None,
        is_asked=one.is_asked,
        other_scores=tuple((name, value) for name, value in sorted(one.scores.items()) if name != view.axis),
        is_inverted=one.is_inverted,
        is_above_positive=one.is_above_positive,
        reasons=one.reasons,
        decided=_decided(one, labels),
        details=_details(one, check),
    )


def _decided(one: NegativeShown, labels: Mapping[int, str]) -> str | None:
    """This person's verdict and swap in a few words."""
    said = [one.decision.grade or one.decision.kind.replace("_", " ")] if one.decision else []
    said += [f"swap with {labels.get(one.swap.other_candidate_id or 0, 'another')}"] if one.swap else []
    return ", ".join(said) or None


def _details(one: NegativeShown, check: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What is shown on demand: (of what, the words)."""
    rows = [("Breaks", one.violated_requirement or "nothing stated")]
    rows += [
        (f"Its writer's {name.replace('_', ' ')}", _words(value))
        for name, value in check.items()
        if name != "violated_requirement"
    ]
    rows += [
        (f"Judge {said.judge}", f"relevance {said.relevance}: {said.reason} {said.evidence}".strip())
        for said in one.judgements
    ]
    rows += [(f"{other.by} decided", other.grade or other.kind.replace("_", " ")) for other in one.others]
    if one.decision and one.decision.text:
        rows.append(("Your edit", one.decision.text))
    return tuple(rows)


def _words(value: Any) -> str:
    """A model's answer in words: `met: true, reason: ...` of an object."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')}: {_words(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(_words(part) for part in value)
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _seated(session: Session, seat: Seat) -> tuple[ReviewSession, Reviewer]:
    review_session = session.get(ReviewSession, seat.session_id)
    if review_session is None:
        raise CurationError(f"there is no review session {seat.session_id}: choose one on the page of sessions")
    return review_session, reviewer_of(session, seat.person)


def _last_decision(session: Session, session_id: int, reviewer_id: int) -> int | None:
    """The one that undo takes back; what was decided in bulk or by an adjudicator is undone elsewhere."""
    of_person = (CurrentDecision.session_id == session_id) & (CurrentDecision.reviewer_id == reviewer_id)
    return session.scalar(
        select(CurrentDecision.decision_id)
        .join(Decision, Decision.id == CurrentDecision.decision_id)
        .where(of_person, Decision.assignment_id.is_not(None))
        .order_by(CurrentDecision.decision_id.desc())
        .limit(1)
    )
