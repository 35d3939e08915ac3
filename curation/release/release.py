"""A release: one frozen selection, written as Parquet with manifest and card, and recorded in the store.

Rows are ordered by content digests, never by integer keys, so the same content gives the same bytes in any store.
Everything streams, example page by example page. The folder appears by one rename, the rows by one transaction; a
release that was cut off is finished by creating it again.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select

from curation.errors import CurationError
from curation.release.building import Builder, Progress
from curation.release.catalogue import Version, find_release, require_in_use
from curation.release.manifest import describe, manifest_bytes
from curation.release.recipe import ReleaseRecipe
from curation.release.verifying import verify_release
from curation.release.writing import new_folder
from db.insert import insert_missing
from db.store import Store
from db.tables.base import utc_now
from db.tables.releases import Release, ReleaseItem


@dataclass(frozen=True, slots=True)
class Released:
    """A release as it stands in the store, and whether this call made it."""

    name: str
    digest: str
    folder: Path
    manifest: dict[str, Any]
    is_new: bool


def create_release(
    store: Store, recipe: ReleaseRecipe, name: str, *, folder: Path, progress: Progress = lambda done, total: None
) -> Released:
    """Freeze what the recipe selects under a name, in `folder`/NAME. The same content again changes nothing.

    Raises:
        CurationError: The name has no version, means other content already or was retired; nothing is selected; or
            licences conflict; or the folder cannot be written.
        GateError: A gate of the recipe is shut.
    """
    version = Version.parse(name)
    with new_folder(folder, name) as partial:
        with store.read() as session:
            existing = session.scalars(select(Release).where(Release.name == name)).one_or_none()
            if existing is not None:
                require_in_use(session, existing)
        return _create(store, recipe, str(version), folder / name, partial, existing, progress)


def _create(
    store: Store,
    recipe: ReleaseRecipe,
    name: str,
    target: Path,
    partial: Path,
    existing: Release | None,
    progress: Progress,
) -> Released:
    builder = Builder(store, recipe, partial)
    rows = builder.write(progress)
    manifest = describe(store, recipe, name, partial, builder, rows)
    digest = manifest["digest"]
    if existing is None:
        if target.exists():
            _remove_leftover(target, digest)
        partial.rename(target)
        try:
            _freeze(store, recipe, name, target, manifest, builder)
        except CurationError:
            shutil.rmtree(target)  # another call was faster, in another folder
            raise
        return Released(name, digest, target, manifest, is_new=True)
    if existing.digest != digest:
        raise CurationError(
            f"release {name!r} already means other content (digest {existing.digest[:12]}, now {digest[:12]}): "
            "a name is a promise, choose a new version"
        )
    if not target.exists():
        if existing.manifest["files"] != manifest["files"]:
            raise CurationError(
                f"the folder of release {name!r} is gone, and its audit is another by now: 'gradus release export "
                f"{name}' writes what the store froze"
            )
        (partial / "manifest.json").write_bytes(manifest_bytes(existing.manifest))
        partial.rename(target)
    elif problems := verify_release(store, name, folder=target).problems:
        raise CurationError(
            f"{target} is not what was frozen: {problems[0]['where']}: {problems[0]['problem']}; move it away and run "
            "the same command again"
        )
    return Released(name, digest, target, existing.manifest, is_new=False)


def _remove_leftover(target: Path, digest: str) -> None:
    """Remove the folder of a call that was cut off before the store knew it; anything else is not ours to touch."""
    manifest = target / "manifest.json"
    if not manifest.is_file() or not (target / "graded").is_dir():
        raise CurationError(f"{target} exists and is no release: choose another name, or move it away")
    try:
        there = orjson.loads(manifest.read_bytes()).get("digest")
    except (orjson.JSONDecodeError, AttributeError):
        there = None
    if there != digest:
        raise CurationError(
            f"{target} holds another release of this name (digest {str(there)[:12]}, now {digest[:12]}), perhaps of "
            "another store: choose another name, or move it away"
        )
    shutil.rmtree(target)


def _freeze(
    store: Store, recipe: ReleaseRecipe, name: str, target: Path, manifest: dict[str, Any], builder: Builder
) -> None:
    with store.write() as session:
        # The parent that the manifest names; another version may have been frozen in the meantime.
        parent = find_release(session, manifest["parent"]["name"]) if manifest["parent"] else None
        row = {
            "name": name,
            "digest": manifest["digest"],
            "recipe": recipe.model_dump(mode="json"),
            "manifest": manifest,
            "parent_id": parent.id if parent else None,
            "path": str(target.resolve()),
            "created_at": utc_now(),
        }
        if not insert_missing(session, Release, [row]):
            raise CurationError(f"release {name!r} was just frozen by another call: run the same command again")
        release = find_release(session, name)
        for start in range(0, len(builder.items), 5_000):
            part = zip(
                builder.items[start : start + 5_000],
                builder.positions[start : start + 5_000],
                builder.is_dev[start : start + 5_000],
                strict=True,
            )
            insert_missing(
                session,
                ReleaseItem,
                [
                    {"release_id": release.id, "candidate_id": c, "position": p, "split": "dev" if d else "train"}
                    for c, p, d in part
                ],
            )
