"""Order, Spearman, negation and the bootstrap, by value against brute force on uneven data."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from trainer.errors import TrainerError
from trainer.evaluation import means, paired_bootstrap
from trainer.graded_order import METRICS, kendall_tau_b, order_metrics
from trainer.similarity import share_closer, spearman

PLACE = {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}


def test_order_of_an_uneven_example_by_hand() -> None:
    # Positive, N1, two of N2, N3, no N4. Pairs in order: P>N1, P>N2b, P>N3, N1>N2b; N1 and N3 tie.
    values = order_metrics([0, 1, 2, 2, 3], [0.5, 0.4, 0.6, 0.1, 0.4])
    assert values["order"] == pytest.approx((3 + 1 + 0.5) / 7)
    assert values["positive above N2"] == 0.5 and values["positive above N1"] == 1
    assert values["N1 in order"] == pytest.approx(1.5 / 3)
    assert values["N2 in order"] == 0.5 and values["N3 in order"] == 0.5
    assert math.isnan(values["N4 in order"]) and math.isnan(values["positive above N4"])
    assert tuple(values) == METRICS


RANKED = st.lists(st.tuples(st.integers(0, 5), st.integers(-4, 4)), min_size=1, max_size=9)


@given(RANKED)
@settings(deadline=None)
def test_order_and_tau_equal_brute_force(rows: list[tuple[int, int]]) -> None:
    ranks, cosines = [rank for rank, _ in rows], [value / 4 for _, value in rows]
    outcomes = []
    for (a, x), (b, y) in combinations(zip(ranks, cosines, strict=True), 2):
        if PLACE[a] != PLACE[b]:
            near, far = (x, y) if PLACE[a] < PLACE[b] else (y, x)
            outcomes.append(1.0 if near > far else 0.5 if near == far else 0.0)
    expected = sum(outcomes) / len(outcomes) if outcomes else math.nan
    assert order_metrics(ranks, cosines)["order"] == pytest.approx(expected, nan_ok=True)
    known = [-PLACE[rank] for rank in ranks]
    tau = kendalltau(known, cosines).statistic if len(set(known)) > 1 and len(set(cosines)) > 1 else math.nan
    assert kendall_tau_b(ranks, cosines) == pytest.approx(tau, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=3, max_size=12), st.integers(0, 99))
@settings(deadline=None)
def test_spearman_of_samples_equals_scipy(pairs: list[tuple[int, int]], seed: int) -> None:
    gold, cosines = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    if len(set(gold)) == 1:
        with pytest.raises(TrainerError, match="differ"):
            spearman(gold)
        return
    rows = np.random.default_rng(seed).integers(0, len(gold), (4, len(gold)))
    rows[0] = np.arange(len(gold))
    for rho, row in zip(spearman(gold)(cosines, rows), rows, strict=True):
        tied = len(set(gold[row])) == 1 or len(set(cosines[row])) == 1
        assert rho == pytest.approx(0 if tied else spearmanr(gold[row], cosines[row]).statistic)


def test_share_closer_counts_ties_half_and_needs_both_sides() -> None:
    assert share_closer([0.9, 0.5], [0.7, 0.5, 0.1]) == pytest.approx((3 + 0 + 0.5 + 1) / 6)
    with pytest.raises(TrainerError):
        share_closer([0.9], [])


def test_bootstrap_passes_over_units_without_a_value() -> None:
    before, after = np.array([0.0, np.nan, 1.0, 0.0]), np.array([1.0, np.nan, 1.0, 0.5])
    report = paired_bootstrap(before, after, num_samples=500)
    assert report["difference"] == pytest.approx(0.5)
    assert 0 <= report["interval_95"][0] <= 0.5 <= report["interval_95"][1] <= 1
    assert means(before, np.array([[0, 1, 2, 3], [1, 1, 1, 2]])).tolist() == [pytest.approx(1 / 3), 1.0]
    with pytest.raises(TrainerError, match="same units: 4 and 3"):
        paired_bootstrap(before, after[:3])


def test_bootstrap_of_spearman_is_zero_for_equals_and_finds_the_better() -> None:
    draws = np.random.default_rng(3)
    gold = draws.permutation(60).astype(float)
    good, bad = gold + draws.normal(0, 3, 60), gold + draws.normal(0, 60, 60)
    statistic = spearman(gold)
    equal = paired_bootstrap(good, good, statistic=statistic, num_samples=200)
    assert equal == {"difference": 0, "interval_95": [0, 0]}
    report = paired_bootstrap(bad, good, statistic=statistic, num_samples=200)
    assert report["interval_95"][0] > 0
    expected = spearmanr(gold, good).statistic - spearmanr(gold, bad).statistic
    assert report["difference"] == pytest.approx(expected)
