"""Mining by value: exact search, the ceiling for negative scores too, and never a known positive."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select

from curation import mining
from curation.embeddings import EmbeddingCache, Floats
from curation.errors import CurationError
from curation.mining import mine, positive_aware_ceiling, top_k
from curation.recipe_mining import MineRecipe
from curation.scoring import score
from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score, Sourcing, Teacher
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query
from db.texts import put_passages, put_queries


class Angles:
    """An encoder for tests: a text that ends in a number is the unit vector at that angle in degrees."""

    name, version, dimension, max_length = "angles", "1", 2, 4
    num_encoded = 0

    def encode(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        self.num_encoded += len(texts)
        angles = np.radians([float(text.split()[-1]) for text in texts])
        return (
            np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
            np.array([len(text.split()) for text in texts]),
        )


def test_ceiling_stays_below_negative_positives_too() -> None:
    ceiling = positive_aware_ceiling(np.array([0.8, 0.0, -0.4], np.float32), percentage=0.95)
    np.testing.assert_allclose(ceiling, [0.76, 0.0, -0.42], atol=1e-6)


@pytest.mark.parametrize("tile", [1, 3, 100])
def test_top_k_equals_a_full_sort_with_ties(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(mining, "_TILE", tile)
    generator = np.random.default_rng(0)
    queries = generator.normal(size=(5, 3)).astype(np.float32)
    documents = generator.integers(-1, 2, size=(23, 3)).astype(np.float32)
    found, scores = top_k(queries, documents, 7)
    for row in range(5):
        values = [float(queries[row] @ document) for document in documents]
        expected = sorted(range(23), key=lambda place: (-np.float32(values[place]), place))[:7]
        np.testing.assert_allclose(scores[row], [values[place] for place in expected], rtol=1e-5)
        assert len(set(found[row].tolist())) == 7
    assert top_k(queries, documents, 99)[0].shape == (5, 23)


# Angle of each document; queries and their positives by angle. The second query has two positives, the lower one far.
DOCUMENTS = [5, 20, 21, 40, 60, 90, 120, 170, 200, 255]
QUERIES: dict[int, list[int]] = {0: [20], 30: [40, 90], 180: [90]}


def fill(store: Store) -> None:
    with store.write() as session:
        collection = Collection(name="toy", kind="beir")
        session.add(collection)
        session.flush()
        run = start_run(session, "import", "toy", {}, 0)
        texts = [f"document at {angle}" for angle in DOCUMENTS] + ["Document  AT 20"]
        documents = {}
        for text, passage in zip(texts, put_passages(session, texts), strict=True):
            document = Document(collection_id=collection.id, external_id=text, passage_id=passage)
            session.add(document)
            session.flush()
            documents[text] = (document.id, passage)
        for angle, positives in QUERIES.items():
            (query,) = put_queries(session, [f"which document at {angle}"])
            link = CollectionQuery(collection_id=collection.id, external_id=str(angle), query_id=query)
            session.add(link)
            session.flush()
            for positive in positives:
                document, passage = documents[f"document at {positive}"]
                session.add(Qrel(collection_query_id=link.id, document_id=document, split="train", relevance=1))
                (example,) = put_examples(session, [(query, passage)], origin="corpus", collection_id=collection.id)
                put_candidates(session, [NewCandidate(example, passage, "positive", "corpus", run.id)])


def recipe(**changes: object) -> MineRecipe:
    fields = {"name": "m", "collection": "toy", "depth": 10, "num_negatives": 3, "proposers": ["dense"]}
    return MineRecipe.model_validate({**fields, **changes})


def brute_force(angle: int, num: int) -> list[str]:
    """Texts of the negatives that the definition gives, most similar first."""
    positives = QUERIES[angle]
    lowest = min(np.cos(np.radians(p - angle)) for p in positives)
    ceiling = lowest - abs(lowest) * 0.05
    cosines = {d: np.cos(np.radians(d - angle)) for d in DOCUMENTS if d not in positives}
    below = sorted((d for d in cosines if cosines[d] < ceiling), key=lambda d: -cosines[d])
    return [f"document at {d}" for d in below[:num]]


def mined(store: Store) -> dict[tuple[str, str], list[str]]:
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Example.positive_id, Passage.text)
            .select_from(Candidate)
            .join(Example, Candidate.example_id == Example.id)
            .join(Query, Example.query_id == Query.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .where(Candidate.origin == "mined")
            .order_by(Candidate.id)
        )
        found: dict[tuple[str, str], list[str]] = {}
        for query, positive, text in rows:
            found.setdefault((query, str(positive)), []).append(text)
        return found


def test_survivors_equal_brute_force_for_every_example(store: Store, tmp_path: Path) -> None:
    fill(store)
    report = mine(store, recipe(), EmbeddingCache(tmp_path, Angles()))
    found = mined(store)
    assert len(found) == 4
    for (query, _), texts in found.items():
        assert texts == brute_force(int(query.split()[-1]), 3)
    assert (report.num_examples, report.num_queries, report.num_short_of_negatives) == (4, 3, 0)
    assert report.num_proposed == report.num_known_positives + report.num_over_ceiling + report.num_survivors


def test_both_proposers_of_one_passage_are_two_findings(store: Store, tmp_path: Path) -> None:
    fill(store)
    cache = EmbeddingCache(tmp_path, Angles())
    report = mine(store, recipe(proposers=["bm25", "dense"]), cache)
    with store.read() as session:
        by_teacher = select(Teacher.kind, func.count(), func.count(Sourcing.threshold)).join(
            Sourcing, Sourcing.teacher_id == Teacher.id
        )
        rows = {kind: (num, ceilings) for kind, num, ceilings in session.execute(by_teacher.group_by(Teacher.kind))}
        assert rows["bi-encoder"] == (12, 12)
        assert rows["bm25"][0] > 0 and rows["bm25"][1] == 0
        once = session.scalar(select(func.count()).select_from(Candidate))
    again = mine(store, recipe(proposers=["bm25", "dense"]), cache)
    assert (report.num_new > 0, again.num_new) == (True, 0)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Candidate)) == once


def test_missing_collection_and_missing_examples_are_told(store: Store, tmp_path: Path) -> None:
    fill(store)
    cache = EmbeddingCache(tmp_path, Angles())
    with pytest.raises(CurationError, match="'other' is not in the store"):
        mine(store, recipe(collection="other"), cache)
    with pytest.raises(CurationError, match="gradus generate"):
        mine(store, recipe(examples="generated"), cache)


def test_scores_are_cosines_and_only_what_is_missing_is_scored(store: Store, tmp_path: Path) -> None:
    fill(store)
    cache = EmbeddingCache(tmp_path, Angles())
    first = score(store, cache)
    assert (first.num_candidates, first.num_new) == (4, 4)
    mine(store, recipe(), cache)
    second = score(store, cache)
    assert second.num_candidates == 16 and score(store, cache).num_new == 0
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Score.value, Score.num_tokens)
            .join(Query, Score.query_id == Query.id)
            .join(Passage, Score.passage_id == Passage.id)
        ).all()
        assert len(rows) == first.num_new + second.num_new
        for query, passage, value, tokens in rows:
            angle = float(passage.split()[-1]) - float(query.split()[-1])
            assert abs(value - np.cos(np.radians(angle))) < 2e-3
            assert tokens == 3


def test_no_text_is_embedded_twice_and_a_torn_write_is_cut(tmp_path: Path) -> None:
    encoder = Angles()
    texts = [f"text {n}" for n in (10, 20, 10, 30)]
    vectors, tokens = EmbeddingCache(tmp_path, encoder).embed(texts)
    assert encoder.num_encoded == 3 and tokens.tolist() == [2, 2, 2, 2]
    np.testing.assert_allclose(vectors[:, 0], np.cos(np.radians([10, 20, 10, 30])), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    (file,) = tmp_path.rglob("vectors.f16")
    with file.open("ab") as torn:
        torn.write(b"abc")
    with file.with_name("index.bin").open("ab") as torn:
        torn.write(b"part of an entry")
    again, _ = EmbeddingCache(tmp_path, encoder).embed(["text 30", "text 40", "text 20"])
    assert encoder.num_encoded == 4
    np.testing.assert_allclose(again[:, 0], np.cos(np.radians([30, 40, 20])), atol=1e-3)
    final, _ = EmbeddingCache(tmp_path, encoder).embed(["text 40", "text 10"])
    assert encoder.num_encoded == 4
    np.testing.assert_allclose(final[:, 0], np.cos(np.radians([40, 10])), atol=1e-3)
