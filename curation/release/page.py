"""A page of a release by columns: examples of one split, and the candidates of each, in the order of publication.

Shapes: E examples, C candidates, T teachers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from curation.release.files import SCORES

Places = NDArray[np.int64]
# The part that a candidate plays in its example, in the order of publication. A negative that a judge calls relevant
# is another positive where the recipe relabels it.
ALL = POSITIVE, WRITTEN, MINED, MORE_POSITIVE = range(4)
EXAMPLES = pa.schema(
    [
        ("id", pa.int64()),
        ("query_id", pa.int64()),
        ("digest", pa.string()),
        ("query", pa.string()),
        ("query_digest", pa.string()),
        ("language", pa.string()),
        ("instruction", pa.string()),
        ("task_type", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
CANDIDATES = pa.schema(
    [
        ("id", pa.int64()),
        ("passage_id", pa.int64()),
        ("digest", pa.string()),
        ("text", pa.string()),
        ("grade", pa.string()),
        ("rank", pa.int64()),
        ("origin", pa.string()),
        ("violated_requirement", pa.string()),
        ("parent_id", pa.int64()),
        ("run_id", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class ScoreColumns:
    """Similarities of candidates, [T, C]; a teacher has scored some of them. Teachers in the order of names."""

    teachers: Sequence[str]
    values: NDArray[np.float64]
    is_known: NDArray[np.bool_]

    @classmethod
    def of_pairs(
        cls, pairs: Sequence[tuple[int, int]], by_teacher: Mapping[str, Mapping[tuple[int, int], float]]
    ) -> "ScoreColumns":
        """Scores of (query, passage) pairs, [C]."""
        teachers = sorted(by_teacher)
        found = [pa.array([by_teacher[name].get(pair) for pair in pairs], pa.float64()) for name in teachers]
        shape = (len(teachers), len(pairs))
        values = [one.fill_null(0.0).to_numpy() for one in found]
        is_known = [one.is_valid().to_numpy(zero_copy_only=False) for one in found]
        return cls(teachers, np.array(values).reshape(shape), np.array(is_known, dtype=bool).reshape(shape))

    def of(self, teacher: str) -> NDArray[np.float64]:
        """A teacher's similarities, [C], -1 where it has none."""
        if teacher not in self.teachers:
            return np.full(self.values.shape[1], -1.0)
        at = self.teachers.index(teacher)
        return np.where(self.is_known[at], self.values[at], -1.0)

    def take(self, places: Places) -> "ScoreColumns":
        return ScoreColumns(self.teachers, self.values[:, places], self.is_known[:, places])

    def lists(self) -> pa.ListArray:
        """The scores of each candidate, [C], as they are published."""
        by_candidate = self.is_known.T
        teachers = pa.array(self.teachers, pa.string()).take(pa.array(np.nonzero(by_candidate)[1]))
        values = pa.array(self.values.T[by_candidate], pa.float32())
        return lists(by_candidate.sum(axis=1), SCORES.value_type, [teachers, values])


@dataclass(frozen=True, slots=True)
class Page:
    """Examples of one split, [E], and their candidates, [C], by example, then part, then place in its list.

    `num_judged_relevant` of the negatives that were selected are relevant, a judge says.
    """

    split: str
    examples: pa.RecordBatch
    candidates: pa.RecordBatch
    example_of: Places  # the place of each candidate's example, [C]
    part: NDArray[np.int8]  # which each candidate plays, [C]
    scores: ScoreColumns
    num_judged_relevant: int

    def places(self, *parts: int) -> Places:
        """Candidates that play one of these parts, in order."""
        return np.flatnonzero(np.isin(self.part, parts))

    @property
    def positions(self) -> Places:
        """The place of each candidate in its example, [C]: 0 for the positive, 1 for the first negative, and below 0
        for what was made a positive, because a frozen release knows by that which they were."""
        positions = places_within(np.bincount(self.example_of))
        is_more = self.part == MORE_POSITIVE
        positions[is_more] = -1 - places_within(self.counts(np.flatnonzero(is_more)))
        return positions

    def counts(self, places: Places) -> Places:
        """How many of these candidates each example has, [E]."""
        return np.bincount(self.example_of[places], minlength=len(self.examples))


def offsets(counts: Places) -> Places:
    """Where each of several lists of these lengths begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)])


def places_within(counts: Places) -> Places:
    """0, 1, 2 and so on for each of several lists of these lengths."""
    return np.arange(counts.sum()) - np.repeat(offsets(counts)[:-1], counts)


def lists(counts: Places, kind: pa.StructType, columns: Sequence[pa.Array]) -> pa.ListArray:
    """Lists of these lengths, of structs whose fields are the columns of them all."""
    structs = pa.StructArray.from_arrays(columns, fields=list(kind))
    return pa.ListArray.from_arrays(pa.array(offsets(counts), pa.int32()), structs)


def taken(column: pa.Array, places: Places) -> pa.Array:
    """The values at these places, without a bitmap where none is null: row groups end by bytes, and it would count."""
    values = column.take(pa.array(places))
    if values.null_count:
        return values
    return pa.Array.from_buffers(values.type, len(values), [None, *values.buffers()[1:]])


def taken_rows(rows: pa.RecordBatch, places: Places) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([taken(column, places) for column in rows.columns], schema=rows.schema)


def table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """Columns as a table of this schema, each turned into its type where it is not an array already."""
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, kind.type)
        for column, kind in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
