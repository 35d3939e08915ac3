"""Is a release what it says? Files against the manifest, and the manifest against the store's frozen row."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import func, select

from curation.release.catalogue import find_release, retirement
from curation.release.manifest import content_digest, manifest_bytes
from db.files import digest_file
from db.store import Store
from db.tables.releases import Release, ReleaseItem

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Verified:
    """What was looked at, and every way in which it is not the release."""

    name: str
    folder: Path
    num_files: int
    num_bytes: int
    problems: list[dict[str, str]]
    retired: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


def verify_release(
    store: Store, name: str, *, folder: Path | None = None, progress: Progress = lambda done, total: None
) -> Verified:
    """Recompute every SHA-256 of a release's folder (default: where it was written).

    Raises:
        CurationError: There is no such release.
    """
    with store.read() as session:
        release = find_release(session, name)
        retired = retirement(session, release)
        num_items = session.scalar(select(func.count()).where(ReleaseItem.release_id == release.id))
    where = folder or Path(release.path)
    problems = [*_row_problems(release, num_items or 0), *_manifest_problems(release, where)]
    files: dict[str, dict[str, Any]] = release.manifest["files"]
    num_bytes = 0
    for done, (file, meaning) in enumerate(sorted(files.items())):
        progress(done, len(files))
        path = where / file
        if not path.is_file():
            problems.append(_problem(file, "missing"))
            continue
        num_bytes += path.stat().st_size
        if (found := digest_file(path)) != meaning["sha256"]:
            problems.append(
                _problem(file, f"changed: SHA-256 {found[:16]}, the manifest says {meaning['sha256'][:16]}")
            )
    progress(len(files), len(files))
    return Verified(name, where, len(files), num_bytes, problems, retired.reason if retired else None)


def _row_problems(release: Release, num_items: int) -> Iterator[dict[str, str]]:
    """Is the frozen row at one with itself?"""
    manifest = release.manifest
    if num_items != manifest["num_items"]:
        yield _problem("the store", f"holds {num_items:,} items, the manifest says {manifest['num_items']:,}")
    digest = content_digest(manifest["files"], manifest["recipe"])
    if not digest == manifest["digest"] == release.digest:
        yield _problem("the store", f"names digest {release.digest[:16]}, files and recipe give {digest[:16]}")
    if release.recipe != manifest["recipe"]:
        yield _problem("the store", "holds another recipe than its manifest")


def _manifest_problems(release: Release, folder: Path) -> Iterator[dict[str, str]]:
    """Is manifest.json the frozen row's, and is there nothing beside its files?"""
    path = folder / "manifest.json"
    if not folder.is_dir():
        yield _problem(str(folder), "no such folder; 'gradus release export' writes it again")
        return
    try:
        written = path.read_bytes()
        found = orjson.loads(written)
    except FileNotFoundError:
        yield _problem("manifest.json", "missing")
    except OSError as error:
        yield _problem("manifest.json", f"cannot be read: {error.strerror}")
    except orjson.JSONDecodeError as error:
        yield _problem("manifest.json", f"is not JSON: {error}")
    else:
        # By value: a database may write a number in another way.
        if found != release.manifest:
            yield _problem("manifest.json", "is not what the store froze")
        elif written != manifest_bytes(found):
            yield _problem("manifest.json", "has the same values, but other bytes")
    known = {*release.manifest["files"], "manifest.json"}
    there = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    for name in sorted(name for name in there if name not in known and not name.startswith(".")):
        yield _problem(name, "is no file of this release")


def _problem(where: str, what: str) -> dict[str, str]:
    return {"where": where, "problem": what}
