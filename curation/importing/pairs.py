"""Importing rows of (query, positives, existing negatives) from CSV, JSONL or Parquet, with a column mapping.

Several positives of a query become several examples; each carries the row's negatives. A column may hold one text or a
list of texts. Texts and judgments enter as a collection, so that negatives can be mined from it. Rows stream; a bad one
is named with file, row and column, and never stops the good ones.
"""

import csv
import io
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.importing.beir import Fault, open_bytes
from curation.importing.rows import ImportReport, chunked, close_run, open_collection, record_faults
from db.digest import digest_text
from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
from db.insert import insert_missing
from db.store import Store
from db.tables.examples import Candidate, Example
from db.tables.texts import CollectionQuery, Document, Passage, Qrel, Query
from db.texts import put_passages, put_queries

_CHUNK = 500
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class PairRow:
    """One good row: a query, its positives, its negatives."""

    where: str
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
    split: str = "train",
    name: str | None = None,
    licence: str | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import a file of pairs as a collection (default name: the file's). A second import writes nothing.

    Args:
        query: Column of the query.
        positives: Columns of positives.
        negatives: Columns of existing negatives; they enter as candidates of origin `corpus`, without a grade.
        split: Split of the judgments.

    Raises:
        CurationError: The file is missing, of another kind, or lacks a column.
    """
    rows = read_pairs(file, query=query, positives=positives, negatives=negatives)
    report = ImportReport(name or file.name.split(".")[0])
    first = next(rows, None)
    if first is None:
        raise CurationError(f"{file}: no rows in it")
    recipe = {"importer": "pairs", "collection": report.collection, "licence": licence}
    run_id, collection_id = open_collection(store, recipe, kind="pairs")
    importer = PairImport(run_id, collection_id, split)
    done = 0
    for chunk in chunked(_all(first, rows), _CHUNK):
        faults = [row for row in chunk if isinstance(row, Fault)]
        with store.write() as session:
            good = consistent(session, [row for row in chunk if isinstance(row, PairRow)], faults)
            report.num_new += importer.put(session, good)
            record_faults(session, run_id, faults, report)
        _count(report, good)
        done += len(chunk)
        progress(done, None)
    close_run(store, run_id, report)
    return report


def _count(report: ImportReport, rows: Sequence[PairRow]) -> None:
    for what, num in (
        ("rows", len(rows)),
        ("positives", sum(len(row.positives) for row in rows)),
        ("negatives", sum(len(row.negatives) for row in rows)),
    ):
        report.counts[what] = report.counts.get(what, 0) + num


def _all(first: PairRow | Fault, rest: Iterator[PairRow | Fault]) -> Iterator[PairRow | Fault]:
    yield first
    yield from rest


def consistent(session: Session, rows: Sequence[PairRow], faults: list[Fault]) -> list[PairRow]:
    """Without the rows that call a query's positive its negative, or the reverse: whichever came first stands."""
    known = _known_roles(session, [row.query for row in rows])
    kept = []
    for row in rows:
        roles = known[digest_text(row.query)]
        claimed = {digest_text(text): "positive" for text in row.positives}
        claimed |= {digest_text(text): "negative" for text in row.negatives}
        clash = next((text for text, role in claimed.items() if roles.get(text, role) != role), None)
        if clash is None:
            roles |= claimed
            kept.append(row)
        else:
            text = next(text for text in (*row.positives, *row.negatives) if digest_text(text) == clash)
            detail = f"{text[:60]!r} is a {roles[clash]} of this query elsewhere, here a {claimed[clash]}: keep one"
            faults.append(Fault(row.where, "other_role", detail))
    return kept


def _known_roles(session: Session, queries: Sequence[str]) -> dict[str, dict[str, str]]:
    """By query digest, the role of each passage digest that imports gave the query."""
    known: dict[str, dict[str, str]] = defaultdict(dict)
    rows = session.execute(
        select(Query.digest, Passage.digest, Candidate.role)
        .join(Example, Example.query_id == Query.id)
        .join(Candidate, Candidate.example_id == Example.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .where(Query.digest.in_({digest_text(query) for query in queries}), Candidate.origin == "corpus")
    )
    for query, passage, role in rows:
        known[query][passage] = role
    return known


@dataclass(frozen=True, slots=True)
class PairImport:
    """Where the rows go. A text's external id is its digest: files of pairs name nothing."""

    run_id: int
    collection_id: int
    split: str

    def put(self, session: Session, rows: Sequence[PairRow]) -> int:
        """Store the rows; returns how many judgments and candidates are new."""
        asked = list(dict.fromkeys(row.query for row in rows))
        queries = dict(zip(asked, put_queries(session, asked), strict=True))
        texts = list(dict.fromkeys(text for row in rows for text in (*row.positives, *row.negatives)))
        passages = dict(zip(texts, put_passages(session, texts), strict=True))
        num_new = self.judge(session, rows, queries, passages)
        pairs = [(queries[row.query], passages[text]) for row in rows for text in row.positives]
        keys = put_examples(session, pairs, origin="corpus", collection_id=self.collection_id)
        examples = dict(zip(pairs, keys, strict=True))
        candidates = [
            NewCandidate(example, positive, "positive", "corpus", self.run_id)
            for (_, positive), example in examples.items()
        ]
        candidates += [
            NewCandidate(
                examples[queries[row.query], passages[positive]], passages[text], "negative", "corpus", self.run_id
            )
            for row in rows
            for positive in row.positives
            for text in row.negatives
        ]
        found = put_candidates(session, candidates)
        return num_new + put_sourcings(session, [NewSourcing(key, self.run_id) for key in found.values()])

    def judge(
        self, session: Session, rows: Sequence[PairRow], queries: dict[str, int], passages: dict[str, int]
    ) -> int:
        asked = [(digest_text(text), key) for text, key in queries.items()]
        documents = [(digest_text(text), key) for text, key in passages.items()]
        here = {"collection_id": self.collection_id}
        insert_missing(session, CollectionQuery, [{**here, "external_id": id_, "query_id": key} for id_, key in asked])
        unnamed = {**here, "title": "", "licence": None}
        insert_missing(
            session, Document, [{**unnamed, "external_id": id_, "passage_id": key} for id_, key in documents]
        )
        query_of = self._ids(session, CollectionQuery, [id_ for id_, _ in asked])
        document_of = self._ids(session, Document, [id_ for id_, _ in documents])
        qrels = [
            {
                "collection_query_id": query_of[digest_text(row.query)],
                "document_id": document_of[digest_text(text)],
                "split": self.split,
                "relevance": 1,
            }
            for row in rows
            for text in row.positives
        ]
        return insert_missing(session, Qrel, qrels)

    def _ids(
        self, session: Session, table: type[Document] | type[CollectionQuery], external_ids: Sequence[str]
    ) -> dict[str, int]:
        found: dict[str, int] = {}
        for part in chunked(external_ids, 500):
            wanted = (table.collection_id == self.collection_id, table.external_id.in_(part))
            found.update(
                {name: key for name, key in session.execute(select(table.external_id, table.id).where(*wanted))}
            )
        return found


def read_pairs(
    file: Path, *, query: str, positives: Sequence[str], negatives: Sequence[str]
) -> Iterator[PairRow | Fault]:
    """Rows of the file; a row's number counts from 1 (for CSV, the line below the header is row 1)."""
    columns = [query, *positives, *negatives]
    for number, row in enumerate(raw_rows(file, columns), start=1):
        where = f"{file.name}, row {number}"
        if isinstance(row, Fault):
            yield Fault(where, row.reason, row.detail)
        else:
            yield pair_row(row, where, query, positives, negatives)


def pair_row(
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
    return PairRow(where, asked, tuple(dict.fromkeys(texts["positive"])), tuple(dict.fromkeys(texts["negative"])))


def _column_texts(value: Any) -> list[str] | None:
    """The texts in a cell, blanks left out; None when it holds something else."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) and "\x00" not in text for text in values):
        return None
    return [text for text in values if text.strip()]


def raw_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
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
        # Bytes that are not UTF-8 become surrogates, so that one bad row does not stop the file.
        with open_bytes(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as text:
            reader = csv.DictReader(text)
            _require(file, columns, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    yield Fault(
                        "", "malformed_line", f"has another number of fields than the header (line {reader.line_num})"
                    )
                elif broken := next((name for name, cell in row.items() if not _is_utf8(cell)), None):
                    yield Fault("", "not_utf8", f"column {broken!r} is not UTF-8 (line {reader.line_num})")
                else:
                    yield row
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise CurationError(f"{file}: cannot be read to its end: {error}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any] | Fault]:
    try:
        with open_bytes(file) as lines:
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield _json_row(text, number)
    except (OSError, EOFError, zlib.error) as error:
        raise CurationError(f"{file}: cannot be read to its end: {error}") from error


def _json_row(line: bytes, number: int) -> dict[str, Any] | Fault:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Fault("", "malformed_line", f"line {number} is not JSON: {error}")
    if not isinstance(row, dict):
        return Fault("", "malformed_line", f"line {number} needs a JSON object, got {type(row).__name__}")
    return row


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
