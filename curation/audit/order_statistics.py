"""What is kept of the candidates while they stream by: a few numbers each, by run and rank."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.audit.ordering import CROSS_GRADE_PAIRS, bootstrap_interval, kendall_tau_b, pair_outcomes

_NUM_WORST = 10


def _doubles() -> "array[float]":
    return array("d")


def _floats() -> "array[float]":
    return array("f")


@dataclass(frozen=True, slots=True)
class Negative:
    """A scored negative; `to_positive` is its similarity to the positive, NaN where it is not known."""

    rank: int | None
    value: float
    positive_value: float
    length_ratio: float
    is_truncated: bool
    to_positive: float


@dataclass(slots=True)
class RankStatistics:
    """Numbers of the candidates at one rank: an entry each, and sums per example for intervals over queries."""

    similarity: "array[float]" = field(default_factory=_doubles)
    length_ratio: "array[float]" = field(default_factory=_floats)
    num_truncated: int = 0
    num_of: "array[float]" = field(default_factory=_floats)
    similarity_of: "array[float]" = field(default_factory=_floats)
    above_of: "array[float]" = field(default_factory=_floats)
    near_num_of: "array[float]" = field(default_factory=_floats)
    near_of: "array[float]" = field(default_factory=_floats)

    def add(self, negatives: Sequence[Negative]) -> None:
        """The negatives of one example at this rank."""
        self.similarity.extend(one.value for one in negatives)
        self.length_ratio.extend(one.length_ratio for one in negatives)
        self.num_truncated += sum(one.is_truncated for one in negatives)
        self.num_of.append(len(negatives))
        self.similarity_of.append(sum(one.value for one in negatives))
        self.above_of.append(sum(one.value > one.positive_value for one in negatives))
        near = [one.to_positive for one in negatives if one.to_positive == one.to_positive]
        self.near_num_of.append(len(near))
        self.near_of.append(sum(near))

    def to_dict(self) -> dict[str, Any]:
        values, num_of = np.array(self.similarity), np.array(self.num_of)
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        near_num = float(sum(self.near_num_of))
        return {
            "num": len(values),
            "mean": float(values.mean()),
            "mean_interval_95": bootstrap_interval(self.similarity_of, num_of),
            "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            "quartiles": [float(value) for value in quartiles],
            "above_positive": float(sum(self.above_of) / len(values)),
            "above_positive_interval_95": bootstrap_interval(self.above_of, num_of),
            "to_positive": {
                "num": int(near_num),
                "mean": float(sum(self.near_of) / near_num),
                "interval_95": bootstrap_interval(self.near_of, self.near_num_of),
            }
            if near_num
            else None,
            "length_ratio": float(np.median(np.array(self.length_ratio))),
            "truncated": self.num_truncated / len(values),
        }


@dataclass(frozen=True, slots=True)
class Inversion:
    """A pair whose easier negative is the more similar one; `example_id` is local to the store and never exported."""

    query: str
    harder_rank: int
    easier_rank: int
    gap: float
    example_id: int | None = None


@dataclass(slots=True)
class GroupAudit:
    """One run's candidates, by rank (None: mined or imported, no rank); `num_worst` inversions are kept."""

    run_id: int
    run: str
    kind: str
    ranks: dict[int | None, RankStatistics] = field(default_factory=dict)
    positive: "array[float]" = field(default_factory=_doubles)
    num_positive_truncated: int = 0
    outcomes: dict[tuple[int, int], tuple[float, int]] = field(default_factory=dict)
    right: "array[float]" = field(default_factory=_floats)
    pairs: "array[float]" = field(default_factory=_floats)
    taus: "array[float]" = field(default_factory=_floats)
    num_inversions: int = 0
    worst: list[Inversion] = field(default_factory=list)
    num_worst: int = _NUM_WORST

    def add_example(
        self,
        query: str,
        negatives: Sequence[Negative],
        positive_value: float,
        is_truncated: bool,
        example_id: int | None = None,
    ) -> None:
        """One example's negatives, the positive's score, and whether the teacher cut the positive short."""
        self.positive.append(positive_value)
        self.num_positive_truncated += is_truncated
        for rank in dict.fromkeys(one.rank for one in negatives):
            self.ranks.setdefault(rank, RankStatistics()).add([one for one in negatives if one.rank == rank])
        ranked = [(one.rank, one.value) for one in negatives if one.rank is not None]
        self._add_order([rank for rank, _ in ranked], [value for _, value in ranked])
        self._note_inversions(query, ranked, example_id)

    def _add_order(self, ranks: Sequence[int], values: Sequence[float]) -> None:
        outcomes = pair_outcomes(ranks, values)
        for pair, found in outcomes.items():
            right, num = self.outcomes.get(pair, (0.0, 0))
            self.outcomes[pair] = right + sum(found), num + len(found)
        self.right.append(sum(sum(found) for found in outcomes.values()))
        self.pairs.append(sum(len(found) for found in outcomes.values()))
        if outcomes and (tau := kendall_tau_b(ranks, values)) is not None:
            self.taus.append(tau)

    def _note_inversions(self, query: str, ranked: Sequence[tuple[int, float]], example_id: int | None) -> None:
        for index, (harder, above) in enumerate(ranked):
            for easier, below in ranked[index + 1 :]:
                if (harder, easier) in CROSS_GRADE_PAIRS and below > above:
                    self.num_inversions += 1
                    self.worst.append(Inversion(query, harder, easier, round(below - above, 6), example_id))
        if len(self.worst) > 4 * self.num_worst:
            self.keep_worst()

    def keep_worst(self) -> None:
        """Forget all but the widest inversions."""
        self.worst = sorted(self.worst, key=lambda one: (-one.gap, one.query))[: self.num_worst]

    def rungs(self) -> list[tuple[str, NDArray[np.float64]]]:
        """(label, similarities) per rung, the positive first: what the ladder draws."""
        ranks = sorted(self.ranks, key=_rank_order)
        negatives = [(rank_label(rank), np.array(self.ranks[rank].similarity)) for rank in ranks]
        return [("positive", np.array(self.positive)), *negatives]

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "kind": self.kind,
            "num_examples": len(self.positive),
            "positive": {
                "mean": float(np.mean(self.positive)),
                "truncated": self.num_positive_truncated / len(self.positive),
            },
            "ranks": {rank_label(r): self.ranks[r].to_dict() for r in sorted(self.ranks, key=_rank_order)},
            "order": self._order() if sum(self.pairs) else None,
        }

    def _order(self) -> dict[str, Any]:
        right, pairs = np.array(self.right), np.array(self.pairs)
        by_pair = {
            f"N{hard}>N{easy}": self.outcomes[hard, easy][0] / self.outcomes[hard, easy][1]
            for hard, easy in CROSS_GRADE_PAIRS
            if (hard, easy) in self.outcomes
        }
        worst = [
            {"query": one.query, "harder": f"N{one.harder_rank}", "easier": f"N{one.easier_rank}", "gap": one.gap}
            for one in self.worst
        ]
        taus = np.array(self.taus, np.float64)
        return {
            "accuracy": float(right.sum(dtype=np.float64) / pairs.sum(dtype=np.float64)),
            "interval_95": bootstrap_interval(right, pairs),
            "num_pairs": int(pairs.sum(dtype=np.float64)),
            "by_pair": by_pair,
            "tau_b": float(taus.mean()) if len(taus) else None,
            "tau_b_interval_95": bootstrap_interval(taus, np.ones(len(taus))),
            "num_inversions": self.num_inversions,
            "whole_order_right": float((right == pairs)[pairs > 0].mean()),
            "worst_inversions": worst,
        }


def rank_label(rank: int | None) -> str:
    """N1, N2, ... as in the papers; `mined` for candidates without a rank."""
    return "mined" if rank is None else f"N{rank}"


def _rank_order(rank: int | None) -> int:
    return 1_000 if rank is None else rank
