"""What people's decisions do to a release: who leaves, who changes grade, who is a positive after all.

A word of theirs goes over a judge's. An edited child stands for its parent, and only where the edit holds: children
that nobody accepted are in no release.
"""

from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import orjson
from sqlalchemy import ARRAY, BigInteger, ColumnElement, any_, func, literal, select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.release.recipe import Decisions
from curation.reviewing.queue import EDITING
from curation.reviewing.verdicts import Event, Verdict, Verdicts, last_decision
from db.reading import among, read
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run

Pairs = set[tuple[int, int]]


@dataclass(slots=True)
class Tally:
    """Negatives of a release by what people's decisions did to them."""

    kept: int = 0
    regraded: int = 0
    edited: int = 0
    dropped: int = 0
    false_negatives: int = 0
    disputed: int = 0
    undecided: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Negative:
    """A selected negative as it was found."""

    candidate: int
    run: int
    grade: str | None
    rank: int | None


@dataclass(frozen=True, slots=True)
class Fate:
    """What people make of a negative: it stays with a grade and rank, it is another positive, or it is out."""

    becomes: Literal["negative", "positive", "out"]
    grade: str | None = None
    rank: int | None = None


class Decided:
    """People's decisions as one release sees them.

    Args:
        until: Decisions up to this moment count; None when the store holds none.
        is_frozen: The items of a release are read again: who left is not among them, grades and positives are told.

    Raises:
        CurationError: A session is not there, or negatives are disputed where the recipe refuses that.
    """

    def __init__(self, session: Session, recipe: Decisions, until: datetime | None, *, is_frozen: bool = False) -> None:
        self._session, self._recipe, self._is_frozen = session, recipe, is_frozen
        self.until, self.tally = until, Tally()
        self._events: dict[int, tuple[Event, ...]] = {}  # of the page at hand, by candidate
        self._verdicts = Verdicts(session, sessions=recipe.sessions, until=until)
        self.review_runs = frozenset(session.scalars(select(Run.id).where(Run.kind == EDITING)))

    @classmethod
    def now(cls, session: Session, recipe: Decisions) -> "Decided":
        """Of a release that is being made."""
        return cls(session, recipe, last_decision(session))

    def survey(self, runs: frozenset[int]) -> "Survey":
        """Look at every example that anybody reviewed, before anything is written.

        Args:
            runs: Runs whose negatives are selected; all when empty.
        """
        found = Survey()
        if self.until is None:
            return found
        disputed: Counter[str] = Counter()
        for page in self._verdicts.reviewed_examples():
            verdicts = self._verdicts.of_examples(page)
            wanted = runs | self.review_runs if runs else runs
            for key, query, passage, example, digest in _selected(self._session, sorted(verdicts), wanted):
                verdict = verdicts[key]
                if verdict.state == "disputed":
                    disputed[digest] += 1
                if not self._holds(verdict):
                    continue
                word = verdict.word
                if word is not None and word.outcome == "false_negative":
                    found.false_negatives.add((query, passage))
                elif word is not None and word.outcome != "drop":
                    found.accepted.add(example)
                    if word.outcome == "keep":
                        found.kept.add((query, passage))
        if disputed and self._recipe.disputed == "refuse" and not self._is_frozen:
            raise CurationError(
                f"{disputed.total():,} negatives of {len(disputed):,} examples are disputed and not settled, the first "
                f"in example {min(disputed)[:12]}: settle them on the page Adjudication, or set disputed = 'leave_out' "
                "in [decisions]"
            )
        return found

    def fates(self, example_ids: Sequence[int], negatives: Sequence[Negative]) -> dict[int, Fate]:
        """What people make of the negatives of a page of examples, by candidate; those that stay as they are may be
        left out. `of` tells the decisions behind each until the next page, and the tally counts."""
        verdicts = self._verdicts.of_examples(example_ids) if self.until is not None else {}
        self._events = {key: verdict.events for key, verdict in verdicts.items()}
        if not verdicts and not self.review_runs and self._recipe.required == "none":
            return {}
        parents = {
            verdict.word.child: verdict
            for verdict in verdicts.values()
            if verdict.word is not None and verdict.word.outcome == "edit" and self._holds(verdict)
        }
        return {
            one.candidate: self._fate(one, verdicts.get(one.candidate), parents.get(one.candidate)) for one in negatives
        }

    def _fate(self, one: Negative, verdict: Verdict | None, edited: Verdict | None) -> Fate:
        """`edited` is the verdict that puts this one in its parent's place."""
        if edited is not None and edited.word is not None:
            self._events[one.candidate] = (*edited.events, *self._events.get(one.candidate, ()))
            if one.rank is None:  # a child has none of its own: it gets its parent's place
                one = replace(one, grade=edited.word.grade, rank=edited.word.rank)
        elif one.run in self.review_runs and not self._is_frozen:
            return Fate("out")
        if verdict is not None:
            return self._fate_by(verdict, one)
        if self._recipe.required == "none" or edited is not None or self._is_frozen:
            return Fate("negative", one.grade, one.rank)
        self.tally.undecided += 1
        return Fate("out")

    def _fate_by(self, verdict: Verdict, one: Negative) -> Fate:
        word = verdict.word
        if word is None:
            self.tally.disputed += 1
        elif not self._holds(verdict):
            self.tally.undecided += 1
        elif word.outcome == "drop":
            self.tally.dropped += 1
        elif word.outcome == "edit":
            self.tally.edited += 1
        elif word.outcome == "false_negative":
            self.tally.false_negatives += 1
            return Fate("positive", one.grade, one.rank)
        else:
            is_regraded = (word.grade, word.rank) != (one.grade, one.rank)
            self.tally.regraded += is_regraded
            self.tally.kept += not is_regraded
            return Fate("negative", word.grade, word.rank)
        return Fate("out")

    def of(self, candidate: int) -> tuple[Event, ...]:
        """The decisions behind a candidate of the page at hand, in the order of time."""
        return self._events.get(candidate, ())

    def _holds(self, verdict: Verdict) -> bool:
        if verdict.word is None:
            return False
        return self._recipe.required != "agreed" or verdict.state in ("agreed", "settled")


@dataclass(frozen=True, slots=True)
class Survey:
    """What people's decisions say of the whole selection: (query, passage) of false negatives and of what was kept as
    a negative, and the examples with a negative that was accepted."""

    false_negatives: Pairs = field(default_factory=set)
    kept: Pairs = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)


def within(session: Session, column: Any, keys: Set[int]) -> ColumnElement[bool]:
    """The column's value is one of these, however many they are."""
    if session.get_bind().dialect.name == "postgresql":
        matches: ColumnElement[bool] = column == any_(literal(sorted(keys), ARRAY(BigInteger)))
        return matches
    listed = func.json_each(orjson.dumps(sorted(keys)).decode()).table_valued("value")
    found: ColumnElement[bool] = column.in_(select(listed.c.value))
    return found


def _selected(
    session: Session, candidate_ids: Sequence[int], runs: frozenset[int]
) -> Iterator[tuple[int, int, int, int, str]]:
    """(candidate, query, passage, example, its digest) of those candidates that the runs select."""
    statement: Any = (
        select(Candidate.id, Example.query_id, Candidate.passage_id, Example.id, Example.digest, Candidate.run_id)
        .join(Example, Candidate.example_id == Example.id)
        .where(among(session, Candidate.id))
    )
    for *row, run in read(session, statement, candidate_ids):
        if not runs or run in runs:
            yield tuple(row)
