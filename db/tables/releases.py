"""Releases: frozen selections. A name is a promise, so rows are never changed; retiring is an event."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest, Json, UtcTime, utc_now


class Release(Base):
    __tablename__ = "release"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(Digest)
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    manifest: Mapped[dict[str, Any]] = mapped_column(Json)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("release.id"))
    path: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class ReleaseItem(Base):
    """A candidate of a release; `position` is its place in the example's list, 0 for the positive, below 0 for what a
    judge made positives."""

    __tablename__ = "release_item"

    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"), primary_key=True)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"), primary_key=True)
    split: Mapped[str] = mapped_column(String(20))
    position: Mapped[int]


class ReleaseEvent(Base):
    """What happened to a release; `details` of a publication: endpoint, repository, tag and commit."""

    __tablename__ = "release_event"
    __table_args__ = (
        UniqueConstraint("release_id", "kind", "at"),
        CheckConstraint("kind in ('retired', 'published')", "kind"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    kind: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column(Json)
    at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


FROZEN = ("release", "release_item", "release_event")
IDENTITY = {
    "release": ("name",),
    "release_item": ("release_id", "candidate_id"),
    "release_event": ("release_id", "kind", "at"),
}
