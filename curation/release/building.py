"""The rows of a release, streamed from its selection into Parquet; what went in is remembered, a few bytes each.

Rows are built as columns, a page of examples at a time: a dictionary for every row would take most of the time.
"""

import gc
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.release.files import (
    CORPUS,
    GRADED,
    NEGATIVE,
    POSITIVE,
    QRELS,
    QUERIES,
    SCORES,
    TRIPLET,
    ReleaseWriters,
    n_tuple,
)
from curation.release.licences import check_licences
from curation.release.mixing import fill_slots
from curation.release.provenance import PROVENANCE, Found, Provenance, Sources
from curation.release.recipe import ReleaseRecipe
from curation.release.selection import Chosen, Frozen, Negative, Scores, Selection
from curation.release.texts import corpus_tables, query_tables
from db.digest import counter_uniform
from db.store import Store

Progress = Callable[[int, int | None], None]


def schemas(slots: int) -> dict[str, pa.Schema]:
    """The columns of every configuration."""
    return {
        "graded": GRADED,
        "n-tuple": n_tuple(slots),
        "triplet": TRIPLET,
        "corpus": CORPUS,
        "queries": QUERIES,
        "qrels": QRELS,
        "provenance": PROVENANCE,
    }


@dataclass(frozen=True, slots=True)
class Row:
    """An example as it goes in: what was chosen, its licence, and the negatives of its slots."""

    chosen: Chosen
    licence: str
    synthetic: Sequence[Negative]
    mined: Sequence[Negative]

    @property
    def drawn(self) -> list[Negative]:
        """The slots in order: machine-written ones by rank, then the mined ones."""
        return [*sorted(self.synthetic, key=lambda one: (one.rank or 99, one.digest)), *self.mined]

    @property
    def positives(self) -> list[tuple[str, str]]:
        """(digest, text) of the positive, and of what a judge made one."""
        texts = self.chosen.texts
        more = [(one.digest, one.text) for one in self.chosen.more_positives]
        return [(texts.positive_digest, texts.positive), *more]

    @property
    def candidates(self) -> list[Found]:
        """Every candidate in its place: the positive, the negatives, and what a judge made positives."""
        chosen = self.chosen
        example, positive = chosen.texts.digest, chosen.positive
        found = [
            Found(
                positive.candidate,
                example,
                chosen.texts.positive_digest,
                "positive",
                0,
                positive.origin,
                None,
                None,
                None,
                positive.run,
            )
        ]
        for place, one in enumerate((*chosen.negatives, *chosen.more_positives), start=1):
            found.append(
                Found(
                    one.candidate,
                    example,
                    one.digest,
                    "negative",
                    place,
                    one.origin,
                    one.grade,
                    one.rank,
                    one.parent,
                    one.run,
                )
            )
        return found


