"""Review sessions: created from a recipe with their items frozen, listed, closed, and how far they are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from curation.reviewing.gold import gold_answers
from curation.reviewing.leases import put_seat
from curation.reviewing.people import refuse_lower, require
from curation.reviewing.placing import place, store_items
from curation.reviewing.queue import Queue, draw_queue
from curation.reviewing.recipe import RubricText, SessionRecipe
from db.digest import digest_text
from db.insert import insert_missing
from db.tables.base import utc_now
from db.tables.review import (
    Assignment,
    CurrentDecision,
    Decision,
    Reviewer,
    ReviewSession,
    Rubric,
    SessionReviewer,
)

_RECENT_SLOTS = 20
_RECENT_DECISIONS = 200


@dataclass(frozen=True, slots=True)
class Summary:
    """A session at a glance; `num_slots` and `num_finished` count turns of people, gold and repeats among them."""

    name: str
    state: str
    num_items: int
    num_slots: int
    num_finished: int
    overlap: int
    is_blind: bool
    rubric: str
    reviewers: tuple[str, ...]
    created_at: datetime

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Seat:
    """A person in a session, with the name that is never published and the pseudonym that is."""

    name: str
    pseudonym: str
    num_finished: int
    is_invited: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a session is, and how this person is doing.

    Attributes:
        done: Turns finished by anybody.
        left: Turns that remain, of everybody.
        mine: Turns that this person finished.
        pace_per_minute: Turns a minute, over the person's last twenty; None before the second.
        agreement: Share of the person's last verdicts, on candidates on which somebody else has one too, that are the
            same; None where there is none to compare.
        num_compared: Pairs of verdicts behind `agreement`.
    """

    done: int
    left: int
    mine: int
    pace_per_minute: float | None
    agreement: float | None
    num_compared: int


def create_session(
    session: Session, recipe: SessionRecipe, by: Reviewer, *, queue: Queue | None = None, now: datetime | None = None
) -> ReviewSession:
    """A session with its items, in the order in which they will be asked.

    Args:
        queue: As `draw_queue` gave it for this recipe; give it where other people are at work meanwhile, because
            drawing takes long and needs no write.

    Raises:
        CurationError: `by` is no admin, the name is taken, or something that the recipe names is not there.
    """
    require(session, by, "admin")
    if session.scalar(select(ReviewSession.id).where(ReviewSession.name == recipe.name)) is not None:
        raise CurationError(f"name = {recipe.name!r}: there is such a review session already; give another name")
    invited = _invited(session, recipe)
    rubric = put_rubric(session, recipe.rubric)
    gold = gold_answers(session, recipe.gold) if recipe.gold is not None else []
    drawn = queue or draw_queue(session, recipe.queue, recipe.seed)
    facts = dict(drawn.facts)
    created = ReviewSession(
        uid=uuid4().hex, name=recipe.name, definition=recipe.model_dump(mode="json"), facts={}, rubric_id=rubric.id,
        overlap=recipe.overlap, num_slots=0, is_blind=recipe.blind, is_by_invitation=bool(invited),
        lease_s=recipe.lease_minutes * 60, seed=recipe.seed, created_by=by.id, created_at=now or utc_now(),
    )  # fmt: skip
    session.add(created)
    session.flush()
    placed = place(drawn.picked, gold, recipe.repeats, recipe.seed)
    counts = store_items(session, created.id, placed, overlap=recipe.overlap)
    created.facts = {**facts, "items": counts}
    created.num_slots = counts.get("regular", 0) * recipe.overlap
    session.flush()
    for person in invited:
        put_seat(session, created.id, person.id, is_invited=True)
    return created


def _invited(session: Session, recipe: SessionRecipe) -> list[Reviewer]:
    found = []
    for name in recipe.reviewers:
        person = session.scalars(select(Reviewer).where(Reviewer.name == name)).one_or_none()
        if person is None:
            raise CurationError(f"reviewers: {name!r} is not known; add them with 'gradus review people add'")
        refuse_lower(person.name, person.role, person.is_active, "reviewer")
        found.append(person)
    return found


