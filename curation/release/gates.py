"""Gates: what a release must measure, or it is refused with the figure, the limit and the rows to look at.

A limit that nobody set gates nothing, and the card says so. A figure that cannot be measured fails its gate: what is
not known is not safe. An override lets one gate through, under a name and for a reason, and stands on the card.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from curation.errors import CurationError
from curation.release.recipe import GateName, Gates

Figures = Mapping[str, Any]
_NUM_TELLS = 5


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure, or why there is none, and the rows behind it."""

    figure: float | None
    note: str = ""
    rows: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate of a release. `overridden_by` and `reason` say who let a failing one through, and why."""

    gate: GateName
    sense: Literal["at least", "at most"]
    limit: float
    figure: float | None
    note: str = ""
    rows: Sequence[Mapping[str, Any]] = field(default=())
    overridden_by: str | None = None
    reason: str | None = None

    @property
    def is_met(self) -> bool:
        if self.figure is None:
            return False
        return self.figure >= self.limit if self.sense == "at least" else self.figure <= self.limit

    @property
    def is_open(self) -> bool:
        return self.is_met or self.overridden_by is not None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"is_met": self.is_met, "rows": [dict(row) for row in self.rows]}


class GateError(CurationError):
    """A release failed its gates; `results` has every gate."""

    def __init__(self, results: Sequence[GateResult]) -> None:
        self.results = results
        shut = [result for result in results if not result.is_open]
        told = "; ".join(
            f"{one.gate} is {'not measured' if one.figure is None else f'{one.figure:.3f}'}"
            f"{f' ({one.note})' if one.note else ''}, {one.sense} {one.limit:g} is asked"
            for one in shut
        )
        super().__init__(
            f"the release is refused: {told}. Look at the rows, mend the data, or name an override in [gates]"
        )


def check_gates(gates: Gates, figures: Figures) -> list[GateResult]:
    """Every gate that has a limit.

    Args:
        gates: Limits and overrides.
        figures: The audit's figures (`groups`, `duplicates`, `contamination`), and the judges' under `judged`.
    """
    override_of = {override.gate: override for override in gates.overrides}
    results = []
    for name, (sense, measure) in _GATES.items():
        limit = getattr(gates, name)
        if limit is None:
            continue
        measured = measure(figures)
        result = GateResult(name, sense, limit, measured.figure, measured.note, measured.rows)
        if not result.is_met and (override := override_of.get(name)):
            shut = (result.gate, result.sense, result.limit, result.figure, result.note, result.rows)
            result = GateResult(*shut, overridden_by=override.by, reason=override.reason)
        results.append(result)
    return results


def _order(figures: Figures) -> Measured:
    groups = [group for group in figures["groups"] if group["order"]]
    if not groups:
        return Measured(None, "no run has graded negatives with scores")
    worst = min(groups, key=lambda group: group["order"]["accuracy"])
    return Measured(worst["order"]["accuracy"], f"run {worst['run']}", worst["order"]["worst_inversions"])


def _leak(kind: str) -> Callable[[Figures], Measured]:
    def measure(figures: Figures) -> Measured:
        found = [(group["run"], leak) for group in figures["groups"] if (leak := (group.get("leaks") or {}).get(kind))]
        known = [(run, leak) for run, leak in found if leak.get("auc") is not None]
        if not known:
            return Measured(None, next((leak["reason"] for _, leak in found if leak.get("reason")), "too few texts"))
        run, leak = max(known, key=lambda one: one[1]["auc"])
        control = leak.get("control_auc")
        against = "" if control is None else f", two sets of real texts score {control:.3f}"
        return Measured(leak["auc"], f"run {run}{against}", _tells(leak.get("causes")))

    return measure


def _tells(causes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What gives the first set away: properties by how well each alone tells, then words that mark either set."""
    if causes is None:
        return []
    properties = [{"tell": one["name"], "auc": one["auc"]} for one in causes["properties"][:_NUM_TELLS]]
    words = [*causes["first_words"][:_NUM_TELLS], *causes["second_words"][:_NUM_TELLS]]
    return [
        *({**one, "in_first": None, "in_second": None} for one in properties),
        *(
            {
                "tell": f"word {one['text']!r}",
                "auc": None,
                "in_first": one["share_first"],
                "in_second": one["share_second"],
            }
            for one in words
        ),
    ]


def _judged(figures: Figures) -> Measured:
    judged = figures.get("judged")
    if not judged or not judged["num_judged"]:
        return Measured(None, "nothing is judged: run 'gradus judge'")
    return Measured(judged["rate"], f"{judged['num_judged']:,} judged", judged["rows"])


def _duplicates(figures: Figures) -> Measured:
    within = figures["duplicates"]["within_examples"]
    return Measured(within["share"], f"{within['num']:,} examples", within["rows"])


def _contamination(figures: Figures) -> Measured:
    kinds = [figures["contamination"][kind] for kind in ("queries", "pairs")]
    if any(kind["num"] is None for kind in kinds):
        return Measured(None, "the store holds no evaluation queries: import a dev or test split")
    return Measured(sum(kind["num"] for kind in kinds), "", [row for kind in kinds for row in kind["rows"]])


_GATES: dict[GateName, tuple[Literal["at least", "at most"], Callable[[Figures], Measured]]] = {
    "order_accuracy": ("at least", _order),
    "negatives_from_positives": ("at most", _leak("negative_from_positive")),
    "synthetic_from_real": ("at most", _leak("synthetic_from_real")),
    "judged_false_negatives": ("at most", _judged),
    "duplicates": ("at most", _duplicates),
    "contamination": ("at most", _contamination),
}
