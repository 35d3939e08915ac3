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
    negatives: Sequence[DraftNegative],
    similarities: Sequence[float],
    limits: EmbeddingGate,
    *,
    settled: Sequence[tuple[str, float]] = (),
) -> tuple[list[Refusal], list[int]]:
    """(negatives that break the order, positions above the positive that are kept and marked).

    Args:
        negatives: In the order of their ranks.
        similarities: Of the positive, then of each negative, with the query.
        limits: The margin by which similarity must fall from a grade to the next, and what a negative above its
            positive means.
        settled: (grade, similarity) of negatives that the example has already, when these are repairs.

    A negative is out of order when it is not less similar, by the margin, than those of harder grades that stay;
    negatives of one grade are tied. Of two that disagree the easier one is refused: it can be written further away,
    the harder one only nearer to being relevant. A settled negative stays whatever a repair brings.
    """
    positive, values = similarities[0], similarities[1:]
    refusals: list[Refusal] = []
    suspect: list[int] = []
    staying = [(_ORDER[grade], value) for grade, value in settled]
    for negative, value in zip(negatives, values, strict=True):
        if detail := _out_of_order(_ORDER[negative.grade], value, staying, limits.margin):
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


def _out_of_order(grade: int, value: float, staying: Sequence[tuple[int, float]], margin: float) -> str | None:
    harder = [other for place, other in staying if place < grade]
    easier = [other for place, other in staying if place > grade]
    told = f"its similarity to the query is {value:.3f}, and "
    if harder and value > min(harder) - margin:
        return told + f"a harder negative has {min(harder):.3f}: move it {margin:g} or more below that"
    if easier and value < max(easier) + margin:
        return told + f"an easier negative has {max(easier):.3f}: move it {margin:g} or more above that"
    return None
