"""What a release selects: pages of examples by columns, each with its positive, its negatives in order, and scores.

Examples come in the order of content digests. A judge's or a person's verdict that a negative answers its query takes
it out here, so that nothing after this room has to ask. A frozen selection gives what went into a release once,
whatever the store has learned since. Columns, because an object for every candidate took longer than the database.

Shapes: E examples of a page, C their candidates.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.verdicts import Policy, false_negatives
from curation.release.decided import Decided, Negative, within
from curation.release.page import (
    CANDIDATES,
    EXAMPLES,
    MINED,
    MORE_POSITIVE,
    POSITIVE,
    WRITTEN,
    Page,
    Places,
    ScoreColumns,
    taken_rows,
)
from curation.release.recipe import ReleaseRecipe
from curation.release.splits import assign_splits
from db.reading import among, read
from db.tables.examples import Candidate, Example, Score, Task, Teacher
from db.tables.ledger import Run
from db.tables.releases import ReleaseItem
from db.tables.texts import Collection, Passage, Query
from db.teachers import scores_likeness

Parts = NDArray[np.int8]
_PAGE = 1_000
_WRITTEN = ("synthetic", "edited")
_LAST = 99  # where a machine-written negative without a rank stands


@dataclass(frozen=True, slots=True)
class Frozen:
    """A release to be selected again: its row in the store, (name, version) of the teachers it knew, and the moment of
    the last decision that it knew (None: it knew of none)."""

    release_id: int
    teachers: frozenset[tuple[str, str]]
    decided_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Reads:
    """The statements of a page: by example, by example, and by query for each teacher."""

    texts: Select[Any]
    candidates: Select[Any]
    scores: dict[int, Select[Any]]


class Selection:
    """The examples that a recipe selects, or that a release holds.

    Raises:
        CurationError: Nothing is selected.
    """

    def __init__(self, session: Session, recipe: ReleaseRecipe, frozen: Frozen | None = None) -> None:
        self._session, self._recipe, self._frozen = session, recipe, frozen
        self._policy: Policy = recipe.false_negatives.policy if recipe.false_negatives else "keep"
        named = session.scalars(select(Run.id).where(Run.name.in_(recipe.runs))) if recipe.runs else ()
        self._runs = frozenset(named)
        self.decided = (
            Decided.now(session, recipe.decisions)
            if frozen is None
            else Decided(session, recipe.decisions, frozen.decided_until, is_frozen=True)
        )
        self._survey = self.decided.survey(self._runs)
        self._teachers = self._known_teachers()
        self._reads = _Reads(
            texts=_texts(session),
            candidates=self._of_release(_candidates(session)),
            scores={teacher: _scores(session, teacher) for teacher in self._teachers},
        )
        self.keys, queries, positives, digests = self._read_examples()
        if not len(self.keys):
            runs = f" of runs {', '.join(recipe.runs)}" if recipe.runs else ""
            raise CurationError(f"no negatives{runs} to release: generate, mine or import some first")
        self._false = self._judged_relevant(self.keys.tolist()) - self._survey.kept
        positives_too = self._survey.false_negatives | (self._false if self._policy == "relabel" else set())
        # A passage that is relabelled links its query to every example of which it is the positive.
        place_of = {query: place for place, query in enumerate(queries.tolist())} if positives_too else {}
        linked = sorted(pair for pair in positives_too if pair[0] in place_of)
        more = np.array(linked, dtype=np.int64).reshape(-1, 2)
        splits = assign_splits(
            np.concatenate([digests, digests[[place_of[query] for query in more[:, 0].tolist()]]]),
            np.concatenate([queries, more[:, 0]]),
            np.concatenate([positives, more[:, 1]]),
            dev_share=recipe.split.dev_share,
            seed=recipe.seed,
        )
        self._is_dev = np.array([split == "dev" for split in splits[: len(self.keys)]])

    def _read_examples(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bytes_]]:
        """Ids, queries, positives and digests, in the order of digests; a few bytes each."""
        asked = select(Example.id, Example.query_id, Example.positive_id, Example.digest).order_by(Example.digest)
        keys, queries, positives, digests = array("q"), array("q"), array("q"), bytearray()
        rows = asked.where(Example.id.in_(self._examples()))
        for several in self._session.execute(rows, execution_options={"yield_per": 5_000}).partitions():
            for numbers, column in zip((keys, queries, positives), zip(*several, strict=True), strict=False):
                numbers.extend(column)
            digests += "".join(digest for *_, digest in several).encode()
        ids = [np.frombuffer(one, dtype=np.int64) for one in (keys, queries, positives)]
        return ids[0], ids[1], ids[2], np.frombuffer(digests, dtype="S64")

    def __len__(self) -> int:
        return len(self.keys)

    def licences(self) -> list[tuple[str | None, str]]:
        """(source, licence) of the examples; those of no source have the recipe's licence."""
        sources = (
            select(Collection.name, Collection.licence)
            .select_from(Example)
            .outerjoin(Collection, Example.collection_id == Collection.id)
            .where(Example.id.in_(self._examples()))
            .distinct()
        )
        return [(name, licence or self._recipe.licence) for name, licence in self._session.execute(sources)]

    def pages(self) -> Iterator[Page]:
        """Every example, in the order of digests within its split."""
        for start in range(0, len(self.keys), _PAGE):
            part = slice(start, start + _PAGE)
            yield from self._page(self.keys[part], self._is_dev[part])

    def _examples(self) -> Select[int]:
        """Ids of the examples: those with a negative that the recipe selects, or those of the release."""
        if self._frozen is not None:
            return self._of_release(select(Candidate.example_id).where(Candidate.role == "positive"))
        conditions: list[ColumnElement[bool]] = [Candidate.run_id.in_(self._runs)] if self._recipe.runs else []
        if self._recipe.decisions.required != "none":
            conditions.append(within(self._session, Candidate.example_id, self._survey.accepted))
        return select(Candidate.example_id).where(Candidate.role == "negative", *conditions)

    def _of_release(self, statement: Select[Any]) -> Select[Any]:
        if self._frozen is None:
            return statement
        return statement.join(
            ReleaseItem,
            (ReleaseItem.release_id == self._frozen.release_id) & (ReleaseItem.candidate_id == Candidate.id),
        )

    def _known_teachers(self) -> dict[int, str]:
        """Names of the teachers, oldest first: a teacher's newest version speaks. Margins of training stay here."""
        teachers = select(Teacher.id, Teacher.name, Teacher.version).order_by(Teacher.id)
        if self._frozen is None:
            return {key: name for key, name, _ in self._session.execute(teachers.where(scores_likeness()))}
        rows, known = self._session.execute(teachers), self._frozen.teachers
        return {key: name for key, name, version in rows if (name, version) in known}

    def _judged_relevant(self, keys: Sequence[int]) -> set[tuple[int, int]]:
        """(query, passage) of the negatives that answer their query, a judge says."""
        asked = self._recipe.false_negatives
        found: set[tuple[int, int]] = set()
        if asked is None:
            return found
        if self._frozen is not None:
            # What was dropped is not among a release's items, and verdicts that came later change nothing.
            return self._made_positives() if asked.policy == "relabel" else found
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            found |= false_negatives(self._session, page, judge=asked.judge, threshold=asked.threshold)
        return found

    def _made_positives(self) -> set[tuple[int, int]]:
        """(query, passage) of what the release made positives, whatever its judges have said since."""
        asked: Any = select(Example.query_id, Candidate.passage_id).select_from(Candidate)
        rows: Any = self._of_release(asked)
        rows = rows.join(Example, Candidate.example_id == Example.id).where(ReleaseItem.position < 0)
        return {(query, passage) for query, passage in self._session.execute(rows)}

    def _page(self, keys: NDArray[np.int64], is_dev_E: NDArray[np.bool_]) -> Iterator[Page]:
        """The page of each split."""
        texts = {row[0]: row for row in read(self._session, self._reads.texts, keys.tolist())}
        examples = _batch(zip(*(texts[key] for key in keys.tolist()), strict=True), EXAMPLES)
        found = _Found(*zip(*read(self._session, self._reads.candidates, keys.tolist()), strict=True))
        place_of = {key: place for place, key in enumerate(keys.tolist())}
        example_C = np.array([place_of[key] for key in found.example], dtype=np.int64)
        query_E = examples["query_id"].to_numpy()
        pairs = list(zip(query_E[example_C].tolist(), found.passage, strict=True))
        scores = self._scores(np.unique(query_E).tolist(), pairs)
        part_C = self._parts(found)
        found = self._after_people(found, keys.tolist(), pairs, part_C)
        is_relevant_C = self._after_judges(pairs, part_C)
        order = self._order(found, example_C, part_C, scores)
        candidates = _batch(found[2:], CANDIDATES)
        for split, is_chosen_E in (("train", ~is_dev_E), ("dev", is_dev_E)):
            if not is_chosen_E.any():
                continue
            of_split = order[is_chosen_E[example_C[order]]]
            yield Page(
                split=split,
                examples=taken_rows(examples, np.flatnonzero(is_chosen_E)),
                candidates=taken_rows(candidates, of_split),
                example_of=(np.cumsum(is_chosen_E) - 1)[example_C[of_split]],
                part=part_C[of_split],
                scores=scores.take(of_split),
                num_judged_relevant=int(is_relevant_C[is_chosen_E[example_C]].sum()),
            )

    def _parts(self, found: "_Found") -> Parts:
        """The part that each candidate plays as it was found, [C], -1 for none."""
        is_positive_C = np.array([role == "positive" for role in found.role])
        is_written_C = np.array([origin in _WRITTEN for origin in found.origin])
        part_C = np.where(is_positive_C, POSITIVE, np.where(is_written_C, WRITTEN, MINED)).astype(np.int8)
        if self._recipe.runs and self._frozen is None:
            # Runs are sorted out here: a database would walk the index of runs, which knows nothing of the page. What
            # reviewers wrote comes in by their decisions.
            part_C[~is_positive_C & ~np.isin(found.run, list(self._runs | self.decided.review_runs))] = -1
        return part_C

    def _after_people(
        self, found: "_Found", keys: Sequence[int], pairs: Sequence[tuple[int, int]], part_C: Parts
    ) -> "_Found":
        """People's decisions: changes the parts, and gives the candidates with their grades and ranks."""
        places = np.flatnonzero(part_C > POSITIVE).tolist()
        fates = self.decided.fates(
            keys, [Negative(found.candidate[at], found.run[at], found.grade[at], found.rank[at]) for at in places]
        )
        grades, ranks = list(found.grade), list(found.rank)
        for at in places if fates or self._survey.false_negatives else ():
            fate = fates.get(found.candidate[at])
            if fate is not None:
                grades[at], ranks[at] = fate.grade, fate.rank
            if fate is not None and fate.becomes == "out":
                part_C[at] = -1
            elif pairs[at] in self._survey.false_negatives or (fate is not None and fate.becomes == "positive"):
                part_C[at] = MORE_POSITIVE
        return found._replace(grade=grades, rank=ranks)

    def _after_judges(self, pairs: Sequence[tuple[int, int]], part_C: Parts) -> NDArray[np.bool_]:
        """Which negatives a judge says are relevant, [C]; changes their parts as the recipe asks."""
        is_relevant_C = np.zeros(len(part_C), dtype=bool)
        if self._false:
            is_relevant_C = np.array([pair in self._false for pair in pairs]) & np.isin(part_C, (WRITTEN, MINED))
        if self._policy != "keep":
            part_C[is_relevant_C] = MORE_POSITIVE if self._policy == "relabel" else -1
        return is_relevant_C

    def _order(self, found: "_Found", example_C: Places, part_C: Parts, scores: ScoreColumns) -> Places:
        """Places of those that play a part: machine-written negatives by rank, mined ones the most similar first."""
        ranks_C = np.array([rank or _LAST for rank in found.rank], dtype=np.float64)
        similarity_C = scores.of(self._recipe.teacher)
        by_C = np.where(part_C == WRITTEN, ranks_C, np.where(part_C == MINED, -similarity_C, 0.0))
        order = np.lexsort((np.array(found.digest, dtype="S64"), by_C, part_C, example_C))
        return order[part_C[order] >= 0]

    def _scores(self, queries: Sequence[int], pairs: Sequence[tuple[int, int]]) -> ScoreColumns:
        """Similarity of each (query, passage) by teacher."""
        by_name: dict[str, dict[tuple[int, int], float]] = {}
        for teacher, name in self._teachers.items():
            rows = read(self._session, self._reads.scores[teacher], queries)
            by_name.setdefault(name, {}).update({(query, passage): value for query, passage, value in rows})
        return ScoreColumns.of_pairs(pairs, by_name)


