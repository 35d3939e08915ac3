"""A release written again from the store, and a configuration of it in another format.

What was frozen selects the rows, so the bytes are the same, or the export says which files cannot be and why.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from curation.audit.figures import audit_figures
from curation.audit.ladder import draw_ladder
from curation.errors import CurationError
from curation.release.building import Builder, Progress
from curation.release.catalogue import find_release
from curation.release.manifest import as_read, manifest_bytes, write_texts
from curation.release.recipe import ReleaseRecipe
from curation.release.selection import Frozen
from curation.release.writing import disk_errors, new_folder
from db.files import digest_file
from db.runs import code_version
from db.store import Store
from db.tables.releases import Release

_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and which files of the release the store cannot give any more, with the reason."""

    name: str
    target: Path
    num_files: int
    num_rows: int
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"target": str(self.target)}


def export_release(
    store: Store,
    name: str,
    *,
    folder: Path | None = None,
    allow_missing: bool = False,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write a release's folder again, from its frozen items, as FOLDER/NAME (default: where it was).

    Args:
        store: The store that froze it.
        name: The release.
        folder: Parent of the folder to write.
        allow_missing: Write the files whose bytes are the same, and leave out the others.
        progress: Told of examples done.

    Raises:
        CurationError: There is no such release, the target is there already, or a file would have other bytes.
    """
    with store.read() as session:
        release = find_release(session, name)
    target = folder / name if folder else Path(release.path)
    if target.exists():
        raise CurationError(
            f"{target} is there already: 'gradus release verify {name}' looks at it, --folder names another"
        )
    with new_folder(target.parent, name) as partial:
        left_out = _write(store, release, partial, progress)
        if left_out and not allow_missing:
            told = "; ".join(f"{file}: {why}" for file, why in sorted(left_out.items())[:3])
            more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
            raise CurationError(
                f"release {name!r} cannot be written again as it was: {told}{more}. --allow-missing writes the others"
            )
        for file in left_out:
            (partial / file).unlink(missing_ok=True)
        (partial / "manifest.json").write_bytes(manifest_bytes(release.manifest))
        partial.rename(target)
    rows = sum(num for splits in release.manifest["rows"].values() for num in splits.values())
    return Exported(name, target, len(release.manifest["files"]) - len(left_out), rows, left_out)


def _write(store: Store, release: Release, partial: Path, progress: Progress) -> dict[str, str]:
    """Write every file; which of them are not the release's, and why."""
    manifest = as_read(release.manifest)
    if "schemas" not in manifest:
        raise CurationError(
            f"release {release.name!r} is of format {manifest['format']}, which this Gradus cannot write"
        )
    recipe = ReleaseRecipe.model_validate(release.recipe)
    teachers = frozenset((one["name"], one["version"]) for one in manifest["teachers"] if one.get("has_scores", True))
    until = manifest.get("decisions", {}).get("until")
    frozen = Frozen(release.id, teachers, datetime.fromisoformat(until) if until else None)
    Builder(store, recipe, partial, frozen).write(progress)
    report = audit_figures(store, teacher=recipe.teacher, runs=recipe.runs)
    draw_ladder(report.order, partial / "ladder.png")
    data = {name: one for name, one in manifest["files"].items() if name.endswith(".parquet")}
    write_texts(partial, manifest, data)
    others = {
        name: _why(name, manifest)
        for name, one in manifest["files"].items()
        if not (partial / name).is_file() or digest_file(partial / name) != one["sha256"]
    }
    for file in [path for path in partial.rglob("*") if path.is_file()]:
        if str(file.relative_to(partial)) not in manifest["files"]:
            file.unlink()
    return others


def _why(name: str, manifest: dict[str, Any]) -> str:
    package = "pyarrow" if name.endswith(".parquet") else "matplotlib" if name.endswith(".png") else "huggingface-hub"
    was, now = manifest["written_by"][package], metadata.version(package)
    if was != now:
        return f"it was written by {package} {was}, this is {now}"
    was, now = manifest["code_version"], code_version()
    return _what_changed(name) + (f", or Gradus {was} wrote it otherwise than {now}" if was != now else "")


def _what_changed(name: str) -> str:
    if name == "ladder.png":
        return "the audit's figures are others by now"
    if name.startswith("provenance/"):
        return "runs found its candidates in more ways since"
    if name.startswith("graded/"):
        return "scores, judgements or sources of its rows changed since"
    return "what the store holds of its rows changed since"


def export_jsonl(
    store: Store, name: str, config: str, *, folder: Path, progress: Progress = lambda done, total: None
) -> list[Exported]:
    """Write a configuration as NAME-CONFIG-SPLIT.jsonl, one file a split; from the release's folder or the store.

    Raises:
        CurationError: There is no such release or configuration, or a file is not what the manifest says.
    """
    with store.read() as session:
        release = find_release(session, name)
    rows: dict[str, dict[str, int]] = release.manifest["rows"]
    if config not in rows:
        raise CurationError(f"release {name!r} has no configuration {config!r}; it has: {', '.join(sorted(rows))}")
    source, temporary = Path(release.path), folder / f".{name}-source"
    with disk_errors(folder, name):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if not source.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
                source = export_release(store, name, folder=temporary, progress=progress).target
            return [_write_jsonl(release, source, config, split, folder, progress) for split in rows[config]]
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_jsonl(release: Release, source: Path, config: str, split: str, folder: Path, progress: Progress) -> Exported:
    target, total = folder / f"{release.name}-{config}-{split}.jsonl", release.manifest["rows"][config][split]
    partial, num_rows = target.with_suffix(".partial"), 0
    try:
        with partial.open("wb") as file:
            for batch in _batches(release, source, f"{config}/{split}-"):
                file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in batch)
                num_rows += len(batch)
                progress(num_rows, total)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(release.name, target, 1, num_rows, {})


def _batches(release: Release, source: Path, prefix: str) -> Iterator[list[dict[str, Any]]]:
    files: dict[str, dict[str, Any]] = release.manifest["files"]
    for name in sorted(name for name in files if name.startswith(prefix)):
        path = source / name
        if not path.is_file() or digest_file(path) != files[name]["sha256"]:
            raise CurationError(f"{path} is not what the manifest says: 'gradus release verify {release.name}'")
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH):
            yield batch.to_pylist()
