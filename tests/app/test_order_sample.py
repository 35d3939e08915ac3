"""The ordering page by value: rungs, spread, inversions with their examples, leaks as a release froze them."""

import numpy as np
import pytest

from app.viewing.order_sample import audited_runs, order_samples, released_leaks, sampled_leaks
from curation.errors import CurationError
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.base import utc_now
from db.tables.examples import Score
from db.tables.releases import Release
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

GRADES = {1: "hard", 2: "medium", 3: "medium", 4: "easy"}


def fill(store: Store, values: list[dict[int, float]]) -> list[int]:
    """An example for each; negatives by rank with their similarity. Returns the examples' ids."""
    ids = []
    with store.write() as session:
        run = start_run(session, "generate", "writing", {}, 0)
        start_run(session, "mine", "empty", {}, 0)
        teacher = put_teacher(session, name="minilm", version="v", kind="bi-encoder", max_length=8)
        for n, by_rank in enumerate(values):
            (query,) = put_queries(session, [f"query {n}"])
            positive, *negatives = put_passages(session, [f"positive {n}", *(f"n {n} {rank}" for rank in by_rank)])
            (example,) = put_examples(session, [(query, positive)], origin="corpus")
            ids.append(example)
            rows = [NewCandidate(example, positive, "positive", "corpus", run.id)]
            rows += [
                NewCandidate(example, p, "negative", "synthetic", run.id, grade=GRADES[rank], rank=rank)
                for p, rank in zip(negatives, by_rank, strict=True)
            ]
            put_candidates(session, rows)
            pairs = [(positive, 0.9), *zip(negatives, by_rank.values(), strict=True)]
            scores = [{"passage_id": p, "value": value, "num_tokens": 3} for p, value in pairs]
            insert_missing(session, Score, [{"teacher_id": teacher, "query_id": query, **row} for row in scores])
    return ids


VALUES = [{1: 0.8, 2: 0.5, 4: 0.1}, {1: 0.3, 2: 0.6, 3: 0.2, 4: 0.65}, {4: 0.4}]


def test_rungs_spread_and_inversions_by_value(store: Store) -> None:
    examples = fill(store, VALUES)
    (sample,) = order_samples(store, "minilm", run_id=1)
    assert [(row["rung"], row["grade"], row["num"]) for row in sample.rungs] == [
        ("positive", "positive", 3), ("N1", "hard", 2), ("N2", "medium", 2), ("N3", "medium", 1), ("N4", "easy", 3),
    ]  # fmt: skip
    easy = sample.rungs[-1]
    assert easy["mean"] == pytest.approx(np.mean([0.1, 0.65, 0.4]))
    assert (easy["lower"], easy["median"], easy["upper"]) == pytest.approx(
        np.quantile([0.1, 0.65, 0.4], [0.25, 0.5, 0.75])
    )
    for rung in {row["rung"] for row in sample.bins}:
        assert sum(row["share"] for row in sample.bins if row["rung"] == rung) == pytest.approx(1, abs=1e-3)
    brute = {
        (examples[n], hard, easy, round(by_rank[easy] - by_rank[hard], 6))
        for n, by_rank in enumerate(VALUES)
        for hard, easy in ((1, 2), (1, 3), (1, 4), (2, 4), (3, 4))
        if hard in by_rank and easy in by_rank and by_rank[easy] > by_rank[hard]
    }
    assert {(o.example_id, o.harder_rank, o.easier_rank, o.gap) for o in sample.inversions} == brute
    assert [one.gap for one in sample.inversions] == sorted((gap for *_, gap in brute), reverse=True)


def test_only_runs_with_negatives_are_offered_and_an_unscored_one_says_so(store: Store) -> None:
    fill(store, VALUES)
    with store.read() as session:
        assert audited_runs(session) == [(1, "writing (generate)")]
    with pytest.raises(CurationError, match="gradus score"):
        order_samples(store, "minilm", run_id=2)


def test_leaks_are_those_of_the_newest_release_that_knows_the_run(store: Store) -> None:
    fill(store, VALUES)
    groups = [{"run": "writing", "leaks": {"negative_from_positive": {"auc": 0.7}}}, {"run": "other", "leaks": None}]
    with store.write() as session:
        for name, manifest in (("a-1.0.0", {"audit": {"groups": groups}}), ("a-1.1.0", {})):
            session.add(
                Release(name=name, digest="0" * 64, recipe={}, manifest=manifest, path="", created_at=utc_now())
            )
    with store.read() as session:
        assert released_leaks(session, "writing") == ("a-1.0.0", groups[0]["leaks"])
        assert released_leaks(session, "other") is None
    measured = sampled_leaks(store, 1)
    assert measured["negative_from_positive"]["auc"] is None and measured["negative_from_positive"]["reason"]