class _Found(NamedTuple):
    """Candidates of a page by columns, as they are read: two that are used here, then those of `CANDIDATES`."""

    example: Sequence[int]
    role: Sequence[str]
    candidate: Sequence[int]
    passage: Sequence[int]
    digest: Sequence[str]
    text: Sequence[str]
    grade: Sequence[str | None]
    rank: Sequence[int | None]
    origin: Sequence[str]
    violated_requirement: Sequence[str | None]
    parent: Sequence[int | None]
    run: Sequence[int]


def _batch(columns: Iterable[Any], schema: pa.Schema) -> pa.RecordBatch:
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _texts(session: Session) -> Select[Any]:
    """The columns of `EXAMPLES`. The positive's text comes with its candidate."""
    statement: Any = (
        select(
            Example.id,
            Example.query_id,
            Example.digest,
            Query.text,
            Query.digest,
            Example.language,
            Task.instruction,
            Task.task_type,
            Collection.name,
            Collection.licence,
        )
        .join(Query, Example.query_id == Query.id)
        .outerjoin(Task, Example.task_id == Task.id)
        .outerjoin(Collection, Example.collection_id == Collection.id)
        .where(among(session, Example.id))
    )
    return cast(Select[Any], statement)


def _candidates(session: Session) -> Select[Any]:
    """The columns of `_Found`."""
    statement: Any = (
        select(
            Candidate.example_id,
            Candidate.role,
            Candidate.id,
            Candidate.passage_id,
            Passage.digest,
            Passage.text,
            Candidate.grade,
            Candidate.rank,
            Candidate.origin,
            Candidate.violated_requirement,
            Candidate.parent_passage_id,
            Candidate.run_id,
        )
        .join(Passage, Candidate.passage_id == Passage.id)
        .where(among(session, Candidate.example_id))
    )
    return cast(Select[Any], statement)


def _scores(session: Session, teacher: int) -> Select[Any]:
    of_teacher: Any = select(Score.query_id, Score.passage_id, Score.value).where(Score.teacher_id == teacher)
    return cast(Select[Any], of_teacher.where(among(session, Score.query_id)))
