"""What a release selects: examples page by page, each with its positive, its negatives in order, and their scores.

Rows come in the order of content digests. A judge's or a person's verdict that a negative answers its query takes it
out here, so that nothing after this room has to ask. A frozen selection gives what went into a release once, whatever
the store has learned since.
"""

from array import array
from collections import defaultdict
from collections.abc import Collection as Several
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.verdicts import Policy, false_negatives
from curation.release.reading import among, read
from curation.release.recipe import ReleaseRecipe
from curation.release.splits import assign_splits
from db.tables.examples import Candidate, Example, Score, Task, Teacher
from db.tables.ledger import Run
from db.tables.releases import ReleaseItem
from db.tables.texts import Collection, Passage, Query

_PAGE = 1_000
_WRITTEN = ("synthetic", "edited")
Scores = Sequence[tuple[str, float]]  # (teacher, similarity), by teacher


@dataclass(slots=True)
class Negative:
    """A negative as it is published. `mined_rank` counts those that nobody wrote, the most similar first."""

    candidate: int
    passage: int
    digest: str
    text: str
    grade: str | None
    rank: int | None
    origin: str
    violated_requirement: str | None
    parent: int | None
    run: int
    scores: Scores
    mined_rank: int | None = None

    @property
    def is_written(self) -> bool:
        return self.origin in _WRITTEN


