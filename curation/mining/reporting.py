"""What a mining run reports: what was proposed, what the ceiling refused, who got too few."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Survival:
    """Passages offered to queries (each once per query), and what became of them."""

    teacher: str = "all"
    num_proposed: int = 0
    num_known_positives: int = 0
    num_over_ceiling: int = 0
    num_survivors: int = 0

    def add(self, offered: set[int], positives: set[int], survivors: set[int]) -> None:
        num_known, num_survivors = len(offered & positives), len(offered & survivors)
        self.num_proposed += len(offered)
        self.num_known_positives += num_known
        self.num_survivors += num_survivors
        self.num_over_ceiling += len(offered) - num_known - num_survivors

    def to_dict(self) -> dict[str, Any]:
        num_judged = self.num_proposed - self.num_known_positives
        return {
            "teacher": self.teacher,
            "num_proposed": self.num_proposed,
            "num_known_positives": self.num_known_positives,
            "num_over_ceiling": self.num_over_ceiling,
            "num_survivors": self.num_survivors,
            "survival_rate": round(self.num_survivors / num_judged, 6) if num_judged else None,
        }


@dataclass(slots=True)
class MineReport:
    """Counts of a run. `num_over_ceiling` is what the method refused: for `shifted`, what was skipped.

    Short of negatives are examples with fewer than asked, before what `too_few` does to them; `num_candidates` are
    negatives kept, each once per example, `num_new` the findings that the store had not before.
    """

    run: str
    num_examples: int = 0
    num_queries: int = 0
    all_teachers: Survival = field(default_factory=Survival)
    of_teachers: list[Survival] = field(default_factory=list)
    num_searched_deeper: int = 0
    num_short_of_negatives: int = 0
    num_dropped: int = 0
    num_candidates: int = 0
    num_new: int = 0

    def to_dict(self) -> dict[str, Any]:
        counts = self.all_teachers.to_dict()
        del counts["teacher"]
        return {
            "run": self.run,
            "num_examples": self.num_examples,
            "num_queries": self.num_queries,
            **counts,
            "teachers": [survival.to_dict() for survival in self.of_teachers],
            "num_searched_deeper": self.num_searched_deeper,
            "num_short_of_negatives": self.num_short_of_negatives,
            "num_dropped": self.num_dropped,
            "num_candidates": self.num_candidates,
            "num_new": self.num_new,
        }
