"""Publishing a release: one commit, one tag, an event in the store, and every file read back by the tag.

The Hub is asked what is there before anything is written, so a call that was cut off is finished by the next one, and
a release that is published already costs no commit. What a failure leaves behind is part of its message.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curation.publishing.changes import Change, changes, check_order, is_published
from curation.publishing.content import Content, Progress, read_content
from curation.publishing.errors import MovedHeadError, PublishingError, TagExistsError, UnreachableError
from curation.publishing.hub import HubRepository, RepositoryState
from db.files import digest_file
from db.publications import record_publication
from db.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """What publishing would do. `state` None: no such repository; `is_reachable` False: nobody could be asked.

    `note` says why nobody could, or why the token would be refused.
    """

    content: Content
    changes: list[Change]
    state: RepositoryState | None
    commit: str | None = None
    is_tagged: bool = False
    is_reachable: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """A release on the Hub, read back and compared; what this call had to do for it."""

    release: str
    repo: str
    endpoint: str
    tag: str
    commit: str
    is_new_commit: bool
    is_new_tag: bool
    is_new_repository: bool
    over_xet: bool | None
    num_verified: int
    changes: list[Change] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        files = [{"path": c.path, "action": c.action, "size": c.size} for c in self.changes]
        names = [name for name in self.__slots__ if name != "changes"]
        return {name: getattr(self, name) for name in names} | {"files": files}


def plan_publication(
    store: Store, name: str, hub: HubRepository, *, is_private: bool, folder: Path | None = None
) -> Plan:
    """What publishing would change; without an endpoint that answers, the files alone.

    Raises:
        PublishingError: The folder is not what was frozen, or the Hub holds what is in the way.
    """
    content = read_content(store, name, folder=folder)
    try:
        return replace(_plan(content, hub, is_private=is_private), note=_fault_of_token(hub))
    except UnreachableError as error:
        return Plan(content, changes(content, {}, None), None, is_reachable=False, note=str(error))


def publish(
    store: Store,
    name: str,
    hub: HubRepository,
    *,
    is_private: bool,
    folder: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> Published:
    """Publish a release under the tag of its version. The same release again makes no commit and no tag.

    Args:
        folder: Where its files lie; default: where they were written.

    Raises:
        PublishingError: With what is left on the Hub, and what to do.
    """
    content = read_content(store, name, folder=folder, progress=progress)
    left = _Left("nothing was published")
    try:
        return _publish(store, content, hub, left, is_private=is_private, progress=progress)
    except TagExistsError:
        raise
    except UnreachableError as error:
        raise UnreachableError(f"{error}; {left.after_a_cut or left.surely}") from error
    except PublishingError as error:
        raise type(error)(f"{error}; {left.surely}") from error


def _fault_of_token(hub: HubRepository) -> str:
    """Why publishing would be refused at the door, or nothing."""
    try:
        hub.check_token()
    except UnreachableError:
        raise
    except PublishingError as error:
        return str(error)
    return ""


@dataclass(slots=True)
class _Left:
    """What an error leaves on the Hub; `after_a_cut` while a request is out whose answer may get lost."""

    surely: str
    after_a_cut: str | None = None


def _publish(
    store: Store, content: Content, hub: HubRepository, left: _Left, *, is_private: bool, progress: Progress
) -> Published:
    hub.check_token()
    plan = _plan(content, hub, is_private=is_private)
    is_new_repository = plan.state is None
    if is_new_repository:
        hub.create(is_private=is_private)
        left.surely = "nothing was published; the repository may be there, without the release"
        plan = _plan(content, hub, is_private=is_private)
    over_xet = hub.has_xet() if plan.commit is None else None
    left.after_a_cut = "how far it came is not known: run the same command again, it goes on from there"
    commit = plan.commit or _commit(plan, hub, over_xet=bool(over_xet), progress=progress)
    left.surely = f"commit {commit[:12]} is there without its tag {content.tag}: run the same command again to finish"
    is_new_tag = not plan.is_tagged and _tag(content, hub, commit)
    left.surely = f"{content.tag} names commit {commit[:12]}, which was not verified: run the same command again"
    left.after_a_cut = None
    record_publication(store, content.release_id, endpoint=hub.endpoint, repo=hub.repo, tag=content.tag, commit=commit)
    return Published(
        release=content.name,
        repo=hub.repo,
        endpoint=hub.endpoint,
        tag=content.tag,
        commit=commit,
        is_new_commit=plan.commit is None,
        is_new_tag=is_new_tag,
        is_new_repository=is_new_repository,
        over_xet=over_xet,
        num_verified=_verify(content, hub, commit, progress),
        changes=plan.changes,
    )


def _plan(content: Content, hub: HubRepository, *, is_private: bool) -> Plan:
    """Look at the repository; `commit` is where the release already stands, tagged or not."""
    state = hub.state()
    if state is None or state.head is None:
        return Plan(content, changes(content, {}, None), state)
    if is_private and not state.is_private:
        raise PublishingError(
            f"{hub.repo} is public and --private was asked for: change that in its settings, or leave --private out"
        )
    tagged = hub.tags().get(content.tag)
    if tagged is not None:
        tree = hub.tree(tagged)
        if not is_published(content, tree):
            raise PublishingError(
                f"tag {content.tag} of {hub.repo} holds other content than {content.name} (digest "
                f"{content.digest[:12]}): a tag is a promise, release under a new version"
            )
        return Plan(content, changes(content, tree, None), state, tagged, is_tagged=True)
    with tempfile.TemporaryDirectory() as folder:
        before = hub.manifest(state.head, Path(folder))
    found = _untagged(content, hub, state.head)
    if found is None:
        check_order(content, before)
    return Plan(content, changes(content, hub.tree(found or state.head), before), state, found)


def _untagged(content: Content, hub: HubRepository, head: str) -> str | None:
    """A commit of an earlier call that was cut off before its tag, whatever was committed on top of it since."""
    for commit, title in hub.commits(head):
        if title == _title(content) and is_published(content, hub.tree(commit)):
            return commit
    return None


def _title(content: Content) -> str:
    return f"Release {content.name} ({content.digest[:12]})"


def _commit(plan: Plan, hub: HubRepository, *, over_xet: bool, progress: Progress) -> str:
    wanted = [change.path for change in plan.changes if change.action in ("add", "replace")]
    try:
        return hub.commit(
            [plan.content.files[path] for path in wanted],
            [change.path for change in plan.changes if change.action == "remove"],
            title=_title(plan.content),
            message=f"Release digest: {plan.content.digest}",
            parent=plan.state.head if plan.state else None,
            over_xet=over_xet,
            progress=lambda done: progress(done, len(wanted)),
        )
    except MovedHeadError as error:
        raise MovedHeadError(f"{error}: run the same command again to publish on top of it") from error


def _tag(content: Content, hub: HubRepository, commit: str) -> bool:
    """Whether this call made the tag; another publisher of the same release may have been faster."""
    try:
        hub.tag(content.tag, commit)
    except TagExistsError as error:
        there = hub.tags().get(content.tag)
        if there == commit or (there is not None and is_published(content, hub.tree(there))):
            return False
        raise TagExistsError(
            f"tag {content.tag} of {hub.repo} was given to other content ({(there or 'unknown')[:12]}) meanwhile, and "
            f"commit {commit[:12]} stays on main without a tag: release under a new version"
        ) from error
    return True


def _verify(content: Content, hub: HubRepository, commit: str, progress: Progress) -> int:
    """Read every file back by the tag and compare its SHA-256; the number of files."""
    if (there := hub.commit_of(content.tag)) != commit:
        raise PublishingError(f"tag {content.tag} of {hub.repo} names {there}, not {commit}")
    with tempfile.TemporaryDirectory(prefix="gradus-verify-") as folder:
        for done, (path, local) in enumerate(sorted(content.files.items())):
            progress(done, len(content.files))
            try:
                file = hub.download(path, content.tag, Path(folder))
            except FileNotFoundError as error:
                raise PublishingError(f"{hub.repo}@{content.tag} has no {path}") from error
            if (found := digest_file(file)) != local.sha256:
                raise PublishingError(
                    f"{path} of {hub.repo}@{content.tag} came back as other bytes (SHA-256 {found[:12]}, released "
                    f"{local.sha256[:12]})"
                )
            file.unlink()
    progress(len(content.files), len(content.files))
    return len(content.files)
