"""Importing rows of (query, positives, existing negatives) from CSV, JSONL or Parquet, with a column mapping.

Several positives of a query become several examples; each carries the row's negatives. A column may hold one text or a
list of texts. Rows stream; a bad one is named with file, row and column, and never stops the good ones.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curation.beir import Fault, open_bytes
from curation.errors import CurationError
from curation.importing import ImportReport, chunked, close_run, open_collection, record_faults
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.store import Store
from db.texts import put_passages, put_queries

_CHUNK = 500
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class PairRow:
    """One good row: a query, its positives, its negatives."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


def import_pairs(
    store: Store,
    file: Path,
    *,
    query: str = "query",
    positives: Sequence[str] = ("positive",),
    negatives: Sequence[str] = (),
    name: str | None = None,
    licence: str | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import a file of pairs as a collection (default name: the file's). A second import writes nothing.

    Args:
        query: Column of the query.
        positives: Columns of positives.
        negatives: Columns of existing negatives; they enter as candidates of origin `corpus`, without a grade.

    Raises:
        CurationError: The file is missing, of another kind, or lacks a column.
    """
    rows = read_pairs(file, query=query, positives=positives, negatives=negatives)
    report = ImportReport(name or file.name.split(".")[0])
    first = next(rows, None)
    if first is None:
        raise CurationError(f"{file}: no rows in it")
    recipe = {"importer": "pairs", "collection": report.collection, "licence": licence}
    run_id, collection = open_collection(store, recipe, kind="pairs")
    done = 0
    for chunk in chunked(_all(first, rows), _CHUNK):
        good = [row for row in chunk if isinstance(row, PairRow)]
        faults = [row for row in chunk if isinstance(row, Fault)]
        with store.write() as session:
            report.num_new += _put(session, good, run_id, collection)
            record_faults(session, run_id, faults, report)
        for what, num in (
            ("rows", len(good)),
            ("positives", sum(len(row.positives) for row in good)),
            ("negatives", sum(len(row.negatives) for row in good)),
        ):
            report.counts[what] = report.counts.get(what, 0) + num
        done += len(chunk)
        progress(done, None)
    close_run(store, run_id, report)
    return report


def _all(first: PairRow | Fault, rest: Iterator[PairRow | Fault]) -> Iterator[PairRow | Fault]:
    yield first
    yield from rest


def _put(session: Any, rows: Sequence[PairRow], run_id: int, collection: int) -> int:
    queries = dict(zip([row.query for row in rows], put_queries(session, [row.query for row in rows]), strict=True))
    texts = list(dict.fromkeys(text for row in rows for text in (*row.positives, *row.negatives)))
    passages = dict(zip(texts, put_passages(session, texts), strict=True))
    pairs = [(queries[row.query], passages[text]) for row in rows for text in row.positives]
    examples = dict(zip(pairs, put_examples(session, pairs, origin="corpus", collection_id=collection), strict=True))
    candidates = [
        NewCandidate(example, passage, "positive", "corpus", run_id) for (_, passage), example in examples.items()
    ]
    for row in rows:
        for positive in row.positives:
            example = examples[queries[row.query], passages[positive]]
            candidates += [
                NewCandidate(example, passages[text], "negative", "corpus", run_id) for text in row.negatives
            ]
    keys = put_candidates(session, candidates)
    return put_sourcings(session, [NewSourcing(key, run_id) for key in keys.values()])


def read_pairs(
    file: Path, *, query: str, positives: Sequence[str], negatives: Sequence[str]
) -> Iterator[PairRow | Fault]:
    """Rows of the file; a row's number counts from 1 (for CSV, the line below the header is row 1)."""
    columns = [query, *positives, *negatives]
    for number, row in enumerate(_raw_rows(file, columns), start=1):
        where = f"{file.name}, row {number}"
        if isinstance(row, Fault):
            yield Fault(where, row.reason, row.detail)
        else:
            yield _pair(row, where, query, positives, negatives)


def _pair(
    row: dict[str, Any], where: str, query: str, positives: Sequence[str], negatives: Sequence[str]
) -> PairRow | Fault:
    texts: dict[str, list[str]] = {"positive": [], "negative": []}
    for role, columns in (("positive", positives), ("negative", negatives)):
        for column in columns:
            found = _column_texts(row.get(column))
            if found is None:
                return Fault(
                    where, "wrong_type", f"column {column!r} = {row[column]!r:.60} is not a text or list of texts"
                )
            texts[role] += found
    asked = row.get(query)
    if not isinstance(asked, str) or not asked.strip() or "\x00" in asked:
        return Fault(where, "missing_field", f"column {query!r} has no query text")
    if not texts["positive"]:
        return Fault(where, "missing_field", f"column {positives[0]!r} has no positive text")
    known = {" ".join(text.split()) for text in texts["positive"]}
    for text in texts["negative"]:
        if " ".join(text.split()) in known:
            return Fault(where, "negative_is_positive", f"a negative equals a positive of its row: {text[:60]!r}")
    return PairRow(asked, tuple(dict.fromkeys(texts["positive"])), tuple(dict.fromkeys(texts["negative"])))


def _column_texts(value: Any) -> list[str] | None:
    """The texts in a cell, blanks left out; None when it holds something else."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and "\x00" not in text for text in values):
        return None
    return [text for text in values if text.strip()]


def _raw_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
    if not file.is_file():
        raise CurationError(f"{file}: no such file; give a .csv, .jsonl (or .gz of them) or .parquet file")
    kind = file.name.removesuffix(".gz").rpartition(".")[2].lower()
    readers = {"csv": _csv_rows, "jsonl": _jsonl_rows, "parquet": _parquet_rows}
    if kind not in readers:
        raise CurationError(f"{file}: a {kind!r} file; give .csv, .jsonl (or .gz of them) or .parquet")
    yield from readers[kind](file, columns)


def _require(file: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    for column in wanted:
        if column not in there:
            raise CurationError(f"{file}: no column {column!r}; it has {', '.join(map(repr, there))}")


def _csv_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
    csv.field_size_limit(1 << 27)  # a whole document may stand in a cell
    try:
        with open_bytes(file) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text)
            _require(file, columns, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    yield Fault(
                        "", "malformed_line", f"has another number of fields than the header (line {reader.line_num})"
                    )
                else:
                    yield row
    except (UnicodeDecodeError, csv.Error, OSError, EOFError) as error:
        raise CurationError(f"{file}: cannot be read to its end: {error}") from error


def _jsonl_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
    try:
        with open_bytes(file) as lines:
            for line in lines:
                if line.strip():
                    yield _json_row(line)
    except (OSError, EOFError) as error:
        raise CurationError(f"{file}: cannot be read to its end: {error}") from error


def _json_row(line: bytes) -> dict[str, Any] | Fault:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Fault("", "malformed_line", f"not JSON: {error}")
    return row if isinstance(row, dict) else Fault("", "malformed_line", f"needs an object, got {type(row).__name__}")


def _parquet_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        _require(file, columns, parquet.schema_arrow.names)
        for batch in parquet.iter_batches(batch_size=_CHUNK, columns=list(dict.fromkeys(columns))):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise CurationError(f"{file}: is not a readable Parquet file: {error}") from error
