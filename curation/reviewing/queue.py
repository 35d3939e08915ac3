"""Which negatives a session asks about, and in which order: drawn once, then frozen as the session's items.

Candidates are read in pages and kept as numbers, so that a queue can be drawn from millions. What is random goes by
digests, so that the same content gives the same queue in every store. What reviewers wrote themselves (edits) is
never asked about.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from curation.reviewing.recipe import Order, QueueDefinition, Sample, ScoreRange
from curation.reviewing.sampling import allocate, draw_place
from curation.reviewing.suspicion import Suspicion, suspicion_of, teacher_norms
from db.digest import counter_uniform
from db.tables.examples import Candidate, Example, Score, Sourcing, Teacher
from db.tables.ledger import Run, RunRequest
from db.tables.releases import Release, ReleaseItem
from db.tables.texts import Passage, Query

PAGE = 1_000
EDITING = "review"
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A negative to ask about, why it is suspect, and the stratum that it stands for."""

    candidate_id: int
    stratum: str | None = None
    suspicion: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picked:
    """An example with those of its negatives that are asked about."""

    example_id: int
    asked: tuple[Asked, ...]

    @property
    def suspicion(self) -> float | None:
        values = [one.suspicion for one in self.asked if one.suspicion is not None]
        return max(values, default=None)


@dataclass(frozen=True, slots=True)
class Queue:
    """Examples in the order in which they are asked, and what they were drawn from."""

    picked: Sequence[Picked]
    facts: Mapping[str, Any]


@dataclass(slots=True)
class _Found:
    """What a definition lets through, as columns; `keys` are the examples' places in random order."""

    candidates: "array[int]"
    examples: "array[int]"
    keys: "array[float]"
    values: "array[float]"
    strata: "array[int]"
    stratum_names: dict[str, int]


def draw_queue(
    session: Session, definition: QueueDefinition, seed: int, *, progress: Progress = lambda done, total: None
) -> Queue:
    """The examples to ask about, in order. Reads only; a store of a million candidates takes minutes by suspicion.

    Raises:
        CurationError: A run, release or teacher is not in the store, or nothing matches.
    """
    order: Order = "random" if definition.sample is not None else definition.order
    found = _find(session, definition, seed, order, progress)
    if not found.candidates:
        raise CurationError("no negative matches the queue's filters: widen them")
    examples = np.frombuffer(found.examples, np.int64)
    facts: dict[str, Any] = {"num_candidates": len(examples), "num_examples": len(np.unique(examples))}
    if definition.sample is not None:
        rows, facts["strata"] = _sampled(found, definition.sample)
    else:
        rows = np.arange(len(examples))
    names = {number: name for name, number in found.stratum_names.items()} if definition.sample is not None else {}
    picked = _in_order(found, rows, definition.limit, names)
    return Queue(_with_reasons(session, picked), facts)


def _find(session: Session, definition: QueueDefinition, seed: int, order: Order, progress: Progress) -> _Found:
    found = _Found(array("q"), array("q"), array("d"), array("d"), array("q"), {})
    norms = teacher_norms(session) if order != "random" else {}
    for page in _pages(session, definition):
        suspected = suspicion_of(session, [row.id for row in page], norms=norms) if order != "random" else {}
        for row in page:
            stratum = f"{row.grade or 'ungraded'}/{row.origin}"
            found.candidates.append(row.id)
            found.examples.append(row.example_id)
            found.keys.append(counter_uniform(seed, "queue", row.example_digest))
            number = found.stratum_names.setdefault(stratum, len(found.stratum_names))
            found.strata.append(number)
            if definition.sample is not None:
                found.values.append(draw_place(seed, stratum, row.example_digest + row.passage_digest))
            else:
                found.values.append(_value(order, suspected.get(row.id)))
        progress(len(found.candidates), None)
    return found


def _value(order: Order, suspicion: Suspicion | None) -> float:
    if order == "random" or suspicion is None:
        return 0.0
    values = {
        "suspicion": suspicion.value,
        "disagreement": suspicion.disagreement,
        "uncertainty": suspicion.uncertainty,
    }
    return values[order]


def _sampled(found: _Found, sample: Sample) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Rows of the sample, and of each stratum its size and how many are drawn."""
    strata, places = np.frombuffer(found.strata, np.int64), np.frombuffer(found.values)
    of_stratum = {name: np.flatnonzero(strata == number) for name, number in sorted(found.stratum_names.items())}
    given = allocate({name: len(rows) for name, rows in of_stratum.items()}, sample.size, sample.allocation)
    drawn = [rows[np.argsort(places[rows], kind="stable")[: given[name]]] for name, rows in of_stratum.items()]
    facts = [{"name": name, "size": len(rows), "drawn": given[name]} for name, rows in of_stratum.items()]
    return np.concatenate(drawn), facts


def _in_order(found: _Found, rows: NDArray[np.int64], limit: int | None, names: Mapping[int, str]) -> list[Picked]:
    """Examples by their most telling candidate, ties and samples at random, up to the limit."""
    examples, first, which = np.unique(np.frombuffer(found.examples, np.int64)[rows], return_index=True,
                                       return_inverse=True)  # fmt: skip
    keys = np.frombuffer(found.keys)[rows][first]
    values = np.full(len(examples), -np.inf)
    if names:
        values[:] = 0.0
    else:
        np.maximum.at(values, which, np.frombuffer(found.values)[rows])
    chosen = np.lexsort((keys, -values))[:limit]
    by_example = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[by_example], np.arange(len(examples) + 1))
    picked = []
    for number in chosen:
        own = rows[by_example[ends[number] : ends[number + 1]]]
        asked = tuple(Asked(found.candidates[row], names.get(found.strata[row])) for row in own)
        picked.append(Picked(int(examples[number]), asked))
    return picked


def _with_reasons(session: Session, picked: Sequence[Picked]) -> list[Picked]:
    """The same with what is suspect about each candidate; pages keep an example's candidates together."""
    norms = teacher_norms(session)
    told = []
    for start in range(0, len(picked), PAGE):
        page = picked[start : start + PAGE]
        found = suspicion_of(session, [one.candidate_id for each in page for one in each.asked], norms=norms)
        for each in page:
            asked = tuple(_suspected(one, found.get(one.candidate_id)) for one in each.asked)
            told.append(Picked(each.example_id, asked))
    return told


