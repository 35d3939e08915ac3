"""The embedding gate: negatives are measured as they arrive, and the order of their grades has to hold."""

from collections.abc import Sequence
from typing import Protocol

from generator.answers import DraftNegative, Refusal
from generator.recipe import EmbeddingGate

_ORDER = {"hard": 0, "medium": 1, "easy": 2}


class Gate(Protocol):
    """Measures similarities; built where an encoder is known, and handed to generation."""

    @property
    def limits(self) -> EmbeddingGate: ...

    def similarities(self, groups: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """Cosine of each group's query with each of its texts, in order."""


def judge_order(
    negatives: Sequence[DraftNegative], similarities: Sequence[float], limits: EmbeddingGate
) -> tuple[list[Refusal], list[int]]:
    """(negatives that break the order, positions above the positive that are kept and marked).

    Args:
        negatives: In the order of their ranks.
        similarities: Of the positive, then of each negative, with the query.
        limits: The margin by which a harder negative may be less similar than an easier one, and what a negative
            above its positive means.

    A negative is out of order when one of a lower grade that stays is more similar; negatives of one grade are tied.
    Of two that disagree the easier one is refused: it can be written further away, the harder one only nearer to being
    relevant.
    """
    positive, values = similarities[0], similarities[1:]
    refusals: list[Refusal] = []
    suspect: list[int] = []
    staying: list[tuple[int, float]] = []
    for negative, value in zip(negatives, values, strict=True):
        harder = [other for grade, other in staying if grade < _ORDER[negative.grade]]
        if harder and value > min(harder) + limits.margin:
            detail = (
                f"its similarity to the query is {value:.3f}, above {min(harder):.3f} of a harder negative: "
                "move it further away from the query"
            )
            refusals.append(Refusal("out_of_order", detail, negative.position))
            continue
        if value > positive and limits.above_positive == "refuse":
            detail = f"its similarity to the query is {value:.3f}, above {positive:.3f} of the positive: move it away"
            refusals.append(Refusal("above_positive", detail, negative.position))
            continue
        if value > positive:
            suspect.append(negative.position)
        staying.append((_ORDER[negative.grade], value))
    return refusals, suspect
