"""The arithmetic of order, by value against brute force and scipy, on uneven data."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from curation.audit.ordering import CROSS_GRADE_PAIRS, bootstrap_interval, hardness, kendall_tau_b, pair_outcomes

RANKED = st.lists(st.tuples(st.integers(1, 4), st.sampled_from([-0.5, -0.1, 0.0, 0.2, 0.7])), max_size=7)


def test_there_are_five_cross_grade_pairs() -> None:
    assert CROSS_GRADE_PAIRS == ((1, 2), (1, 3), (1, 4), (2, 4), (3, 4))


@given(rows=RANKED)
def test_pair_outcomes_equal_brute_force(rows: list[tuple[int, float]]) -> None:
    outcomes = pair_outcomes([rank for rank, _ in rows], [value for _, value in rows])
    right = total = 0.0
    for (rank_a, value_a), (rank_b, value_b) in combinations(rows, 2):
        if hardness(rank_a) == hardness(rank_b):
            continue
        hard, easy = (value_a, value_b) if rank_a < rank_b else (value_b, value_a)
        total += 1
        right += 1 if hard > easy else 0.5 if hard == easy else 0
    assert sum(len(values) for values in outcomes.values()) == total
    assert sum(sum(values) for values in outcomes.values()) == right
    assert set(outcomes) <= set(CROSS_GRADE_PAIRS)


@given(rows=RANKED)
def test_tau_b_equals_scipys(rows: list[tuple[int, float]]) -> None:
    ranks, values = [rank for rank, _ in rows], [value for _, value in rows]
    ours = kendall_tau_b(ranks, values)
    if len({hardness(rank) for rank in ranks}) < 2 or len(set(values)) < 2:
        assert ours is None
        return
    assert ours == pytest.approx(kendalltau([hardness(rank) for rank in ranks], values, variant="b").statistic)


def test_perfect_and_reversed_order() -> None:
    assert kendall_tau_b([1, 2, 3, 4], [0.9, 0.5, 0.5, 0.1]) == pytest.approx(1)
    assert kendall_tau_b([1, 2, 3, 4], [0.1, 0.5, 0.5, 0.9]) == pytest.approx(-1)


def test_bootstrap_interval_covers_the_share_and_is_seeded() -> None:
    right, pairs = np.array([3.0, 5, 0, 4.5, 1]), np.array([5.0, 5, 3, 5, 1])
    low, high = bootstrap_interval(right, pairs) or (0, 0)
    assert low < right.sum() / pairs.sum() < high
    assert bootstrap_interval(right, pairs) == (low, high)
    assert bootstrap_interval([], []) is None
    assert bootstrap_interval([1.0, 1.0], [1.0, 1.0]) == (1.0, 1.0)


def test_interval_of_many_examples_is_that_of_the_bootstrap_without_drawing() -> None:
    draw = np.random.default_rng(4)
    pairs = draw.integers(0, 6, 20_001).astype(float)
    right = draw.binomial(pairs.astype(int), 0.3).astype(float)
    low, high = bootstrap_interval(right, pairs) or (0, 0)
    ratios = [right[rows].sum() / pairs[rows].sum() for rows in draw.integers(0, len(pairs), (400, len(pairs)))]
    assert (low, high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=6e-4)
    assert high - low == pytest.approx(2 * 1.96 * np.std(ratios), rel=0.1)
