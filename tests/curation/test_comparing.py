"""Leaks are found where they are, and not where they are not; neighbours are those of brute force."""

import random

import numpy as np
import pytest

from curation.audit.comparing import Group, compare_ways
from curation.audit.leaks import source_leak
from curation.errors import CurationError
from curation.mining.neighbours import CollectionIndex
from db.store import Store
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries

WORDS = (
    "otter", "badger", "river", "den", "fish", "water", "night", "tunnel", "forest", "paw", "winter", "stream",
    "meadow", "trout",
)  # fmt: skip


def text(seed: int, style: str = "") -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + style for _ in range(40))


def test_a_style_gives_the_source_away_and_no_style_does_not() -> None:
    groups = list(range(60))
    plain = [text(n) for n in range(60)]
    marked = source_leak([text(n + 500, "ish") for n in range(60)], plain, groups)
    alike = source_leak([text(n + 900) for n in range(60)], plain, groups)
    assert marked.auc > 0.99 and marked.low > 0.95 and marked.num_texts == 120
    assert alike.low < 0.5 < alike.high + 0.1 and 0.3 < alike.auc < 0.7


def test_a_query_is_never_on_two_sides() -> None:
    # The label can be learned from words that only the pairs of one query share: across queries nothing is left.
    first = [f"{WORDS[n % 14]}{n // 4} " * 20 for n in range(60)]
    second = [f"{WORDS[n % 14]}{n // 4} " * 20 for n in range(60)]
    assert source_leak(first, second, [n // 4 for n in range(60)]).auc == pytest.approx(0.5, abs=0.05)


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(CurationError, match="at least 10 queries"):
        source_leak(["a"] * 20, ["b"] * 20, [n % 9 for n in range(20)])


class FakeEncoder:
    """Similarity to any query is the number that the text ends with."""

    def embed(self, texts: list[str]) -> tuple[np.ndarray, None]:
        values = np.array([1.0 if t.startswith("q") else float(t.split()[-1]) for t in texts], np.float32)
        return np.stack([values, np.zeros_like(values)], axis=1), None


def test_two_ways_are_measured_on_common_pairs_only() -> None:
    def group(n: int, *values: float) -> Group:
        return Group(f"q{n}", "positive 0.5", {rank: f"n {value}" for rank, value in enumerate(values, start=1)})

    one = {(n, n): group(n, 0.4, 0.3, 0.35, 0.1) for n in range(3)}
    two = {(n, n): group(n, 0.6, 0.7) for n in range(2, 5)}
    first, second = compare_ways(("one", one), ("two", two), FakeEncoder())  # type: ignore[arg-type]
    assert first.num_pairs == second.num_pairs == 1
    assert first.order_accuracy == 1.0 and second.order_accuracy == 0.0
    assert second.above_positive == {1: 1.0, 2: 1.0} and first.above_positive[1] == 0.0
    assert first.similarity[3] == pytest.approx(0.35) and first.leaks == {}
    with pytest.raises(CurationError, match="no pair in common"):
        compare_ways(("one", one), ("two", {(9, 9): group(9, 0.1)}), FakeEncoder())  # type: ignore[arg-type]


def test_neighbours_leave_out_what_is_judged_relevant_and_ranks_are_exact(store: Store) -> None:
    texts = ["otter river fish", "otter river", "badger den", "otter otter river fish trout", "winter"]
    with store.write() as session:
        collection = Collection(name="c", kind="beir")
        session.add(collection)
        session.flush()
        passages = put_passages(session, texts)
        documents = [
            Document(collection_id=collection.id, external_id=f"d{n}", passage_id=p) for n, p in enumerate(passages)
        ]
        (query,) = put_queries(session, ["otter river fish"])
        asked = CollectionQuery(collection_id=collection.id, external_id="q", query_id=query)
        session.add_all([*documents, asked])
        session.flush()
        session.add(Qrel(collection_query_id=asked.id, document_id=documents[0].id, split="train", relevance=1))
    with store.read() as session:
        index = CollectionIndex(session, "c")
        assert index.near("otter river fish", query, 5) == [passages[3], passages[1]]
        assert index.ranks(["otter river fish", "winter", "moon"], [passages[0], passages[4], passages[0]], 3) == [
            1, 1, None,
        ]  # fmt: skip
        with pytest.raises(CurationError, match="no documents"):
            CollectionIndex(session, "other")
