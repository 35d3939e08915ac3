"""A release: one frozen selection, written as Parquet with manifest and card, and recorded in the store.

Rows are ordered by content digests, never by integer keys, so the same content gives the same bytes in any store.
Everything streams, example page by example page. The folder appears by one rename, the rows by one transaction; a
release that was cut off is finished by creating it again.
"""

import shutil
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.release.files import CORPUS, GRADED, QRELS, QUERIES, TRIPLET, ReleaseWriters, n_tuple
from curation.release.manifest import describe
from curation.release.mixing import fill_slots
from curation.release.recipe import ReleaseRecipe
from curation.release.splits import assign_splits
from db.digest import counter_uniform
from db.insert import insert_missing
from db.store import Store
from db.tables.base import utc_now
from db.tables.examples import Candidate, Example, Score, Task, Teacher
from db.tables.ledger import Run
from db.tables.releases import Release, ReleaseItem
from db.tables.texts import Collection, Document, Passage, Query

_PAGE = 250
_WRITTEN = ("synthetic", "edited")
Progress = Callable[[int, int | None], None]


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
        CurationError: Nothing is selected, or the name already means other content.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise CurationError(f"release name {name!r}: use letters, digits, dots and dashes, such as scifact-1.0.0")
    target, partial = folder / name, folder / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    builder = _Builder(store, recipe, partial)
    counts = builder.write(progress)
    manifest = describe(
        store,
        recipe,
        name,
        partial,
        rows=counts,
        num_items=len(builder.items),
        mix=builder.realised_mix(),
        licences=builder.licences,
    )
    digest = manifest["digest"]
    existing = _existing(store, name)
    if existing is not None and existing.digest != digest:
        shutil.rmtree(partial)
        raise CurationError(
            f"release {name!r} already means other content (digest {existing.digest[:12]}, now {digest[:12]}): "
            "a name is a promise, choose a new one"
        )
    if existing is not None and target.is_dir():
        shutil.rmtree(partial)
        return Released(name, digest, target, existing.manifest, is_new=False)
    if target.exists():
        _remove_leftover(target, digest, partial)
    partial.rename(target)
    if existing is None:
        _freeze(store, recipe, name, target, manifest, builder)
    return Released(name, digest, target, manifest, is_new=existing is None)


def _remove_leftover(target: Path, digest: str, partial: Path) -> None:
    """Remove the folder of a call that was cut off before the store knew it; anything else is not ours to touch."""
    manifest = target / "manifest.json"
    if not manifest.is_file() or not (target / "graded").is_dir():
        shutil.rmtree(partial)
        raise CurationError(f"{target} exists and is no release: choose another name, or move it away")
    try:
        there = orjson.loads(manifest.read_bytes()).get("digest")
    except (orjson.JSONDecodeError, AttributeError):
        there = None
    if there != digest:
        shutil.rmtree(partial)
        raise CurationError(
            f"{target} holds another release of this name (digest {str(there)[:12]}, now {digest[:12]}), perhaps of "
            "another store: choose another name, or move it away"
        )
    shutil.rmtree(target)


def _existing(store: Store, name: str) -> Release | None:
    with store.read() as session:
        return session.scalars(select(Release).where(Release.name == name)).one_or_none()


def _freeze(
    store: Store, recipe: ReleaseRecipe, name: str, target: Path, manifest: dict[str, Any], builder: "_Builder"
) -> None:
    with store.write() as session:
        release = Release(
            name=name,
            digest=manifest["digest"],
            recipe=recipe.model_dump(mode="json"),
            manifest=manifest,
            path=str(target.resolve()),
            created_at=utc_now(),
        )
        session.add(release)
        session.flush()
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


@dataclass(frozen=True, slots=True)
class _Negative:
    candidate: int
    origin: str
    row: dict[str, Any]

    @property
    def is_written(self) -> bool:
        return self.origin in _WRITTEN


