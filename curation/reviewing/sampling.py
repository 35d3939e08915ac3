"""An audit by sample: how many candidates of each stratum to look at, what error rate they show, and when to stop.

Strata are drawn without replacement, each in a random order that is fixed by the seed. The interval of the error rate
is valid at every number of decisions, however often a person looks and whenever they stop (a confidence sequence), so
stopping as soon as the rule is met costs nothing. It is exact for the finite stratum: when everything was looked at,
it is a point.

In a stratum of N candidates of which x are wrong, k wrong ones among the first n drawn have the hypergeometric
likelihood H(k; N, x, n). Its ratio to the marginal likelihood under a beta-binomial prior over x is a martingale under
the true x; so is the product over strata, in whatever order they are drawn. By Ville's inequality the set of all
(x_1 .. x_H) whose product stays under 1/alpha holds the truth at all times with probability 1 - alpha; the bounds of
the overall rate are the ends of sum(x_h) over that set, which is convex in x.

Legend: H strata, N size, n looked at, k wrong.
Source: Robbins 1970 (mixtures); Waudby-Smith and Ramdas 2020, arXiv 2006.04347 (sampling without replacement, the
prior-posterior ratio); Spertus and Stark 2022, arXiv 2207.03379 (products over strata).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from db.digest import counter_uniform

# Beta(1/2, 1/2), Jeffreys' prior: the interval holds under any prior, this one makes it narrow near 0.
_PRIOR = 0.5
_STEPS = 60
Floats = NDArray[np.float64]
Advice = Literal["going on", "good enough", "too many errors", "all looked at"]
Allocation = Literal["proportional", "equal"]


@dataclass(frozen=True, slots=True)
class Stratum:
    """A stratum: its size, how many of it were looked at, and how many of those were wrong."""

    name: str
    size: int
    looked_at: int
    wrong: int


@dataclass(frozen=True, slots=True)
class ErrorRate:
    """A share of wrong candidates with an interval that is valid at every number of decisions; `estimate` weighs
    strata by their sizes, and is None while a stratum has not been looked at."""

    name: str
    size: int
    looked_at: int
    wrong: int
    estimate: float | None
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Audited:
    """An audit as it stands: the overall rate, each stratum's, and what the stop rule says."""

    overall: ErrorRate
    strata: list[ErrorRate]
    confidence: float
    advice: Advice


def audited(strata: Iterable[Stratum], *, max_error_rate: float | None = None, confidence: float = 0.95) -> Audited:
    """Error rates of the strata and over all of them, and whether to go on.

    Args:
        strata: Every stratum of the population, those that nobody has looked at too.
        max_error_rate: The audit ends when the rate is surely at most this, or surely above it; None: when all of it
            was looked at.
        confidence: Of the intervals, each at all times together.

    Raises:
        ValueError: A stratum has more looked at than it holds, or more wrong than looked at.
    """
    known = sorted((one for one in strata if one.size), key=lambda one: one.name)
    for one in known:
        if not 0 <= one.wrong <= one.looked_at <= one.size:
            raise ValueError(f"stratum {one.name!r}: {one.wrong} wrong of {one.looked_at} of {one.size} cannot be")
    overall = _rate("all", known, confidence)
    rates = [_rate(one.name, [one], confidence) for one in known]
    return Audited(overall, rates, confidence, _advice(overall, max_error_rate))


def _advice(overall: ErrorRate, max_error_rate: float | None) -> Advice:
    low, high = overall.interval
    if max_error_rate is not None and high <= max_error_rate:
        return "good enough"
    if max_error_rate is not None and low > max_error_rate:
        return "too many errors"
    return "all looked at" if overall.looked_at == overall.size else "going on"


def _rate(name: str, strata: list[Stratum], confidence: float) -> ErrorRate:
    size, looked_at, wrong = (
        sum(one.size for one in strata),
        sum(one.looked_at for one in strata),
        sum(one.wrong for one in strata),
    )
    if not strata:
        return ErrorRate(name, 0, 0, 0, None, (0.0, 1.0))
    is_known = all(one.looked_at for one in strata)
    estimate = sum(one.size * one.wrong / one.looked_at for one in strata) / size if is_known else None
    low, high = error_bounds(strata, confidence=confidence)
    return ErrorRate(name, size, looked_at, wrong, estimate, (low / size, high / size))


def error_bounds(strata: list[Stratum], *, confidence: float = 0.95) -> tuple[float, float]:
    """Fewest and most wrong candidates over all strata, valid at every number of decisions; real numbers."""
    evidence = Evidence(strata)
    limit = float(np.log(1 / (1 - confidence)))
    return evidence.furthest(limit, upwards=False), evidence.furthest(limit, upwards=True)


