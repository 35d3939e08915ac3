"""Bringing a release of ours into a store: grades, ranks, origins, scores, sources with their licences, and of its
provenance what a row can carry (the teachers that found a negative). Requests stay with the store that sent them.

Each source becomes a collection NAME/SOURCE with the licence that its rows name. An edited negative whose release does
not tell the text that it was made from (none did before `parent_text`) comes as a machine-written one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.importing.beir import Fault
from curation.importing.pairs import PairImport, PairRow
from curation.importing.published import PublishedSet
from curation.importing.rows import ImportReport, Progress, chunked, close_run, open_collection, record_faults
from db.examples import NewCandidate, NewExample, NewSourcing, put_candidates, put_new_examples, put_sourcings, put_task
from db.files import digest_file
from db.insert import insert_missing
from db.store import Store
from db.tables.examples import Score
from db.tables.texts import Collection
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

_CHUNK = 250
_NEEDED = ("query", "positive", "negatives")
_GRADES = ("hard", "medium", "easy", None)
_ORIGINS = ("corpus", "synthetic", "mined", "edited")
_MAX_RANK = 1_000


@dataclass(frozen=True, slots=True)
class _Graded:
    """A good row of `graded`, and its rows of `provenance` by the digest of the text."""

    pair: PairRow
    row: Mapping[str, Any]
    told: Mapping[str, Mapping[str, Any]]

    @property
    def negatives(self) -> Sequence[Mapping[str, Any]]:
        return self.row["negatives"] or ()

    def told_of(self, negative: Mapping[str, Any]) -> Mapping[str, Any]:
        """What provenance tells of a negative."""
        return self.told.get(str(negative.get("id")), {})

    def parent_of(self, negative: Mapping[str, Any]) -> str | None:
        """The text that an edited negative was made from, where it is told."""
        text = self.told_of(negative).get("parent_text") if negative["origin"] == "edited" else None
        return text if _is_text(text) and text != negative["text"] else None


class _File(BaseModel):
    sha256: str


class _Teacher(BaseModel):
    name: str = Field(max_length=200)
    version: str = Field(max_length=100)
    kind: str = Field(default="published", max_length=30)
    max_length: int | None = Field(default=None, ge=0, lt=1 << 31)
    prompt: str = ""


class _Manifest(BaseModel):
    """What an import takes from a manifest; a stranger may have written it."""

    name: str | None = None
    digest: str
    files: dict[str, _File]
    teachers: tuple[_Teacher, ...] = ()


def _read_manifest(found: PublishedSet, given: Mapping[str, Any]) -> _Manifest:
    try:
        return _Manifest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CurationError(f"{found.source}/manifest.json: {where}: {first['msg']}") from error


def import_release(
    store: Store,
    found: PublishedSet,
    given: Mapping[str, Any],
    *,
    split: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportReport:
    """Import the configuration `graded` of a release. A second import writes nothing.

    Raises:
        CurationError: It has no such split, a column is missing, the manifest is not one of ours, or a file is not the
            one that it names.
    """
    manifest = _read_manifest(found, given)
    splits = sorted({name.split("/")[1].rpartition("-of-")[0].rpartition("-")[0] for name in _files(found, "graded/")})
    chosen = [one for one in splits if split in (None, one)]
    if not chosen:
        raise CurationError(f"{found.source} has no split {split!r} of 'graded'; it has: {', '.join(splits) or 'none'}")
    report = ImportReport(name or found.source)
    recipe = {
        "importer": "hub",
        "collection": report.collection,
        "licence": licence,
        "source": found.source,
        "revision": found.revision,
        "release": manifest.name,
        "release_digest": manifest.digest,
        "splits": chosen,
    }
    run_id, collection_id = open_collection(store, recipe, kind="hub")
    with store.write() as session:
        teachers = _put_teachers(session, manifest)
    importer = _ReleaseImport(report, run_id, collection_id, teachers, licence)
    done = 0
    for one in chosen:
        for chunk in chunked(_rows(found, manifest, one), _CHUNK):
            faults = [row for row in chunk if isinstance(row, Fault)]
            good = [row for row in chunk if isinstance(row, _Graded)]
            with store.write() as session:
                importer.put(session, good, one)
                record_faults(session, run_id, faults, report)
            done += len(chunk)
            progress(done, None)
    close_run(store, run_id, report)
    return report


def _put_teachers(session: Session, manifest: _Manifest) -> dict[tuple[str, str | None], int]:
    """Ids of the manifest's teachers by (name, version), and the last version of each by (name, None)."""
    found: dict[tuple[str, str | None], int] = {}
    for one in manifest.teachers:
        key = put_teacher(session, **one.model_dump())
        found[one.name, one.version] = found[one.name, None] = key
    return found