class Builder:
    """Writes the files of a release, and remembers which candidates went in."""

    def __init__(self, store: Store, recipe: ReleaseRecipe, folder: Path, frozen: Frozen | None = None) -> None:
        self._store, self._recipe, self._folder, self._frozen = store, recipe, folder, frozen
        self.items, self.positions, self.is_dev = array("q"), array("i"), array("b")
        self.realised = {"synthetic_slots": 0, "mined_slots": 0, "short_rows": 0, "judged_relevant": 0}
        self.both = {"synthetic": 0, "mined": 0}  # slots of the examples that have negatives of both kinds
        self.licences: dict[tuple[str, str], int] = {}  # examples by (source, licence)
        self.sources = Sources()
        self._passages = array("q")  # of the corpus: what nobody wrote by machine

    def write(self, progress: Progress) -> dict[str, dict[str, int]]:
        """Write every configuration; rows per configuration and split."""
        with _without_cycle_collection():
            return self._write(progress)

    def _write(self, progress: Progress) -> dict[str, dict[str, int]]:
        of_slots = schemas(self._recipe.mix.slots)
        with self._store.read() as session, ReleaseWriters(self._folder, of_slots) as writers:
            selection = Selection(session, self._recipe, self._frozen)
            if self._frozen is None:
                check_licences(selection.licences(), self._recipe.acknowledged)
            provenance = Provenance(session, self._recipe.runs)
            done = 0
            for page in selection.pages():
                progress(done, len(selection))
                rows = [self._row(chosen) for chosen in page]
                for split in ("train", "dev"):
                    of_split = [row for row in rows if row.chosen.split == split]
                    if of_split:
                        self._write_split(writers, split, of_split, provenance)
                done += len(page)
            progress(done, len(selection))
            self.sources = provenance.sources
            writers.write("queries", "queries", query_tables(session, selection.queries))
            passages = np.unique(np.frombuffer(self._passages, dtype=np.int64))
            writers.write("corpus", "corpus", corpus_tables(session, passages))
            return writers.close()

    def realised_mix(self) -> dict[str, int | float | None]:
        """Slots by kind; the ratio over the examples that have negatives of both kinds, None where there are none."""
        ratio = self.both["synthetic"] / self.both["mined"] if self.both["mined"] else None
        return {**self.realised, "realised_ratio": ratio}

    def _row(self, chosen: Chosen) -> Row:
        texts = chosen.texts
        licence = texts.licence or self._recipe.licence
        source = (texts.source or "brainstormed", licence)
        self.licences[source] = self.licences.get(source, 0) + 1
        written = [one for one in chosen.negatives if one.is_written]
        others = [one for one in chosen.negatives if not one.is_written]
        row = Row(chosen, licence, *self._slots(written, others, texts.digest))
        self._count(row, has_both=bool(written and others))
        self._passages.append(texts.positive_id)
        self._passages.extend(one.passage for one in others)
        self._passages.extend(one.passage for one in chosen.more_positives)
        return row

    def _write_split(self, writers: ReleaseWriters, split: str, rows: Sequence[Row], provenance: Provenance) -> None:
        writers.write("graded", split, graded_table(rows))
        slots = self._recipe.mix.slots
        pairs = [(row, row.drawn, digest, text) for row in rows for digest, text in row.positives]
        full = [(row.chosen.texts.query, text, *_texts(drawn)) for row, drawn, _, text in pairs if len(drawn) == slots]
        writers.write("n-tuple", split, _table(full, n_tuple(slots)))
        triplets = [(row.chosen.texts.query, text, one.text) for row, drawn, _, text in pairs for one in drawn]
        writers.write("triplet", split, _table(triplets, TRIPLET))
        qrels = [(row.chosen.texts.query_digest, digest, 1) for row, _, digest, _ in pairs]
        writers.write("qrels", split, _table(qrels, QRELS))
        found = [one for row in rows for one in row.candidates]
        self.items.extend([one.candidate for one in found])
        self.positions.extend([one.position for one in found])
        self.is_dev.extend([split == "dev"] * len(found))
        writers.write("provenance", split, provenance.table(found))

    def _slots(
        self, written: Sequence[Negative], others: Sequence[Negative], example: str
    ) -> tuple[list[Negative], list[Negative]]:
        mix, seed = self._recipe.mix, self._recipe.seed
        shuffled = sorted(written, key=lambda one: counter_uniform(seed, "slot", example, one.digest))
        return fill_slots(
            mix.kind,
            shuffled,
            others,
            ratio=mix.ratio,
            slots=mix.slots,
            seed=seed,
            example=example,
            quotas=mix.quotas,
        )

    def _count(self, row: Row, *, has_both: bool) -> None:
        synthetic, mined = len(row.synthetic), len(row.mined)
        self.realised["synthetic_slots"] += synthetic
        self.realised["mined_slots"] += mined
        self.realised["short_rows"] += synthetic + mined < self._recipe.mix.slots
        self.realised["judged_relevant"] += row.chosen.num_judged_relevant
        if has_both:
            self.both["synthetic"] += synthetic
            self.both["mined"] += mined


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Rows hold no cycles, and looking for some in them took a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def graded_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of the configuration `graded`."""
    texts = [row.chosen.texts for row in rows]
    negatives = [row.chosen.negatives for row in rows]
    more = [row.chosen.more_positives for row in rows]
    flat = [one for several in negatives for one in several]
    columns: dict[str, Any] = {
        "example_id": [text.digest for text in texts],
        "query": [text.query for text in texts],
        "query_id": [text.query_digest for text in texts],
        "positive": [text.positive for text in texts],
        "positive_id": [text.positive_digest for text in texts],
        "positive_scores": _scores(row.chosen.positive_scores for row in rows),
        "instruction": [text.instruction for text in texts],
        "task_type": [text.task_type for text in texts],
        "language": [text.language for text in texts],
        "source": [text.source or "brainstormed" for text in texts],
        "licence": [row.licence for row in rows],
        "num_synthetic_slots": [len(row.synthetic) for row in rows],
        "num_mined_slots": [len(row.mined) for row in rows],
        "more_positives": _lists(more, POSITIVE, [[one.digest for several in more for one in several],
                                                  [one.text for several in more for one in several]]),
        "negatives": _lists(
            negatives,
            NEGATIVE,
            [
                [one.digest for one in flat],
                [one.text for one in flat],
                [one.grade for one in flat],
                [one.rank for one in flat],
                [one.origin for one in flat],
                [one.violated_requirement for one in flat],
                [one.mined_rank for one in flat],
                _scores(one.scores for one in flat),
            ],
        ),
    }  # fmt: skip
    return pa.Table.from_arrays([_array(columns[kind.name], kind.type) for kind in GRADED], schema=GRADED)


def _scores(several: Iterable[Scores]) -> pa.Array:
    lists = list(several)
    flat = [score for scores in lists for score in scores]
    return _lists(lists, SCORES.value_type, [[teacher for teacher, _ in flat], [value for _, value in flat]])


def _lists(several: Sequence[Sequence[Any]], kind: pa.StructType, columns: Sequence[Any]) -> pa.Array:
    """A list for each of `several`, of structs whose fields are the columns of them all."""
    offsets = np.zeros(len(several) + 1, dtype=np.int32)
    np.cumsum([len(one) for one in several], out=offsets[1:])
    arrays = [_array(column, one.type) for column, one in zip(columns, kind, strict=True)]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays(arrays, fields=list(kind)))


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column, kind)


def _table(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [() for _ in schema]
    return pa.Table.from_arrays(
        [pa.array(c, kind.type) for c, kind in zip(columns, schema, strict=True)], schema=schema
    )


def _texts(drawn: Sequence[Negative]) -> list[str]:
    return [one.text for one in drawn]