def put_rubric(session: Session, given: RubricText) -> Rubric:
    """The rubric with this text: the version that is there, or a new one. With no text given, the latest of the name,
    or the one that comes with Gradus.

    Raises:
        CurationError: The file cannot be read, or is empty.
    """
    latest = session.scalars(
        select(Rubric).where(Rubric.name == given.name).order_by(Rubric.version.desc()).limit(1)
    ).one_or_none()
    if given.text is None and given.file is None and latest is not None:
        return latest
    text = _text_of(given)
    digest = digest_text(text)
    same = select(Rubric).where(Rubric.name == given.name, Rubric.digest == digest)
    known = session.scalars(same).one_or_none()
    if known is None:
        version = 1 if latest is None else latest.version + 1
        row = {"name": given.name, "version": version, "digest": digest, "text": text, "created_at": utc_now()}
        insert_missing(session, Rubric, [row])
        known = session.scalars(same).one()
    return known


def _text_of(given: RubricText) -> str:
    if given.text is not None:
        return given.text
    if given.file is None:
        return resources.files("curation.reviewing").joinpath("rubric.md").read_text(encoding="utf-8")
    try:
        text = given.file.read_text(encoding="utf-8")
    except OSError as error:
        raise CurationError(f"rubric.file = {given.file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CurationError(f"rubric.file = {given.file}: not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise CurationError(f"rubric.file = {given.file}: the file is empty")
    return text


def session_named(session: Session, name: str) -> ReviewSession:
    """The session of this name.

    Raises:
        CurationError: There is none.
    """
    found = session.scalars(select(ReviewSession).where(ReviewSession.name == name)).one_or_none()
    if found is None:
        raise CurationError(f"there is no review session {name!r}: see 'gradus review list'")
    return found


def list_sessions(session: Session) -> list[Summary]:
    """Every session, the newest first."""
    rows = session.execute(
        select(ReviewSession, Rubric.name, Rubric.version)
        .join(Rubric, Rubric.id == ReviewSession.rubric_id)
        .order_by(ReviewSession.created_at.desc(), ReviewSession.id.desc())
    ).all()
    seats: dict[int, list[tuple[str, int]]] = {}
    for key, name, num in session.execute(
        select(SessionReviewer.session_id, Reviewer.name, SessionReviewer.num_finished)
        .join(Reviewer, Reviewer.id == SessionReviewer.reviewer_id)
        .order_by(Reviewer.name)
    ):
        seats.setdefault(key, []).append((name, num))
    return [_summary(one, f"{name} v{version}", seats.get(one.id, [])) for one, name, version in rows]


def summary_of(session: Session, review_session: ReviewSession) -> Summary:
    """One session at a glance."""
    return next(one for one in list_sessions(session) if one.name == review_session.name)


def _summary(one: ReviewSession, rubric: str, seats: Sequence[tuple[str, int]]) -> Summary:
    return Summary(
        name=one.name,
        state=one.state,
        num_items=sum(one.facts["items"].values()),
        num_slots=_num_turns(one, len(seats)),
        num_finished=sum(num for _, num in seats),
        overlap=one.overlap,
        is_blind=one.is_blind,
        rubric=rubric,
        reviewers=tuple(name for name, _ in seats),
        created_at=one.created_at,
    )


def _num_turns(one: ReviewSession, num_seats: int) -> int:
    """Free slots, every gold item for everybody who joined, and every repeat for those who had the first."""
    counts = one.facts["items"]
    return one.num_slots + counts.get("gold", 0) * num_seats + counts.get("repeat", 0) * one.overlap


def seats(session: Session, review_session: ReviewSession) -> list[Seat]:
    """Who takes part, by name."""
    rows = session.execute(
        select(Reviewer.name, Reviewer.pseudonym, SessionReviewer.num_finished, SessionReviewer.is_invited)
        .join(Reviewer, Reviewer.id == SessionReviewer.reviewer_id)
        .where(SessionReviewer.session_id == review_session.id)
        .order_by(Reviewer.name)
    )
    return [Seat(*row) for row in rows]


def decision_counts(session: Session, review_session: ReviewSession) -> dict[str, int]:
    """How many decisions of each kind stand."""
    kinds = select(CurrentDecision.kind, func.count()).where(CurrentDecision.session_id == review_session.id)
    return {kind: num for kind, num in session.execute(kinds.group_by(CurrentDecision.kind))}


def invite(session: Session, review_session: ReviewSession, name: str, *, by: Reviewer) -> None:
    """Let one more person take part in a session by invitation; twice changes nothing.

    Raises:
        CurationError: `by` is no admin, or nobody has the name.
    """
    require(session, by, "admin")
    person = session.scalars(select(Reviewer).where(Reviewer.name == name)).one_or_none()
    if person is None:
        raise CurationError(f"reviewer {name!r} is not known: add them with 'gradus review people add'")
    put_seat(session, review_session.id, person.id, is_invited=True)
    seat = session.get_one(SessionReviewer, (review_session.id, person.id))
    seat.is_invited = True
    session.flush()


def close_session(session: Session, review_session: ReviewSession, *, by: Reviewer) -> ReviewSession:
    """No more decisions are taken; what was decided stays. Twice changes nothing.

    Raises:
        CurationError: `by` is no admin.
    """
    require(session, by, "admin")
    stored = session.get_one(ReviewSession, review_session.id, populate_existing=True)
    if stored.state == "open":
        stored.state, stored.closed_at = "closed", utc_now()
        session.flush()
    return stored


def progress_of(session: Session, review_session_id: int, reviewer: Reviewer) -> Progress:
    """The side line of the page: a fixed number of statements, whatever the size of the session or the store."""
    stored = session.get_one(ReviewSession, review_session_id)
    seats = session.execute(
        select(SessionReviewer.reviewer_id, SessionReviewer.num_finished).where(
            SessionReviewer.session_id == review_session_id
        )
    ).all()
    done = sum(num for _, num in seats)
    agreed, compared = _own_agreement(session, review_session_id, reviewer.id)
    return Progress(
        done=done,
        left=max(_num_turns(stored, len(seats)) - done, 0),
        mine=next((num for person, num in seats if person == reviewer.id), 0),
        pace_per_minute=_pace(session, review_session_id, reviewer.id),
        agreement=agreed / compared if compared else None,
        num_compared=compared,
    )


def _pace(session: Session, session_id: int, reviewer_id: int) -> float | None:
    finished = session.scalars(
        select(Assignment.finished_at)
        .where(
            Assignment.session_id == session_id,
            Assignment.reviewer_id == reviewer_id,
            Assignment.finished_at.is_not(None),
        )
        .order_by(Assignment.finished_at.desc())
        .limit(_RECENT_SLOTS)
    ).all()
    if len(finished) < 2 or finished[0] is None or finished[-1] is None:
        return None
    minutes = (finished[0] - finished[-1]).total_seconds() / 60
    return (len(finished) - 1) / minutes if minutes > 0 else None


def _own_agreement(session: Session, session_id: int, reviewer_id: int) -> tuple[int, int]:
    """(Same, compared) over the person's last verdicts and those of others on the same candidates of the item."""
    recent = (
        select(CurrentDecision.decision_id, CurrentDecision.item_id, CurrentDecision.candidate_id)
        .where(
            CurrentDecision.session_id == session_id,
            CurrentDecision.reviewer_id == reviewer_id,
            CurrentDecision.aspect == "verdict",
        )
        .order_by(CurrentDecision.decision_id.desc())
        .limit(_RECENT_DECISIONS)
        .subquery()
    )
    other, mine, theirs = aliased(CurrentDecision), aliased(Decision), aliased(Decision)
    of_same = and_(
        other.item_id == recent.c.item_id,
        other.candidate_id == recent.c.candidate_id,
        other.aspect == "verdict",
        other.reviewer_id != reviewer_id,
    )
    is_same = and_(mine.kind == theirs.kind, func.coalesce(mine.grade, "") == func.coalesce(theirs.grade, ""))
    row = session.execute(
        select(func.count().filter(is_same), func.count())
        .select_from(recent)
        .join(mine, mine.id == recent.c.decision_id)
        .join(other, of_same)
        .join(theirs, theirs.id == other.decision_id)
    ).one()
    return int(row[0]), int(row[1])
