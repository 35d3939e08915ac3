"""Reading a release's `graded` configuration: nothing else of the platform is known here but its columns."""

import hashlib
import math
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
_GRADES = ("hard", "medium", "easy")
_LAST_RANK = 99


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
        _check_bytes(folder / name, _sha256(manifest["files"], name, folder))
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
        _ = manifest["name"], manifest["digest"], manifest["files"].keys()
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TrainerError(f"release {folder}: manifest.json is not a release's manifest ({error})") from error
    return manifest


def _sha256(files: Mapping[str, Any], name: str, folder: Path) -> str:
    told = files[name].get("sha256") if isinstance(files[name], dict) else None
    if not isinstance(told, str):
        raise TrainerError(f"release {folder}: manifest.json has no sha256 of {name!r}: fetch the release again")
    return told


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
    num_rows = 0
    for batch in file.iter_batches(batch_size=1_000):
        for row in batch.to_pylist():
            num_rows += 1
            try:
                yield _example(row)
            except _RowError as error:
                raise TrainerError(
                    f"release file {path}, row {num_rows} (example {row['example_id']!r}): {error}; make the release "
                    "again, or mend the row and its SHA-256 in manifest.json"
                ) from error


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


class _RowError(Exception):
    """What is wrong with a row: the field, its value, and what belongs there."""


def _example(row: Mapping[str, Any]) -> GradedExample:
    for name in ("example_id", "query", "positive"):
        _text(row, name)
    for name in _COUNTS:
        if row[name] is None or row[name] < 0:
            raise _RowError(f"{name} = {row[name]}: a number of negatives, 0 or more, belongs there")
    for name in ("instruction", "source"):
        if row.get(name) is not None:
            _text(row, name, may_be_empty=True)
    negatives = [_negative(one, f"negatives[{place}].") for place, one in enumerate(row["negatives"] or [])]
    more = row.get("more_positives") or []
    return GradedExample(
        id=row["example_id"],
        query=row["query"],
        positive=row["positive"],
        written=tuple(negative for negative in negatives if negative.is_written),
        mined=tuple(negative for negative in negatives if not negative.is_written),
        num_written_slots=row["num_synthetic_slots"],
        num_mined_slots=row["num_mined_slots"],
        more_positives=tuple(_text(one, "text", f"more_positives[{place}].") for place, one in enumerate(more)),
        instruction=row.get("instruction") or "",
        source=row.get("source") or "",
        positive_scores=_scores(row.get("positive_scores"), "positive_scores"),
    )


def _negative(row: Mapping[str, Any], where: str) -> Negative:
    if row is None:
        raise _RowError(f"{where.removesuffix('.')} is null: a negative belongs there")
    rank, grade = row["rank"], row.get("grade")
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= _LAST_RANK):
        raise _RowError(f"{where}rank = {rank!r}: a rank from 1 to {_LAST_RANK}, or null, belongs there")
    if grade not in (None, *_GRADES):
        raise _RowError(f"{where}grade = {grade!r}: {', '.join(_GRADES)} or null belongs there")
    return Negative(
        id=_text(row, "id", where),
        text=_text(row, "text", where),
        rank=rank,
        grade=grade,
        is_written=_text(row, "origin", where) in _WRITTEN,
        scores=_scores(row.get("scores"), f"{where}scores"),
    )


def _text(row: Mapping[str, Any], name: str, where: str = "", *, may_be_empty: bool = False) -> str:
    value = row[name]
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        told = "is null" if value is None else "is empty" if value == "" else f"= {value!r}"
        raise _RowError(f"{where}{name} {told}: a text belongs there")
    return value


def _scores(rows: Sequence[Mapping[str, Any]] | None, where: str) -> dict[str, float]:
    """Scores by teacher; a null is none. One that is no finite number would silence the teacher for the whole row."""
    found = {}
    for place, row in enumerate(rows or []):
        teacher, value = row["teacher"], row["value"]
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise _RowError(f"{where}[{place}].value = {value} (teacher {teacher!r}): a finite number belongs there")
        found[teacher] = float(value)
    return found
