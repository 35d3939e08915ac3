"""A frozen release as it lies in its folder: every file, checked against the manifest before anything is sent."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from curation.publishing.errors import PublishingError
from curation.release.catalogue import Version, find_release, require_in_use
from curation.release.verifying import verify_release
from db.files import digest_file
from db.store import Store

MANIFEST = "manifest.json"
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
    version: Version
    digest: str
    files: dict[str, LocalFile] = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.version)

    @property
    def tag(self) -> str:
        return f"v{self.version.number}"

    @property
    def folders(self) -> set[str]:
        """Top-level folders: the configurations, whose every Parquet file would be loaded."""
        return {path.split("/")[0] for path in self.files if "/" in path}


def read_content(
    store: Store, name: str, *, folder: Path | None = None, progress: Progress = lambda done, total: None
) -> Content:
    """The release's files, each hashed and compared with the manifest that the store froze.

    Args:
        folder: Where they lie; default: where they were written.

    Raises:
        CurationError: No such release, or it is retired.
        PublishingError: Its folder is not what was frozen.
    """
    with store.read() as session:
        release = find_release(session, name)
        require_in_use(session, release)
    version = Version.parse(name)
    verified = verify_release(store, name, folder=folder, progress=progress)
    if verified.problems:
        first, more = verified.problems[0], len(verified.problems) - 1
        others = f" (and {more} more)" if more else ""
        raise PublishingError(
            f"release {name!r} is not what was frozen: {first['where']}: {first['problem']}{others}; name "
            f"a sound copy by --folder, or move {verified.folder} away and let 'gradus release export {name}' write it "
            "again"
        )
    where, frozen = verified.folder, release.manifest["files"]
    files = {path: _local(where, path, frozen[path]["sha256"]) for path in sorted(frozen)}
    files[MANIFEST] = _local(where, MANIFEST, digest_file(where / MANIFEST))
    return Content(release.id, version, release.digest, files)


def _local(folder: Path, path: str, sha256: str) -> LocalFile:
    return LocalFile(path, folder / path, (folder / path).stat().st_size, sha256)
