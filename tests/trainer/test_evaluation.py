"""Metrics by value on uneven judgments; the bootstrap against every sample there is."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata

from trainer.errors import TrainerError
from trainer.evaluation import Statistic, means, paired_bootstrap, retrieval_metrics
from trainer.similarity import spearman

SEEDS = np.array([[0.1, 0.9, 0.4, np.nan, 0.75], [0.3, 0.2, 0.5, np.nan, 0.6], [0.0, 1.0, 0.45, np.nan, 0.7]])
OTHER = np.array([[0.2, 0.1, 0.35, np.nan, 0.5], [0.05, 0.6, 0.4, np.nan, 0.55]])
GOLD = np.array([3.0, 1.0, 4.0, 1.0, 5.0])


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


def test_bootstrap_interval_holds_the_difference_and_is_zero_for_equals() -> None:
    before, after = np.array([0.1, 0.5, 0.9, 0.3]), np.array([0.2, 0.5, 1.0, 0.6])
    report = paired_bootstrap(before, after)
    assert math.isclose(report["difference"], 0.125)
    low, high = report["interval_95"]
    assert 0 <= low <= 0.125 <= high <= 0.3
    assert paired_bootstrap(before, before) == {"difference": 0.0, "interval_95": [0.0, 0.0]}


def _rho(gold_U: np.ndarray, values_U: np.ndarray) -> float:
    ranks = rankdata(gold_U), rankdata(values_U)
    return 0.0 if min(np.ptp(ranks[0]), np.ptp(ranks[1])) == 0 else float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("name", ["mean", "spearman"])
def test_interval_holds_95_of_100_of_all_samples_there_are(name: str) -> None:
    """Every one of the U^U equally likely samples by brute force: 2.5 % of them lie beyond either end."""
    draws = np.random.default_rng(5)
    if name == "mean":
        before, after, statistic = OTHER, SEEDS, means
        of = lambda values_U, rows: np.nanmean(values_U[rows])  # noqa: E731
    else:
        before, after = GOLD + draws.normal(0, 3, (2, 5)), GOLD + draws.normal(0, 0.5, (3, 5))
        statistic, of = spearman(GOLD), lambda values_U, rows: _rho(GOLD[rows], values_U[rows])
    num_units = before.shape[1]
    samples = [np.array(rows) for rows in product(range(num_units), repeat=num_units)]
    samples = [rows for rows in samples if not np.isnan(before[0, rows]).all()]

    def difference(rows: np.ndarray) -> float:
        return float(np.mean([of(run, rows) for run in after]) - np.mean([of(run, rows) for run in before]))

    of_all = np.array([difference(rows) for rows in samples])
    report = paired_bootstrap(before, after, statistic=statistic)
    assert report["difference"] == pytest.approx(difference(np.arange(num_units)))
    low, high = report["interval_95"]
    near, deviations = 1e-9, 4 * math.sqrt(0.025 * 0.975 / 10_000)  # the ends are drawn themselves
    for outside, inside in (
        ((of_all < low - near), (of_all <= low + near)),
        ((of_all > high + near), (of_all >= high - near)),
    ):
        assert outside.mean() <= 0.025 + deviations and inside.mean() >= 0.025 - deviations


def test_statistic_is_taken_of_each_run_and_not_of_their_mean() -> None:
    """Noise that runs do not share would vanish in a mean over runs: that would score an ensemble of them."""
    draws = np.random.default_rng(0)
    gold = np.arange(300.0)
    before, after = gold + draws.normal(0, 150, 300), gold + draws.normal(0, 150, (3, 300))
    statistic: Statistic = spearman(gold)
    report = paired_bootstrap(before, after, statistic=statistic, num_samples=200)
    by_run = [_rho(gold, run) for run in after]
    assert report["difference"] == pytest.approx(np.mean(by_run) - _rho(gold, before))
    assert report["difference"] < _rho(gold, after.mean(axis=0)) - _rho(gold, before) - 0.1


def test_comparison_without_a_value_is_refused() -> None:
    assert np.isnan(means(np.array([np.nan, 1.0]), np.array([[0, 0], [0, 1]]))).tolist() == [True, False]
    with pytest.raises(TrainerError, match="needs a value on either side"):
        paired_bootstrap(np.array([0.5, 0.2]), np.array([np.nan, np.nan]))