class Evidence:
    """log of (marginal likelihood / likelihood) of numbers of wrong ones x_H: 0 at no evidence, convex in each x."""

    def __init__(self, strata: list[Stratum]) -> None:
        from scipy.special import betaln, gammaln

        self._size_H = np.array([one.size for one in strata], np.float64)
        self._wrong_H = np.array([one.wrong for one in strata], np.float64)
        num_H = np.array([one.looked_at for one in strata], np.float64)
        self._right_H = num_H - self._wrong_H
        prior = betaln(_PRIOR + self._wrong_H, _PRIOR + self._right_H) - betaln(_PRIOR, _PRIOR)
        # Marginal and likelihood are both of the drawn sequence, so the ways to order it cancel.
        self._constant_H = prior - gammaln(self._size_H - num_H + 1) + gammaln(self._size_H + 1)

    def at(self, x_H: Floats) -> float:
        """The evidence against these numbers, summed over strata."""
        from scipy.special import gammaln

        unseen_wrong_H = gammaln(x_H + 1) - gammaln(x_H - self._wrong_H + 1)
        rest_H = self._size_H - x_H
        unseen_right_H = gammaln(rest_H + 1) - gammaln(rest_H - self._right_H + 1)
        return float((self._constant_H - unseen_wrong_H - unseen_right_H).sum())

    def _slope(self, x_H: Floats) -> Floats:
        from scipy.special import digamma

        rest_H = self._size_H - x_H
        towards_wrong_H = digamma(x_H + 1) - digamma(x_H - self._wrong_H + 1)
        return digamma(rest_H + 1) - digamma(rest_H - self._right_H + 1) - towards_wrong_H

    def _where_slope_is(self, slope: float) -> Floats:
        """In each stratum the x at which the evidence rises with this slope, by bisection: it is convex."""
        low_H, high_H = self._wrong_H.copy(), self._size_H - self._right_H
        for _ in range(_STEPS):
            middle_H = (low_H + high_H) / 2
            is_before_H = self._slope(middle_H) < slope
            low_H, high_H = np.where(is_before_H, middle_H, low_H), np.where(is_before_H, high_H, middle_H)
        return low_H if slope < 0 else high_H

    def furthest(self, limit: float, *, upwards: bool) -> float:
        """The largest (or smallest) sum of x whose evidence stays within the limit.

        At the end all strata rise with one slope (Lagrange); its logarithm is searched for.
        """
        from scipy.optimize import brentq

        end_H = self._size_H - self._right_H if upwards else self._wrong_H
        if self.at(end_H) <= limit:
            return float(end_H.sum())
        sign = 1.0 if upwards else -1.0

        if len(end_H) == 1:
            likely = float(self._where_slope_is(0.0)[0])
            return float(brentq(lambda x: self.at(np.array([x])) - limit, likely, float(end_H[0])))

        def beyond(log_slope: float) -> float:
            return self.at(self._where_slope_is(sign * float(np.exp(log_slope)))) - limit

        # No slope is steeper than the logarithm of a stratum's size: at 20 every stratum is at its end.
        return float(self._where_slope_is(sign * float(np.exp(brentq(beyond, -60.0, 20.0)))).sum())


def allocate(sizes: Mapping[str, int], num: int, allocation: Allocation = "proportional") -> dict[str, int]:
    """How many of `num` to look at in each stratum, by largest remainders; never more than a stratum holds, and at
    least one of each while the number reaches, because a stratum that nobody looks at leaves its share open."""
    given = {name: 0 for name in sorted(sizes)}
    left = min(num, sum(sizes.values()))
    for name in sorted(given, key=lambda name: (-sizes[name], name)):
        given[name] = min(1, sizes[name], left)
        left -= given[name]
    while left:
        # What is left over by strata that are full goes round again.
        room = {name: sizes[name] - taken for name, taken in given.items() if sizes[name] > taken}
        total = sum(room.values()) if allocation == "proportional" else len(room)
        exact = {name: left * (size if allocation == "proportional" else 1) / total for name, size in room.items()}
        whole = {name: min(int(share), room[name]) for name, share in exact.items()}
        if not any(whole.values()):
            for name in sorted(exact, key=lambda name: (-exact[name], name))[:left]:
                given[name] += 1
            break
        for name, taken in whole.items():
            given[name] += taken
            left -= taken
    return given


def draw_place(seed: int, stratum: str, digest: str) -> float:
    """Where a candidate stands in its stratum's random order: the first `allocate`d ones by this number are looked at.

    A pure function of the seed and of digests, so that the same content is drawn in any store.
    """
    return counter_uniform(seed, "audit", stratum, digest)
