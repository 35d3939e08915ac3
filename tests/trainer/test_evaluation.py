"""Metrics by value on uneven judgments, and exact search with ties."""

import math

import numpy as np
import pytest

from trainer.errors import TrainerError
from trainer.evaluation import paired_bootstrap, rank_documents, retrieval_metrics


def test_metrics_equal_hand_values_on_uneven_judgments() -> None:
    ranked = [["a", "b", "c"], ["x", "y"], [f"d{i}" for i in range(12)]]
    relevance = [{"b": 2, "z": 1, "a": 0}, {"x": 1}, {"d10": 1, "d1": 3, "d0": 1}]
    values = retrieval_metrics(ranked, relevance)
    ideal_third = 3 + 1 / math.log2(3) + 1 / 2
    expected = [
        (2 / math.log2(3)) / (2 + 1 / math.log2(3)),
        1.0,
        (1 + 3 / math.log2(3)) / ideal_third,
    ]
    np.testing.assert_allclose(values["ndcg@10"], expected)
    np.testing.assert_allclose(values["mrr@10"], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(values["recall@100"], [0.5, 1.0, 1.0])


def test_relevant_document_below_ten_counts_for_recall_only() -> None:
    values = retrieval_metrics([[*"abcdefghijkl"]], [{"l": 1}])
    assert (values["ndcg@10"][0], values["mrr@10"][0], values["recall@100"][0]) == (0, 0, 1)


def test_recall_stops_at_one_hundred() -> None:
    values = retrieval_metrics([[f"d{i}" for i in range(150)]], [{"d99": 1, "d100": 1}])
    assert values["recall@100"][0] == 0.5


@pytest.mark.parametrize(("ranked", "relevance"), [([], []), ([["a"]], [{"a": 0}])])
def test_nothing_to_measure_is_an_error(ranked: list[list[str]], relevance: list[dict[str, int]]) -> None:
    with pytest.raises(TrainerError):
        retrieval_metrics(ranked, relevance)


def test_search_is_exact_and_breaks_ties_by_the_lower_index() -> None:
    documents = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float32)
    assert rank_documents(np.array([[1, 0], [-1, 0.5]], np.float32), documents, 3).tolist() == [[0, 2, 1], [3, 1, 0]]


def test_bootstrap_interval_holds_the_difference_and_is_zero_for_equals() -> None:
    before, after = np.array([0.1, 0.5, 0.9, 0.3]), np.array([0.2, 0.5, 1.0, 0.6])
    report = paired_bootstrap(before, after)
    assert math.isclose(report["difference"], 0.125)
    low, high = report["interval_95"]
    assert 0 <= low <= 0.125 <= high <= 0.3
    assert paired_bootstrap(before, before) == {"difference": 0.0, "interval_95": [0.0, 0.0]}
