"""Every method, ensemble and sample of a mining run equals its definition, sorted out in full, on uneven data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select
from sqlalchemy.orm import aliased

from curation.embeddings import EmbeddingCache, Progress
from curation.errors import CurationError
from curation.importing.rows import import_beir
from curation.mining import ensembles, sampling, teachers
from curation.mining.mining import BuildTeacher, mine
from curation.mining.recipe import MineRecipe
from curation.mining.reporting import MineReport
from db.digest import digest_text
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing, Teacher
from db.tables.schema import tables_in_order
from db.tables.texts import Passage, Query

Vectors = Mapping[str, NDArray[np.float32]]
ONE, TWO = ({"kind": "bi_encoder", "model": name} for name in ("one", "two"))
BM25 = {"kind": "bm25"}


class TableEncoder:
    """Vectors as given, exact in half precision, so that what a test computes is what is searched."""

    max_length = 9

    def __init__(self, name: str, vectors: Vectors) -> None:
        self.name, self.version, self._vectors = name, digest_text(name), vectors
        self.dimension = len(next(iter(vectors.values())))

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.array([self._vectors[text] for text in texts]), np.ones(len(texts), np.int64)


class World:
    """A small uneven set in the store: one to three positives, ties, copies, negative cosines, queries in one place."""

    def __init__(self, store: Store, folder: Path, seed: int, num_documents: int = 40) -> None:
        draws = np.random.default_rng(seed)
        texts = [f"passage {number}" for number in range(num_documents)]
        texts[5] = f"  {texts[4].upper()}"  # the text of d4 but for case and space
        queries = [f"question {number}" for number in range(6)]
        self.judged = dict(zip(queries, [[3], [4, 8], [9, 1, 2], [4], [0, 6], [7]], strict=True))
        self.vectors: dict[str, dict[str, NDArray[np.float32]]] = {}
        for name in ("one", "two"):
            grid = draws.standard_normal((len(texts) + len(queries), 4)) + np.array([0, 0, 0, 0.5])
            self.vectors[name] = dict(zip([*texts, *queries], grid.astype(np.float32), strict=True))
            # Exact ties: three passages in one place, and two where positives of different queries are.
            for copy, original in ((10, 0), (6, 0), (num_documents - 1, 3), (num_documents - 2, 9)):
                self.vectors[name][texts[copy]] = self.vectors[name][texts[original]]
            self.vectors[name][queries[5]] = -self.vectors[name][texts[7]]  # a negative positive
        _import(store, folder / "set", texts, self.judged)
        with store.read() as session:
            self.texts = list(session.scalars(select(Passage.text).order_by(Passage.id)))
        self._store, self._folder = store, folder

    def build(self) -> BuildTeacher:
        def build(spec: Any, passages: Sequence[str], progress: Progress) -> teachers.Teacher:
            if spec.kind == "bm25":
                return teachers.Bm25Teacher(passages)
            cache = EmbeddingCache(self._folder / "cache", TableEncoder(spec.model, self.vectors[spec.model]))
            return teachers.BiEncoderTeacher(passages, cache, cache)

        return build

    def mine(self, **changes: object) -> tuple[MineReport, dict[str, list[str]]]:
        """The report, and each query's negatives in the order in which they were kept (the same for all positives)."""
        report = mine(self._store, _recipe(**changes), self.build())
        return report, self.mined()

    def mined(self) -> dict[str, list[str]]:
        positive, passage = aliased(Passage), aliased(Passage)
        with self._store.read() as session:
            rows = session.execute(
                select(Query.text, positive.text, passage.text)
                .select_from(Example)
                .join(Query, Example.query_id == Query.id)
                .join(positive, Example.positive_id == positive.id)
                .join(Candidate, (Candidate.example_id == Example.id) & (Candidate.origin == "mined"))
                .join(passage, Candidate.passage_id == passage.id)
                .order_by(Candidate.id)
            ).all()
        found: dict[str, dict[str, list[str]]] = {}
        for query, of_positive, text in rows:
            found.setdefault(query, {}).setdefault(of_positive, []).append(text)
        for query, of_positives in found.items():
            assert len(of_positives) == len(self.judged[query])
            assert len({tuple(texts) for texts in of_positives.values()}) == 1
        return {query: next(iter(of_positives.values())) for query, of_positives in found.items()}

    def cosine(self, name: str, query: str, text: str) -> float:
        unit = [_halved(self.vectors[name][one]) for one in (query, text)]
        return round(float(np.float32(unit[0] @ unit[1])), 6)

    def positives(self, query: str) -> list[str]:
        return [f"passage {place}" for place in self.judged[query]]

    def survivors(self, name: str, query: str, recipe: MineRecipe, *, depth: int | None = None) -> list[str]:
        """By definition: sort all, look at the first `depth`, leave out what is known, keep what is below."""
        positives = self.positives(query)
        known = {text.casefold().strip() for text in positives}
        of_all = {text: self.cosine(name, query, text) for text in self.texts}
        ranked = sorted(self.texts, key=lambda text: -of_all[text])[: (depth or recipe.depth) + len(positives)]
        open_ones = [text for text in ranked if text.casefold().strip() not in known]
        lowest = min(self.cosine(name, query, text) for text in positives)
        ceiling = {
            "naive": np.inf,
            "shifted": np.inf,
            "absolute": recipe.threshold,
            "margin": lowest - recipe.threshold,
            "percentage": lowest - abs(lowest) * (1 - recipe.threshold),
        }[recipe.method]
        skipped = recipe.shift
        return [text for text in open_ones[skipped:] if of_all[text] < round(ceiling, 6)]


