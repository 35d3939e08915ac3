"""Bringing a published set into a store, so that others' sets can be audited and reviewed.

A release of ours comes with grades, ranks, origins, scores and what its provenance tells (released.py); any other set
by the conventions of sentence-transformers (layouts.py). Bad rows are named and kept as rejections; the good ones come.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.importing.beir import Fault, open_bytes
from curation.importing.layouts import Layout, ScoredRow, scored_rows, tell_layout
from curation.importing.pairs import PairImport, PairRow, consistent, raw_rows
from curation.importing.published import PublishedSet, data_files, open_published
from curation.importing.released import import_release
from curation.importing.rows import ImportReport, Progress, chunked, close_run, open_collection, record_faults
from db.insert import insert_missing
from db.store import Store
from db.tables.examples import Score
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

_CHUNK = 500


def import_hub(
    store: Store,
    source: str,
    *,
    config: str | None = None,
    split: str | None = None,
    query: str | None = None,
    positives: Sequence[str] = (),
    negatives: Sequence[str] = (),
    positive_from: float | None = None,
    name: str | None = None,
    licence: str | None = None,
    endpoint: str | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import a folder or ORG/NAME[@REVISION] as a collection. A second import writes nothing.

    Args:
        store: Where to.
        source: A folder, or a data set on a Hub.
        config: Configuration; default: the card's default, or the only one. Of a release of ours always `graded`.
        split: Only this split; default: all of them.
        query: Column of the query, where its name does not tell it.
        positives: Columns of positives.
        negatives: Columns of negatives.
        positive_from: Least label or score that makes a passage a positive, in labelled layouts.
        name: Name of the collection; default: the repository's or folder's.
        licence: Licence of the texts; default: the card's.
        endpoint: Another Hub than HF_ENDPOINT's.
        progress: Told of rows done.

    Raises:
        CurationError: No such set, configuration or split, or columns whose meaning cannot be told.
    """
    found = open_published(source, endpoint=endpoint)
    manifest = found.manifest()
    if manifest is not None and config in (None, "graded"):
        if query or positives or negatives or positive_from is not None:
            raise CurationError(
                f"{found.source} is a release of Gradus, whose columns are known: leave --query, --positive, "
                "--negative and --positive-from out, or name another --config"
            )
        return import_release(store, found, manifest, split=split, name=name, licence=licence, progress=progress)
    card = found.card()
    chosen = _files_of(found, card, config, split)
    columns, first = _first_row(found, next(iter(chosen.values())))
    layout = tell_layout(columns, first, query=query, positives=positives, negatives=negatives)
    report = ImportReport(name or found.source)
    recipe = {
        "importer": "hub",
        "collection": report.collection,
        "licence": licence or _licence(card),
        "source": found.source,
        "revision": found.revision,
        "config": config,
        "splits": sorted(chosen),
        "columns": layout.columns,
    }
    _import_splits(store, found, chosen, layout, recipe, report, positive_from, progress)
    return report


def _import_splits(
    store: Store,
    found: PublishedSet,
    chosen: dict[str, list[str]],
    layout: Layout,
    recipe: dict[str, Any],
    report: ImportReport,
    positive_from: float | None,
    progress: Progress,
) -> None:
    run_id, collection_id = open_collection(store, recipe, kind="hub")
    for one, names in chosen.items():
        rows = scored_rows(_rows(found, names, layout.columns), layout, positive_from)
        _import_rows(store, rows, PairImport(run_id, collection_id, one), report, found, progress)
    close_run(store, run_id, report)


def _files_of(found: PublishedSet, card: dict[str, Any], config: str | None, split: str | None) -> dict[str, list[str]]:
    """Names of the files by split; of one split where it is named."""
    files = data_files(found, card, config)
    if split is None:
        return files
    if split not in files:
        raise CurationError(f"{found.source} has no split {split!r}; it has: {', '.join(sorted(files))}")
    return {split: files[split]}


def _licence(card: dict[str, Any]) -> str | None:
    """The card's licence; `other` is named by `license_name`."""
    given = card.get("license")
    licence = given[0] if isinstance(given, list) and len(given) == 1 else given
    if licence == "other":
        licence = card.get("license_name")
    return licence if isinstance(licence, str) else None


def _first_row(found: PublishedSet, names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Columns of the first file, and its first good row."""
    file = found.file(names[0])
    columns = _columns(file)
    rows = (row for row in raw_rows(file, columns) if isinstance(row, dict))
    first = next(rows, None)
    if first is None:
        raise CurationError(f"{found.source}: no good row in {names[0]}")
    return columns or list(first), first


def _columns(file: Path) -> list[str]:
    """Columns in the file's order; of JSON lines the first good row tells them."""
    import csv
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        try:
            return list(pq.read_schema(file).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise CurationError(f"{file.name}: is not a readable Parquet file: {error}") from error
    if file.name.removesuffix(".gz").endswith(".csv"):
        with open_bytes(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as text:
            return next(csv.reader(text), [])
    return []


def _rows(
    found: PublishedSet, names: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any] | Fault]]:
    """(where, row) of the files, one after the other; each is fetched when its turn comes."""
    for name in names:
        for number, row in enumerate(raw_rows(found.file(name), columns), start=1):
            yield f"{name}, row {number}", row


def _import_rows(
    store: Store,
    rows: Iterator[ScoredRow | Fault],
    importer: PairImport,
    report: ImportReport,
    found: PublishedSet,
    progress: Progress,
) -> None:
    done = 0
    for chunk in chunked(rows, _CHUNK):
        faults = [row for row in chunk if isinstance(row, Fault)]
        with store.write() as session:
            kept = consistent(session, [row.pair for row in chunk if isinstance(row, ScoredRow)], faults)
            report.num_new += importer.put(session, kept)
            whole = {id(pair) for pair in kept}
            scored = [row for row in chunk if isinstance(row, ScoredRow) and row.scores and id(row.pair) in whole]
            report.num_new += _put_scores(session, scored, found)
            record_faults(session, importer.run_id, faults, report)
        _count(report, kept, sum(len(row.scores) for row in scored))
        done += len(chunk)
        progress(done, None)


def _count(report: ImportReport, rows: Sequence[PairRow], num_scores: int) -> None:
    for what, num in (
        ("rows", len(rows)),
        ("positives", sum(len(row.positives) for row in rows)),
        ("negatives", sum(len(row.negatives) for row in rows)),
        ("scores", num_scores),
    ):
        report.counts[what] = report.counts.get(what, 0) + num


def _put_scores(session: Session, rows: Sequence[ScoredRow], found: PublishedSet) -> int:
    """Published scores, under a teacher that says where they are from: who scored is not known."""
    if not rows:
        return 0
    teacher = put_teacher(session, name=f"published by {found.source}"[:200], version=found.revision, kind="published")
    asked = list(dict.fromkeys(row.pair.query for row in rows))
    queries = dict(zip(asked, put_queries(session, asked), strict=True))
    texts = list(dict.fromkeys(chain.from_iterable((text for text, _ in row.scores) for row in rows)))
    passages = dict(zip(texts, put_passages(session, texts), strict=True))
    scores = {(queries[row.pair.query], passages[text]): value for row in rows for text, value in row.scores}
    return insert_missing(
        session,
        Score,
        [
            {"teacher_id": teacher, "query_id": query, "passage_id": passage, "value": value, "num_tokens": None}
            for (query, passage), value in scores.items()
        ],
    )
