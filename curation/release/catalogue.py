"""The releases of a store: their names and versions, who is whose parent, and which are retired.

A name is NAME-MAJOR.MINOR.PATCH (semver.org, 2.0.0). A release's parent is the newest earlier version of its name, so
it does not depend on the order in which releases were made.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from db.insert import insert_missing
from db.store import Store
from db.tables.base import utc_now
from db.tables.releases import Release, ReleaseEvent

_NUMBER = r"(0|[1-9][0-9]{0,8})"
_NAME = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]{{0,95}})-{_NUMBER}\.{_NUMBER}\.{_NUMBER}")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release's name in parts; versions of one name compare as semver.org says."""

    base: str
    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, name: str) -> "Version":
        """The parts of a release's name.

        Raises:
            CurationError: It is not NAME-MAJOR.MINOR.PATCH.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise CurationError(
                f"release name {name!r}: write NAME-MAJOR.MINOR.PATCH with letters, digits, dots and dashes in NAME, "
                "such as scifact-1.0.0"
            )
        base, *numbers = found.groups()
        return cls(base, *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.base}-{self.number}"

    @property
    def number(self) -> str:
        """MAJOR.MINOR.PATCH."""
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A release in one line."""

    name: str
    digest: str
    created_at: datetime
    num_items: int
    rows: dict[str, dict[str, int]]
    parent: str | None
    path: str
    retired: str | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "created_at": self.created_at.isoformat(),
            "num_items": self.num_items,
            "rows": self.rows,
            "parent": self.parent,
            "path": self.path,
            "retired": self.retired,
        }


def find_release(session: Session, name: str) -> Release:
    """The frozen row of a release.

    Raises:
        CurationError: There is none of this name.
    """
    release = session.scalars(select(Release).where(Release.name == name)).one_or_none()
    if release is None:
        there = session.scalars(select(Release.name).order_by(Release.name).limit(20)).all()
        raise CurationError(f"no release {name!r} in this store; it has: {', '.join(there) or 'none'}")
    return release


def retirement(session: Session, release: Release) -> ReleaseEvent | None:
    """The event that retired the release, or None."""
    events = select(ReleaseEvent).where(ReleaseEvent.release_id == release.id, ReleaseEvent.kind == "retired")
    return session.scalars(events.order_by(ReleaseEvent.at).limit(1)).one_or_none()


def require_in_use(session: Session, release: Release) -> None:
    """Refuse a release that was retired.

    Raises:
        CurationError: It was retired; says when and why.
    """
    if event := retirement(session, release):
        raise CurationError(
            f"release {release.name!r} was retired on {event.at:%Y-%m-%d}: {event.reason}. Create a new version of it"
        )


def list_releases(store: Store) -> list[Listed]:
    """Every release, by name and version."""
    with store.read() as session:
        retired = select(ReleaseEvent.release_id, ReleaseEvent.reason).where(ReleaseEvent.kind == "retired")
        events = session.execute(retired.order_by(ReleaseEvent.at.desc()))
        reasons = {key: reason for key, reason in events}
        releases = session.scalars(select(Release)).all()
        name_of = {release.id: release.name for release in releases}
        return [
            Listed(
                name=release.name,
                digest=release.digest,
                created_at=release.created_at,
                num_items=release.manifest["num_items"],
                rows=release.manifest["rows"],
                parent=None if release.parent_id is None else name_of[release.parent_id],
                path=release.path,
                retired=reasons.get(release.id),
            )
            for release in sorted(releases, key=lambda release: _sortable(release.name))
        ]


def _sortable(name: str) -> tuple[Any, ...]:
    """Releases from before names had versions stand first."""
    found = _NAME.fullmatch(name)
    return (1, Version.parse(name)) if found else (0, name)


def parent_of(session: Session, version: Version) -> Release | None:
    """The newest earlier version of the name that is not retired, or None."""
    names = session.scalars(select(Release.name).where(Release.name.startswith(f"{version.base}-", autoescape=True)))
    of_name = [Version.parse(name) for name in names if _NAME.fullmatch(name)]
    earlier = sorted(one for one in of_name if one.base == version.base and one < version)
    for one in reversed(earlier):
        release = session.scalars(select(Release).where(Release.name == str(one))).one()
        if retirement(session, release) is None:
            return release
    return None


def retire_release(store: Store, name: str, reason: str) -> Listed:
    """Record that a release should not be used any more. Files and rows stay as they are.

    Raises:
        CurationError: No such release, no reason, or it is retired already.
    """
    if not reason.strip():
        raise CurationError("--reason is empty: say why nobody should use the release any more")
    with store.write() as session:
        release = find_release(session, name)
        require_in_use(session, release)
        row = {"release_id": release.id, "kind": "retired", "reason": reason.strip(), "at": utc_now()}
        insert_missing(session, ReleaseEvent, [row])
    return next(one for one in list_releases(store) if one.name == name)