def _halved(vector: NDArray[np.float32]) -> NDArray[np.float64]:
    half = vector.astype(np.float16).astype(np.float32)
    return (half / np.float32(np.linalg.norm(half))).astype(np.float64)


def _import(store: Store, folder: Path, documents: Sequence[str], judged: Mapping[str, Sequence[int]]) -> None:
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{place}", "text": text}) for place, text in enumerate(documents)]
    queries = [json.dumps({"_id": f"q{place}", "text": text}) for place, text in enumerate(judged)]
    qrels = [f"q{number}\td{place}\t1" for number, places in enumerate(judged.values()) for place in places]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    import_beir(store, folder, name="set")


def _recipe(**changes: object) -> MineRecipe:
    usual = {"name": "m", "collection": "set", "teachers": [ONE], "depth": 12, "num_negatives": 4}
    return MineRecipe.model_validate({**usual, **changes})


METHODS: list[dict[str, object]] = [
    {"method": "naive"},
    {"method": "shifted", "value": 3},
    {"method": "absolute", "value": 0.5},
    {"method": "absolute", "value": -0.2},
    {"method": "margin", "value": 0.0},
    {"method": "margin", "value": 0.05},
    {"method": "percentage"},
    {"method": "percentage", "value": 1.0},
    {"method": "percentage", "value": 0.6},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
@pytest.mark.parametrize(("seed", "num_documents"), [(0, 40), (1, 40), (2, 11)])
def test_method_equals_brute_force(
    store: Store, tmp_path: Path, method: dict[str, object], seed: int, num_documents: int
) -> None:
    world = World(store, tmp_path, seed, num_documents)
    report, found = world.mine(**method)
    survivors = {query: world.survivors("one", query, _recipe(**method)) for query in world.judged}
    assert found == {query: texts[:4] for query, texts in survivors.items() if texts}
    num_short = sum(len(world.judged[query]) for query, texts in survivors.items() if len(texts) < 4)
    assert report.num_short_of_negatives == num_short
    assert report.of_teachers[0].num_survivors == sum(map(len, survivors.values()))


@pytest.mark.parametrize("combine", ["cross_sample", "intra_sample", "intra_sample_unique"])
@pytest.mark.parametrize("num_negatives", [1, 2, 5])
def test_ensemble_equals_its_definition(store: Store, tmp_path: Path, combine: str, num_negatives: int) -> None:
    world = World(store, tmp_path, 3)
    changes = {"teachers": [ONE, TWO], "combine": combine, "num_negatives": num_negatives, "seed": 7}
    _, found = world.mine(**changes)
    recipe = _recipe(**changes)
    lists = [
        [world.survivors(name, query, recipe)[:num_negatives] for query in world.judged] for name in ("one", "two")
    ]
    kept = np.full((2, len(world.judged), num_negatives), -1)
    for teacher, rows in enumerate(lists):
        for row, texts in enumerate(rows):
            kept[teacher, row, : len(texts)] = [world.texts.index(text) for text in texts]
    if combine == "cross_sample":
        keys = [digest_text(query) for query in world.judged]
        chosen = ensembles.cross_sample(kept, num_negatives, seed=7, query_keys=keys).indices
    else:
        chosen = ensembles.intra_sample(kept, num_negatives, deduplicate=combine.endswith("unique")).indices
    expected = {
        query: list(dict.fromkeys(world.texts[place] for place in row if place >= 0))
        for query, row in zip(world.judged, chosen.tolist(), strict=True)
    }
    assert found == {query: texts for query, texts in expected.items() if texts}


def test_kept_duplicates_are_one_candidate_with_a_sourcing_of_each_teacher_that_chose_it(
    store: Store, tmp_path: Path
) -> None:
    world = World(store, tmp_path, 3, num_documents=11)
    changes = {"teachers": [ONE, TWO], "combine": "intra_sample", "num_negatives": 6, "method": "naive"}
    world.mine(**changes)
    tops = {
        name: {q: world.survivors(name, q, _recipe(**changes))[:3] for q in world.judged} for name in ("one", "two")
    }
    expected = {
        (query, text, name): 1 + _ranked(world, name, query).index(text)
        for name, of_queries in tops.items()
        for query, texts in of_queries.items()
        for text in texts
    }
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Teacher.name, Sourcing.retrieval_rank)
            .select_from(Sourcing)
            .join(Candidate, Sourcing.candidate_id == Candidate.id)
            .join(Example, Candidate.example_id == Example.id)
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .join(Teacher, Sourcing.teacher_id == Teacher.id)
        ).all()
    assert {(query, text, name): rank for query, text, name, rank in rows} == expected
    assert any((query, text, "two") in expected for query, text, name in expected if name == "one")


