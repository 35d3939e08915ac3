"""Hidden items whose answers are known: from a file, or from what was settled in an earlier session."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.reviewing.recipe import Gold
from db.digest import digest_text
from db.tables.examples import Candidate, Example
from db.tables.review import CurrentDecision, Decision, ReviewSession
from db.tables.texts import Passage, Query

_ANSWERS = ("keep", "drop", "regrade", "false_negative")
_GRADES = ("hard", "medium", "easy")


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """The right decision on a negative of an example."""

    example_id: int
    candidate_id: int
    decision: str
    grade: str | None = None


def gold_answers(session: Session, gold: Gold) -> list[GoldAnswer]:
    """The known answers, one a negative, in the order of the file or of the settling, up to the limit of examples.

    Raises:
        CurationError: The file cannot be read or a line is not valid (it is named), the session is not known, or
            nothing of it stands in the store.
    """
    answers = _from_file(session, gold.file) if gold.file is not None else _from_session(session, gold.session or "")
    if not answers:
        source = f"gold.file = {gold.file}" if gold.file is not None else f"gold.session = {gold.session!r}"
        raise CurationError(f"{source}: none of its answers is on a negative of this store")
    examples = list(dict.fromkeys(answer.example_id for answer in answers))[: gold.limit]
    kept = set(examples)
    return [answer for answer in answers if answer.example_id in kept]


def _from_session(session: Session, name: str) -> list[GoldAnswer]:
    known = session.scalar(select(ReviewSession.id).where(ReviewSession.name == name))
    if known is None:
        raise CurationError(f"gold.session = {name!r}: there is no such review session; see 'gradus review list'")
    rows = session.execute(
        select(Candidate.example_id, Candidate.id, Decision.verdict, Decision.grade)
        .select_from(CurrentDecision)
        .join(Decision, Decision.id == CurrentDecision.decision_id)
        .join(Candidate, Candidate.id == CurrentDecision.candidate_id)
        .where(
            CurrentDecision.session_id == known,
            CurrentDecision.aspect == "settled",
            Decision.verdict.in_(_ANSWERS),
            Candidate.role == "negative",
        )
        .order_by(Decision.id)
    )
    found: dict[int, GoldAnswer] = {}
    for example, candidate, verdict, grade in rows:
        found[candidate] = GoldAnswer(example, candidate, str(verdict), grade if verdict == "regrade" else None)
    return list(found.values())


def _from_file(session: Session, path: Path) -> list[GoldAnswer]:
    found: dict[int, GoldAnswer] = {}
    for number, row in _lines(path):
        query, passage, decision, grade = _checked(row, f"{path}:{number}")
        of_pair = select(Candidate.example_id, Candidate.id).join(Example, Example.id == Candidate.example_id)
        matching = (
            of_pair.join(Query, Query.id == Example.query_id)
            .join(Passage, Passage.id == Candidate.passage_id)
            .where(Query.digest == query, Passage.digest == passage, Candidate.role == "negative")
            .order_by(Candidate.id)
            .limit(1)
        )
        for example, candidate in session.execute(matching):
            found[candidate] = GoldAnswer(example, candidate, decision, grade)
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, orjson.loads(line)
                    except orjson.JSONDecodeError as error:
                        raise CurationError(f"gold.file {path}:{number}: not JSON ({error})") from error
    except OSError as error:
        raise CurationError(f"gold.file = {path}: {error.strerror}") from error


def _checked(row: Any, where: str) -> tuple[str, str, str, str | None]:
    if not isinstance(row, dict):
        raise CurationError(f"gold.file {where}: not an object with query, passage and decision")
    digests = []
    for name in ("query", "passage"):
        text = row.get(name)
        if not isinstance(text, str) or not text.strip():
            raise CurationError(f"gold.file {where}: field {name!r} is missing; give the text or its SHA-256")
        is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
        digests.append(text if is_digest else digest_text(text))
    decision, grade = row.get("decision"), row.get("grade")
    if decision not in _ANSWERS:
        raise CurationError(f"gold.file {where}: decision = {decision!r}: give one of {', '.join(_ANSWERS)}")
    if (decision == "regrade") != (grade in _GRADES):
        raise CurationError(f"gold.file {where}: grade = {grade!r}: regrade needs hard, medium or easy, nothing else")
    return digests[0], digests[1], decision, grade