@dataclass(frozen=True, slots=True)
class Positive:
    """An example's positive as a candidate."""

    candidate: int
    origin: str
    run: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """An example of the release: its texts, where it stands, and its negatives, the machine-written ones first.

    `num_judged_relevant` of the negatives that were selected are relevant, a judge says; under the policy `relabel`
    they are `more_positives`.
    """

    texts: Row[Any]
    split: str
    positive: Positive
    positive_scores: Scores
    negatives: Sequence[Negative]
    num_judged_relevant: int
    more_positives: Sequence[Negative]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A release to be selected again: its row in the store, and (name, version) of the teachers it knew."""

    release_id: int
    teachers: frozenset[tuple[str, str]]


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
        self.queries: NDArray[np.int64] = np.unique(queries)
        self._false = self._judged_relevant(self.keys.tolist())
        more = np.array(sorted(self._false) if self._policy == "relabel" else [], dtype=np.int64).reshape(-1, 2)
        # A passage that is relabelled links its query to every example of which it is the positive.
        place_of = {query: place for place, query in enumerate(queries.tolist())} if len(more) else {}
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
        for key, query, positive, digest in self._session.execute(rows, execution_options={"yield_per": 5_000}):
            keys.append(key)
            queries.append(query)
            positives.append(positive)
            digests += digest.encode()
        numbers = [np.array(one, dtype=np.int64) for one in (keys, queries, positives)]
        return numbers[0], numbers[1], numbers[2], np.frombuffer(bytes(digests), dtype="S64")

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

    def pages(self) -> Iterator[list[Chosen]]:
        """Every example, in the order of digests."""
        for start in range(0, len(self.keys), _PAGE):
            part = slice(start, start + _PAGE)
            yield self._page(self.keys[part].tolist(), self._is_dev[part].tolist())

    def _examples(self) -> Select[int]:
        """Ids of the examples: those with a negative that the recipe selects, or those of the release."""
        if self._frozen is not None:
            return self._of_release(select(Candidate.example_id).where(Candidate.role == "positive"))
        of_runs = [Candidate.run_id.in_(self._runs)] if self._recipe.runs else []
        return select(Candidate.example_id).where(Candidate.role == "negative", *of_runs)

    def _of_release(self, statement: Select[Any]) -> Select[Any]:
        if self._frozen is None:
            return statement
        return statement.join(
            ReleaseItem,
            (ReleaseItem.release_id == self._frozen.release_id) & (ReleaseItem.candidate_id == Candidate.id),
        )

    def _known_teachers(self) -> dict[int, str]:
        """Names of the teachers, oldest first: a teacher's newest version speaks."""
        rows = self._session.execute(select(Teacher.id, Teacher.name, Teacher.version).order_by(Teacher.id))
        known = None if self._frozen is None else self._frozen.teachers
        return {key: name for key, name, version in rows if known is None or (name, version) in known}

    def _judged_relevant(self, keys: Sequence[int]) -> set[tuple[int, int]]:
        """(query, passage) of the negatives that answer their query, a judge says."""
        asked = self._recipe.false_negatives
        found: set[tuple[int, int]] = set()
        # What was dropped from a release is not among its items; a verdict that came later drops nothing.
        if asked is None or (self._frozen is not None and asked.policy != "relabel"):
            return found
        for start in range(0, len(keys), _PAGE):
            page = keys[start : start + _PAGE]
            found |= false_negatives(self._session, page, judge=asked.judge, threshold=asked.threshold)
        return found

    def _page(self, keys: Sequence[int], is_dev: Sequence[bool]) -> list[Chosen]:
        texts = {row.id: row for row in read(self._session, self._reads.texts, keys)}
        scores = self._scores(sorted({row.query_id for row in texts.values()}))
        positives, negatives = self._candidates(keys, {key: row.query_id for key, row in texts.items()}, scores)
        chosen = []
        for key, dev in zip(keys, is_dev, strict=True):
            row, selected = texts[key], negatives.get(key, [])
            relevant = [one for one in selected if (row.query_id, one.passage) in self._false] if self._false else []
            if relevant and self._policy != "keep":
                selected = [one for one in selected if (row.query_id, one.passage) not in self._false]
            more = sorted(relevant, key=lambda one: one.digest) if self._policy == "relabel" else []
            chosen.append(
                Chosen(
                    texts=row,
                    split="dev" if dev else "train",
                    positive=positives[key],
                    positive_scores=scores.of(row.query_id, row.positive_id),
                    negatives=self._ordered(selected),
                    num_judged_relevant=len(relevant),
                    more_positives=more,
                )
            )
        return chosen

    def _candidates(
        self, keys: Sequence[int], query_of: dict[int, int], scores: "_PageScores"
    ) -> tuple[dict[int, Positive], dict[int, list[Negative]]]:
        """The positive and the selected negatives of each example."""
        # Runs are sorted out here: a database would walk the index of runs, which knows nothing of the page.
        runs: Several[int] = self._runs if self._recipe.runs and self._frozen is None else ()
        positives: dict[int, Positive] = {}
        found: dict[int, list[Negative]] = defaultdict(list)
        for example, role, candidate, passage, digest, text, grade, rank, origin, violated, parent, run in read(
            self._session, self._reads.candidates, keys
        ):
            if role == "positive":
                positives[example] = Positive(candidate, origin, run)
            elif not runs or run in runs:
                of_pair = scores.of(query_of[example], passage)
                found[example].append(
                    Negative(candidate, passage, digest, text, grade, rank, origin, violated, parent, run, of_pair)
                )
        return positives, found

    def _ordered(self, negatives: list[Negative]) -> list[Negative]:
        """Machine-written ones by rank, then the others from the most similar down, which is their mined rank."""
        written = [one for one in negatives if one.is_written]
        others = [one for one in negatives if not one.is_written]
        written.sort(key=lambda one: (one.rank or 99, one.digest))
        if others:
            others.sort(key=lambda one: (-self._similarity(one), one.digest))
            for place, negative in enumerate(others, start=1):
                negative.mined_rank = place
        return [*written, *others]

    def _similarity(self, negative: Negative) -> float:
        return next((value for teacher, value in negative.scores if teacher == self._recipe.teacher), -1.0)

    def _scores(self, queries: Sequence[int]) -> "_PageScores":
        by_name: dict[str, dict[tuple[int, int], float]] = {}
        for teacher, name in self._teachers.items():
            rows = read(self._session, self._reads.scores[teacher], queries)
            by_name.setdefault(name, {}).update({(query, passage): value for query, passage, value in rows})
        return _PageScores(sorted(by_name.items()))


@dataclass(frozen=True, slots=True)
class _PageScores:
    """Scores of a page's queries: (query id, passage id) to similarity, by teacher; its newest version."""

    by_teacher: list[tuple[str, dict[tuple[int, int], float]]]

    def of(self, query: int, passage: int) -> Scores:
        pair = (query, passage)
        return [(name, values[pair]) for name, values in self.by_teacher if pair in values]


def _texts(session: Session) -> Select[Any]:
    statement: Any = (
        select(
            Example.id,
            Example.digest,
            Example.query_id,
            Example.positive_id,
            Example.language,
            Query.text.label("query"),
            Query.digest.label("query_digest"),
            Passage.text.label("positive"),
            Passage.digest.label("positive_digest"),
            Task.instruction,
            Task.task_type,
            Collection.name.label("source"),
            Collection.licence,
        )
        .join(Query, Example.query_id == Query.id)
        .join(Passage, Example.positive_id == Passage.id)
        .outerjoin(Task, Example.task_id == Task.id)
        .outerjoin(Collection, Example.collection_id == Collection.id)
        .where(among(session, Example.id))
    )
    return cast(Select[Any], statement)


def _candidates(session: Session) -> Select[Any]:
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