def _ranked(world: World, name: str, query: str) -> list[str]:
    return sorted(world.texts, key=lambda text: -world.cosine(name, query, text))


@pytest.mark.parametrize("kind", ["softmax", "top1_softmax"])
def test_sample_is_drawn_from_the_first_survivors_by_seed_alone(store: Store, tmp_path: Path, kind: str) -> None:
    world = World(store, tmp_path, 4)
    changes = {
        "sampling": kind,
        "sample_from": 6,
        "num_negatives": 3,
        "temperature": 0.2,
        "seed": 11,
        "method": "naive",
    }
    _, found = world.mine(**changes)
    recipe = _recipe(**changes)
    draw = sampling.softmax if kind == "softmax" else sampling.top1_softmax
    for query in world.judged:
        pool = world.survivors("one", query, recipe)[:6]
        places = np.array([[world.texts.index(text) for text in pool]])
        scores = np.array([[world.cosine("one", query, text) for text in pool]])
        keys = [digest_text(text) for text in world.texts]
        chosen, _ = draw(
            places, scores, 3, temperature=0.2, seed=11, query_keys=[digest_text(query)], document_keys=keys
        )
        assert found[query] == [world.texts[place] for place in chosen[0]]
        assert kind == "softmax" or found[query][0] == pool[0]
    other = MineRecipe.model_validate({**recipe.model_dump(), "seed": 12})
    assert mine(store, other, world.build()).num_new > 0  # another draw


@pytest.mark.parametrize("method", [{"method": "percentage"}, {"method": "absolute", "value": 0.3}])
def test_searching_deeper_finds_all_below_the_ceiling(store: Store, tmp_path: Path, method: dict[str, object]) -> None:
    world = World(store, tmp_path, 0)
    changes = {**method, "depth": 12, "too_few": "deeper"}
    report, found = world.mine(**changes)
    whole = {query: world.survivors("one", query, _recipe(**changes), depth=1_000)[:4] for query in world.judged}
    assert found == {query: texts for query, texts in whole.items() if texts}
    assert report.num_searched_deeper > 0
    with store.read() as session:
        ranks = session.execute(select(Sourcing.retrieval_rank, Sourcing.score, Sourcing.threshold)).all()
    assert any(rank is None for rank, _, _ in ranks)
    assert all(score < threshold for _, score, threshold in ranks)


def test_queries_with_too_few_are_dropped_when_asked(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 0)
    report, found = world.mine(too_few="drop")
    survivors = {query: world.survivors("one", query, _recipe()) for query in world.judged}
    assert found == {query: texts[:4] for query, texts in survivors.items() if len(texts) >= 4}
    assert report.num_dropped == report.num_short_of_negatives > 0
    assert report.num_candidates == sum(4 * len(world.judged[query]) for query in found)


def test_bm25_proposes_and_a_dense_teacher_judges(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 6)
    _, found = world.mine(teachers=[BM25], judge=ONE, depth=30)
    index = teachers.Bm25Teacher(world.texts)
    for query in world.judged:
        places, _ = index.top([query], 30 + len(world.judged[query]))
        proposed = {world.texts[place] for place in places[0] if place >= 0}
        assert (
            found.get(query, [])
            == [text for text in world.survivors("one", query, _recipe(depth=30), depth=1_000) if text in proposed][:4]
        )
    with store.read() as session:
        rows = session.execute(
            select(Teacher.name, Sourcing.retrieval_rank, Sourcing.threshold).join(
                Teacher, Sourcing.teacher_id == Teacher.id
            )
        ).all()
    assert all((rank is None) == (threshold is not None) == (name == "one") for name, rank, threshold in rows)


