"""The rows of a release, streamed from its selection into Parquet; what went in is remembered, a few bytes each.

Rows are built as columns, a page of examples at a time: a dictionary for every row would take most of the time.
"""

import gc
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from curation.release import page as parts
from curation.release.decided import Decided
from curation.release.files import (
    CORPUS,
    GRADED,
    NEGATIVE,
    POSITIVE,
    QRELS,
    QUERIES,
    TRIPLET,
    ReleaseWriters,
    n_tuple,
)
from curation.release.licences import check_licences
from curation.release.mixing import fill_slots
from curation.release.page import Page, Places, lists, offsets, places_within, table, taken
from curation.release.provenance import PROVENANCE, Provenance, Sources
from curation.release.recipe import ReleaseRecipe
from curation.release.selection import Frozen, Selection
from curation.release.texts import Texts, corpus_tables, query_tables
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
class Slots:
    """The negatives of each example's slots: machine-written ones by rank, then the mined ones."""

    places: Places  # among the candidates of a page, example by example
    num_synthetic: Places  # [E]
    num_mined: Places  # [E]

    @property
    def counts(self) -> Places:
        return self.num_synthetic + self.num_mined


class Builder:
    """Writes the files of a release, and remembers which candidates went in."""

    def __init__(self, store: Store, recipe: ReleaseRecipe, folder: Path, frozen: Frozen | None = None) -> None:
        self._store, self._recipe, self._folder, self._frozen = store, recipe, folder, frozen
        self.items, self.positions, self.is_dev = array("q"), array("i"), array("b")
        self.realised = {"synthetic_slots": 0, "mined_slots": 0, "short_rows": 0, "judged_relevant": 0}
        self.both = {"synthetic": 0, "mined": 0}  # slots of the examples that have negatives of both kinds
        self.licences: dict[tuple[str, str], int] = {}  # examples by (source, licence)
        self.sources = Sources()
        self.decided: Decided | None = None  # what people's decisions did, once it is written
        self.examples: Sequence[int] = ()
        self._queries = Texts()
        self._passages = Texts()  # of the corpus: what nobody wrote by machine

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
            provenance = Provenance(session, self._recipe.runs, selection.decided.of)
            done = 0
            for page in selection.pages():
                progress(done, len(selection))
                self._write_page(writers, page, provenance)
                done += len(page.examples)
            progress(done, len(selection))
            self.sources, self.decided = provenance.sources, selection.decided
            self.examples = selection.keys.tolist()
            writers.write("queries", "queries", query_tables(session, self._queries))
            writers.write("corpus", "corpus", corpus_tables(session, self._passages))
            return writers.close()

    def realised_mix(self) -> dict[str, int | float | None]:
        """Slots by kind; the ratio over the examples that have negatives of both kinds, None where there are none."""
        ratio = self.both["synthetic"] / self.both["mined"] if self.both["mined"] else None
        return {**self.realised, "realised_ratio": ratio}

    def _write_page(self, writers: ReleaseWriters, page: Page, provenance: Provenance) -> None:
        slots = self._slots(page)
        licences = page.examples["licence"].fill_null(self._recipe.licence)
        sources = page.examples["source"].fill_null("brainstormed")
        for pair, num in Counter(zip(sources.to_pylist(), licences.to_pylist(), strict=True)).items():
            self.licences[pair] = self.licences.get(pair, 0) + num
        self._count(page, slots)
        self._remember(page)
        writers.write("graded", page.split, graded_table(page, slots, sources, licences))
        texts = training_tables(page, slots, self._recipe.mix.slots)
        for config, rows in texts.items():
            writers.write(config, page.split, rows)
        writers.write("provenance", page.split, provenance.table(page))

    def _slots(self, page: Page) -> Slots:
        mix, seed = self._recipe.mix, self._recipe.seed
        examples, digests = page.examples["digest"].to_pylist(), page.candidates["digest"].to_pylist()
        origins, grades = page.candidates["origin"].to_pylist(), page.candidates["grade"].to_pylist()
        borders = np.searchsorted(
            page.example_of * len(parts.ALL) + page.part,
            np.arange(len(examples))[:, None] * len(parts.ALL) + [parts.WRITTEN, parts.MINED, parts.MINED + 1],
        )
        places: list[int] = []
        num_synthetic, num_mined = [], []
        for example, (first, middle, last) in zip(examples, borders.tolist(), strict=True):
            draws = [(counter_uniform(seed, "slot", example, digests[at]), at) for at in range(first, middle)]
            synthetic, mined = fill_slots(
                mix.kind,
                [at for _, at in sorted(draws)],
                range(middle, last),
                ratio=mix.ratio,
                slots=mix.slots,
                seed=seed,
                example=example,
                quotas=mix.quotas,
                names_of=lambda at: (origins[at], grades[at]),
            )
            places += sorted(synthetic)
            places += mined
            num_synthetic.append(len(synthetic))
            num_mined.append(len(mined))
        return Slots(np.array(places, dtype=np.int64), np.array(num_synthetic), np.array(num_mined))

    def _count(self, page: Page, slots: Slots) -> None:
        num_synthetic, num_mined = int(slots.num_synthetic.sum()), int(slots.num_mined.sum())
        self.realised["synthetic_slots"] += num_synthetic
        self.realised["mined_slots"] += num_mined
        self.realised["short_rows"] += int((slots.counts < self._recipe.mix.slots).sum())
        self.realised["judged_relevant"] += page.num_judged_relevant
        has_both_E = page.counts(page.places(parts.WRITTEN)).astype(bool) & page.counts(
            page.places(parts.MINED)
        ).astype(bool)
        self.both["synthetic"] += int(slots.num_synthetic[has_both_E].sum())
        self.both["mined"] += int(slots.num_mined[has_both_E].sum())

    def _remember(self, page: Page) -> None:
        candidates = page.candidates
        self.items.frombytes(candidates["id"].to_numpy().tobytes())
        self.positions.frombytes(page.positions.astype(np.int32).tobytes())
        self.is_dev.frombytes(np.full(len(page.part), page.split == "dev", dtype=np.int8).tobytes())
        self._queries.add(page.examples["query_id"].to_numpy(), page.examples["query_digest"].to_pylist())
        found = page.places(parts.POSITIVE, parts.MINED, parts.MORE_POSITIVE)
        self._passages.add(candidates["passage_id"].to_numpy()[found], taken(candidates["digest"], found).to_pylist())


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Rows hold no cycles, and looking for some in them took an eighth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def graded_table(page: Page, slots: Slots, sources: pa.Array, licences: pa.Array) -> pa.Table:
    """Rows of the configuration `graded`."""
    examples, candidates = page.examples, page.candidates
    positives, more = page.places(parts.POSITIVE), page.places(parts.MORE_POSITIVE)
    negatives, mined = page.places(parts.WRITTEN, parts.MINED), page.places(parts.MINED)
    is_mined = page.part[negatives] == parts.MINED
    mined_ranks = np.zeros(len(negatives), dtype=np.int32)
    mined_ranks[is_mined] = places_within(page.counts(mined)) + 1
    columns: dict[str, Any] = {
        "example_id": examples["digest"],
        "query": examples["query"],
        "query_id": examples["query_digest"],
        "positive": taken(candidates["text"], positives),
        "positive_id": taken(candidates["digest"], positives),
        "positive_scores": page.scores.take(positives).lists(),
        "instruction": examples["instruction"],
        "task_type": examples["task_type"],
        "language": examples["language"],
        "source": sources,
        "licence": licences,
        "num_synthetic_slots": slots.num_synthetic,
        "num_mined_slots": slots.num_mined,
        "more_positives": lists(
            page.counts(more), POSITIVE, [taken(candidates[name], more) for name in ("digest", "text")]
        ),
        "negatives": lists(
            page.counts(negatives),
            NEGATIVE,
            [
                taken(candidates["digest"], negatives),
                taken(candidates["text"], negatives),
                taken(candidates["grade"], negatives),
                taken(candidates["rank"], negatives).cast(pa.int8()),
                taken(candidates["origin"], negatives),
                taken(candidates["violated_requirement"], negatives),
                pa.array(mined_ranks, mask=~is_mined),
                page.scores.take(negatives).lists(),
            ],
        ),
    }
    return table([columns[kind.name] for kind in GRADED], GRADED)


