"""What publishing would change in a repository: files to add, replace, remove and keep, or why not at all.

Only files that a release put there are replaced or removed; README.md may be anybody's. A stranger's file inside a
configuration's folder would be loaded with it, so it stops the publication.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curation.errors import CurationError
from curation.publishing.content import MANIFEST, Content, LocalFile
from curation.publishing.errors import PublishingError
from curation.release.catalogue import Version

_ANYBODYS = {"README.md", ".gitattributes"}
Action = Literal["add", "replace", "remove", "keep"]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at a revision: size in bytes, and SHA-256 (LFS) or git's SHA-1."""

    size: int
    git_sha1: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one path; `size` in bytes, of the file that would be there or goes."""

    path: str
    action: Action
    size: int


RemoteTree = Mapping[str, RemoteFile]


def changes(content: Content, tree: RemoteTree, before: Mapping[str, Any] | None) -> list[Change]:
    """Compare the release with the files at a revision; `before` is the manifest found there.

    Raises:
        PublishingError: Files that no release put there are in the way.
    """
    owned = _owned(before)
    listed, strangers = [], []
    for path, local in sorted(content.files.items()):
        remote = tree.get(path)
        action: Action = "add" if remote is None else "keep" if is_same(local, remote) else "replace"
        listed.append(Change(path, action, local.size))
        if action == "replace" and path not in owned | _ANYBODYS:
            strangers.append(path)
    for path in sorted(set(tree) - set(content.files)):
        if path in owned - _ANYBODYS:
            listed.append(Change(path, "remove", tree[path].size))
        elif path.split("/")[0] in content.folders:
            strangers.append(path)
    if strangers:
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise PublishingError(
            f"{strangers[0]!r}{more} of the repository came from no release, and would be loaded with this one or "
            "overwritten: remove it there, or choose another --repo"
        )
    return listed


def is_same(local: LocalFile, remote: RemoteFile) -> bool:
    """Whether the bytes are the same, by whichever hash the Hub tells."""
    if local.size != remote.size:
        return False
    return local.sha256 == remote.sha256 if remote.sha256 else local.git_sha1() == remote.git_sha1


def is_published(content: Content, tree: RemoteTree) -> bool:
    """Whether the revision holds every file of the release, and none beside them in its folders."""
    others = [path for path in tree if path not in content.files and path.split("/")[0] in content.folders]
    return not others and all(path in tree and is_same(local, tree[path]) for path, local in content.files.items())


def check_order(content: Content, before: Mapping[str, Any] | None) -> None:
    """Refuse to lead a repository back to an older version, or over to another data set.

    Raises:
        PublishingError: The head holds a newer version, or a release of another name.
    """
    there = before.get("name") if before else None
    if not isinstance(there, str) or before is None or before.get("digest") == content.digest:
        return
    try:
        old = Version.parse(there)
    except CurationError as error:
        raise PublishingError(
            f"the repository holds release {there!r}, without a version: choose another --repo"
        ) from error
    new = content.version
    if new.base != old.base:
        raise PublishingError(
            f"the repository holds releases of {old.base!r}, not of {new.base!r}: choose another --repo"
        )
    if new < old:
        raise PublishingError(f"the repository is already at {there!r}, which is newer than {content.name}")


def _owned(before: Mapping[str, Any] | None) -> set[str]:
    files = before.get("files") if before else None
    return {MANIFEST, *files} if isinstance(files, dict) else set()