def test_grades_by_rank_and_by_score(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 7)
    world.mine(method="naive", grades={"by": "rank", "hard": 1, "medium": 3})
    with store.read() as session:
        rows = session.execute(
            select(Candidate.example_id, Candidate.rank, Candidate.grade)
            .where(Candidate.origin == "mined")
            .order_by(Candidate.id)
        ).all()
    by_rank = {1: "hard", 2: "medium", 3: "medium", 4: "easy"}
    assert [(rank, grade) for _, rank, grade in rows] == list(by_rank.items()) * 10


def test_grades_by_score_bands(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 7)
    world.mine(method="naive", grades={"by": "score", "hard": 0.8, "medium": 0.3}, num_negatives=9)
    with store.read() as session:
        rows = session.execute(
            select(Sourcing.score, Candidate.grade, Candidate.rank, Candidate.example_id)
            .join(Candidate, Sourcing.candidate_id == Candidate.id)
            .order_by(Candidate.id)
        ).all()
    for score, grade, _, _ in rows:
        assert grade == ("hard" if score >= 0.8 else "medium" if score >= 0.3 else "easy")
    for example in {example for *_, example in rows}:
        of_example = sorted((rank, -score) for score, _, rank, one in rows if one == example)
        assert [rank for rank, _ in of_example] == list(range(1, len(of_example) + 1))
        assert [score for _, score in of_example] == sorted(score for _, score in of_example)


def test_cut_off_run_goes_on_and_ends_as_one_that_was_not(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.mining.mining._BLOCK", 2)
    world = World(store, tmp_path, 8)
    recipe = _recipe(teachers=[ONE, TWO], combine="cross_sample", sampling="softmax", method="naive", seed=3)

    def counts() -> dict[str, int]:
        with store.read() as session:
            return {
                table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables_in_order()
            }

    def cut(done: int, total: int | None) -> None:
        if done == 2 and total == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine(store, recipe, world.build(), progress=cut)
    half = counts()
    report = mine(store, recipe, world.build())
    assert 0 < half["sourcing"] < counts()["sourcing"]
    assert 0 < report.num_new < counts()["sourcing"]
    after, mined = counts(), world.mined()
    again = mine(store, recipe, world.build())
    assert (again.num_new, counts(), world.mined()) == (0, after, mined)
    monkeypatch.setattr("curation.mining.mining._BLOCK", 1_024)
    in_one = mine(store, recipe, world.build())
    assert in_one.num_new == 0  # what is drawn does not depend on the blocks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "naive", "value": 1}, "means nothing"),
        ({"method": "margin"}, "needs a value"),
        ({"method": "percentage", "value": 1.2}, "a share from 0 to 1"),
        ({"method": "shifted", "value": 2.5}, "a whole number"),
        ({"teachers": [ONE, ONE]}, "stands there twice"),
        ({"teachers": [ONE, BM25]}, r"needs a \[judge\]"),
        ({"combine": "intra_sample"}, "two teachers or more"),
        ({"teachers": [BM25], "judge": ONE, "too_few": "deeper"}, "among the teachers"),
        ({"method": "naive", "too_few": "deeper"}, "has none"),
        ({"grades": {"by": "rank", "hard": 3, "medium": 2}}, "has to be below"),
        ({"grades": {"by": "score", "hard": 0.3, "medium": 0.6}}, "has to be above"),
        ({"teachers": [{"kind": "cross_encoder", "model": "x"}]}, "bm25"),
    ],
)
def test_recipe_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _recipe(**changes)


def test_teacher_that_cannot_do_what_is_asked_is_refused(store: Store, tmp_path: Path) -> None:
    world = World(store, tmp_path, 0)

    class OnlySearches:
        name, kind, prompt, version, max_length = "s", "bm25", "", "v", None

        def top(self, queries: Sequence[str], k: int) -> Any:
            raise AssertionError("refused before it is asked")

    with pytest.raises(CurationError, match="cannot score pairs"):
        mine(store, _recipe(judge=BM25), lambda spec, passages, progress: OnlySearches())
    with pytest.raises(CurationError, match="cannot score pairs"):
        mine(store, _recipe(), lambda spec, passages, progress: OnlySearches())
    assert world.mined() == {}
