"""How suspect a negative is, and why: so that people look first where something is likely to be wrong.

Six signs are taken together as if each found faults on its own: value = 1 - prod(1 - sign), 0 to 1.

| sign | strength |
|---|---|
| a judge says that it answers the query | 0.9 for relevance 3, 0.7 for 2 |
| teachers see it above the positive | 0.6 of the share of the teachers that scored both |
| against the order of grades | 0.5 (1 - exp(-m)), m = widest margin, in spreads of the teacher |
| repeats the positive, or another negative | 0.9 or 0.4 of Jaccard, from 0.8 on; its recorded edit does not |
| teachers disagree | 0.5 d / (1 + d), d = spread of the teachers' z-scores |
| training kept it above the positive, or far below | `curation.reviewing.margins` |

The strengths are a judgement, not a measurement: they set an order, and no row leaves because of them. A teacher's
z-score is against the mean and spread of all that it scored, so that BM25 and cosines are comparable; its newest
version speaks. Nothing here depends on which candidates are asked about together.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, sqrt
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from curation.audit.duplicates import SHINGLE_WORDS, THRESHOLD
from curation.audit.ordering import hardness
from curation.audit.shingles import near_within, shingle
from curation.judging.verdicts import last_words
from curation.reviewing.margins import margin_signs
from db.reading import among, read
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.texts import Passage
from db.teachers import scores_likeness

PAGE = 1_000
_JUDGED = {2: 0.7, 3: 0.9}
_ABOVE, _INVERTED, _DISAGREE = 0.6, 0.5, 0.5
_NEAR_POSITIVE, _NEAR_NEGATIVE = 0.9, 0.4
_LEAST_SPREAD_SHOWN = 1.0


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why to look at a negative.

    Attributes:
        value: 0 to 1.
        reasons: One short line for each sign, the strongest first; plain text with names of teachers in it.
        disagreement: Spread of the teachers' z-scores; 0 with fewer than two.
        uncertainty: exp(-|mean z of the positive minus mean z of the negative|), 1 where the teachers cannot tell
            them apart; 0 where no teacher scored both.
    """

    value: float
    reasons: tuple[str, ...]
    disagreement: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class Norm:
    """A teacher's name, and the mean and spread of all its scores."""

    name: str
    mean: float
    spread: float


@dataclass(slots=True)
class _Member:
    """A candidate among the others of its example."""

    id: int
    example: int
    query: int
    passage: int
    run: int
    rank: int | None
    parent: int | None
    text: str
    is_positive: bool


_Scores = Mapping[int, Mapping[tuple[int, int], float]]  # teacher to (query, passage) to similarity
_Signs = list[tuple[float, str]]


def teacher_norms(session: Session) -> dict[int, Norm]:
    """Mean and spread of what each teacher's newest version scored: one pass over the scores. Margins are no scores of
    likeness, so their teachers are left out."""
    newest = select(func.max(Teacher.id)).where(scores_likeness()).group_by(Teacher.name)
    names = {key: name for key, name in session.execute(select(Teacher.id, Teacher.name).where(Teacher.id.in_(newest)))}
    sums = select(Score.teacher_id, func.avg(Score.value), func.avg(Score.value * Score.value))
    rows = session.execute(sums.where(Score.teacher_id.in_(names)).group_by(Score.teacher_id))
    return {
        key: Norm(names[key], mean, sqrt(max(square - mean * mean, 0.0)))
        for key, mean, square in sorted((key, mean, square) for key, mean, square in rows)
    }


def suspicions(
    session: Session, candidate_ids: Iterable[int], *, norms: Mapping[int, Norm] | None = None
) -> Iterator[dict[int, Suspicion]]:
    """Pages of suspicions by candidate; what is no negative of the store is left out.

    Candidates of one example are cheapest next to each other, because the whole example is looked at.
    """
    norms = teacher_norms(session) if norms is None else norms
    page: list[int] = []
    for key in candidate_ids:
        page.append(key)
        if len(page) == PAGE:
            yield suspicion_of(session, page, norms=norms)
            page = []
    if page:
        yield suspicion_of(session, page, norms=norms)


def suspicion_of(
    session: Session, candidate_ids: Sequence[int], *, norms: Mapping[int, Norm] | None = None
) -> dict[int, Suspicion]:
    """Suspicion of each of these negatives, and whatever else their examples hold.

    Args:
        norms: Of `teacher_norms`, where many pages are asked for.
    """
    norms = teacher_norms(session) if norms is None else norms
    wanted = set(candidate_ids)
    members = _members(session, sorted(wanted))
    scores = _scores(session, members, norms)
    signs: dict[int, _Signs] = defaultdict(list)
    _add_judged(session, members, wanted, signs)
    _add_repeats(members, signs)
    asked = ((one.id, one.query, one.passage, one.rank) for one in members if one.id in wanted)
    for key, said in margin_signs(session, asked).items():
        signs[key] += said
    examples: dict[int, list[_Member]] = defaultdict(list)
    for one in members:
        examples[one.example].append(one)
    found = {}
    for several in examples.values():
        positive = next((one for one in several if one.is_positive), None)
        _add_inversions(several, scores, norms, signs)
        for one in several:
            if one.id in wanted and not one.is_positive:
                found[one.id] = _suspicion(one, positive, scores, norms, signs[one.id])
    return found