class _Builder:
    """Writes the files of a release, and remembers which candidates went in, a few bytes each."""

    def __init__(self, store: Store, recipe: ReleaseRecipe, folder: Path) -> None:
        self._store, self._recipe, self._folder = store, recipe, folder
        self.items, self.positions, self.is_dev = array("q"), array("i"), array("b")
        self.realised = {"synthetic_slots": 0, "mined_slots": 0, "short_rows": 0}
        self.both = {"synthetic": 0, "mined": 0}  # slots of the examples that have negatives of both kinds
        self.licences: set[str] = set()

    def write(self, progress: Progress) -> dict[str, dict[str, int]]:
        """Write every configuration; rows per configuration and split."""
        schemas = {
            "graded": GRADED,
            "n-tuple": n_tuple(self._recipe.mix.slots),
            "triplet": TRIPLET,
            "corpus": CORPUS,
            "queries": QUERIES,
            "qrels": QRELS,
        }
        writers = ReleaseWriters(self._folder, schemas)
        with self._store.read() as session:
            keys, split_of = self._select(session)
            for start in range(0, len(keys), _PAGE):
                progress(start, len(keys))
                for example in self._page(session, keys[start : start + _PAGE]):
                    self._write_example(writers, example, split_of[example.id])
            progress(len(keys), len(keys))
            self._write_texts(session, writers)
        return writers.close()

    def realised_mix(self) -> dict[str, int | float | None]:
        """Slots by kind; the ratio over the examples that have negatives of both kinds, None where there are none."""
        ratio = self.both["synthetic"] / self.both["mined"] if self.both["mined"] else None
        return {**self.realised, "realised_ratio": ratio}

    def _candidates(self) -> Select[int]:
        """Examples' ids with a negative that the recipe selects."""
        return select(Candidate.example_id).where(Candidate.role == "negative", *self._in_runs())

    def _in_runs(self) -> list[Any]:
        names = self._recipe.runs
        return [Candidate.run_id.in_(select(Run.id).where(Run.name.in_(names)))] if names else []

    def _select(self, session: Session) -> tuple[list[int], dict[int, str]]:
        rows = session.execute(
            select(Example.id, Example.digest, Example.query_id, Example.positive_id)
            .where(Example.id.in_(self._candidates()))
            .order_by(Example.digest)
        ).all()
        if not rows:
            runs = f" of runs {', '.join(self._recipe.runs)}" if self._recipe.runs else ""
            raise CurationError(f"no negatives{runs} to release: generate, mine or import some first")
        keys, digests, queries, positives = (list(column) for column in zip(*rows, strict=True))
        splits = assign_splits(
            digests, queries, positives, dev_share=self._recipe.split.dev_share, seed=self._recipe.seed
        )
        return keys, dict(zip(keys, splits, strict=True))

    def _page(self, session: Session, keys: Sequence[int]) -> Iterator[Row[Any]]:
        """Examples with their texts and sources, in the order of the keys, and the negatives in `_negatives`."""
        rows: Sequence[Row[Any]] = session.execute(  # type: ignore[assignment]
            select(
                Example.id,
                Example.digest,
                Example.query_id,
                Example.positive_id,
                Example.language,
                Query.text.label("query"),
                Query.digest.label("query_digest"),
                Passage.text.label("positive"),
                Passage.digest.label("positive_digest"),
                Task.instruction,
                Task.task_type,
                Collection.name.label("source"),
                Collection.licence,
            )
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Example.positive_id == Passage.id)
            .outerjoin(Task, Example.task_id == Task.id)
            .outerjoin(Collection, Example.collection_id == Collection.id)
            .where(Example.id.in_(keys))
            .order_by(Example.digest)
        ).all()
        self._scores = _scores(session, rows, keys)
        self._negatives = self._load_negatives(session, keys)
        self._positive_candidate = {
            example: candidate
            for example, candidate in session.execute(
                select(Candidate.example_id, Candidate.id).where(
                    Candidate.example_id.in_(keys), Candidate.role == "positive"
                )
            )
        }
        return iter(rows)

    def _load_negatives(self, session: Session, keys: Sequence[int]) -> dict[int, list[_Negative]]:
        rows = session.execute(
            select(Candidate, Example.query_id, Passage.digest, Passage.text)
            .join(Example, Candidate.example_id == Example.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .where(Candidate.example_id.in_(keys), Candidate.role == "negative", *self._in_runs())
        )
        found: dict[int, list[_Negative]] = defaultdict(list)
        for candidate, query, digest, text in rows:
            row = {
                "id": digest,
                "text": text,
                "grade": candidate.grade,
                "rank": candidate.rank,
                "origin": candidate.origin,
                "violated_requirement": candidate.violated_requirement,
                "mined_rank": None,
                "scores": self._scores.get((query, candidate.passage_id), []),
            }
            found[candidate.example_id].append(_Negative(candidate.id, candidate.origin, row))
        return {example: self._ordered(negatives) for example, negatives in found.items()}

    def _ordered(self, negatives: list[_Negative]) -> list[_Negative]:
        """Machine-written ones by rank, then the others from the most similar down, which is their mined rank."""
        written = sorted((n for n in negatives if n.is_written), key=lambda n: (n.row["rank"] or 99, n.row["id"]))
        others = sorted((n for n in negatives if not n.is_written), key=lambda n: (-self._similarity(n), n.row["id"]))
        for place, negative in enumerate(others, start=1):
            negative.row["mined_rank"] = place
        return [*written, *others]

    def _similarity(self, negative: _Negative) -> float:
        by_teacher = {score["teacher"]: score["value"] for score in negative.row["scores"]}
        return float(by_teacher.get(self._recipe.teacher, -1.0))

    def _write_example(self, writers: ReleaseWriters, example: Row[Any], split: str) -> None:
        negatives = self._negatives[example.id]
        written, others = [n for n in negatives if n.is_written], [n for n in negatives if not n.is_written]
        mix = self._recipe.mix
        synthetic, mined = fill_slots(
            mix.kind,
            ratio=mix.ratio,
            slots=mix.slots,
            num_synthetic=len(written),
            num_mined=len(others),
            seed=self._recipe.seed,
            example=example.digest,
        )
        self.realised["synthetic_slots"] += synthetic
        self.realised["mined_slots"] += mined
        if written and others:
            self.both["synthetic"] += synthetic
            self.both["mined"] += mined
        licence = example.licence or self._recipe.licence
        self.licences.add(licence)
        writers.write("graded", split, [self._graded(example, negatives, (synthetic, mined), licence)])
        drawn = _draw(written, synthetic, self._recipe.seed, example.digest) + others[:mined]
        pair = {"anchor": example.query, "positive": example.positive}
        writers.write("triplet", split, [pair | {"negative": n.row["text"]} for n in drawn])
        if len(drawn) == mix.slots:
            texts = {f"negative_{place}": n.row["text"] for place, n in enumerate(drawn, start=1)}
            writers.write("n-tuple", split, [pair | texts])
        else:
            self.realised["short_rows"] += 1
        qrel = {"query-id": example.query_digest, "corpus-id": example.positive_digest, "score": 1}
        writers.write("qrels", split, [qrel])
        for position, candidate in enumerate([self._positive_candidate[example.id], *(n.candidate for n in negatives)]):
            self.items.append(candidate)
            self.positions.append(position)
            self.is_dev.append(split == "dev")

    def _graded(
        self, example: Row[Any], negatives: list[_Negative], slots: tuple[int, int], licence: str
    ) -> dict[str, Any]:
        return {
            "example_id": example.digest,
            "query": example.query,
            "query_id": example.query_digest,
            "positive": example.positive,
            "positive_id": example.positive_digest,
            "positive_scores": self._scores.get((example.query_id, example.positive_id), []),
            "instruction": example.instruction,
            "task_type": example.task_type,
            "language": example.language,
            "source": example.source or "brainstormed",
            "licence": licence,
            "num_synthetic_slots": slots[0],
            "num_mined_slots": slots[1],
            "negatives": [negative.row for negative in negatives],
        }

    def _write_texts(self, session: Session, writers: ReleaseWriters) -> None:
        """Queries, and the corpus: positives and negatives that were not machine-written."""
        chosen = self._candidates().distinct()
        asked = select(Example.query_id).where(Example.id.in_(chosen))
        queries = select(Query.digest, Query.text).where(Query.id.in_(asked)).order_by(Query.digest)
        for digest, text in session.execute(queries, execution_options={"yield_per": 1_000}):
            writers.write("queries", "queries", [{"_id": digest, "text": text}])
        # A set, not a correlated EXISTS: that would look through all candidates once for every passage.
        real = select(Candidate.passage_id).where(
            Candidate.example_id.in_(chosen),
            (Candidate.role == "positive") | Candidate.origin.in_(("mined", "corpus")),
        )
        passages = select(Passage.digest, Passage.text, _title()).where(Passage.id.in_(real)).order_by(Passage.digest)
        for digest, text, title in session.execute(passages, execution_options={"yield_per": 1_000}):
            body = text.removeprefix(title + "\n") if title else text
            writers.write("corpus", "corpus", [{"_id": digest, "title": title or "", "text": body}])


def _title() -> Any:
    """The smallest title under which a collection holds the passage: one, whatever the order of imports."""
    return select(func.min(Document.title)).where(Document.passage_id == Passage.id).scalar_subquery().label("title")


def _draw(written: Sequence[_Negative], num: int, seed: int, example: str) -> list[_Negative]:
    drawn = sorted(written, key=lambda n: counter_uniform(seed, "slot", example, n.row["id"]))[:num]
    return sorted(drawn, key=lambda n: (n.row["rank"] or 99, n.row["id"]))


def _scores(
    session: Session, examples: Sequence[Row[Any]], keys: Sequence[int]
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Scores of the page's pairs by (query id, passage id), teachers by name; a teacher's newest version."""
    pairs = (
        select(Example.query_id, Candidate.passage_id)
        .join(Example, Candidate.example_id == Example.id)
        .where(Candidate.example_id.in_(keys))
        .distinct()
        .subquery()
    )
    rows = session.execute(
        select(Score.query_id, Score.passage_id, Teacher.name, Teacher.id, Score.value)
        .join(Teacher, Score.teacher_id == Teacher.id)
        .join(pairs, (pairs.c.query_id == Score.query_id) & (pairs.c.passage_id == Score.passage_id))
        .order_by(Teacher.id)
    )
    found: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for query, passage, teacher, _, value in rows:
        found[query, passage][teacher] = value
    return {
        pair: [{"teacher": teacher, "value": value} for teacher, value in sorted(by_teacher.items())]
        for pair, by_teacher in found.items()
    }
