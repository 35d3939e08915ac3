"""Where releases were published: events that name endpoint, repository, tag and commit; never a token."""

from sqlalchemy import select

from db.store import Store
from db.tables.releases import Release, ReleaseEvent


def record_publication(store: Store, release_id: int, *, endpoint: str, repo: str, tag: str, commit: str) -> bool:
    """Remember a publication once; whether it is new."""
    details = {"endpoint": endpoint, "repo": repo, "tag": tag, "commit": commit}
    with store.write() as session:
        # Two that published the same take turns: the second finds the event of the first.
        session.execute(select(Release.id).where(Release.id == release_id).with_for_update())
        events = select(ReleaseEvent.details).where(
            ReleaseEvent.release_id == release_id, ReleaseEvent.kind == "published"
        )
        if details in session.scalars(events).all():
            return False
        reason = f"published as {repo}@{tag}"
        session.add(ReleaseEvent(release_id=release_id, kind="published", reason=reason, details=details))
    return True


def publications(store: Store, release_id: int) -> list[dict[str, str]]:
    """Where a release was published, in order of time."""
    with store.read() as session:
        events = (
            select(ReleaseEvent.details)
            .where(ReleaseEvent.release_id == release_id, ReleaseEvent.kind == "published")
            .order_by(ReleaseEvent.at, ReleaseEvent.id)
        )
        return [details for details in session.scalars(events) if details]