def _suspicion(
    one: _Member, positive: _Member | None, scores: _Scores, norms: Mapping[int, Norm], signs: _Signs
) -> Suspicion:
    pair = (one.query, one.passage)
    z = {teacher: _z(norms[teacher], values[pair]) for teacher, values in scores.items() if pair in values}
    both = []
    if positive is not None:
        of_positive = (positive.query, positive.passage)
        both = [(teacher, _z(norms[teacher], scores[teacher][of_positive])) for teacher in z
                if of_positive in scores[teacher]]  # fmt: skip
    above = [norms[teacher].name for teacher, of_positive_z in both if z[teacher] > of_positive_z]
    if above:
        signs.append((_ABOVE * len(above) / len(both), f"above the positive: {', '.join(sorted(above))}"))
    disagreement = float(np.std(list(z.values()))) if len(z) > 1 else 0.0
    if disagreement:
        text = f"teachers disagree: spread {disagreement:.1f}" if disagreement >= _LEAST_SPREAD_SHOWN else ""
        signs.append((_DISAGREE * disagreement / (1 + disagreement), text))
    margin = abs(sum(of_positive_z - z[teacher] for teacher, of_positive_z in both)) / len(both) if both else None
    return Suspicion(
        value=1 - float(np.prod([1 - strength for strength, _ in signs])),
        reasons=tuple(text for _, text in sorted(signs, key=lambda sign: (-sign[0], sign[1])) if text),
        disagreement=disagreement,
        uncertainty=0.0 if margin is None else exp(-margin),
    )


def _z(norm: Norm, value: float) -> float:
    return (value - norm.mean) / norm.spread if norm.spread else 0.0


def _add_judged(session: Session, members: Sequence[_Member], wanted: set[int], signs: dict[int, _Signs]) -> None:
    asked = [one for one in members if one.id in wanted]
    words = last_words(session, [(one.query, one.passage) for one in asked])
    for one in asked:
        word = words.get((one.query, one.passage))
        if word is not None and word.relevance in _JUDGED:
            signs[one.id].append((_JUDGED[word.relevance], f"judged {word.relevance} of 3"))


def _add_repeats(members: Sequence[_Member], signs: dict[int, _Signs]) -> None:
    """The nearest repeat of the positive and of another negative."""
    if not members:
        return
    shingles = shingle([one.text for one in members], SHINGLE_WORDS)
    groups = np.array([one.example for one in members])
    nearest: dict[tuple[int, bool], float] = {}
    for at, other_at, similarity in zip(*near_within(shingles, groups, THRESHOLD), strict=True):
        pair = members[at], members[other_at]
        is_exact = bool(shingles.whole[at] == shingles.whole[other_at])
        if not is_exact and (pair[0].parent == pair[1].passage or pair[1].parent == pair[0].passage):
            continue
        for one, other in (pair, pair[::-1]):
            if not one.is_positive:
                place = one.id, other.is_positive
                nearest[place] = max(nearest.get(place, 0.0), 1.0 if is_exact else float(similarity))
    for (key, is_positive), similarity in nearest.items():
        strength, what = (_NEAR_POSITIVE, "the positive") if is_positive else (_NEAR_NEGATIVE, "another negative")
        signs[key].append((strength * similarity, f"repeats {what}: Jaccard {similarity:.2f}"))


def _add_inversions(
    several: Sequence[_Member], scores: _Scores, norms: Mapping[int, Norm], signs: dict[int, _Signs]
) -> None:
    """Of each ranked negative the widest margin by which a teacher sees the order of grades turned round.

    Ranks are compared within a run only: another run's ranks are another ladder.
    """
    ranked = [one for one in several if one.rank is not None and not one.is_positive]
    widest: dict[int, tuple[float, str]] = {}
    for one, other in combinations(ranked, 2):
        if one.run != other.run or hardness(one.rank or 0) == hardness(other.rank or 0):
            continue
        hard, easy = sorted((one, other), key=lambda each: -hardness(each.rank or 0))
        for teacher, values in scores.items():
            above, below = values.get((hard.query, hard.passage)), values.get((easy.query, easy.passage))
            if above is None or below is None or above >= below or not norms[teacher].spread:
                continue
            margin = (below - above) / norms[teacher].spread
            by = f"by {norms[teacher].name} ({above:.3f} and {below:.3f})"
            for each, text in (
                (hard, f"less similar than N{easy.rank} {by}"),
                (easy, f"more similar than N{hard.rank} {by}"),
            ):
                widest[each.id] = max(widest.get(each.id, (0.0, "")), (margin, text))
    for key, (margin, text) in widest.items():
        signs[key].append((_INVERTED * (1 - exp(-margin)), text))


def _members(session: Session, candidate_ids: Sequence[int]) -> list[_Member]:
    """Every candidate of these candidates' examples, the positive as well, in the order of examples."""
    examples = {
        key for (key,) in read(session, select(Candidate.example_id).where(among(session, Candidate.id)), candidate_ids)
    }
    statement: Any = (
        select(
            Candidate.id,
            Candidate.example_id,
            Example.query_id,
            Candidate.passage_id,
            Candidate.run_id,
            Candidate.rank,
            Candidate.parent_passage_id,
            Passage.text,
            (Candidate.role == "positive").label("is_positive"),
        )
        .join(Example, Candidate.example_id == Example.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .where(among(session, Candidate.example_id))
    )
    rows = read(session, statement, sorted(examples))
    return sorted((_Member(*row) for row in rows), key=lambda one: (one.example, one.id))


def _scores(session: Session, members: Sequence[_Member], norms: Mapping[int, Norm]) -> _Scores:
    """What the teachers say of these pairs."""
    pairs = {(one.query, one.passage) for one in members}
    statement: Any = select(Score.query_id, Score.passage_id, Score.value)
    queries = sorted({query for query, _ in pairs})
    found: dict[int, dict[tuple[int, int], float]] = {}
    for teacher in sorted(norms):
        rows = read(session, statement.where(Score.teacher_id == teacher, among(session, Score.query_id)), queries)
        found[teacher] = {(query, passage): value for query, passage, value in rows if (query, passage) in pairs}
    return found
