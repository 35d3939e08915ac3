"""Agreement of reviewers: published examples, brute force on uneven data, and what is not defined."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from curation.reviewing.coefficients import Ratings, agreements, fleiss_kappa, krippendorff_alpha

GRADES = ("easy", "medium", "hard", "harder", "hardest")
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section D: four observers, twelve units, gaps.
KRIPPENDORFF = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)
# Fleiss 1971 as retold in textbooks: ten subjects, fourteen raters, five categories.
FLEISS = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)
Said = list[tuple[int, int, str, str]]


def of_columns(columns: tuple[tuple[int | None, ...], ...]) -> Said:
    return [
        (unit, unit, f"r{reviewer}", GRADES[value - 1])
        for reviewer, values in enumerate(columns)
        for unit, value in enumerate(values)
        if value is not None
    ]


def brute_alpha(counts: np.ndarray, is_ordinal: bool) -> float | None:
    """Disagreement of all pairs within units over that of all pairs whatsoever, pair by pair."""
    units = [[value for value, num in enumerate(row) for _ in range(num)] for row in counts.tolist()]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [value for unit in units for value in unit]
    if len(set(pooled)) < 2:
        return None

    def distance(one: int, other: int) -> float:
        if not is_ordinal:
            return float(one != other)
        low, high = sorted((one, other))
        between = sum(low <= value <= high for value in pooled)
        return (between - (pooled.count(low) + pooled.count(high)) / 2) ** 2

    seen = sum(2 * sum(distance(*pair) for pair in combinations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum(2 * distance(*pair) for pair in combinations(pooled, 2)) / (len(pooled) - 1)
    return 1 - seen / expected


def brute_cohen(pairs: list[tuple[int, int]], weight: Callable[[int, int], float]) -> float:
    seen = np.mean([weight(one, other) for one, other in pairs])
    chance = np.mean([weight(one, other) for one, _ in pairs for _, other in pairs])
    return float(1 - seen / chance)


def test_published_examples() -> None:
    found = agreements(Ratings.of(of_columns(KRIPPENDORFF), categories=GRADES), num_resamples=1)
    assert found.alpha.value == pytest.approx(0.743, abs=5e-4)
    ordinal = agreements(Ratings.of(of_columns(KRIPPENDORFF), categories=GRADES, is_ordinal=True), num_resamples=1)
    assert ordinal.alpha.value == pytest.approx(0.815, abs=5e-4)
    assert fleiss_kappa(np.array(FLEISS)) == pytest.approx(0.210, abs=5e-4)
    table = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    units = [pair for pair, num in table.items() for _ in range(num)]
    said = [(n, n, who, what) for n, pair in enumerate(units) for who, what in zip("ab", pair, strict=True)]
    (pair,) = agreements(Ratings.of(said, categories=("yes", "no")), num_resamples=200).pairs
    assert pair.kappa.value == pytest.approx(0.4) and pair.confusion == [[20, 5], [10, 15]]
    assert pair.share_same == 0.7 and pair.num_units == 50
    low, high = pair.kappa.interval_95 or (1, 0)
    assert low < 0.4 < high


uneven = st.integers(2, 5).flatmap(
    lambda reviewers: st.lists(
        st.lists(st.integers(-1, 3), min_size=reviewers, max_size=reviewers), min_size=1, max_size=12
    )
)


@given(rows=uneven, is_ordinal=st.booleans())
@settings(max_examples=60, deadline=None)
def test_uneven_ratings_by_brute_force(rows: list[list[int]], is_ordinal: bool) -> None:
    categories = GRADES[:4]
    said = [
        (unit // 3, unit, f"r{reviewer}", categories[code])
        for unit, row in enumerate(rows)
        for reviewer, code in enumerate(row)
        if code >= 0
    ]
    assume(said)
    found = agreements(Ratings.of(said, categories=categories, is_ordinal=is_ordinal), num_resamples=2)
    counts = np.array([[row.count(code) for code in range(4)] for row in rows])
    expected = brute_alpha(counts, is_ordinal)
    assert found.alpha.value == (None if expected is None else pytest.approx(expected, abs=1e-9))
    assert krippendorff_alpha(counts, is_ordinal=is_ordinal) == found.alpha.value
    assert found.num_shared_units == sum(sum(code >= 0 for code in row) > 1 for row in rows)
    for pair in found.pairs:
        first, second = int(pair.first[1:]), int(pair.second[1:])
        both = [(row[first], row[second]) for row in rows if row[first] >= 0 and row[second] >= 0]
        assert pair.num_units == len(both) == sum(map(sum, pair.confusion))
        if len({code for one in both for code in one}) < 2:
            assert pair.kappa.value is None
            continue
        assert pair.share_same == pytest.approx(np.mean([one == other for one, other in both]))

        def weight(one: int, other: int) -> float:
            return float((one - other) ** 2) if is_ordinal else float(one != other)

        assert pair.kappa.value == pytest.approx(brute_cohen(both, weight), abs=1e-9)


def test_fleiss_takes_the_units_with_the_most_frequent_number_of_reviewers() -> None:
    rows = ["aab", "bb-", "abb", "-a-", "bbb", "a-a"]
    said = [(n, n, f"r{who}", what) for n, row in enumerate(rows) for who, what in enumerate(row) if what != "-"]
    found = agreements(Ratings.of(said, categories=("a", "b")), num_resamples=50)
    assert (found.num_fleiss_units, found.num_fleiss_reviewers, found.num_units) == (3, 3, 6)
    # By hand: shares 4/9 and 5/9... of 9 ratings 3 are a and 6 are b; agreement (1/3 + 1/3 + 1) / 3.
    chance = (3 / 9) ** 2 + (6 / 9) ** 2
    assert found.fleiss.value == pytest.approx((5 / 9 - chance) / (1 - chance))


def test_what_is_not_defined_is_none_and_never_one() -> None:
    nobody = agreements(Ratings.of([], categories=GRADES))
    assert nobody.alpha.value is nobody.fleiss.value is nobody.share_same is None and nobody.pairs == []
    alone = agreements(Ratings.of([(1, 1, "a", "hard"), (2, 2, "b", "easy")], categories=GRADES))
    assert alone.alpha.value is None and alone.num_shared_units == 0 and alone.pairs[0].kappa.value is None
    same = [(n, n, who, "hard") for n in range(5) for who in "abc"]
    found = agreements(Ratings.of(same, categories=GRADES, is_ordinal=True))
    assert found.alpha.value is found.fleiss.value is None and found.share_same == 1.0
    assert {pair.kappa.value for pair in found.pairs} == {None}


def test_the_interval_draws_items_not_units() -> None:
    """Ten units of one item that go together leave no interval; of two items they leave a wide one."""
    one_item = [(7, n, who, GRADES[n % 2]) for n in range(10) for who in "ab"]
    found = agreements(Ratings.of(one_item, categories=GRADES[:2]))
    assert found.alpha.value == 1.0 and found.alpha.interval_95 is None
    apart = one_item + [(8, 10 + n, who, GRADES[(n + (who == "b")) % 2]) for n in range(10) for who in "ab"]
    wide = agreements(Ratings.of(apart, categories=GRADES[:2])).alpha
    each = agreements(Ratings.of([(unit, unit, *rest) for _, unit, *rest in apart], categories=GRADES[:2])).alpha
    assert wide.value == each.value and wide.interval_95 and each.interval_95
    assert wide.interval_95[0] < -0.9 and wide.interval_95[1] == 1.0 and each.interval_95[1] < 0.7


def test_the_same_seed_gives_the_same_interval() -> None:
    ratings = Ratings.of(of_columns(KRIPPENDORFF), categories=GRADES, is_ordinal=True)
    first, again = (agreements(ratings, seed=4, num_resamples=100) for _ in range(2))
    assert first == again and agreements(ratings, seed=5, num_resamples=100).alpha != first.alpha
