"""The rows of a release, streamed from its selection into Parquet; what went in is remembered, a few bytes each."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.release.files import CORPUS, GRADED, QRELS, QUERIES, TRIPLET, ReleaseWriters, n_tuple
from curation.release.mixing import fill_slots
from curation.release.recipe import ReleaseRecipe
from curation.release.selection import Chosen, Negative, Selection
from db.digest import counter_uniform
from db.store import Store

_PROGRESS_EVERY = 250
Progress = Callable[[int, int | None], None]


class Builder:
    """Writes the files of a release, and remembers which candidates went in."""

    def __init__(self, store: Store, recipe: ReleaseRecipe, folder: Path) -> None:
        self._store, self._recipe = store, recipe
        self.items, self.positions, self.is_dev = array("q"), array("i"), array("b")
        self.realised = {"synthetic_slots": 0, "mined_slots": 0, "short_rows": 0, "judged_relevant": 0}
        self.both = {"synthetic": 0, "mined": 0}  # slots of the examples that have negatives of both kinds
        self.licences: set[str] = set()
        schemas = {
            "graded": GRADED,
            "n-tuple": n_tuple(recipe.mix.slots),
            "triplet": TRIPLET,
            "corpus": CORPUS,
            "queries": QUERIES,
            "qrels": QRELS,
        }
        self._writers = ReleaseWriters(folder, schemas)

    def write(self, progress: Progress) -> dict[str, dict[str, int]]:
        """Write every configuration; rows per configuration and split."""
        with self._store.read() as session:
            selection = Selection(session, self._recipe)
            for done, chosen in enumerate(selection.examples()):
                if done % _PROGRESS_EVERY == 0:
                    progress(done, len(selection))
                self._write_example(chosen)
            progress(len(selection), len(selection))
            for row in selection.queries():
                self._writers.write("queries", "queries", [row])
            for row in selection.corpus():
                self._writers.write("corpus", "corpus", [row])
        return self._writers.close()

    def realised_mix(self) -> dict[str, int | float | None]:
        """Slots by kind; the ratio over the examples that have negatives of both kinds, None where there are none."""
        ratio = self.both["synthetic"] / self.both["mined"] if self.both["mined"] else None
        return {**self.realised, "realised_ratio": ratio}

    def _write_example(self, chosen: Chosen) -> None:
        example, writers = chosen.texts, self._writers
        written = [n for n in chosen.negatives if n.is_written]
        others = [n for n in chosen.negatives if not n.is_written]
        synthetic, mined = self._slots(written, others, example.digest)
        self._count(synthetic, mined, has_both=bool(written and others))
        self.realised["judged_relevant"] += chosen.num_judged_relevant
        licence = example.licence or self._recipe.licence
        self.licences.add(licence)
        writers.write("graded", chosen.split, [_graded(chosen, (len(synthetic), len(mined)), licence)])
        drawn = [*sorted(synthetic, key=lambda n: (n.row["rank"] or 99, n.row["id"])), *mined]
        self.realised["short_rows"] += len(drawn) < self._recipe.mix.slots
        more = [(one.row["id"], one.row["text"]) for one in chosen.more_positives]
        for digest, text in [(example.positive_digest, example.positive), *more]:
            self._write_training({"anchor": example.query, "positive": text}, drawn, chosen.split)
            qrel = {"query-id": example.query_digest, "corpus-id": digest, "score": 1}
            writers.write("qrels", chosen.split, [qrel])
        of_example = [chosen.positive_candidate, *(n.candidate for n in [*chosen.negatives, *chosen.more_positives])]
        for position, candidate in enumerate(of_example):
            self.items.append(candidate)
            self.positions.append(position)
            self.is_dev.append(chosen.split == "dev")

    def _write_training(self, pair: dict[str, str], drawn: Sequence[Negative], split: str) -> None:
        self._writers.write("triplet", split, [pair | {"negative": n.row["text"]} for n in drawn])
        if len(drawn) == self._recipe.mix.slots:
            texts = {f"negative_{place}": n.row["text"] for place, n in enumerate(drawn, start=1)}
            self._writers.write("n-tuple", split, [pair | texts])

    def _slots(
        self, written: Sequence[Negative], others: Sequence[Negative], example: str
    ) -> tuple[list[Negative], list[Negative]]:
        mix, seed = self._recipe.mix, self._recipe.seed
        shuffled = sorted(written, key=lambda n: counter_uniform(seed, "slot", example, n.row["id"]))
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

    def _count(self, synthetic: Sequence[Negative], mined: Sequence[Negative], *, has_both: bool) -> None:
        self.realised["synthetic_slots"] += len(synthetic)
        self.realised["mined_slots"] += len(mined)
        if has_both:
            self.both["synthetic"] += len(synthetic)
            self.both["mined"] += len(mined)


def _graded(chosen: Chosen, slots: tuple[int, int], licence: str) -> dict[str, Any]:
    example = chosen.texts
    return {
        "example_id": example.digest,
        "query": example.query,
        "query_id": example.query_digest,
        "positive": example.positive,
        "positive_id": example.positive_digest,
        "positive_scores": chosen.positive_scores,
        "instruction": example.instruction,
        "task_type": example.task_type,
        "language": example.language,
        "source": example.source or "brainstormed",
        "licence": licence,
        "num_synthetic_slots": slots[0],
        "num_mined_slots": slots[1],
        "more_positives": [{"id": one.row["id"], "text": one.row["text"]} for one in chosen.more_positives],
        "negatives": [negative.row for negative in chosen.negatives],
    }
