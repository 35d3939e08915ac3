"""Review sessions: who looks at which example under which rubric, and what each person decided.

An item is one example in a session's frozen order; its asked candidates are rows of their own. A slot (`assignment`)
is one person's turn at an item: slots are made with the item, so that no code can give an item to more people than it
has slots. Decisions are events and are never changed; `current_decision` holds those that no later event undoes, kept
in the same transaction, and the view `current_decision_check` recomputes it from the events.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, String, Text, UniqueConstraint, column, table, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest, Json, UtcTime, utc_now

VERDICTS = ("keep", "drop", "regrade", "false_negative", "edit")
WHOLE_EXAMPLE = ("accept_all", "skip", "flag")
# What a current decision is about: at most one of each by a person on a candidate (or on the example) of an item.
ASPECT_OF_KIND = (
    {kind: "verdict" for kind in VERDICTS}
    | {"swap": "order", "settle": "settled"}
    | {kind: "example" for kind in WHOLE_EXAMPLE}
)

_IN_VERDICTS = ", ".join(f"'{kind}'" for kind in VERDICTS)
_IN_EXAMPLE = ", ".join(f"'{kind}'" for kind in WHOLE_EXAMPLE)


class Reviewer(Base):
    """A person, by the name that the sign-in gives; everything published shows the pseudonym, drawn once at random."""

    __tablename__ = "reviewer"
    __table_args__ = (
        UniqueConstraint("name"),
        UniqueConstraint("pseudonym"),
        CheckConstraint("role in ('reader', 'reviewer', 'admin')", "role"),
        CheckConstraint("length(name) > 0", "name_not_empty"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(300))
    pseudonym: Mapped[str] = mapped_column(String(40))
    role: Mapped[str] = mapped_column(String(10))
    is_active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class Rubric(Base):
    """Guidelines in Markdown. A changed text is a new version; every decision names the one it was made under."""

    __tablename__ = "rubric"
    __table_args__ = (
        UniqueConstraint("name", "version"),
        UniqueConstraint("name", "digest"),
        CheckConstraint("version >= 1", "version_from_1"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[int]
    digest: Mapped[str] = mapped_column(Digest)
    text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class ReviewSession(Base):
    """A queue as it was defined and materialised. `facts` says what it was drawn from: populations by stratum, counts.

    `uid` is drawn at random, so that it names the session in every store. `num_slots` counts those that are free to
    take: slots of gold items and repeats are made for a person, when they join or have had the first.
    """

    __tablename__ = "review_session"
    __table_args__ = (
        UniqueConstraint("uid"),
        UniqueConstraint("name"),
        CheckConstraint("overlap >= 1", "overlap_from_1"),
        CheckConstraint("lease_s > 0", "lease_is_positive"),
        CheckConstraint("state in ('open', 'closed')", "state"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(String(200))
    definition: Mapped[dict[str, Any]] = mapped_column(Json)
    facts: Mapped[dict[str, Any]] = mapped_column(Json)
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    overlap: Mapped[int]
    num_slots: Mapped[int]
    is_blind: Mapped[bool]
    is_by_invitation: Mapped[bool]
    lease_s: Mapped[float] = mapped_column(Float(53))
    seed: Mapped[int] = mapped_column(BigId)
    state: Mapped[str] = mapped_column(String(10), default="open")
    created_by: Mapped[int] = mapped_column(ForeignKey("reviewer.id"))
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)
    closed_at: Mapped[datetime | None] = mapped_column(UtcTime)


class SessionReviewer(Base):
    """A person in a session: invited, or come by themselves.

    No slot that this person could take and that nobody ever took stands before `cursor`, so that a claim never walks
    over what the person has had. `num_finished` counts finished slots, so that progress is a sum over few rows.
    """

    __tablename__ = "session_reviewer"

    session_id: Mapped[int] = mapped_column(ForeignKey("review_session.id"), primary_key=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("reviewer.id"), primary_key=True)
    is_invited: Mapped[bool] = mapped_column(default=False)
    cursor: Mapped[int] = mapped_column(default=0)
    num_finished: Mapped[int] = mapped_column(default=0)


class ReviewItem(Base):
    """An example at its place in a session's order. A repeat shows again what stands at `repeats_position`."""

    __tablename__ = "review_item"
    __table_args__ = (
        UniqueConstraint("session_id", "position"),
        CheckConstraint("kind in ('regular', 'gold', 'repeat')", "kind"),
        CheckConstraint("(kind = 'repeat') = (repeats_position is not null)", "repeat_names_its_first"),
        CheckConstraint("repeats_position < position", "repeat_comes_later"),
        Index("ix_review_item_repeats_position", "session_id", "repeats_position",
              sqlite_where=text("repeats_position is not null"),
              postgresql_where=text("repeats_position is not null")),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("review_session.id"))
    position: Mapped[int]
    example_id: Mapped[int] = mapped_column(ForeignKey("example.id"), index=True)
    kind: Mapped[str] = mapped_column(String(10))
    repeats_position: Mapped[int | None]
    suspicion: Mapped[float | None] = mapped_column(Float(53))


