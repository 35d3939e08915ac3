"""How far reviewers agree: Cohen's kappa by pair, Fleiss' kappa and Krippendorff's alpha over all, with intervals.

The intervals are percentiles of a bootstrap over items, because decisions on one example's negatives are not
independent. Where a coefficient is not defined (nobody shared a unit, all gave one category) it is None, never 1.

Legend: U units (what is decided on: a candidate), R reviewers, C categories, I items (examples).
Source: Cohen 1960 and 1968 (quadratic weights); Fleiss 1971; Krippendorff 2011; Efron 1979 for the bootstrap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.judging.agreement import Coefficient, Weights, confusions, kappa_over_queries, percentile_interval

MISSING = -1
_RESAMPLES = 1_000
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ratings:
    """What reviewers said of units: `codes` [U, R] holds a category's place, or -1 where a reviewer said nothing.

    Attributes:
        items: Item of each unit [U], any whole numbers; items are what the bootstrap draws.
        is_ordinal: The categories are in an order, and far is worse than near.
    """

    codes: Ints
    items: Ints
    reviewers: tuple[str, ...]
    categories: tuple[str, ...]
    is_ordinal: bool = False

    @classmethod
    def of(
        cls,
        said: Sequence[tuple[int, int, str, str]],
        *,
        categories: tuple[str, ...],
        is_ordinal: bool = False,
    ) -> "Ratings":
        """From (item, unit, reviewer, category), at most one of a reviewer on a unit; units belong to one item."""
        reviewers = tuple(sorted({reviewer for _, _, reviewer, _ in said}))
        units = {unit: place for place, unit in enumerate(dict.fromkeys(unit for _, unit, _, _ in said))}
        codes_UR = np.full((len(units), len(reviewers)), MISSING, np.int64)
        item_U = np.zeros(len(units), np.int64)
        column = {reviewer: place for place, reviewer in enumerate(reviewers)}
        place_of = {category: place for place, category in enumerate(categories)}
        for item, unit, reviewer, category in said:
            codes_UR[units[unit], column[reviewer]] = place_of[category]
            item_U[units[unit]] = item
        return cls(codes_UR, item_U, reviewers, categories, is_ordinal)

    def counts(self) -> Ints:
        """How many reviewers gave each category, [U, C]."""
        return np.stack([(self.codes == code).sum(axis=1) for code in range(len(self.categories))], axis=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two reviewers: units that both decided, how often each said what ([first][second]), and Cohen's kappa.

    `kappa` has quadratic weights where the categories are in an order.
    """

    first: str
    second: str
    num_units: int
    share_same: float | None
    kappa: Coefficient
    confusion: list[list[int]]


@dataclass(frozen=True, slots=True)
class Agreements:
    """All that reviewers agree on one scale. `fleiss` is of the `num_fleiss_units` with `num_fleiss_reviewers` each,
    the most frequent number above one, because it is defined for an equal number only; `alpha` is of all units that
    two or more decided."""

    categories: tuple[str, ...]
    reviewers: tuple[str, ...]
    num_units: int
    num_shared_units: int
    share_same: float | None
    alpha: Coefficient
    fleiss: Coefficient
    num_fleiss_units: int
    num_fleiss_reviewers: int
    pairs: list[Pair]


def agreements(ratings: Ratings, *, seed: int = 0, num_resamples: int = _RESAMPLES) -> Agreements:
    """Every coefficient of the ratings."""
    counts_UC = ratings.counts()
    num_U = counts_UC.sum(axis=1)
    several = num_U > 1
    num_reviewers = _most_frequent(num_U[several])
    equal = several & (num_U == num_reviewers)
    return Agreements(
        categories=ratings.categories,
        reviewers=ratings.reviewers,
        num_units=len(num_U),
        num_shared_units=int(several.sum()),
        share_same=float((counts_UC[several].max(axis=1) == num_U[several]).mean()) if several.any() else None,
        alpha=_with_interval(
            lambda units: krippendorff_alpha(counts_UC[several][units], is_ordinal=ratings.is_ordinal),
            ratings.items[several],
            seed=seed,
            num_resamples=num_resamples,
        ),
        fleiss=_with_interval(
            lambda units: fleiss_kappa(counts_UC[equal][units]),
            ratings.items[equal],
            seed=seed,
            num_resamples=num_resamples,
        ),
        num_fleiss_units=int(equal.sum()),
        num_fleiss_reviewers=num_reviewers,
        pairs=[
            _pair(ratings, first, second, seed=seed, num_resamples=num_resamples)
            for first, second in combinations(range(len(ratings.reviewers)), 2)
        ],
    )


