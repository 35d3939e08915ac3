"""A frozen release as it lies in its folder: every file, checked against the manifest before anything is sent."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select

from curation.publishing.errors import PublishingError
from db.files import digest_file
from db.store import Store
from db.tables.releases import Release, ReleaseEvent

MANIFEST = "manifest.json"
_VERSIONED = re.compile(r"(?:(?P<stem>.+)-)?(?P<version>\d+\.\d+\.\d+)(?P<pre>-[0-9A-Za-z.-]+)?")
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the release; `size` in bytes."""

    path: str
    file: Path
    size: int
    sha256: str

    def git_sha1(self) -> str:
        """The hash that git, and so the Hub, gives a file outside of LFS."""
        digest = hashlib.sha1(b"blob %d\0" % self.size)
        with self.file.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Content:
    """What is to be published. `digest` identifies the release, its name promises it."""

    release_id: int
    name: str
    digest: str
    files: dict[str, LocalFile] = field(repr=False)

    @property
    def tag(self) -> str:
        return f"v{version_of(self.name)[1]}"

    @property
    def folders(self) -> set[str]:
        """Top-level folders: the configurations, whose every Parquet file would be loaded."""
        return {path.split("/")[0] for path in self.files if "/" in path}


def version_of(name: str) -> tuple[str, str]:
    """Stem and version of a release name: scifact-1.0.0 gives scifact and 1.0.0.

    Raises:
        PublishingError: The name has no version.
    """
    found = _VERSIONED.fullmatch(name)
    if found is None:
        raise PublishingError(
            f"release {name!r} has no version in its name, and the tag is made of it: create it again under a name "
            f"such as {name}-1.0.0"
        )
    return found["stem"] or "", found["version"] + (found["pre"] or "")


def read_content(store: Store, name: str, progress: Progress = lambda done, total: None) -> Content:
    """The release's files, each hashed and compared with the manifest that the store froze.

    Raises:
        PublishingError: No such release, it is retired, or its folder is not what the manifest says.
    """
    with store.read() as session:
        release = session.scalars(select(Release).where(Release.name == name)).one_or_none()
        if release is None:
            known = ", ".join(session.scalars(select(Release.name).order_by(Release.name))) or "none"
            raise PublishingError(f"release {name!r} is not in the store, which has: {known}")
        events = select(ReleaseEvent).where(ReleaseEvent.release_id == release.id, ReleaseEvent.kind == "retired")
        retired = session.scalars(events).first()
    if retired is not None:
        raise PublishingError(f"release {name!r} is retired ({retired.reason}): publish another one")
    version_of(name)
    folder = Path(release.path)
    if not folder.is_dir():
        raise PublishingError(
            f"release {name!r}: its folder {folder} is not there; `gradus release create {name}` with the same recipe "
            "writes the same bytes again"
        )
    files = {}
    expected = release.manifest["files"]
    for done, path in enumerate(sorted(expected)):
        progress(done, len(expected))
        files[path] = _checked(folder, path, expected[path]["sha256"], name)
    progress(len(expected), len(expected))
    files[MANIFEST] = _manifest(folder, release.manifest, name)
    return Content(release.id, name, release.digest, files)


def _checked(folder: Path, path: str, sha256: str, name: str) -> LocalFile:
    file = folder / path
    if not file.is_file():
        raise PublishingError(f"release {name!r}: {path} is missing in {folder}; restore the folder")
    found = digest_file(file)
    if found != sha256:
        raise PublishingError(
            f"release {name!r}: {path} is not what was frozen (SHA-256 {found[:12]}, manifest {sha256[:12]}); "
            "restore the folder, or release under a new name"
        )
    return LocalFile(path, file, file.stat().st_size, sha256)


def _manifest(folder: Path, frozen: dict[str, Any], name: str) -> LocalFile:
    """The manifest names no hash of its own, so its values are compared with the frozen ones."""
    file = folder / MANIFEST
    try:
        there = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise PublishingError(f"release {name!r}: {file} cannot be read; restore the folder") from error
    if there != orjson.loads(orjson.dumps(frozen)):
        raise PublishingError(f"release {name!r}: {MANIFEST} is not what was frozen; restore the folder")
    return LocalFile(MANIFEST, file, file.stat().st_size, digest_file(file))