class ItemCandidate(Base):
    """A negative that an item asks about, with why it is suspect; of a gold item also what is the right answer."""

    __tablename__ = "item_candidate"
    __table_args__ = (
        CheckConstraint("expected in ('keep', 'drop', 'regrade', 'false_negative')", "expected"),
        CheckConstraint("expected_grade in ('hard', 'medium', 'easy')", "expected_grade"),
    )

    item_id: Mapped[int] = mapped_column(ForeignKey("review_item.id"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), primary_key=True, index=True)
    stratum: Mapped[str | None] = mapped_column(String(100))
    suspicion: Mapped[float | None] = mapped_column(Float(53))
    reasons: Mapped[list[str] | None] = mapped_column(Json)
    expected: Mapped[str | None] = mapped_column(String(20))
    expected_grade: Mapped[str | None] = mapped_column(String(10))


class Assignment(Base):
    """A slot of an item: free, leased by the clock, or finished. Session and position stand here too for the index.

    A lease that ran out stays the person's until somebody else takes the slot.
    """

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("item_id", "slot"),
        UniqueConstraint("item_id", "reviewer_id"),
        CheckConstraint("slot >= 1", "slot_from_1"),
        CheckConstraint("outcome in ('decided', 'accepted', 'skipped', 'flagged')", "outcome"),
        CheckConstraint("(outcome is null) = (finished_at is null)", "finished_has_an_outcome"),
        CheckConstraint("(opened_at is null) = (leased_until is null)", "lease_has_a_clock"),
        CheckConstraint(
            "outcome is null or (reviewer_id is not null and opened_at is not null)", "finished_by_someone"
        ),
        Index("ix_assignment_unfinished", "session_id", "position", "slot",
              sqlite_where=text("outcome is null"), postgresql_where=text("outcome is null")),
        Index("ix_assignment_leased", "session_id", "leased_until",
              sqlite_where=text("outcome is null and leased_until is not null"),
              postgresql_where=text("outcome is null and leased_until is not null")),
        Index("ix_assignment_of_reviewer", "session_id", "reviewer_id", "finished_at"),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("review_session.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("review_item.id"))
    position: Mapped[int]
    slot: Mapped[int]
    reviewer_id: Mapped[int | None] = mapped_column(ForeignKey("reviewer.id"))
    opened_at: Mapped[datetime | None] = mapped_column(UtcTime)
    leased_until: Mapped[datetime | None] = mapped_column(UtcTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    outcome: Mapped[str | None] = mapped_column(String(10))


class Decision(Base):
    """What a person decided, when it was shown and when it was decided; undo is an event too.

    A candidate is missing where the whole example is meant. `other_candidate_id` is the one it swaps with, or the
    edited child. An assignment is missing where it was settled by an adjudicator or decided in bulk. `payload` holds
    notes and figures, never keys: they mean nothing in another store.
    """

    __tablename__ = "decision"
    __table_args__ = (
        UniqueConstraint("uid"),
        UniqueConstraint("undoes_id"),
        CheckConstraint(f"kind in ({_IN_VERDICTS}, 'swap', {_IN_EXAMPLE}, 'undo', 'settle')", "kind"),
        CheckConstraint(f"(candidate_id is null) = (kind in ({_IN_EXAMPLE}, 'undo'))", "names_what_it_is_about"),
        CheckConstraint("(kind = 'undo') = (undoes_id is not null)", "undo_names_its_decision"),
        CheckConstraint("(kind = 'settle') = (verdict is not null)", "settled_has_a_verdict"),
        CheckConstraint(f"verdict in ({_IN_VERDICTS})", "verdict"),
        CheckConstraint("grade in ('hard', 'medium', 'easy')", "grade"),
        CheckConstraint(
            "(kind <> 'regrade' and coalesce(verdict, '') <> 'regrade') or grade is not null", "regrade_has_a_grade"
        ),
        CheckConstraint("kind not in ('swap', 'edit') or other_candidate_id is not null", "names_the_other"),
        CheckConstraint("other_candidate_id <> candidate_id", "other_is_another"),
        CheckConstraint("assignment_id is null or kind = 'undo' or shown_at is not null", "was_shown"),
        Index("ix_decision_bulk_id", "bulk_id",
              sqlite_where=text("bulk_id is not null"), postgresql_where=text("bulk_id is not null")),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(String(32))
    item_id: Mapped[int] = mapped_column(ForeignKey("review_item.id"), index=True)
    assignment_id: Mapped[int | None] = mapped_column(ForeignKey("assignment.id"), index=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("reviewer.id"), index=True)
    candidate_id: Mapped[int | None] = mapped_column(ForeignKey("candidate.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    verdict: Mapped[str | None] = mapped_column(String(20))
    grade: Mapped[str | None] = mapped_column(String(10))
    other_candidate_id: Mapped[int | None] = mapped_column(ForeignKey("candidate.id"))
    payload: Mapped[dict[str, Any] | None] = mapped_column(Json)
    rubric_id: Mapped[int] = mapped_column(ForeignKey("rubric.id"))
    shown_at: Mapped[datetime | None] = mapped_column(UtcTime)
    decided_at: Mapped[datetime] = mapped_column(UtcTime)
    client_ms: Mapped[int | None]
    undoes_id: Mapped[int | None] = mapped_column(ForeignKey("decision.id"))
    bulk_id: Mapped[str | None] = mapped_column(String(32))


class CurrentDecision(Base):
    """A decision that nothing undoes; at most one of each aspect by a person on a candidate of an item."""

    __tablename__ = "current_decision"
    __table_args__ = (
        Index("uq_current_decision_candidate", "item_id", "reviewer_id", "candidate_id", "aspect", unique=True,
              sqlite_where=text("candidate_id is not null"), postgresql_where=text("candidate_id is not null")),
        Index("uq_current_decision_example", "item_id", "reviewer_id", "aspect", unique=True,
              sqlite_where=text("candidate_id is null"), postgresql_where=text("candidate_id is null")),
        Index("uq_current_decision_settled", "item_id", "candidate_id", unique=True,
              sqlite_where=text("aspect = 'settled'"), postgresql_where=text("aspect = 'settled'")),
        Index("ix_current_decision_of_reviewer", "session_id", "reviewer_id", "decision_id"),
    )  # fmt: skip

    decision_id: Mapped[int] = mapped_column(ForeignKey("decision.id"), primary_key=True, autoincrement=False)
    session_id: Mapped[int] = mapped_column(ForeignKey("review_session.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("review_item.id"), index=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("reviewer.id"))
    candidate_id: Mapped[int | None] = mapped_column(ForeignKey("candidate.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    aspect: Mapped[str] = mapped_column(String(10))


# The view in which the migration recomputes the current decisions from the events.
CURRENT_DECISION_CHECK = table(
    "current_decision_check", *(column(one.name, one.type) for one in CurrentDecision.__table__.columns)
)
FROZEN = ("rubric", "review_item", "item_candidate", "decision")
IDENTITY = {
    "reviewer": ("name",),
    "rubric": ("name", "digest"),
    "review_session": ("uid",),
    "session_reviewer": ("session_id", "reviewer_id"),
    "review_item": ("session_id", "position"),
    "item_candidate": ("item_id", "candidate_id"),
    "assignment": ("item_id", "slot"),
    "decision": ("uid",),
    "current_decision": ("decision_id",),
}