def _most_frequent(numbers: Ints) -> int:
    """The most frequent number, the larger of two as frequent; 0 of none."""
    values, times = np.unique(numbers, return_counts=True)
    return int(values[::-1][np.argmax(times[::-1])]) if len(values) else 0


def krippendorff_alpha(counts_UC: Ints, *, is_ordinal: bool = False) -> float | None:
    """Krippendorff's alpha of units that two or more decided; None where fewer than two categories were given."""
    import krippendorff

    pairable_UC = counts_UC[counts_UC.sum(axis=1) > 1]
    if (pairable_UC.sum(axis=0) > 0).sum() < 2:
        return None
    found = krippendorff.alpha(
        value_counts=pairable_UC,
        value_domain=np.arange(counts_UC.shape[1]),
        level_of_measurement="ordinal" if is_ordinal else "nominal",
    )
    return float(found)


def fleiss_kappa(counts_UC: Ints) -> float | None:
    """Fleiss' kappa of units that equally many decided; None where fewer than two categories were given."""
    from statsmodels.stats.inter_rater import fleiss_kappa as of_table

    if (counts_UC.sum(axis=0) > 0).sum() < 2:
        return None
    return float(of_table(counts_UC))


def _with_interval(
    coefficient: Callable[[Any], float | None], item_U: Ints, *, seed: int, num_resamples: int
) -> Coefficient:
    """The coefficient of all units, and its percentile interval over items drawn with replacement; resamples where it
    is not defined are left out, and of a single item there is no interval."""
    value = coefficient(slice(None))
    items, item_U = np.unique(item_U, return_inverse=True)
    if value is None or len(items) < 2:
        return Coefficient(value, None)
    order = np.argsort(item_U, kind="stable")
    sizes = np.bincount(item_U)
    starts = np.cumsum(sizes) - sizes
    draws = np.random.default_rng(seed)
    values = []
    for _ in range(num_resamples):
        drawn = draws.integers(len(items), size=len(items))
        ends = np.cumsum(sizes[drawn])
        within = np.arange(ends[-1]) - np.repeat(ends - sizes[drawn], sizes[drawn])
        resampled = coefficient(order[np.repeat(starts[drawn], sizes[drawn]) + within])
        if resampled is not None:
            values.append(resampled)
    return Coefficient(value, percentile_interval(values))


def _pair(ratings: Ratings, first: int, second: int, *, seed: int, num_resamples: int) -> Pair:
    codes_UR = ratings.codes[:, [first, second]]
    both = (codes_UR != MISSING).all(axis=1)
    size = len(ratings.categories)
    names = ratings.reviewers[first], ratings.reviewers[second]
    if not both.any():
        return Pair(*names, 0, None, Coefficient(None, None), np.zeros((size, size), np.int64).tolist())
    _, item_U = np.unique(ratings.items[both], return_inverse=True)
    said_one, said_two = codes_UR[both].T
    counts_ICC = confusions(item_U, said_one, said_two, size)
    weights: Weights = "quadratic" if ratings.is_ordinal else None
    return Pair(
        *names,
        num_units=int(both.sum()),
        share_same=float((said_one == said_two).mean()),
        kappa=kappa_over_queries(counts_ICC, weights=weights, seed=seed, num_resamples=num_resamples),
        confusion=counts_ICC.sum(axis=0).tolist(),
    )
