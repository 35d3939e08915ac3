"""Mining against a brute force on uneven data: one, two and three positives, negative cosines, ties, empty results."""

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
from curation.importing.pairs import import_pairs
from curation.importing.rows import import_beir
from curation.mining import teachers
from curation.mining.bm25 import top_documents
from curation.mining.mining import BuildTeacher, mine
from curation.mining.recipe import MineRecipe
from curation.mining.reporting import MineReport
from db.examples import NewCandidate, put_candidates
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Sourcing, Teacher
from db.tables.ledger import Run
from db.tables.schema import tables_in_order
from db.tables.texts import Passage, Query
from db.texts import put_passages

BM25 = {"kind": "bm25"}
DENSE = {"kind": "bi_encoder", "model": "table"}
BOTH: dict[str, object] = {"teachers": [BM25, DENSE], "judge": DENSE}


class TableEncoder:
    """Vectors as given."""

    name = "table"
    version = "t" * 64
    max_length = 9

    def __init__(self, vectors: Mapping[str, Sequence[float]]) -> None:
        self._vectors = vectors
        self.dimension = len(next(iter(vectors.values())))

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = np.array([self._vectors[text] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True), np.ones(len(texts), np.int64)


def _at(cosine: float) -> tuple[float, float]:
    """A vector with this cosine to (1, 0)."""
    return cosine, float(np.sqrt(1 - cosine**2))


def _import(
    store: Store, folder: Path, documents: Sequence[str], judged: Mapping[str, Sequence[int]], split: str = "train"
) -> None:
    """A BEIR set whose queries' positives are the documents at these places."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{place}", "text": text}) for place, text in enumerate(documents)]
    queries = [json.dumps({"_id": f"q{place}", "text": text}) for place, text in enumerate(judged)]
    qrels = [f"q{number}\td{place}\t1" for number, places in enumerate(judged.values()) for place in places]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    import_beir(store, folder, name="set")


def _recipe(**changes: object) -> MineRecipe:
    return MineRecipe.model_validate({"name": "m", "collection": "set", "teachers": [DENSE], **changes})


def _build(folder: Path, vectors: Mapping[str, Sequence[float]]) -> BuildTeacher:
    cache = EmbeddingCache(folder / "cache", TableEncoder(vectors))

    def build(spec: Any, passages: Sequence[str], progress: Progress) -> teachers.Teacher:
        return (
            teachers.Bm25Teacher(passages) if spec.kind == "bm25" else teachers.BiEncoderTeacher(passages, cache, cache)
        )

    return build


def _mine(
    store: Store, folder: Path, vectors: Mapping[str, Sequence[float]], recipe: MineRecipe
) -> tuple[MineReport, dict[tuple[str, str], list[str]]]:
    """The report, and the mined texts of each (query, positive) in the order in which they were kept."""
    report = mine(store, recipe, _build(folder, vectors))
    positive, mined = aliased(Passage), aliased(Passage)
    with store.read() as session:
        rows = session.execute(
            select(Query.text, positive.text, mined.text)
            .select_from(Example)
            .join(Query, Example.query_id == Query.id)
            .join(positive, Example.positive_id == positive.id)
            .join(Candidate, (Candidate.example_id == Example.id) & (Candidate.origin == "mined"))
            .join(mined, Candidate.passage_id == mined.id)
            .order_by(Candidate.id)
        ).all()
    found: dict[tuple[str, str], list[str]] = {}
    for query, of_positive, text in rows:
        found.setdefault((query, of_positive), []).append(text)
    return report, found


def _brute_force(
    query: str, positives: Sequence[str], documents: Sequence[str], vectors: Mapping[str, Sequence[float]],
    recipe: MineRecipe,
) -> list[str]:  # fmt: skip
    def cosine(text: str) -> float:
        x, y = (np.float16(np.array(vectors[t]) / np.linalg.norm(vectors[t])).astype(float) for t in (query, text))
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    depth = recipe.depth + len(positives)
    proposed = set(sorted(documents, key=lambda text: -cosine(text))[:depth])
    (by_bm25,), _ = top_documents([query], documents, depth)
    proposed |= {documents[place] for place in by_bm25 if place >= 0}
    lowest = min(map(cosine, positives))
    ceiling = lowest - abs(lowest) * (1 - recipe.threshold)
    kept = [text for text in proposed if text not in positives and cosine(text) < ceiling]
    return sorted(kept, key=lambda text: -cosine(text))[: recipe.num_negatives]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mined_negatives_equal_brute_force_on_uneven_data(store: Store, tmp_path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(12)]
    documents = [" ".join(draws.choice(words, draws.integers(1, 9))) + f" nr{number}" for number in range(60)]
    queries = [" ".join(draws.choice(words, 3)) + f" query{number}" for number in range(5)]
    judged = dict(zip(queries, [[3], [7, 8], [50, 1, 20], [4], [59, 0]], strict=True))
    vectors = {text: draws.standard_normal(3).tolist() for text in [*documents, *queries]}
    vectors[documents[4]] = [-x for x in vectors[queries[3]]]  # nothing can stay below this positive
    recipe = _recipe(**BOTH, depth=9, num_negatives=4, value=0.9)
    _import(store, tmp_path / "set", documents, judged)
    report, found = _mine(store, tmp_path, vectors, recipe)
    expected = {
        (query, documents[place]): kept
        for query, places in judged.items()
        for place in places
        if (kept := _brute_force(query, [documents[p] for p in places], documents, vectors, recipe))
    }
    assert found == expected
    assert not any(query == queries[3] for query, _ in found)
    assert (report.num_examples, report.num_queries) == (9, 5)
    assert report.num_candidates == sum(map(len, expected.values()))
    assert report.num_short_of_negatives == 9 - sum(len(kept) == 4 for kept in expected.values())
    of = report.all_teachers
    assert of.num_proposed == of.num_known_positives + of.num_over_ceiling + of.num_survivors


def test_negative_at_the_ceiling_is_refused_and_just_below_kept(store: Store, tmp_path: Path) -> None:
    vectors = {"q": _at(1.0), "p": _at(0.6), "same": _at(0.6), "below": _at(0.59), "above": _at(0.7)}
    _import(store, tmp_path / "set", ["p", "same", "below", "above"], {"q": [0]})
    report, found = _mine(store, tmp_path, vectors, _recipe(value=1.0))
    assert found == {("q", "p"): ["below"]}
    assert (report.all_teachers.num_over_ceiling, report.all_teachers.num_survivors) == (2, 1)


def test_ceiling_comes_from_the_lowest_positive_of_the_query(store: Store, tmp_path: Path) -> None:
    vectors = {"q": _at(1.0), "high": _at(0.9), "low": _at(0.5), "between": _at(0.7), "under": _at(0.4)}
    _import(store, tmp_path / "set", ["high", "low", "between", "under"], {"q": [0, 1]})
    _, found = _mine(store, tmp_path, vectors, _recipe())
    assert found == {("q", "high"): ["under"], ("q", "low"): ["under"]}


def test_ceiling_is_right_for_negative_cosines(store: Store, tmp_path: Path) -> None:
    vectors = {"q": _at(1.0), "p": _at(-0.4), "near": _at(-0.41), "far": _at(-0.43)}
    _import(store, tmp_path / "set", ["p", "near", "far"], {"q": [0]})
    _, found = _mine(store, tmp_path, vectors, _recipe())  # the ceiling is -0.42
    assert found == {("q", "p"): ["far"]}


def test_text_equal_to_a_positive_but_for_case_and_space_is_no_negative(store: Store, tmp_path: Path) -> None:
    vectors = {"q": _at(1.0), "The  Cat": _at(0.9), "the cat": _at(0.2), "a dog": _at(0.1)}
    _import(store, tmp_path / "set", ["The  Cat", "the cat", "a dog"], {"q": [0]})
    report, found = _mine(store, tmp_path, vectors, _recipe())
    assert found == {("q", "The  Cat"): ["a dog"]}
    assert report.all_teachers.num_known_positives == 2


def test_positive_from_another_import_lowers_the_ceiling_and_is_no_negative(store: Store, tmp_path: Path) -> None:
    vectors = {"q": _at(1.0), "p": _at(0.9), "elsewhere": _at(0.3), "ELSEWHERE": _at(0.1), "n": _at(0.5), "m": _at(0.2)}
    _import(store, tmp_path / "set", ["p", "ELSEWHERE", "n", "m"], {"q": [0]})
    (tmp_path / "pairs.csv").write_text("query,positive\nq,elsewhere\n")
    import_pairs(store, tmp_path / "pairs.csv")
    _, found = _mine(store, tmp_path, vectors, _recipe())
    assert found == {("q", "p"): ["m"]}


def test_only_examples_of_the_split_and_with_written_negatives_are_mined(store: Store, tmp_path: Path) -> None:
    vectors = {"q0": _at(1.0), "q1": _at(1.0), "p": _at(0.9), "r": _at(0.8), "n": _at(0.1), "written": _at(0.2)}
    _import(store, tmp_path / "set", ["p", "r", "n"], {"q0": [0], "q1": [0, 1]}, split="dev")
    with pytest.raises(CurationError, match="in split 'train'"):
        _mine(store, tmp_path, vectors, _recipe())
    with pytest.raises(CurationError, match="gradus generate"):
        _mine(store, tmp_path, vectors, _recipe(split="dev", examples="generated"))
    with store.write() as session:
        (written,) = put_passages(session, ["written"])
        run = start_run(session, "generate", "g", {}, 0)
        example = session.scalars(select(Example.id).join(Query).where(Query.text == "q0")).one()
        put_candidates(session, [NewCandidate(example, written, "negative", "synthetic", run.id, "hard", 1)])
    _, found = _mine(store, tmp_path, vectors, _recipe(split="dev", examples="generated"))
    assert found == {("q0", "p"): ["r", "n"]}
    _, found = _mine(store, tmp_path, vectors, _recipe(split="dev"))
    assert found == {("q0", "p"): ["r", "n"], ("q1", "p"): ["n"], ("q1", "r"): ["n"]}


def test_collection_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="'set' is not in the store"):
        _mine(store, tmp_path, {"q": _at(1.0)}, _recipe())


def test_both_proposers_finding_one_passage_are_two_sourcings_of_one_candidate(store: Store, tmp_path: Path) -> None:
    vectors = {"lion": _at(1.0), "lion one": _at(0.9), "lion two": _at(0.5), "tiger": _at(0.6), "zebra": _at(-0.9)}
    _import(store, tmp_path / "set", ["lion one", "lion two", "tiger", "zebra"], {"lion": [0]})
    _, found = _mine(store, tmp_path, vectors, _recipe(**BOTH, depth=2))
    assert found == {("lion", "lion one"): ["tiger", "lion two"]}
    with store.read() as session:
        rows = session.execute(
            select(Passage.text, Teacher.name, Sourcing.retrieval_rank, Sourcing.score, Sourcing.threshold)
            .select_from(Sourcing)
            .join(Candidate, Sourcing.candidate_id == Candidate.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .join(Teacher, Sourcing.teacher_id == Teacher.id)
        )
        by = {(text, teacher): (rank, score, threshold) for text, teacher, rank, score, threshold in rows}
    assert by.keys() == {("lion two", "bm25"), ("lion two", "table"), ("tiger", "table")}
    assert by["lion two", "table"] == (3, pytest.approx(0.5, abs=1e-3), pytest.approx(0.95 * 0.9, abs=1e-3))
    rank, score, threshold = by["lion two", "bm25"]
    assert rank in (1, 2) and threshold is None  # as relevant as the positive: which comes first is the store's order
    assert score > 0


def test_second_mining_finds_the_same_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    documents = [f"text {number}" for number in range(30)]
    vectors = {text: _at(0.9 - place / 40) for place, text in enumerate(documents)} | {"q": _at(1.0), "r": _at(0.95)}
    _import(store, tmp_path / "set", documents, {"q": [0], "r": [5, 2]})

    def counts() -> dict[str, int]:
        with store.read() as session:
            tables = tables_in_order()
            return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}

    first, found = _mine(store, tmp_path, vectors, _recipe(**BOTH))
    before = counts()
    again, found_again = _mine(store, tmp_path, vectors, _recipe(**BOTH))
    assert (found_again, counts(), again.num_new) == (found, before, 0)
    assert first.num_new > 0
    assert first.to_dict() | {"num_new": 0} == again.to_dict()
    with store.read() as session:
        run = session.scalars(select(Run).where(Run.kind == "mine")).one()
        assert (run.state, run.totals) == ("finished", {k: v for k, v in first.to_dict().items() if k != "num_new"})


def test_proposals_of_a_query_do_not_depend_on_the_other_queries(store: Store, tmp_path: Path) -> None:
    documents = [f"text {number}" for number in range(40)]
    vectors = {text: _at(0.9 - place / 50) for place, text in enumerate(documents)} | {"q": _at(1.0), "r": _at(0.2)}
    _import(store, tmp_path / "set", documents, {"q": [0], "r": list(range(10, 30))})
    report, found = _mine(store, tmp_path, vectors, _recipe(depth=5, num_negatives=8))
    # Five below the positive at 0.9 are looked at, of which two are over 0.855.
    assert found["q", "text 0"] == ["text 3", "text 4", "text 5"]
    assert report.num_queries == 2


def test_queries_go_through_block_by_block(store: Store, tmp_path: Path) -> None:
    queries = {f"query {number}": [number % 3] for number in range(1_203)}
    vectors = {"a": _at(0.9), "b": _at(0.8), "c": _at(0.7), "n": _at(0.1)} | dict.fromkeys(queries, _at(1.0))
    _import(store, tmp_path / "set", ["a", "b", "c", "n"], queries)
    seen: list[tuple[int, int | None]] = []
    build = _build(tmp_path, vectors)
    report = mine(store, _recipe(num_negatives=1), build, progress=lambda *at: seen.append(at))
    assert (report.num_examples, report.num_short_of_negatives) == (1_203, 0)
    assert seen[-2:] == [(1_024, 1_203), (1_203, 1_203)]
