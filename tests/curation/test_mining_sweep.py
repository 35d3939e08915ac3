"""A sweep counts by hand: each judged positive in turn is the positive, the others are false negatives."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select

from curation.embeddings import EmbeddingCache, Progress
from curation.importing.rows import import_beir
from curation.mining import teachers
from curation.mining.recipe import MineRecipe
from curation.mining.sweep import GRIDS, Sweep, draw_sweep, sweep
from db.store import Store
from db.tables.examples import Sourcing
from db.tables.ledger import Run
from tests.curation.test_judging import put

# Cosines, but for a factor, of the passages to query a (one positive) and b (three positives; Q2 is a copy of one).
A = {"p": 0.813, "n1": 0.791, "n2": 0.702, "n3": -0.513, "q1": 0.217, "q2": 0.109, "Q2": 0.109, "q3": 0.013}
B = {"p": 0.604, "n1": 0.557, "n2": -0.203, "n3": 0.114, "q1": 0.911, "q2": 0.507, "Q2": 0.518, "q3": -0.409}
JUDGED = {"a": ["p"], "b": ["q1", "q2", "q3"]}


class TwoAxes:
    """A passage's first two coordinates are its cosines to the queries, up to half precision."""

    name, version, dimension, max_length = "table", "t" * 64, 4, 9

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rows = []
        for text in texts:
            if text in JUDGED:
                rows.append([float(text == "a"), float(text == "b"), 0, 0])
            else:
                x, y = A[text] * 0.7, B[text] * 0.7
                rows.append([x, y, np.sqrt(1 - x * x - y * y), 0])
        return np.array(rows, np.float32), np.ones(len(texts), np.int64)


def _build(folder: Path) -> Any:
    cache = EmbeddingCache(folder / "cache", TwoAxes())

    def build(spec: Any, passages: Sequence[str], progress: Progress) -> teachers.Teacher:
        return teachers.BiEncoderTeacher(passages, cache, cache)

    return build


def _import(store: Store, folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": text if text != "Q2" else "copy", "text": text}) for text in A]
    queries = [json.dumps({"_id": text, "text": text}) for text in JUDGED]
    qrels = [f"{query}\t{text}\t1" for query, texts in JUDGED.items() for text in texts]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    import_beir(store, folder, name="set")


def _recipe(**changes: object) -> MineRecipe:
    teacher = {"kind": "bi_encoder", "model": "table"}
    usual = {"name": "s", "collection": "set", "teachers": [teacher], "depth": 4, "num_negatives": 2}
    return MineRecipe.model_validate({**usual, **changes})


def _by_hand(
    recipe: MineRecipe, value: float, words: Mapping[tuple[str, str], int] | None = None
) -> tuple[int, int, int, int, int]:
    counts = np.zeros(5, int)
    for query, positives in JUDGED.items():
        of = A if query == "a" else B
        scores: Mapping[str, float] = {text: cosine * 0.7 for text, cosine in of.items()}
        for positive in positives:
            others = [text for text in sorted(scores, key=lambda text: -scores[text])]
            others = [text for text in others if text.lower() != positive.lower()][: recipe.depth]
            ceiling = {
                "naive": np.inf,
                "shifted": np.inf,
                "absolute": value,
                "margin": scores[positive] - value,
                "percentage": scores[positive] - abs(scores[positive]) * (1 - value),
            }[recipe.method]
            kept = [text for text in others[recipe.method == "shifted" and int(value) :] if scores[text] < ceiling]
            known = {text.lower() for text in positives if text != positive}
            taken = kept[: recipe.num_negatives]
            # A judge's last word counts before what people judged.
            said = {text: (words or {}).get((query, text), 3 * (text.lower() in known)) for text in scores}
            false, false_taken = (sum(said[text] >= 2 for text in texts) for texts in (kept, taken))
            counts += [len(kept), false, len(taken), false_taken, len(taken) < recipe.num_negatives]
    return tuple(counts.tolist())


@pytest.mark.parametrize("method", list(GRIDS))
def test_sweep_equals_counts_by_hand(store: Store, tmp_path: Path, method: str) -> None:
    _import(store, tmp_path / "set")
    values = {"naive": None, "shifted": 2, "absolute": 0.37, "margin": 0.11, "percentage": 0.93}
    recipe = _recipe(method=method, value=values[method])
    found = sweep(store, recipe, _build(tmp_path))
    assert found.num_examples == 4
    assert [point.value for point in found.points] == sorted({*GRIDS[method], recipe.threshold})  # type: ignore[index]
    for point in found.points:
        counts = (
            point.num_survivors, point.num_false_survivors, point.num_taken, point.num_false_taken, point.num_short,
        )  # fmt: skip
        assert counts == _by_hand(recipe, point.value), point
    assert any(point.num_false_survivors for point in found.points)


def test_a_judges_last_word_counts_before_other_positives(store: Store, tmp_path: Path) -> None:
    _import(store, tmp_path / "set")
    put(
        store,
        ("a", "n1", "small", "screen", 3),  # nobody knew
        ("a", "n2", "small", "screen", 3),
        ("a", "n2", "large", "confirm", 1),  # the confirming judge has the last word
        ("a", "n3", "large", "confirm", 2),
        ("a", "n3", "small", "screen", 0),
        ("b", "q1", "small", "screen", 1),  # a positive of people's that the judge does not see
        ("b", "p", "small", "screen", 2),
        ("a", "p", "small", "screen", 0),  # its own positive is no candidate
        ("z", "q3", "small", "screen", 3),  # of a query that is not swept
    )
    words = {("a", "n1"): 3, ("a", "n2"): 1, ("a", "n3"): 2, ("b", "q1"): 1, ("b", "p"): 2, ("a", "p"): 0}
    recipe = _recipe(method="percentage", value=1.0, depth=8)
    found = sweep(store, recipe, _build(tmp_path))
    for point in found.points:
        counts = (
            point.num_survivors, point.num_false_survivors, point.num_taken, point.num_false_taken, point.num_short,
        )  # fmt: skip
        assert counts == _by_hand(recipe, point.value, words), point
    of_people = [_by_hand(recipe, point.value)[1] for point in found.points]
    assert [point.num_false_survivors for point in found.points] != of_people
    # Of a: n1, n2 and n3 for its one positive; of b: p for three positives, q1 for the two others.
    assert found.num_judged == {"table": 3 + 3 + 2}


def test_sweep_writes_nothing(store: Store, tmp_path: Path) -> None:
    _import(store, tmp_path / "set")
    with store.read() as session:
        before = [session.scalar(select(func.count()).select_from(table)) for table in (Run, Sourcing)]
    sweep(store, _recipe(), _build(tmp_path))
    with store.read() as session:
        assert [session.scalar(select(func.count()).select_from(table)) for table in (Run, Sourcing)] == before


def test_plot_is_a_picture_and_the_same_each_time(store: Store, tmp_path: Path) -> None:
    _import(store, tmp_path / "set")
    found: Sweep = sweep(store, _recipe(), _build(tmp_path))
    draw_sweep(found, tmp_path / "new" / "one.png")
    draw_sweep(found, tmp_path / "two.png")
    content = (tmp_path / "two.png").read_bytes()
    assert content.startswith(b"\x89PNG") and content == (tmp_path / "new" / "one.png").read_bytes()
