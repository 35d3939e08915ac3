"""Bringing a collection into the store, as it is.

Streams in chunks, so memory does not grow with the corpus; a second import writes nothing. Every judged positive
becomes an example. Bad rows are counted, named and kept as rejections of the import's run.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.importing.beir import (
    BeirDocument,
    BeirQrel,
    BeirQuery,
    Fault,
    read_corpus,
    read_qrels,
    read_queries,
    splits,
)
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import Rejected, add_rejections, finish_run, start_run
from db.store import Store
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries

CHUNK = 1_000
Row = TypeVar("Row")
Progress = Callable[[int, int | None], None]


@dataclass(slots=True)
class ImportReport:
    """What came in. `counts` are good rows read; `num_new` of all rows were not in the store before."""

    collection: str
    counts: dict[str, int] = field(default_factory=dict)
    num_new: int = 0
    num_faults: int = 0
    faults: list[Fault] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        named = [{"where": fault.where, "reason": fault.reason, "detail": fault.detail} for fault in self.faults]
        return {
            "collection": self.collection,
            "counts": self.counts,
            "num_new": self.num_new,
            "num_faults": self.num_faults,
            "faults": named,
        }

    def add_fault(self, fault: Fault) -> None:
        self.num_faults += 1
        if len(self.faults) < 1_000:
            self.faults.append(fault)


def import_beir(
    store: Store,
    folder: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import a BEIR folder under a collection's name (default: the folder's).

    Raises:
        CurationError: A file is missing, or the folder has no judgments.
    """
    name = name or folder.resolve().name
    report = ImportReport(name)
    names = splits(folder) if folder.is_dir() else []
    corpus, queries = read_corpus(folder), read_queries(folder)
    first_document, first_query = next(corpus, None), next(queries, None)  # a missing file is told before any write
    if not names:
        raise CurationError(f"{folder}/qrels: no SPLIT.tsv there; a BEIR folder needs judgments")
    recipe = {"importer": "beir", "collection": name, "licence": licence}
    run_id, collection_id = open_collection(store, recipe, kind="beir")
    importer = _BeirImport(store, report, run_id, collection_id, licence)
    importer.documents(_with_first(first_document, corpus), progress)
    importer.queries(_with_first(first_query, queries), progress)
    for split in names:
        importer.qrels(read_qrels(folder, split), split, progress)
    close_run(store, run_id, report)
    return report


def open_collection(store: Store, recipe: dict[str, Any], *, kind: str) -> tuple[int, int]:
    """Ids of the import's run and of the collection, made when they are new.

    Raises:
        CurationError: The name cannot stand in a recipe, a table or a file name.
    """
    name = recipe["collection"]
    if not 1 <= len(name) <= 200 or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise CurationError(f"--name {name[:50]!r}: give a name of 1 to 200 characters without control characters")
    with store.write() as session:
        row = {"name": recipe["collection"], "kind": kind, "licence": recipe["licence"], "attribution": None}
        insert_missing(session, Collection, [row])
        collection_id = session.scalars(select(Collection.id).where(Collection.name == recipe["collection"])).one()
        return start_run(session, "import", recipe["collection"], recipe, 0).id, collection_id


def close_run(store: Store, run_id: int, report: ImportReport) -> None:
    """Record the end of the import, with what it read."""
    from db.tables.ledger import Run

    with store.write() as session:
        totals = {**report.counts, "faults": report.num_faults}
        finish_run(session, session.get_one(Run, run_id), totals)


def record_faults(session: Session, run_id: int, faults: Sequence[Fault], report: ImportReport) -> None:
    """Count and name the faults, and keep them as rejections."""
    for fault in faults:
        report.add_fault(fault)
    add_rejections(session, run_id, [Rejected(f.where, 0, f.reason, f.detail) for f in faults])


def chunked(rows: Iterable[Row], size: int = CHUNK) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _with_first(first: Row | None, rest: Iterator[Row]) -> Iterator[Row]:
    if first is not None:
        yield first
        yield from rest