def training_tables(page: Page, slots: Slots, num_slots: int) -> dict[str, pa.Table]:
    """Rows of the configurations that are trained on; every positive of an example gives its rows."""
    text = page.candidates["text"]
    positives_P = page.places(parts.POSITIVE, parts.MORE_POSITIVE)
    example_P = page.example_of[positives_P]
    first_E, counts_E = offsets(slots.counts)[:-1], slots.counts
    queries_P = taken(page.examples["query"], example_P)

    is_full_P = counts_E[example_P] == num_slots
    first = first_E[example_P[is_full_P]]
    negatives = [taken(text, slots.places[first + number]) for number in range(num_slots)]
    whole = [taken(queries_P, np.flatnonzero(is_full_P)), taken(text, positives_P[is_full_P]), *negatives]

    counts_P = counts_E[example_P]
    pair_T = np.repeat(np.arange(len(example_P)), counts_P)
    negative_T = slots.places[np.repeat(first_E[example_P], counts_P) + places_within(counts_P)]
    triplets = [taken(queries_P, pair_T), taken(text, positives_P[pair_T]), taken(text, negative_T)]

    qrels = [
        taken(page.examples["query_digest"], example_P),
        taken(page.candidates["digest"], positives_P),
        np.ones(len(example_P), dtype=np.int32),
    ]
    return {
        "n-tuple": table(whole, n_tuple(num_slots)),
        "triplet": table(triplets, TRIPLET),
        "qrels": table(qrels, QRELS),
    }