def _files(found: PublishedSet, prefix: str) -> list[str]:
    return [name for name in found.names if name.startswith(prefix) and name.endswith(".parquet")]


def _table_rows(found: PublishedSet, manifest: _Manifest, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _files(found, prefix):
        path = found.file(name)
        named = manifest.files.get(name)
        if named is None or digest_file(path) != named.sha256:
            raise CurationError(f"{found.source}/{name} is not what its manifest names: fetch the release again")
        number = 0
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_size=_CHUNK):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}, row {number}", row
        except (pa.ArrowInvalid, OSError) as error:
            raise CurationError(f"{found.source}/{name}: is not a readable Parquet file: {error}") from error


def _rows(found: PublishedSet, manifest: _Manifest, split: str) -> Iterator[_Graded | Fault]:
    """Rows of a split, each with its provenance, which stands in the same order."""
    told = groupby(_table_rows(found, manifest, f"provenance/{split}-"), key=lambda one: one[1].get("example_id"))
    example, rows = None, dict[str, Mapping[str, Any]]()
    for where, row in _table_rows(found, manifest, f"graded/{split}-"):
        if missing := next((name for name in _NEEDED if name not in row), None):
            raise CurationError(f"{found.source}: 'graded' has no column {missing!r}")
        while example != row.get("example_id") and (following := next(told, None)) is not None:
            example, several = following
            rows = {str(one.get("id")): one for _, one in several}
        yield _graded(where, row, rows if example == row.get("example_id") else {})


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\x00" not in value


def _graded(where: str, row: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]]) -> _Graded | Fault:
    negatives = row["negatives"] or []
    for one in negatives:
        if not isinstance(one, dict):
            return Fault(where, "wrong_type", f"a negative is {one!r:.40}, no struct")
        text, rank = one.get("text"), one.get("rank")
        if not _is_text(text):
            return Fault(where, "missing_field", "a negative has no text")
        if one.get("grade") not in _GRADES or one.get("origin") not in _ORIGINS:
            return Fault(
                where, "wrong_type", f"a negative's grade {one.get('grade')!r:.20} or origin {one.get('origin')!r:.20}"
            )
        if rank is not None and not 1 <= rank <= _MAX_RANK:
            return Fault(where, "wrong_type", f"a negative's rank {rank!r:.20} is not 1 or more")
    positives = [row["positive"], *(one["text"] for one in row.get("more_positives") or [])]
    texts = [one["text"] for one in negatives]
    if not _is_text(row["query"]):
        return Fault(where, "missing_field", "column 'query' has no query text")
    if not all(map(_is_text, positives)):
        return Fault(where, "missing_field", "column 'positive' has no positive text")
    if clash := next((text for text in texts if text in positives), None):
        return Fault(where, "negative_is_positive", f"a negative equals a positive of its row: {clash[:60]!r}")
    return _Graded(PairRow(where, row["query"], tuple(positives), tuple(texts)), row, told)


