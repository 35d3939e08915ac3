"""What people decided of a candidate, all of them together: settled, agreed, decided by one, or disputed.

Read from the events alone, so that it can be told as of any moment: what a release was made of stays what it was made
of. Only regular items count; gold items and repeats test the reviewer. Of one person the newest word on a candidate
counts, in whichever session it was said; an adjudicator's counts before all others.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Select, and_, func, select
from sqlalchemy.orm import Session, aliased

from curation.errors import CurationError
from db.reading import among, read_rows
from db.tables.examples import Candidate
from db.tables.review import VERDICTS, Decision, Reviewer, ReviewItem, ReviewSession, Rubric

Outcome = Literal["keep", "drop", "false_negative", "edit"]
State = Literal["settled", "agreed", "decided", "disputed"]
RANK_OF_GRADE = {"hard": 1, "medium": 2, "easy": 4}
_PAGE = 1_000
_COUNTED = (*VERDICTS, "swap", "settle")


@dataclass(frozen=True, slots=True)
class Event:
    """A decision as it is told outside the store: by the reviewer's pseudonym, under the rubric's version."""

    uid: str
    reviewer: str
    kind: str
    verdict: str | None
    grade: str | None
    rubric: str
    rubric_digest: str
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class Word:
    """What one person says of a candidate, and the decisions that say it.

    Attributes:
        grade: As it ought to be, and so is `rank`; what stands where nothing else was said.
        child: The candidate that takes its place, of an edit.
        has_grade: The grade was said or shown: `keep` in a blind session says nothing of it.
    """

    reviewer: str
    outcome: Outcome
    grade: str | None
    rank: int | None
    child: int | None
    has_grade: bool
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is decided of a candidate. `word` is what holds, None where people disagree and nobody has settled it."""

    state: State
    word: Word | None
    words: tuple[Word, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """Every decision behind it, in the order of time."""
        found = {one.uid: one for word in (*self.words, *([self.word] if self.word else [])) for one in word.events}
        return tuple(sorted(found.values(), key=lambda one: (one.decided_at, one.uid)))


@dataclass(slots=True)
class _Said:
    """What a person's decisions on one candidate of one item come to."""

    verdict: Any = None
    order: list[Any] = field(default_factory=list)

    @property
    def rows(self) -> list[Any]:
        return [*self.order, *([self.verdict] if self.verdict else [])]


class Verdicts:
    """Verdicts of candidates by example, in the named sessions (all when empty), as of a moment.

    Raises:
        CurationError: A name is no review session's.
    """

    def __init__(self, session: Session, *, sessions: Collection[str] = (), until: datetime | None = None) -> None:
        self._session = session
        self.sessions = _session_ids(session, sessions)
        self._statement = _events(session, self.sessions, until)

    def of_examples(self, example_ids: Sequence[int]) -> dict[int, Verdict]:
        """Verdict by candidate, of those candidates of these examples that somebody decided on."""
        return {key: one for found in self.by_example(example_ids).values() for key, one in found.items()}

    def by_example(self, example_ids: Sequence[int]) -> dict[int, dict[int, Verdict]]:
        """The same by example."""
        by_example: dict[int, list[Any]] = defaultdict(list)
        for row in read_rows(self._session, self._statement, example_ids):
            by_example[row.example_id].append(row)
        return {example: _verdicts(rows) for example, rows in by_example.items()}

    def reviewed_examples(self) -> Iterator[list[int]]:
        """Pages of the examples on which anybody decided anything, by id."""
        counted = [ReviewItem.session_id.in_(self.sessions)] if self.sessions is not None else []
        statement = (
            select(ReviewItem.example_id)
            .where(ReviewItem.kind == "regular", *counted)
            .where(select(Decision.id).where(Decision.item_id == ReviewItem.id).exists())
            .distinct()
            .order_by(ReviewItem.example_id)
            .limit(_PAGE)
        )
        last = 0
        while page := list(self._session.scalars(statement.where(ReviewItem.example_id > last))):
            last = page[-1]
            yield page


def last_decision(session: Session) -> datetime | None:
    """When anybody last decided or undid anything; None where nobody ever did."""
    return session.scalar(select(func.max(Decision.decided_at)))


def _session_ids(session: Session, names: Collection[str]) -> frozenset[int] | None:
    if not names:
        return None
    known = {name: key for key, name in session.execute(select(ReviewSession.id, ReviewSession.name))}
    if unknown := sorted(set(names) - set(known)):
        there = ", ".join(sorted(known)) or "none"
        raise CurationError(f"review session {unknown[0]!r} is not in this store; there are: {there}")
    return frozenset(known[name] for name in names)


def _events(session: Session, sessions: frozenset[int] | None, until: datetime | None) -> Select[Any]:
    """Decisions of the regular items of these examples that stood at the moment, with what they are about."""
    undo, mine, other = aliased(Decision), aliased(Candidate), aliased(Candidate)
    undone = and_(undo.undoes_id == Decision.id, *([undo.decided_at <= until] if until else []))
    counted = [ReviewItem.session_id.in_(sessions)] if sessions is not None else []
    statement: Any = (
        select(
            ReviewItem.example_id,
            Decision.id, Decision.uid, Decision.item_id, Decision.candidate_id, Decision.kind, Decision.verdict,
            Decision.grade, Decision.other_candidate_id, Decision.decided_at, Decision.reviewer_id,
            Reviewer.pseudonym, Rubric.name.label("rubric"), Rubric.version, Rubric.digest.label("rubric_digest"),
            ReviewSession.is_blind, mine.grade.label("own_grade"), mine.rank.label("own_rank"),
            other.grade.label("other_grade"), other.rank.label("other_rank"),
        )
        .select_from(ReviewItem)
        .join(Decision, Decision.item_id == ReviewItem.id)
        .join(ReviewSession, ReviewSession.id == ReviewItem.session_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .join(Rubric, Rubric.id == Decision.rubric_id)
        .join(mine, mine.id == Decision.candidate_id)
        .outerjoin(other, other.id == Decision.other_candidate_id)
        .outerjoin(undo, undone)
        .where(
            among(session, ReviewItem.example_id),
            ReviewItem.kind == "regular",
            Decision.kind.in_(_COUNTED),
            undo.id.is_(None),
            *counted,
            *([Decision.decided_at <= until] if until else []),
        )
    )  # fmt: skip
    return cast(Select[Any], statement)


def _verdicts(rows: Sequence[Any]) -> dict[int, Verdict]:
    """Verdicts by candidate, of the decisions on one example."""
    by_item: dict[int, list[Any]] = defaultdict(list)
    words: dict[int, dict[str, tuple[int, Word]]] = defaultdict(dict)
    settled: dict[int, Any] = {}
    for row in sorted(rows, key=lambda row: row.id):
        if row.kind == "settle":
            settled[row.candidate_id] = row
        else:
            by_item[row.item_id].append(row)
    for of_item in by_item.values():
        for candidate, last, word in _words(of_item):
            if last > words[candidate].get(word.reviewer, (0, word))[0]:
                words[candidate][word.reviewer] = last, word
    return {
        candidate: _verdict([word for _, word in words.get(candidate, {}).values()], settled.get(candidate))
        for candidate in words.keys() | settled.keys()
    }


def _words(rows: Sequence[Any]) -> Iterator[tuple[int, int, Word]]:
    """(candidate, last decision, word) of one item, by person."""
    by_person: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        by_person[row.reviewer_id].append(row)
    for of_person in by_person.values():
        yield from _words_of(of_person)


def _words_of(rows: Sequence[Any]) -> Iterator[tuple[int, int, Word]]:
    """A person's words on an item: swaps exchange grades and ranks one after the other, then verdicts speak."""
    said: dict[int, _Said] = defaultdict(_Said)
    places: dict[int, tuple[str | None, int | None]] = {}
    for row in rows:
        places.setdefault(row.candidate_id, (row.own_grade, row.own_rank))
        if row.kind == "swap":
            one, other = row.candidate_id, row.other_candidate_id
            places.setdefault(other, (row.other_grade, row.other_rank))
            places[one], places[other] = places[other], places[one]
            said[one].order.append(row)
            said[other].order.append(row)
        else:
            said[row.candidate_id].verdict = row
    for candidate, found in said.items():
        yield candidate, max(row.id for row in found.rows), _word(found, places[candidate])


def _word(said: _Said, place: tuple[str | None, int | None]) -> Word:
    row, last = said.verdict, said.rows[-1]
    kind = row.kind if row else "keep"
    has_grade = bool(said.order) or kind == "regrade" or (kind == "keep" and not last.is_blind)
    return _of_kind(last, kind, row, place, has_grade, tuple(_event(one) for one in said.rows))


def _of_kind(
    last: Any, kind: str, row: Any, place: tuple[str | None, int | None], has_grade: bool, events: tuple[Event, ...]
) -> Word:
    grade, rank = place
    if kind == "regrade" and row.grade != grade:
        grade, rank = row.grade, RANK_OF_GRADE[row.grade]
    outcome: Outcome = "keep" if kind == "regrade" else kind  # type: ignore[assignment]
    child = row.other_candidate_id if kind == "edit" else None
    return Word(last.pseudonym, outcome, grade, rank, child, has_grade, events)


def _event(row: Any) -> Event:
    rubric = f"{row.rubric} v{row.version}"
    return Event(row.uid, row.pseudonym, row.kind, row.verdict, row.grade, rubric, row.rubric_digest, row.decided_at)


def _verdict(words: Sequence[Word], settled: Any) -> Verdict:
    words = tuple(sorted(words, key=lambda word: (word.events[-1].decided_at, word.events[-1].uid)))
    if settled is not None:
        place = settled.own_grade, settled.own_rank
        return Verdict("settled", _of_kind(settled, settled.verdict, settled, place, True, (_event(settled),)), words)
    if not _is_agreed(words):
        return Verdict("disputed", None, words)
    word = next((word for word in words if word.has_grade), words[0])
    return Verdict("agreed" if len(words) > 1 else "decided", word, words)


def _is_agreed(words: Sequence[Word]) -> bool:
    """One outcome, one child, and one grade among those who speak of it; ranks 2 and 3 are a tie."""
    if len({(word.outcome, word.child) for word in words}) > 1:
        return False
    graded = {word.grade or word.rank for word in words if word.has_grade}
    return words[0].outcome != "keep" or len(graded) < 2


def counts_of(verdicts: Mapping[int, Verdict]) -> dict[str, int]:
    """How many candidates are in each state."""
    found = dict.fromkeys(("settled", "agreed", "decided", "disputed"), 0)
    for one in verdicts.values():
        found[one.state] += 1
    return found
