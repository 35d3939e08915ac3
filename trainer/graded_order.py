"""Does a model see the known order of an example: positive, hard (N1), medium (N2 and N3, tied), easy (N4)?

Legend: A texts of an example with a known place, the positive first.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from trainer.release import known_place

POSITIVE = 0
RANKS = (1, 2, 3, 4)
METRICS = ("order", "tau_b", *(f"positive above N{rank}" for rank in RANKS), *(f"N{rank} in order" for rank in RANKS))


def order_metrics(ranks_A: Sequence[int], cosines_A: Sequence[float]) -> dict[str, float]:
    """Accuracies and Kendall's tau-b of one example; NaN where it has no pair to tell.

    `order` is the share of pairs with different places, the positive included, in which the one meant to be nearer to
    the query is nearer. `N2 in order` is the same over the pairs of negatives that hold one of rank 2, and `positive
    above N2` over the positive with each of them. A tie of cosines counts half.

    Args:
        ranks_A: 0 for the positive, 1 to 4 for negatives; beyond 4 is as easy as 4.
        cosines_A: To the query.
    """
    pairs: dict[str, list[float]] = {name: [] for name in METRICS if name != "tau_b"}
    for (one, near), (other, far) in combinations(zip(ranks_A, cosines_A, strict=True), 2):
        step = _place(other) - _place(one)
        if step == 0:
            continue
        outcome = 0.5 + 0.5 * float(np.sign((near - far) * step))
        pairs["order"].append(outcome)
        name = "positive above N{}" if POSITIVE in (one, other) else "N{} in order"
        for rank in {min(one, 4), min(other, 4)} - {POSITIVE}:
            pairs[name.format(rank)].append(outcome)
    values = {name: float(np.mean(outcomes)) if outcomes else float("nan") for name, outcomes in pairs.items()}
    return {name: values[name] if name in values else kendall_tau_b(ranks_A, cosines_A) for name in METRICS}


def kendall_tau_b(ranks_A: Sequence[int], cosines_A: Sequence[float]) -> float:
    """Kendall's tau-b between the known places and the cosines, -1 to 1; NaN where either is one single tie.

    Source: Kendall 1945: (concordant - discordant) / sqrt(pairs untied in one * pairs untied in the other).
    """
    upper = np.triu_indices(len(cosines_A), 1)
    places = np.array([-_place(rank) for rank in ranks_A], np.float64)
    values = np.asarray(cosines_A, np.float64)
    known, seen = np.sign(places[upper[0]] - places[upper[1]]), np.sign(values[upper[0]] - values[upper[1]])
    untied = float(np.count_nonzero(known)) * float(np.count_nonzero(seen))
    return float(known @ seen) / untied**0.5 if untied else float("nan")


def _place(rank: int) -> int:
    return 0 if rank == POSITIVE else known_place(rank)
