"""Reading a release's `graded` configuration: nothing else of the platform is known here but its columns."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.errors import TrainerError

_TEXTS = ("example_id", "query", "positive")
_COUNTS = ("num_synthetic_slots", "num_mined_slots")
_OF_A_NEGATIVE = ("id", "text", "rank", "origin")
_WRITTEN = ("synthetic", "edited")


def known_place(rank: int) -> int:
    """Place of a written negative in the known order, the positive having 0: N2 and N3 are tied, N4 and beyond last."""
    return {1: 1, 2: 2, 3: 2}.get(rank, 3)


@dataclass(frozen=True, slots=True)
class Negative:
    """A negative of an example; mined ones have no rank and often no grade. Scores are by teacher."""

    id: str
    text: str
    rank: int | None
    grade: str | None = None
    is_written: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GradedExample:
    """A row of `graded`: the slots say how many of a training row's negatives come from which side."""

    id: str
    query: str
    positive: str
    written: tuple[Negative, ...]
    mined: tuple[Negative, ...]
    num_written_slots: int
    num_mined_slots: int
    more_positives: tuple[str, ...] = ()
    instruction: str = ""
    source: str = ""
    positive_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GradedRelease:
    """A release's examples of one split, with its name and digest."""

    name: str
    digest: str
    examples: list[GradedExample]


def read_release(folder: Path, split: str = "train") -> GradedRelease:
    """The examples of a release folder; its files are checked against the manifest first.

    Raises:
        TrainerError: The folder is no release, lacks the split or a column, or its bytes are not the manifest's.
    """
    manifest = _manifest(folder)
    files = sorted(name for name in manifest["files"] if name.startswith(f"graded/{split}-"))
    if not files:
        raise TrainerError(f"release {folder}: configuration 'graded' has no split {split!r}")
    examples: list[GradedExample] = []
    for name in files:
        _check_bytes(folder / name, manifest["files"][name]["sha256"])
        examples += _examples(folder / name)
    if not examples:
        raise TrainerError(f"release {folder}: split {split!r} is empty")
    return GradedRelease(manifest["name"], manifest["digest"], examples)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise TrainerError(f"release {folder}: no manifest.json there; make one with 'gradus release create NAME'")
    try:
        manifest: dict[str, Any] = orjson.loads(path.read_bytes())
        _ = manifest["name"], manifest["digest"], manifest["files"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise TrainerError(f"release {folder}: manifest.json is not a release's manifest ({error})") from error
    return manifest


def _check_bytes(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise TrainerError(f"release file {path} is missing: copy the whole release folder")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise TrainerError(f"release file {path} is not what its manifest says (SHA-256 {found[:12]}): fetch it again")


def _examples(path: Path) -> Iterator[GradedExample]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise TrainerError(f"release file {path} is no Parquet file: {error}") from error
    _check_columns(file.schema_arrow, path)
    for batch in file.iter_batches(batch_size=1_000):
        for row in batch.to_pylist():
            yield _example(row, path)


def _check_columns(schema: pa.Schema, path: Path) -> None:
    columns = {column.name: column.type for column in schema}
    missing = [name for name in (*_TEXTS, *_COUNTS, "negatives") if name not in columns]
    if missing:
        raise TrainerError(f"release file {path} lacks the column {missing[0]!r} of the 'graded' configuration")
    texts = [name for name in _TEXTS if not _is_text(columns[name])]
    counts = [name for name in _COUNTS if not pa.types.is_integer(columns[name])]
    if texts or counts:
        name = (texts + counts)[0]
        wanted = "text" if texts else "whole numbers"
        raise TrainerError(f"release file {path}: column {name!r} holds {columns[name]}, not {wanted}")
    negatives = columns["negatives"]
    of_one = negatives.value_type if pa.types.is_list(negatives) or pa.types.is_large_list(negatives) else None
    if of_one is not None and pa.types.is_null(of_one):
        return  # every list is empty, which the plan tells
    fields = [field.name for field in of_one] if of_one is not None and pa.types.is_struct(of_one) else []
    lacking = [name for name in _OF_A_NEGATIVE if name not in fields]
    if lacking:
        raise TrainerError(f"release file {path}: the entries of column 'negatives' lack the field {lacking[0]!r}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _example(row: Mapping[str, Any], path: Path) -> GradedExample:
    for name in ("query", "positive"):
        if not (row[name] or "").strip():
            raise TrainerError(f"release file {path}: example {row['example_id']!r} has an empty {name}")
    negatives = [_negative(negative) for negative in row["negatives"] or []]
    return GradedExample(
        id=row["example_id"],
        query=row["query"],
        positive=row["positive"],
        written=tuple(negative for negative in negatives if negative.is_written),
        mined=tuple(negative for negative in negatives if not negative.is_written),
        num_written_slots=row["num_synthetic_slots"],
        num_mined_slots=row["num_mined_slots"],
        more_positives=tuple(positive["text"] for positive in row.get("more_positives") or []),
        instruction=row.get("instruction") or "",
        source=row.get("source") or "",
        positive_scores=_scores(row.get("positive_scores")),
    )


def _negative(row: Mapping[str, Any]) -> Negative:
    return Negative(
        id=row["id"],
        text=row["text"],
        rank=row["rank"],
        grade=row.get("grade"),
        is_written=row["origin"] in _WRITTEN,
        scores=_scores(row.get("scores")),
    )


def _scores(rows: Sequence[Mapping[str, Any]] | None) -> dict[str, float]:
    return {row["teacher"]: row["value"] for row in rows or []}