def _suspected(asked: Asked, suspicion: Suspicion | None) -> Asked:
    if suspicion is None:
        return asked
    return Asked(asked.candidate_id, asked.stratum, suspicion.value, suspicion.reasons)


def _pages(session: Session, definition: QueueDefinition) -> Iterator[Sequence[Any]]:
    """Pages of candidates by example, so that an example's stand together; searched for the text where one is given."""
    positive = aliased(Passage)
    statement = (
        select(Candidate.id, Candidate.example_id, Example.digest.label("example_digest"),
               Passage.digest.label("passage_digest"), Candidate.grade, Candidate.origin)
        .join(Example, Example.id == Candidate.example_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .where(*_conditions(session, definition))
        .order_by(Candidate.example_id, Candidate.id)
        .limit(PAGE)
    )  # fmt: skip
    wanted = None if definition.text is None else definition.text.casefold()
    if wanted is not None:
        texts = (Query.text.label("query"), positive.text.label("positive"), Passage.text.label("negative"))
        statement = (
            statement.add_columns(*texts)
            .join(Query, Query.id == Example.query_id)
            .join(positive, positive.id == Example.positive_id)
        )
    after = (0, 0)
    while True:
        last_example, last = after
        later = or_(
            Candidate.example_id > last_example, and_(Candidate.example_id == last_example, Candidate.id > last)
        )
        page = session.execute(statement.where(Candidate.example_id >= last_example, later)).all()
        if not page:
            return
        after = (page[-1].example_id, page[-1].id)
        # Searched here and not in SQL, whose lower() knows ASCII only on SQLite.
        yield (
            page
            if wanted is None
            else [
                row
                for row in page
                if any(wanted in text.casefold() for text in (row.query, row.positive, row.negative))
            ]
        )


def _conditions(session: Session, definition: QueueDefinition) -> list[ColumnElement[bool]]:
    own_edits = select(Run.id).where(Run.kind == EDITING)
    conditions: list[ColumnElement[bool]] = [Candidate.role == "negative", Candidate.run_id.not_in(own_edits)]
    if definition.runs:
        conditions.append(_found_by(session, definition.runs))
    if definition.release is not None:
        release = session.scalar(select(Release.id).where(Release.name == definition.release))
        if release is None:
            raise CurationError(f"queue.release = {definition.release!r}: there is no such release")
        in_release = (ReleaseItem.release_id == release) & (ReleaseItem.candidate_id == Candidate.id)
        conditions.append(exists().where(in_release))
    if definition.grades:
        conditions.append(Candidate.grade.in_(definition.grades))
    if definition.origins:
        conditions.append(Candidate.origin.in_(definition.origins))
    if definition.languages:
        conditions.append(Example.language.in_(definition.languages))
    for name, values in definition.attributes.items():
        asked_for = (
            (Sourcing.candidate_id == Candidate.id)
            & (RunRequest.request_id == Sourcing.request_id)
            & RunRequest.attributes[name].as_string().in_(values)
        )
        conditions.append(exists().where(asked_for))
    conditions += [_scored(session, one) for one in definition.scores]
    return conditions


def _found_by(session: Session, names: Sequence[str]) -> ColumnElement[bool]:
    """Candidates that these runs made or found again."""
    rows = session.execute(select(Run.name, Run.id).where(Run.name.in_(names)))
    runs: dict[str, list[int]] = defaultdict(list)
    for name, key in rows:
        runs[name].append(key)
    if missing := [name for name in names if name not in runs]:
        raise CurationError(f"queue.runs: there is no run {missing[0]!r}; see 'gradus status'")
    keys = [key for several in runs.values() for key in several]
    again = exists().where(Sourcing.candidate_id == Candidate.id, Sourcing.run_id.in_(keys))
    return or_(Candidate.run_id.in_(keys), again)


def _scored(session: Session, wanted: ScoreRange) -> ColumnElement[bool]:
    """Similarity in the range by the newest version of the teacher."""
    newest = select(Teacher.id).where(Teacher.name == wanted.teacher).order_by(Teacher.id.desc()).limit(1)
    teacher = session.scalar(newest)
    if teacher is None:
        raise CurationError(f"queue.scores: there is no teacher {wanted.teacher!r}: run 'gradus score' first")
    of_pair = [
        Score.teacher_id == teacher, Score.query_id == Example.query_id, Score.passage_id == Candidate.passage_id
    ]  # fmt: skip
    if wanted.min is not None:
        of_pair.append(Score.value >= wanted.min)
    if wanted.max is not None:
        of_pair.append(Score.value <= wanted.max)
    return exists().where(*of_pair)
