"""The configuration `provenance`: one row a candidate, with every way in which runs found it.

A way is a request to a model (its digest in the ledger, the prompt pack's entry and digest), a teacher's retrieval
(rank, score, and the threshold that it stayed under), or an import, which has neither.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.release.reading import among, read
from db.tables.examples import Sourcing, Teacher
from db.tables.ledger import Request, Run, RunRequest
from db.tables.texts import Passage

WAY = pa.struct(
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
        ("found", pa.list_(WAY)),
    ]
)
_NUM_TEXTS = 9
_Head = tuple[str | None, ...]  # the texts of a way
_Way = tuple[_Head, int | None, float | None, float | None]


@dataclass(slots=True)
class Sources:
    """Who made a release: gathered while its provenance is written."""

    runs: set[int] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    teachers: set[int] = field(default_factory=set)


class Found(NamedTuple):
    """A candidate of a release: digests of its example and passage, its place, its parent and its first run."""

    candidate: int
    example: str
    passage: str
    role: str
    position: int
    origin: str
    grade: str | None
    rank: int | None
    parent: int | None
    run: int


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

    def table(self, found: Sequence[Found]) -> pa.Table:
        """Rows of these candidates, in order."""
        keys = [one.candidate for one in found]
        ways: dict[int, list[_Way]] = defaultdict(list)
        self._requested(keys, ways)
        self._retrieved(keys, ways)
        self._imported(keys, ways)
        self.sources.runs.update(one.run for one in found)
        parents = self._digests({one.parent for one in found if one.parent is not None})
        columns: list[list[Any]] = [
            [one.example for one in found],
            [one.passage for one in found],
            [one.role for one in found],
            [one.position for one in found],
            [one.origin for one in found],
            [one.grade for one in found],
            [one.rank for one in found],
            [None if one.parent is None else parents[one.parent] for one in found],
            [self._runs[one.run][0] for one in found],
            [self._runs[one.run][1] for one in found],
        ]
        arrays = [pa.array(column, kind.type) for column, kind in zip(columns, list(PROVENANCE)[:-1], strict=True)]
        lists = [ways.get(key, ()) for key in keys]
        return pa.Table.from_arrays(
            [*arrays, _lists([sorted(several, key=_order) if len(several) > 1 else several for several in lists])],
            schema=PROVENANCE,
        )

    def _digests(self, keys: set[int]) -> dict[int, str]:
        if not keys:
            return {}
        rows = read(
            self._session, select(Passage.id, Passage.digest).where(among(self._session, Passage.id)), list(keys)
        )
        return {key: digest for key, digest in rows}

    def _is_asked(self, run: int) -> bool:
        if self._names and self._runs[run][0] not in self._names:
            return False
        self.sources.runs.add(run)
        return True

    # One query for each way: an index of sourcings covers one of them only.
    def _requested(self, keys: Sequence[int], ways: dict[int, list[_Way]]) -> None:
        statement: Any = (
            select(Sourcing.candidate_id, Sourcing.run_id, Request.digest, Request.model, RunRequest.kind)
            .join(Request, Sourcing.request_id == Request.id)
            .outerjoin(
                RunRequest, (RunRequest.run_id == Sourcing.run_id) & (RunRequest.request_id == Sourcing.request_id)
            )
            .where(among(self._session, Sourcing.candidate_id), Sourcing.request_id.is_not(None))
        )
        for candidate, run, digest, model, entry in read(self._session, statement, keys):
            if self._is_asked(run):
                self.sources.models.add(model)
                name, recipe, pack, pack_digest = self._runs[run]
                head = (name, recipe, digest, model, pack, pack_digest, entry, None, None)
                ways[candidate].append((head, None, None, None))

    def _retrieved(self, keys: Sequence[int], ways: dict[int, list[_Way]]) -> None:
        statement: Any = select(
            Sourcing.candidate_id,
            Sourcing.run_id,
            Sourcing.teacher_id,
            Sourcing.retrieval_rank,
            Sourcing.score,
            Sourcing.threshold,
        ).where(among(self._session, Sourcing.candidate_id), Sourcing.teacher_id.is_not(None))
        heads: dict[tuple[int, int], _Head | None] = {}
        for candidate, run, teacher, rank, score, threshold in read(self._session, statement, keys):
            pair = (run, teacher)
            if pair not in heads:
                heads[pair] = self._of_teacher(run, teacher) if self._is_asked(run) else None
            if (head := heads[pair]) is not None:
                ways[candidate].append((head, rank, score, threshold))

    def _of_teacher(self, run: int, teacher: int) -> _Head:
        self.sources.teachers.add(teacher)
        return (*self._runs[run][:2], *[None] * 5, *self._teachers[teacher])

    def _imported(self, keys: Sequence[int], ways: dict[int, list[_Way]]) -> None:
        statement = select(Sourcing.candidate_id, Sourcing.run_id).where(
            among(self._session, Sourcing.candidate_id), Sourcing.teacher_id.is_(None), Sourcing.request_id.is_(None)
        )
        for candidate, run in read(self._session, statement, keys):
            if self._is_asked(run):
                ways[candidate].append(((*self._runs[run][:2], *[None] * 7), None, None, None))


def _order(way: _Way) -> tuple[str, ...]:
    run, recipe, request, *_, teacher, version = way[0]
    return (run or "", recipe or "", request or "", teacher or "", version or "")


def _lists(found: Sequence[Sequence[_Way]]) -> pa.ListArray:
    """A list of ways for each candidate. Heads are few: their texts are made once and taken by index."""
    offsets = np.zeros(len(found) + 1, dtype=np.int32)
    np.cumsum([len(ways) for ways in found], out=offsets[1:])
    flat = [way for ways in found for way in ways]
    places: dict[_Head, int] = {}
    taken = pa.array([places.setdefault(way[0], len(places)) for way in flat], pa.int32())
    heads = [pa.array([head[at] for head in places], pa.string()).take(taken) for at in range(_NUM_TEXTS)]
    numbers = [
        pa.array([way[at] for way in flat], kind.type) for at, kind in enumerate(list(WAY)[_NUM_TEXTS:], start=1)
    ]
    structs = pa.StructArray.from_arrays([*heads, *numbers], fields=list(WAY))
    return pa.ListArray.from_arrays(pa.array(offsets), structs)
