"""Who is compared with whom in a batch: each text once, and the part that it plays for each query.

Texts stand for themselves: a passage that is a known positive of a query is no negative of it, whichever row or process
brought it. Legend: B rows, N distinct passages of the batch, P pairs in order, C scored candidates of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.release import GradedExample, Negative, known_place

# The part a passage plays for a query. Grades of written negatives that say none count as `hard`.
GROUPS = ("positive", "in_batch", "mined", "hard", "medium", "easy")
_POSITIVE, _IN_BATCH, _MINED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Row:
    """An example on its turn; `asked` is its query as the model sees it, with its prompt."""

    example: GradedExample
    negatives: Sequence[Negative]
    asked: str


@dataclass(frozen=True, slots=True)
class Contrast:
    """A batch as indices into its distinct queries and passages.

    Attributes:
        queries: Distinct queries, with their prompts.
        passages: Distinct passages, [N].
        query_B: Row's place in `queries`.
        positive_B: Row's place in `passages`.
        group_BN: Part of each passage for each row, a place in GROUPS.
        allowed_BN: False where a passage must not count against a row: a known positive of its query, or its text.
        written_BN: True where a passage was written for the row's query.
        own: (row, place in `passages`, negative) of each row's negatives.
        pairs_P3: (row, better passage, worse passage) of the known order.
        candidates_BC: Passages that the teacher scored, the positive first; unused places hold 0.
        teacher_BC: The teacher's scores; NaN in unused places.
    """

    queries: list[str]
    passages: list[str]
    query_B: Tensor
    positive_B: Tensor
    group_BN: Tensor
    allowed_BN: Tensor
    written_BN: Tensor
    own: list[tuple[int, int, Negative]]
    pairs_P3: Tensor
    candidates_BC: Tensor
    teacher_BC: Tensor


def known_positives(examples: Sequence[GradedExample]) -> dict[str, set[str]]:
    """Every text that is known to answer a query, by the query's text; a query answers itself."""
    known: dict[str, set[str]] = {}
    for example in examples:
        known.setdefault(example.query, {example.query}).update((example.positive, *example.more_positives))
    return known


def contrast_of(rows: Sequence[Row], known: Mapping[str, set[str]], teacher: str | None = None) -> Contrast:
    """The batch of the rows.

    Args:
        known: Known positives by query text, of the whole release.
        teacher: Whose scores to carry along, if any.
    """
    queries = {text: place for place, text in enumerate(dict.fromkeys(row.asked for row in rows))}
    texts = [row.example.positive for row in rows] + [n.text for row in rows for n in row.negatives]
    passages = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    group_BN = np.full((len(rows), len(passages)), _IN_BATCH, np.int64)
    allowed_BN = np.ones(group_BN.shape, bool)
    written_QN = np.zeros((len(queries), len(passages)), bool)
    own: list[tuple[int, int, Negative]] = []
    for place, row in enumerate(rows):
        query = queries[row.asked]
        allowed_BN[place, [passages[text] for text in known[row.example.query] if text in passages]] = False
        # Written last: a text that was both mined and written for a query counts as written.
        for negative in sorted(row.negatives, key=lambda n: n.is_written):
            column = passages[negative.text]
            own.append((place, column, negative))
            group_BN[place, column] = _group(negative)
            written_QN[query, column] |= negative.is_written
        group_BN[place, passages[row.example.positive]] = _POSITIVE
    query_B = np.array([queries[row.asked] for row in rows])
    candidates_BC, teacher_BC = _scored(rows, passages, allowed_BN, teacher)
    return Contrast(
        queries=list(queries),
        passages=list(passages),
        query_B=torch.from_numpy(query_B),
        positive_B=torch.tensor([passages[row.example.positive] for row in rows]),
        group_BN=torch.from_numpy(group_BN),
        allowed_BN=torch.from_numpy(allowed_BN),
        written_BN=torch.from_numpy(written_QN[query_B]),
        own=own,
        pairs_P3=torch.tensor(_ordered_pairs(rows, passages, allowed_BN), dtype=torch.long).reshape(-1, 3),
        candidates_BC=torch.from_numpy(candidates_BC),
        teacher_BC=torch.from_numpy(teacher_BC),
    )


def _group(negative: Negative) -> int:
    if not negative.is_written:
        return _MINED
    return GROUPS.index(negative.grade or "hard")


def _ordered_pairs(
    rows: Sequence[Row], passages: Mapping[str, int], allowed_BN: NDArray[np.bool_]
) -> list[tuple[int, int, int]]:
    pairs = []
    for place, row in enumerate(rows):
        ordered = [(0, passages[row.example.positive])]
        for negative in row.negatives:
            column = passages[negative.text]
            # Mined negatives have no place in the order.
            if negative.is_written and negative.rank is not None and allowed_BN[place, column]:
                ordered.append((known_place(negative.rank), column))
        distinct = sorted(set(ordered))
        pairs += [(place, better, worse) for at, better in distinct for behind, worse in distinct if at < behind]
    return pairs


def _scored(
    rows: Sequence[Row], passages: Mapping[str, int], allowed_BN: NDArray[np.bool_], teacher: str | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places and scores of what the teacher scored; a row counts if its positive and a negative have a score."""
    found: list[list[tuple[int, float]]] = []
    for place, row in enumerate(rows):
        scores: dict[int, float] = {}
        if teacher is not None and teacher in row.example.positive_scores:
            scores[passages[row.example.positive]] = row.example.positive_scores[teacher]
            for negative in row.negatives:
                column = passages[negative.text]
                if teacher in negative.scores and allowed_BN[place, column]:
                    scores[column] = negative.scores[teacher]
        found.append(list(scores.items()) if len(scores) > 1 else [])
    width = max((len(row) for row in found), default=0)
    candidates_BC = np.zeros((len(rows), width), np.int64)
    teacher_BC = np.full((len(rows), width), np.nan, np.float32)
    for place, pairs in enumerate(found):
        for column, (passage, score) in enumerate(pairs):
            candidates_BC[place, column], teacher_BC[place, column] = passage, score
    return candidates_BC, teacher_BC
