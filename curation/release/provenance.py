"""The configuration `provenance`: one row a candidate, with every way in which runs found it.

A way is a request to a model (its digest in the ledger, the prompt pack's entry and digest), a teacher's retrieval
(rank, score, and the threshold that it stayed under), or an import, which has neither.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables.examples import Candidate, Example, Sourcing, Teacher
from db.tables.ledger import Request, Run, RunRequest
from db.tables.texts import Passage

_LOOKUP = 5_000
_WAY = pa.struct(
    [
        ("run", pa.string()),
        ("run_recipe", pa.string()),
        ("request", pa.string()),
        ("model", pa.string()),
        ("prompt_pack", pa.string()),
        ("prompt_pack_digest", pa.string()),
        ("prompt_entry", pa.string()),
        ("teacher", pa.string()),
        ("teacher_version", pa.string()),
        ("retrieval_rank", pa.int32()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
    ]
)
PROVENANCE = pa.schema(
    [
        ("example_id", pa.string()),
        ("id", pa.string()),
        ("role", pa.string()),
        ("position", pa.int32()),
        ("origin", pa.string()),
        ("grade", pa.string()),
        ("rank", pa.int8()),
        ("parent_id", pa.string()),
        ("run", pa.string()),
        ("run_recipe", pa.string()),
        ("found", pa.list_(_WAY)),
    ]
)
_NUM_WAYS = len(_WAY)


@dataclass(slots=True)
class Sources:
    """Who made a release: gathered while its provenance is written."""

    runs: set[int] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    teachers: set[int] = field(default_factory=set)


class Provenance:
    """Rows of provenance; `sources` gathers the runs, models and teachers in them.

    Args:
        runs: Names of the runs whose findings count; empty for all.
    """

    def __init__(self, session: Session, runs: Sequence[str] = ()) -> None:
        self._session, self._names, self.sources = session, frozenset(runs), Sources()
        self._runs = {
            key: (name, digest, recipe.get("pack"), recipe.get("pack_digest"))
            for key, name, digest, recipe in session.execute(select(Run.id, Run.name, Run.recipe_digest, Run.recipe))
        }
        self._teachers = {
            key: (name, version)
            for key, name, version in session.execute(select(Teacher.id, Teacher.name, Teacher.version))
        }

    def table(self, candidates: Sequence[int], positions: Sequence[int]) -> pa.Table:
        """Rows of these candidates, in order."""
        known: dict[int, tuple[Any, ...]] = {}
        ways: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        for start in range(0, len(candidates), _LOOKUP):
            part = candidates[start : start + _LOOKUP]
            known |= self._candidates(part)
            self._requested(part, ways)
            self._retrieved(part, ways)
            self._imported(part, ways)
        rows = [known[key] for key in candidates]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(9)]
        columns.insert(3, list(positions))
        found = [sorted(ways.get(key, ()), key=_order) for key in candidates]
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, list(PROVENANCE)[:-1], strict=True)]
        return pa.Table.from_arrays([*arrays, _lists(found)], schema=PROVENANCE)

    def _candidates(self, keys: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """(example, passage, role, origin, grade, rank, parent, run, its recipe) by candidate."""
        rows = self._session.execute(
            select(
                Candidate.id,
                Example.digest,
                Passage.digest,
                Candidate.role,
                Candidate.origin,
                Candidate.grade,
                Candidate.rank,
                Candidate.parent_passage_id,
                Candidate.run_id,
            )
            .join(Example, Candidate.example_id == Example.id)
            .join(Passage, Candidate.passage_id == Passage.id)
            .where(Candidate.id.in_(keys))
        ).all()
        parents = self._digests({row[7] for row in rows if row[7] is not None})
        self.sources.runs.update(row[8] for row in rows)
        return {
            row[0]: (*row[1:7], parents[row[7]] if row[7] is not None else None, *self._runs[row[8]][:2])
            for row in rows
        }

    def _digests(self, keys: set[int]) -> dict[int, str]:
        if not keys:
            return {}
        rows = self._session.execute(select(Passage.id, Passage.digest).where(Passage.id.in_(keys)))
        return {key: digest for key, digest in rows}

    def _is_asked(self, run: int) -> bool:
        if self._names and self._runs[run][0] not in self._names:
            return False
        self.sources.runs.add(run)
        return True

    # One query for each way: an index of sourcings covers one of them only.
    def _requested(self, keys: Sequence[int], ways: dict[int, list[tuple[Any, ...]]]) -> None:
        rows = self._session.execute(
            select(Sourcing.candidate_id, Sourcing.run_id, Request.digest, Request.model, RunRequest.kind)
            .join(Request, Sourcing.request_id == Request.id)
            .outerjoin(
                RunRequest, (RunRequest.run_id == Sourcing.run_id) & (RunRequest.request_id == Sourcing.request_id)
            )
            .where(Sourcing.candidate_id.in_(keys), Sourcing.request_id.is_not(None))
        )
        for candidate, run, digest, model, entry in rows:
            if self._is_asked(run):
                self.sources.models.add(model)
                name, recipe, pack, pack_digest = self._runs[run]
                ways[candidate].append(
                    (name, recipe, digest, model, pack, pack_digest, entry, None, None, None, None, None)
                )

    def _retrieved(self, keys: Sequence[int], ways: dict[int, list[tuple[Any, ...]]]) -> None:
        rows: Any = self._session.execute(
            select(
                Sourcing.candidate_id,
                Sourcing.run_id,
                Sourcing.teacher_id,
                Sourcing.retrieval_rank,
                Sourcing.score,
                Sourcing.threshold,
            ).where(Sourcing.candidate_id.in_(keys), Sourcing.teacher_id.is_not(None))
        )
        for candidate, run, teacher, rank, score, threshold in rows:
            if self._is_asked(run):
                self.sources.teachers.add(teacher)
                name, recipe = self._runs[run][:2]
                teacher_name, version = self._teachers[teacher]
                ways[candidate].append(
                    (name, recipe, None, None, None, None, None, teacher_name, version, rank, score, threshold)
                )

    def _imported(self, keys: Sequence[int], ways: dict[int, list[tuple[Any, ...]]]) -> None:
        rows = self._session.execute(
            select(Sourcing.candidate_id, Sourcing.run_id).where(
                Sourcing.candidate_id.in_(keys), Sourcing.teacher_id.is_(None), Sourcing.request_id.is_(None)
            )
        )
        for candidate, run in rows:
            if self._is_asked(run):
                ways[candidate].append((*self._runs[run][:2], *[None] * (_NUM_WAYS - 2)))


def _order(way: tuple[Any, ...]) -> tuple[str, ...]:
    run, recipe, request, *_, teacher, version, _rank, _score, _threshold = way
    return (run, recipe, request or "", teacher or "", version or "")


def _lists(found: Sequence[Sequence[tuple[Any, ...]]]) -> pa.ListArray:
    offsets, flat = [0], [way for ways in found for way in ways]
    for ways in found:
        offsets.append(offsets[-1] + len(ways))
    columns = [list(column) for column in zip(*flat, strict=True)] or [[] for _ in range(_NUM_WAYS)]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, list(_WAY), strict=True)]
    structs = pa.StructArray.from_arrays(arrays, fields=list(_WAY))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
