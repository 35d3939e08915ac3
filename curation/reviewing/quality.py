"""How carefully people decide: pace against reading speed, repeated keys, and answers that are known.

Everything here is a warning for an admin to look at, never a reason to drop a decision. Reviewers are told by
pseudonym. A press is what a person did once: a verdict on a candidate, or accepting a whole example.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from statistics import median
from typing import Any, Literal

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from curation.audit.shingles import words_of
from curation.judging.verdicts import wilson
from db.tables.examples import Candidate
from db.tables.review import VERDICTS, CurrentDecision, Decision, ItemCandidate, Reviewer, ReviewItem
from db.tables.texts import Passage

# Silent reading of English non-fiction, words a minute (Brysbaert 2019); four times that reads no word of it. In
# scripts without spaces a character is a word here, and their readers manage about as many characters a minute.
READING_WPM = 238
_SKIMMING = 4
_FAR_BELOW = 0.25  # of the person's own median
_LEAST_PRESSES = 10
_LEAST_RUN = 5
_SURPRISE = 0.01
_PAGE = 2_000


@dataclass(frozen=True, slots=True)
class Press:
    """One press: `seconds` since the item was shown, or since the press before it on the same item."""

    reviewer: str
    label: str
    seconds: float
    num_words: int
    at: datetime

    @property
    def is_faster_than_reading(self) -> bool:
        return self.seconds < 60 * self.num_words / (READING_WPM * _SKIMMING)


@dataclass(frozen=True, slots=True)
class Run:
    """The longest run of one answer, and how many as long are expected by chance in so many presses."""

    label: str
    length: int
    num_expected: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How a person pressed.

    Attributes:
        num_faster_than_reading: Presses in less time than it takes to skim the text at 950 words a minute.
        num_far_below_median: Presses in less than a quarter of the person's own median, from ten presses on.
        run: Their longest run.
        warnings: What to look at, in words.
    """

    reviewer: str
    num_presses: int
    median_s: float
    num_faster_than_reading: int
    num_far_below_median: int
    run: Run
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Check:
    """An answer that can be held against another: a gold item's, or the person's own on a repeated item."""

    kind: Literal["gold", "repeat"]
    reviewer: str
    at: datetime
    is_right: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Successive checks of one person: how many were right, with Wilson's 95 % interval."""

    since: datetime
    until: datetime
    num: int
    num_right: int
    interval_95: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A person's checks of one kind over time; `is_drifting` when the last block is surely below those before."""

    kind: Literal["gold", "repeat"]
    reviewer: str
    num: int
    num_right: int
    interval_95: tuple[float, float]
    blocks: tuple[Block, ...]
    is_drifting: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def presses(session: Session, session_id: int, *, until: datetime | None = None) -> list[Press]:
    """Every press of a review session at its page, those that were undone too, in the order of time."""
    statement: Any = (
        select(
            Decision.id, Decision.assignment_id, Decision.kind, Decision.grade, Decision.bulk_id, Decision.shown_at,
            Decision.decided_at, Reviewer.pseudonym, Passage.text,
        )
        .join(ReviewItem, ReviewItem.id == Decision.item_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .outerjoin(Candidate, Candidate.id == Decision.candidate_id)
        .outerjoin(Passage, Passage.id == Candidate.passage_id)
        .where(
            ReviewItem.session_id == session_id,
            Decision.assignment_id.is_not(None),
            Decision.kind.in_((*VERDICTS, "accept_all")),
            *([Decision.decided_at <= until] if until else []),
        )
        .order_by(Decision.id)
    )  # fmt: skip
    found: list[Press] = []
    before: dict[int, datetime] = {}
    rows = session.execute(statement, execution_options={"yield_per": _PAGE})
    # What accepting a whole example wrote stands together, under one id.
    for _, together in groupby(rows, key=lambda row: row.bulk_id or row.id):
        several = list(together)
        row = several[0]
        start = max(row.shown_at, before.get(row.assignment_id, row.shown_at))
        before[row.assignment_id] = row.decided_at
        words = sum(len(words_of(one.text)) for one in several if one.text is not None)
        label = f"{row.kind} {row.grade}" if row.grade else row.kind
        seconds = (row.decided_at - start).total_seconds()
        found.append(Press(row.pseudonym, label, seconds, words, row.decided_at))
    return found


def paces(pressed: Sequence[Press]) -> list[Pace]:
    """One for each person, by pseudonym."""
    by_person: dict[str, list[Press]] = defaultdict(list)
    for one in pressed:
        by_person[one.reviewer].append(one)
    return [
        _pace(reviewer, own, [one for one in pressed if one.reviewer != reviewer])
        for reviewer, own in sorted(by_person.items())
    ]


def _pace(reviewer: str, own: Sequence[Press], others: Sequence[Press]) -> Pace:
    middle = median(one.seconds for one in own)
    fast = sum(one.is_faster_than_reading for one in own)
    below = sum(one.seconds < _FAR_BELOW * middle for one in own) if len(own) >= _LEAST_PRESSES else 0
    run = longest_run([one.label for one in own], [one.label for one in others])
    warnings = []
    if fast:
        warnings.append(f"{fast:,} of {len(own):,} decisions came faster than the text can be read")
    if below:
        warnings.append(f"{below:,} took less than a quarter of the usual {middle:.1f} s")
    if run.length >= _LEAST_RUN and run.num_expected < _SURPRISE:
        warnings.append(f"{run.length:,} times {run.label!r} in a row")
    return Pace(reviewer, len(own), middle, fast, below, run, tuple(warnings))


def longest_run(labels: Sequence[str], others: Sequence[str]) -> Run:
    """The longest run of one label; of two as long, the less expected one.

    The chance of a label is its share among the others' presses, or among the person's own where the others have fewer
    than ten; one is added to either side, so that no chance is 0 or 1. About n (1 - p) p^length runs that long are
    expected.
    """
    runs = {(label, sum(1 for _ in same)) for label, same in groupby(labels)}
    longest = max((length for _, length in runs), default=0)
    known = others if len(others) >= _LEAST_PRESSES else labels
    found = [Run("", 0, 1.0)]
    for label in sorted(label for label, length in runs if length == longest):
        chance = (known.count(label) + 1) / (len(known) + 2)
        found.append(Run(label, longest, max(len(labels) * (1 - chance), 1 - chance) * chance**longest))
    return min(found, key=lambda run: (-run.length, run.num_expected, run.label))


def checks(session: Session, session_id: int) -> list[Check]:
    """Every answer of a review session that can be held against another, in the order of time."""
    return sorted([*_gold(session, session_id), *_repeats(session, session_id)], key=lambda one: one.at)


def _gold(session: Session, session_id: int) -> list[Check]:
    rows = session.execute(
        select(
            Reviewer.pseudonym, Decision.decided_at, Decision.kind, Decision.grade, ItemCandidate.expected,
            ItemCandidate.expected_grade,
        )
        .select_from(ReviewItem)
        .join(ItemCandidate, ItemCandidate.item_id == ReviewItem.id)
        .join(
            CurrentDecision,
            and_(
                CurrentDecision.item_id == ReviewItem.id,
                CurrentDecision.candidate_id == ItemCandidate.candidate_id,
                CurrentDecision.aspect == "verdict",
            ),
        )
        .join(Decision, Decision.id == CurrentDecision.decision_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .where(ReviewItem.session_id == session_id, ReviewItem.kind == "gold", ItemCandidate.expected.is_not(None))
    )  # fmt: skip
    return [
        Check("gold", reviewer, at, kind == expected and (kind != "regrade" or grade == expected_grade))
        for reviewer, at, kind, grade, expected, expected_grade in rows
    ]


def _repeats(session: Session, session_id: int) -> list[Check]:
    """A person's second verdict on a candidate beside their first."""
    first, again = aliased(ReviewItem), aliased(ReviewItem)
    was, now = aliased(CurrentDecision), aliased(CurrentDecision)
    said, repeated = aliased(Decision), aliased(Decision)
    same_place = and_(first.session_id == again.session_id, first.position == again.repeats_position)
    same_thing = and_(
        was.item_id == first.id,
        was.reviewer_id == now.reviewer_id,
        was.candidate_id == now.candidate_id,
        was.aspect == "verdict",
    )
    rows = session.execute(
        select(
            Reviewer.pseudonym, repeated.decided_at, said.kind, said.grade, said.other_candidate_id, repeated.kind,
            repeated.grade, repeated.other_candidate_id,
        )
        .select_from(again)
        .join(first, same_place)
        .join(now, and_(now.item_id == again.id, now.aspect == "verdict"))
        .join(was, same_thing)
        .join(said, said.id == was.decision_id)
        .join(repeated, repeated.id == now.decision_id)
        .join(Reviewer, Reviewer.id == now.reviewer_id)
        .where(again.session_id == session_id, again.kind == "repeat")
    )  # fmt: skip
    return [Check("repeat", reviewer, at, words[:3] == words[3:]) for reviewer, at, *words in rows]


def accuracies(found: Sequence[Check], *, block: int = 10) -> list[Accuracy]:
    """Accuracy of each person over time, in blocks of so many checks; a last block of fewer joins the one before."""
    groups: dict[tuple[str, str], list[Check]] = defaultdict(list)
    for one in found:
        groups[one.reviewer, one.kind].append(one)
    return [_accuracy(several, block) for _, several in sorted(groups.items())]


def _accuracy(several: Sequence[Check], size: int) -> Accuracy:
    ends = [*range(size, len(several) - size + 1, size), len(several)]
    parts = [several[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    blocks = tuple(Block(part[0].at, part[-1].at, len(part), _right(part), _interval(part)) for part in parts if part)
    earlier = [one for part in parts[:-1] for one in part]
    is_drifting = bool(earlier) and blocks[-1].interval_95[1] < _interval(earlier)[0]
    first = several[0]
    return Accuracy(first.kind, first.reviewer, len(several), _right(several), _interval(several), blocks, is_drifting)


def _right(several: Sequence[Check]) -> int:
    return sum(one.is_right for one in several)


def _interval(several: Sequence[Check]) -> tuple[float, float]:
    return wilson(_right(several), len(several)) or (0.0, 1.0)