@dataclass(slots=True)
class _ReleaseImport:
    """The import in progress: where rows go, and what has been counted."""

    report: ImportReport
    run_id: int
    collection_id: int
    teachers: dict[tuple[str, str | None], int]
    licence: str | None

    def put(self, session: Session, rows: Sequence[_Graded], split: str) -> None:
        asked = list(dict.fromkeys(row.pair.query for row in rows))
        queries = dict(zip(asked, put_queries(session, asked), strict=True))
        texts = list(dict.fromkeys(text for row in rows for text in (*row.pair.positives, *row.pair.negatives)))
        parents = (row.parent_of(one) for row in rows for one in row.negatives)
        texts = list(dict.fromkeys([*texts, *(text for text in parents if text is not None)]))
        passages = dict(zip(texts, put_passages(session, texts), strict=True))
        for source in sorted({(self._source(row), self._licence(row)) for row in rows}, key=str):
            of_source = [row for row in rows if (self._source(row), self._licence(row)) == source]
            self._put_source(session, of_source, source, split, queries, passages)
        for what, num in (
            ("rows", len(rows)),
            ("positives", sum(len(row.pair.positives) for row in rows)),
            ("negatives", sum(len(row.pair.negatives) for row in rows)),
        ):
            self.report.counts[what] = self.report.counts.get(what, 0) + num
        self._scores(session, rows, queries, passages)

    def _source(self, row: _Graded) -> str | None:
        """The source of a row; brainstormed ones have none."""
        source = row.row.get("source")
        return None if source in (None, "brainstormed") else str(source)

    def _licence(self, row: _Graded) -> str | None:
        return self.licence or row.row.get("licence")

    def _put_source(
        self,
        session: Session,
        rows: Sequence[_Graded],
        source: tuple[str | None, str | None],
        split: str,
        queries: dict[str, int],
        passages: dict[str, int],
    ) -> None:
        name, licence = source
        collection = None if name is None else self._collection(session, name, licence)
        if collection is not None:
            self._judge(session, rows, collection, split, queries, passages)
        origin = "synthetic" if name is None else "corpus"
        new, owners = [], []
        for row in rows:
            task_type, instruction = row.row.get("task_type"), row.row.get("instruction")
            task = put_task(session, task_type, instruction) if task_type and instruction else None
            for text in row.pair.positives:
                query, positive = queries[row.pair.query], passages[text]
                new.append(NewExample(query, positive, origin, collection, task, row.row.get("language")))
                owners.append(row)
        examples = put_new_examples(session, new)
        self._candidates(session, list(zip(examples, new, owners, strict=True)), origin, passages)

    def _collection(self, session: Session, source: str, licence: str | None) -> int:
        name = f"{self.report.collection}/{source}"[:200]
        row = {"name": name, "kind": "hub", "licence": licence, "attribution": None}
        insert_missing(session, Collection, [row])
        return session.scalars(select(Collection.id).where(Collection.name == name)).one()

    def _judge(
        self,
        session: Session,
        rows: Sequence[_Graded],
        collection: int,
        split: str,
        queries: dict[str, int],
        passages: dict[str, int],
    ) -> None:
        """Documents, queries and judgments, so that negatives can be mined; machine-written texts are no documents."""
        real = {one["text"] for row in rows for one in row.negatives if one["origin"] in ("corpus", "mined")}
        real |= {text for row in rows for text in row.pair.positives}
        importer = PairImport(self.run_id, collection, split)
        asked = {row.pair.query: queries[row.pair.query] for row in rows}
        documents = {text: passages[text] for text in sorted(real)}
        self.report.num_new += importer.judge(session, [row.pair for row in rows], asked, documents)

    def _candidates(
        self,
        session: Session,
        examples: Sequence[tuple[int, NewExample, _Graded]],
        origin: str,
        passages: dict[str, int],
    ) -> None:
        candidates, ways = [], []
        for example, new, row in examples:
            candidates.append(NewCandidate(example, new.positive_id, "positive", origin, self.run_id))
            for one in row.negatives:
                passage, parent = passages[one["text"]], row.parent_of(one)
                candidates.append(
                    NewCandidate(
                        example,
                        passage,
                        "negative",
                        "synthetic" if one["origin"] == "edited" and parent is None else one["origin"],
                        self.run_id,
                        one["grade"],
                        one["rank"],
                        one.get("violated_requirement"),
                        None if parent is None else passages[parent],
                    )
                )
                found = row.told_of(one).get("found") or ()
                ways += [((example, passage), way) for way in found if way.get("teacher")]
        keys = put_candidates(session, candidates)
        sourcings = [NewSourcing(key, self.run_id) for key in keys.values()]
        by_teacher = {
            (keys[pair], self.teachers[way["teacher"], way["teacher_version"]]): way
            for pair, way in ways
            if (way["teacher"], way["teacher_version"]) in self.teachers
        }
        sourcings += [
            NewSourcing(key, self.run_id, None, teacher, way["retrieval_rank"], way["score"], way["threshold"])
            for (key, teacher), way in by_teacher.items()
        ]
        self.report.num_new += put_sourcings(session, sourcings)

    def _scores(
        self, session: Session, rows: Sequence[_Graded], queries: dict[str, int], passages: dict[str, int]
    ) -> None:
        scores: dict[tuple[int, int, int], float] = {}
        for row in rows:
            scored = [(row.row["positive"], row.row.get("positive_scores"))]
            scored += [(one["text"], one.get("scores")) for one in row.negatives]
            for text, several in scored:
                for one in several or []:
                    if (teacher := self.teachers.get((one["teacher"], None))) is not None and one["value"] is not None:
                        scores[teacher, queries[row.pair.query], passages[text]] = one["value"]
        named = ("teacher_id", "query_id", "passage_id")
        rows_of = [
            {**dict(zip(named, key, strict=True)), "value": value, "num_tokens": None} for key, value in scores.items()
        ]
        self.report.num_new += insert_missing(session, Score, rows_of)
        self.report.counts["scores"] = self.report.counts.get("scores", 0) + len(scores)
