"""The audit's interval against enumeration and simulation, its stop rule, and the sample's allocation."""

from itertools import product
from math import comb, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from curation.reviewing.sampling import (
    Allocation,
    Evidence,
    Stratum,
    allocate,
    audited,
    draw_place,
    error_bounds,
)

LIMIT = log(20)


@st.composite
def strata(draw: st.DrawFn, most: int = 3) -> list[Stratum]:
    found = []
    for number in range(draw(st.integers(1, most))):
        size = draw(st.integers(1, 18))
        looked_at = draw(st.integers(0, size))
        found.append(Stratum(f"s{number}", size, looked_at, draw(st.integers(0, looked_at))))
    return found


def brute_evidence(one: Stratum, x: int) -> float:
    """log of the marginal likelihood of k of n wrong over the hypergeometric one; infinite where it cannot be."""
    n, k = one.looked_at, one.wrong
    ways = comb(x, k) * comb(one.size - x, n - k)
    if not ways:
        return float("inf")
    marginal = log(comb(n, k)) + betaln(0.5 + k, 0.5 + n - k) - betaln(0.5, 0.5)
    return marginal - log(ways / comb(one.size, n))


@given(strata())
@settings(max_examples=80, deadline=None)
def test_bounds_by_enumeration_of_every_truth(several: list[Stratum]) -> None:
    low, high = error_bounds(several)
    sums = [
        sum(truth)
        for truth in product(*(range(one.size + 1) for one in several))
        if sum(brute_evidence(one, x) for one, x in zip(several, truth, strict=True)) <= LIMIT
    ]
    assert sums, "the most likely truth is never ruled out"
    # Whole numbers that hold lie inside; real numbers reach at most one further in each stratum.
    assert low <= min(sums) + 1e-6 and high >= max(sums) - 1e-6
    assert min(sums) - low <= len(several) and high - max(sums) <= len(several)


def test_all_looked_at_is_a_point_and_nothing_looked_at_is_everything() -> None:
    whole = audited([Stratum("a", 40, 40, 3), Stratum("b", 10, 10, 0)])
    assert whole.overall.interval == pytest.approx((0.06, 0.06)) and whole.advice == "all looked at"
    nothing = audited([Stratum("a", 40, 0, 0)], max_error_rate=0.1)
    assert nothing.overall.interval == (0.0, 1.0) and nothing.overall.estimate is None
    assert nothing.advice == "going on"


def test_a_stratum_that_nobody_looked_at_leaves_its_share_open() -> None:
    found = audited([Stratum("big", 900, 500, 0), Stratum("small", 100, 0, 0)], max_error_rate=0.05)
    assert found.overall.estimate is None and found.overall.interval[1] > 0.1 and found.advice == "going on"
    assert {one.name: one.interval[1] for one in found.strata}["big"] < 0.02


def test_estimate_weighs_strata_by_size() -> None:
    found = audited([Stratum("big", 900, 90, 9), Stratum("small", 100, 50, 25)])
    assert found.overall.estimate == pytest.approx(0.9 * 0.1 + 0.1 * 0.5)
    low, high = found.overall.interval
    assert low < 0.14 < high and [one.estimate for one in found.strata] == [0.1, 0.5]


def test_the_interval_holds_at_every_moment_together() -> None:
    """A person who looks after each decision, and stops at the worst moment, is wrong in at most 5 % of audits."""
    sizes, wrong = (60, 240), (3, 60)
    truth = np.array(wrong, float)
    draws = np.random.default_rng(11)
    broken = 0
    for _ in range(400):
        sequences = [
            draws.permutation([True] * bad + [False] * (size - bad)) for size, bad in zip(sizes, wrong, strict=True)
        ]
        for n in range(1, 60):
            now = [Stratum(str(h), sizes[h], n, int(sequences[h][:n].sum())) for h in range(2)]
            if Evidence(now).at(truth) > LIMIT:
                broken += 1
                break
    assert broken / 400 <= 0.05


@pytest.mark.parametrize(
    ("looked_at", "wrong", "rule", "advice"),
    [
        (20, 0, {"max_error_rate": 0.05}, "going on"),
        (200, 0, {"max_error_rate": 0.05}, "good enough"),
        (60, 20, {"max_error_rate": 0.05}, "too many errors"),
        (200, 0, {}, "going on"),
    ],
)
def test_the_stop_rule(looked_at: int, wrong: int, rule: dict[str, float], advice: str) -> None:
    found = audited([Stratum("all", 100_000, looked_at, wrong)], **rule)
    assert found.advice == advice


def test_more_confidence_is_wider() -> None:
    one = [Stratum("all", 10_000_000, 300, 6)]
    narrow, wide = (audited(one, confidence=level).overall.interval for level in (0.8, 0.99))
    assert wide[0] < narrow[0] < 0.02 < narrow[1] < wide[1] < 0.1


def test_a_count_that_cannot_be_is_refused() -> None:
    for looked_at, wrong in ((3, 4), (6, 1)):
        with pytest.raises(ValueError, match="cannot be"):
            audited([Stratum("x", 5, looked_at, wrong)])


@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), max_size=6),
    num=st.integers(1, 80),
    allocation=st.sampled_from(["proportional", "equal"]),
)
def test_allocation_fills_the_number_and_no_stratum_beyond_its_size(
    sizes: dict[str, int], num: int, allocation: Allocation
) -> None:
    found = allocate(sizes, num, allocation)
    assert set(found) == set(sizes) and all(0 <= found[name] <= sizes[name] for name in sizes)
    assert sum(found.values()) == min(num, sum(sizes.values()))
    if num >= sum(size > 0 for size in sizes.values()):
        assert all(found[name] for name, size in sizes.items() if size)
    if allocation == "equal":
        open_ = [found[name] for name in sizes if found[name] < sizes[name]]
        assert not open_ or max(found.values()) - min(open_) <= 1


def test_allocation_is_in_proportion() -> None:
    assert allocate({"a": 800, "b": 150, "c": 4}, 103) == {"a": 86, "b": 16, "c": 1}
    assert allocate({"a": 800, "b": 150, "c": 4}, 104, "equal") == {"a": 50, "b": 50, "c": 4}
    assert allocate({}, 3) == {}


def test_the_draw_depends_on_seed_stratum_and_digest_alone() -> None:
    places = {(seed, name): draw_place(seed, name, "d" * 64) for seed in (0, 1) for name in ("hard", "easy")}
    assert len(set(places.values())) == 4 and all(0 <= place < 1 for place in places.values())
    assert places[0, "hard"] == draw_place(0, "hard", "d" * 64)