class _BeirImport:
    """The import in progress: where rows go, and what has been counted."""

    def __init__(self, store: Store, report: ImportReport, run_id: int, collection_id: int, licence: str | None):
        self.store, self.report = store, report
        self.run_id, self.collection_id, self.licence = run_id, collection_id, licence
        self.done = 0

    def _count(self, what: str, good: int, rows: int, progress: Progress) -> None:
        self.report.counts[what] = self.report.counts.get(what, 0) + good
        self.done += rows
        progress(self.done, None)

    def documents(self, rows: Iterator[BeirDocument | Fault], progress: Progress) -> None:
        for chunk in chunked(rows):
            faults = [row for row in chunk if isinstance(row, Fault)]
            good = [row for row in chunk if isinstance(row, BeirDocument)]
            with self.store.write() as session:
                passages = put_passages(session, [row.passage for row in good])
                known = self._known(session, Document, [row.external_id for row in good])
                new: dict[str, dict[str, Any]] = {}
                for row, passage in zip(good, passages, strict=True):
                    there = known.get(row.external_id) or new.get(row.external_id, {}).get("passage_id")
                    if there is None:
                        new[row.external_id] = self._document(row, passage)
                    elif there != passage:
                        faults.append(_other_text(row.where, row.external_id))
                self.report.num_new += insert_missing(session, Document, list(new.values()))
                record_faults(session, self.run_id, faults, self.report)
            self._count("documents", len(chunk) - len(faults), len(chunk), progress)

    def _document(self, row: BeirDocument, passage: int) -> dict[str, Any]:
        return {
            "collection_id": self.collection_id,
            "external_id": row.external_id,
            "passage_id": passage,
            "title": row.title,
            "licence": self.licence,
        }

    def queries(self, rows: Iterator[BeirQuery | Fault], progress: Progress) -> None:
        for chunk in chunked(rows):
            faults = [row for row in chunk if isinstance(row, Fault)]
            good = [row for row in chunk if isinstance(row, BeirQuery)]
            with self.store.write() as session:
                ids = put_queries(session, [row.text for row in good])
                known = self._known(session, CollectionQuery, [row.external_id for row in good])
                new: dict[str, dict[str, Any]] = {}
                for row, query in zip(good, ids, strict=True):
                    there = known.get(row.external_id) or new.get(row.external_id, {}).get("query_id")
                    key = {"collection_id": self.collection_id, "external_id": row.external_id, "query_id": query}
                    if there is None:
                        new[row.external_id] = key
                    elif there != query:
                        faults.append(_other_text(row.where, row.external_id))
                self.report.num_new += insert_missing(session, CollectionQuery, list(new.values()))
                record_faults(session, self.run_id, faults, self.report)
            self._count("queries", len(chunk) - len(faults), len(chunk), progress)

    def _known(
        self, session: Session, table: type[Document] | type[CollectionQuery], external_ids: Sequence[str]
    ) -> dict[str, int]:
        """What each external id already stands for: its passage's or query's id."""
        meaning = table.passage_id if table is Document else table.query_id  # type: ignore[union-attr]
        known: dict[str, int] = {}
        for ids in chunked(external_ids, 500):
            rows = session.execute(
                select(table.external_id, meaning).where(
                    table.collection_id == self.collection_id, table.external_id.in_(ids)
                )
            )
            known.update({external_id: key for external_id, key in rows})
        return known

    def qrels(self, rows: Iterator[BeirQrel | Fault], split: str, progress: Progress) -> None:
        for chunk in chunked(rows):
            faults = [row for row in chunk if isinstance(row, Fault)]
            good = [row for row in chunk if isinstance(row, BeirQrel)]
            with self.store.write() as session:
                judged = self._consistent(session, self._judged(session, good, faults), split, faults)
                self.report.num_new += insert_missing(session, Qrel, [self._qrel(j, split) for j in judged])
                positives = [j for j in judged if j.row.relevance > 0]
                self._examples(session, positives)
                record_faults(session, self.run_id, faults, self.report)
            self._count(f"judgments ({split})", len(judged), len(chunk), progress)

    def _judged(self, session: Session, rows: Sequence[BeirQrel], faults: list[Fault]) -> list["_Judged"]:
        queries = self._keys(session, CollectionQuery, [row.query_id for row in rows])
        documents = self._keys(session, Document, [row.document_id for row in rows])
        judged = []
        for row in rows:
            query, document = queries.get(row.query_id), documents.get(row.document_id)
            if query is None:
                faults.append(Fault(row.where, "absent_query", f"query-id {row.query_id!r} is not in queries.jsonl"))
            elif document is None:
                detail = f"corpus-id {row.document_id!r} is not in corpus.jsonl"
                faults.append(Fault(row.where, "absent_document", detail))
            else:
                judged.append(_Judged(row, query, document))
        return judged

    def _consistent(
        self, session: Session, judged: Sequence["_Judged"], split: str, faults: list[Fault]
    ) -> list["_Judged"]:
        """Without the rows that give a pair another score than the store or an earlier row has."""
        scores: dict[tuple[int, int], int] = {}
        for queries in chunked(sorted({j.query[0] for j in judged}), 500):
            rows = session.execute(
                select(Qrel.collection_query_id, Qrel.document_id, Qrel.relevance).where(
                    Qrel.split == split, Qrel.collection_query_id.in_(queries)
                )
            )
            scores.update({(query, document): relevance for query, document, relevance in rows})
        kept = []
        for j in judged:
            first = scores.setdefault((j.query[0], j.document[0]), j.row.relevance)
            if first == j.row.relevance:
                kept.append(j)
            else:
                detail = f"field 'score' = {j.row.relevance}, but the pair was judged {first} before: keep one of them"
                faults.append(Fault(j.row.where, "other_score", detail))
        return kept

    def _keys(
        self, session: Session, table: type[Document] | type[CollectionQuery], external_ids: Sequence[str]
    ) -> dict[str, tuple[int, int]]:
        meaning = table.passage_id if table is Document else table.query_id  # type: ignore[union-attr]
        found: dict[str, tuple[int, int]] = {}
        for ids in chunked(sorted(set(external_ids)), 500):
            rows = session.execute(
                select(table.external_id, table.id, meaning).where(
                    table.collection_id == self.collection_id, table.external_id.in_(ids)
                )
            )
            found.update({external_id: (key, text_id) for external_id, key, text_id in rows})
        return found

    def _qrel(self, judged: "_Judged", split: str) -> dict[str, Any]:
        return {
            "collection_query_id": judged.query[0],
            "document_id": judged.document[0],
            "split": split,
            "relevance": judged.row.relevance,
        }

    def _examples(self, session: Session, judged: Sequence["_Judged"]) -> None:
        pairs = [(j.query[1], j.document[1]) for j in judged]
        examples = put_examples(session, pairs, origin="corpus", collection_id=self.collection_id)
        positives = [
            NewCandidate(example_id=example, passage_id=passage, role="positive", origin="corpus", run_id=self.run_id)
            for example, (_, passage) in zip(examples, pairs, strict=True)
        ]
        put_candidates(session, positives)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A judgment with the (row id, text id) of its query and its document."""

    row: BeirQrel
    query: tuple[int, int]
    document: tuple[int, int]


def _other_text(where: str, external_id: str) -> Fault:
    detail = f"_id {external_id!r} has another text in the store: give it another id, or the collection another name"
    return Fault(where, "other_text", detail)
