"""The configuration `provenance`: one row a candidate, with every way in which runs found it, and people's decisions.

A way is a request to a model (its digest in the ledger, the prompt pack's entry and digest), a teacher's retrieval
(rank, score, and the threshold that it stayed under), or an import, which has neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.orm import Session

from curation.release.page import POSITIVE, Page, lists, table, taken
from curation.reviewing.verdicts import Event
from db.reading import among, read
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
# A decision of a person, by pseudonym: `event` names it in the store's log.
DECISION = pa.struct(
    [
        ("event", pa.string()),
        ("reviewer", pa.string()),
        ("kind", pa.string()),
        ("verdict", pa.string()),
        ("grade", pa.string()),
        ("rubric", pa.string()),
        ("rubric_digest", pa.string()),
        ("decided_at", pa.timestamp("us", tz="UTC")),
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
        ("parent_text", pa.string()),
        ("run", pa.string()),
        ("run_recipe", pa.string()),
        ("decisions", pa.list_(DECISION)),
        ("found", pa.list_(WAY)),
    ]
)
_NUM_TEXTS = 9
# A way's condition is that of its index, which covers no other way.
_WAYS: dict[str, ColumnElement[bool]] = {
    "request": Sourcing.request_id.is_not(None),
    "teacher": Sourcing.teacher_id.is_not(None),
    "import": and_(Sourcing.teacher_id.is_(None), Sourcing.request_id.is_(None)),
}
_Head = tuple[str | None, ...]  # the texts of a way


@dataclass(slots=True)
class Sources:
    """Who made a release: gathered while its provenance is written."""

    runs: set[int] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    teachers: set[int] = field(default_factory=set)


class _Ways:
    """Ways in which candidates were found, by columns. Heads are few: each is kept once, and taken by its place."""

    def __init__(self) -> None:
        self._heads: dict[_Head, int] = {}
        self._candidates: list[int] = []
        self._places: list[int] = []
        self._numbers: tuple[list[Any], ...] = ([], [], [])

    def place(self, head: _Head | None) -> int:
        """Where a head stands; -1 for ways that do not count."""
        return -1 if head is None else self._heads.setdefault(head, len(self._heads))

    def add(self, candidates: Sequence[int], places: Sequence[int], *numbers: Sequence[Any]) -> None:
        """A way for each candidate: the place of its head; retrieval rank, score and threshold where there are some."""
        self._candidates += candidates
        self._places += places
        for known, more in zip(self._numbers, numbers or ([None] * len(places),) * 3, strict=True):
            known.extend(more)

    def lists(self, keys: NDArray[np.int64]) -> pa.ListArray:
        """The ways of each of these candidates, in an order that no store decides."""
        place_of = {key: place for place, key in enumerate(keys.tolist())}
        of_candidate = np.array([place_of[key] for key in self._candidates], dtype=np.int64)
        of_head = np.array(self._places, dtype=np.int64)
        names = [_order(head) for head in self._heads]
        rank_of = {name: rank for rank, name in enumerate(sorted(set(names)))}
        ranks = np.array([rank_of[name] for name in names] + [-1], dtype=np.int64)  # the last one for place -1
        order = np.lexsort((ranks[of_head], of_candidate))
        order = order[of_head[order] >= 0]
        texts = [pa.array([head[at] for head in self._heads], pa.string()) for at in range(_NUM_TEXTS)]
        numbers = [pa.array(one, kind.type) for one, kind in zip(self._numbers, list(WAY)[_NUM_TEXTS:], strict=True)]
        columns = [*(one.take(pa.array(of_head[order])) for one in texts), *(taken(one, order) for one in numbers)]
        return lists(np.bincount(of_candidate[order], minlength=len(keys)), WAY, columns)


class Provenance:
    """Rows of provenance; `sources` gathers the runs, models and teachers in them.

    Args:
        runs: Names of the runs whose findings count; empty for all.
        events_of: People's decisions behind a candidate.
    """

    def __init__(
        self,
        session: Session,
        runs: Sequence[str] = (),
        events_of: Callable[[int], Sequence[Event]] = lambda candidate: (),
    ) -> None:
        self._session, self._names, self.sources = session, frozenset(runs), Sources()
        self._events_of = events_of
        self._runs = {
            key: (name, digest, recipe.get("pack"), recipe.get("pack_digest"))
            for key, name, digest, recipe in session.execute(select(Run.id, Run.name, Run.recipe_digest, Run.recipe))
        }
        self._teachers = {
            key: (name, version)
            for key, name, version in session.execute(select(Teacher.id, Teacher.name, Teacher.version))
        }
        # A way that nothing was found by needs no looking up; its index is empty, so this takes no time.
        self._there = {way for way, is_it in _WAYS.items() if session.scalar(select(Sourcing.id).where(is_it).limit(1))}

    def table(self, page: Page) -> pa.Table:
        """A row for each candidate of a page, in order."""
        candidates = page.candidates
        keys = candidates["id"].to_numpy()
        ways = _Ways()
        self._requested(keys.tolist(), ways)
        self._retrieved(keys.tolist(), ways)
        self._imported(keys.tolist(), ways)
        is_positive = page.part == POSITIVE
        runs, of_run = np.unique(candidates["run_id"].to_numpy(), return_inverse=True)
        self.sources.runs.update(runs.tolist())
        names, digests = (pa.array([self._runs[run][at] for run in runs.tolist()], pa.string()) for at in (0, 1))
        columns = [
            taken(page.examples["digest"], page.example_of),
            candidates["digest"],
            pa.array(["negative", "positive"]).take(pa.array(is_positive.astype(np.int8))),
            page.positions,
            candidates["origin"],
            candidates["grade"],
            candidates["rank"].cast(pa.int8()),
            *self._parents(candidates["parent_id"], is_positive),
            taken(names, of_run),
            taken(digests, of_run),
            _decisions([self._events_of(key) for key in keys.tolist()]),
            ways.lists(keys),
        ]
        return table(columns, PROVENANCE)

    def _parents(self, keys: pa.Array, is_positive: NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
        """Digests and texts of what edited negatives were made from, which may stand nowhere else in the release."""
        parents = [None if positive else key for key, positive in zip(keys.to_pylist(), is_positive, strict=True)]
        asked = sorted({key for key in parents if key is not None})
        statement = select(Passage.id, Passage.digest, Passage.text).where(among(self._session, Passage.id))
        rows = read(self._session, statement, asked) if asked else []
        found: dict[int | None, tuple[str | None, str | None]] = {key: (digest, text) for key, digest, text in rows}
        found[None] = (None, None)
        digests, texts = zip(*(found[key] for key in parents), strict=True)
        return pa.array(digests, pa.string()), pa.array(texts, pa.string())

    def _read(self, way: str, statement: Any, keys: Sequence[int]) -> list[tuple[Any, ...]]:
        return read(self._session, statement, keys) if way in self._there else []

    def _is_asked(self, run: int) -> bool:
        if self._names and self._runs[run][0] not in self._names:
            return False
        self.sources.runs.add(run)
        return True

    def _requested(self, keys: Sequence[int], ways: _Ways) -> None:
        statement: Any = (
            select(Sourcing.candidate_id, Sourcing.run_id, Request.digest, Request.model, RunRequest.kind)
            .join(Request, Sourcing.request_id == Request.id)
            .outerjoin(
                RunRequest, (RunRequest.run_id == Sourcing.run_id) & (RunRequest.request_id == Sourcing.request_id)
            )
            .where(among(self._session, Sourcing.candidate_id), _WAYS["request"])
        )
        rows = self._read("request", statement, keys)
        heads = [self._of_request(*row[1:]) for row in rows]
        ways.add([row[0] for row in rows], [ways.place(head) for head in heads])

    def _of_request(self, run: int, digest: str, model: str, entry: str | None) -> _Head | None:
        if not self._is_asked(run):
            return None
        self.sources.models.add(model)
        name, recipe, pack, pack_digest = self._runs[run]
        return (name, recipe, digest, model, pack, pack_digest, entry, None, None)

    def _retrieved(self, keys: Sequence[int], ways: _Ways) -> None:
        statement: Any = select(
            Sourcing.candidate_id,
            Sourcing.run_id,
            Sourcing.teacher_id,
            Sourcing.retrieval_rank,
            Sourcing.score,
            Sourcing.threshold,
        ).where(among(self._session, Sourcing.candidate_id), _WAYS["teacher"])
        if rows := self._read("teacher", statement, keys):
            candidates, runs, teachers, *numbers = zip(*rows, strict=True)
            pairs = list(zip(runs, teachers, strict=True))
            place_of = {pair: ways.place(self._of_teacher(*pair)) for pair in set(pairs)}
            ways.add(candidates, [place_of[pair] for pair in pairs], *numbers)

    def _of_teacher(self, run: int, teacher: int) -> _Head | None:
        if not self._is_asked(run):
            return None
        self.sources.teachers.add(teacher)
        return (*self._runs[run][:2], *[None] * 5, *self._teachers[teacher])

    def _imported(self, keys: Sequence[int], ways: _Ways) -> None:
        statement: Any = select(Sourcing.candidate_id, Sourcing.run_id).where(
            among(self._session, Sourcing.candidate_id), _WAYS["import"]
        )
        rows = self._read("import", statement, keys)
        heads = {run: (*self._runs[run][:2], *[None] * 7) for _, run in rows if self._is_asked(run)}
        ways.add([row[0] for row in rows], [ways.place(heads.get(run)) for _, run in rows])


def _decisions(events: Sequence[Sequence[Event]]) -> pa.ListArray:
    """The decisions of each candidate."""
    flat = [astuple(one) for several in events for one in several]
    columns = zip(*flat, strict=True) if flat else [()] * len(list(DECISION))
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, DECISION, strict=True)]
    return lists(np.array([len(several) for several in events], dtype=np.int64), DECISION, arrays)


def _order(head: _Head) -> tuple[str, ...]:
    run, recipe, request, *_, teacher, version = head
    return (run or "", recipe or "", request or "", teacher or "", version or "")
