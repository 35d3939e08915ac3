"""How far the reviewers of a session agree: on what becomes of a negative, and on its grade.

Two scales. *Outcome* (in no order): keep, drop, false negative, edit; a regraded or swapped negative is kept. *Grade*
(easy < medium < hard): as each person would have it, of those who keep it; keeping in a blind session says nothing of
the grade. Settled or not makes no difference here: what each said stands.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from curation.reviewing.coefficients import Agreements, Ratings, agreements
from curation.reviewing.verdicts import Verdict, Verdicts

OUTCOMES = ("keep", "drop", "false_negative", "edit")
GRADES = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class SessionAgreement:
    """Agreement on both scales, over a session's regular items; reviewers by pseudonym."""

    outcome: Agreements
    grade: Agreements

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def session_agreement(
    session: Session, name: str, *, until: datetime | None = None, seed: int = 0, num_resamples: int = 1_000
) -> SessionAgreement:
    """Agreement of a review session as it stands, or as of a moment.

    Raises:
        CurationError: There is no such session.
    """
    return agreement_of(verdicts_of(session, name, until=until), seed=seed, num_resamples=num_resamples)


def agreement_of(
    verdicts: Iterator[tuple[int, int, Verdict]], *, seed: int = 0, num_resamples: int = 1_000
) -> SessionAgreement:
    """The same of (example, candidate, verdict)."""
    outcomes: list[tuple[int, int, str, str]] = []
    grades: list[tuple[int, int, str, str]] = []
    for example, candidate, verdict in verdicts:
        for word in verdict.words:
            outcomes.append((example, candidate, word.reviewer, word.outcome))
            if word.outcome == "keep" and word.has_grade and word.grade is not None:
                grades.append((example, candidate, word.reviewer, word.grade))
    of_outcome = Ratings.of(outcomes, categories=OUTCOMES)
    of_grade = Ratings.of(grades, categories=GRADES, is_ordinal=True)
    return SessionAgreement(
        agreements(of_outcome, seed=seed, num_resamples=num_resamples),
        agreements(of_grade, seed=seed, num_resamples=num_resamples),
    )


def verdicts_of(session: Session, name: str, *, until: datetime | None = None) -> Iterator[tuple[int, int, Verdict]]:
    """(example, candidate, verdict) of a review session, in the order of examples, a page at a time.

    Raises:
        CurationError: There is no such session.
    """
    verdicts = Verdicts(session, sessions=(name,), until=until)
    for page in verdicts.reviewed_examples():
        by_example = verdicts.by_example(page)
        for example in page:
            for candidate, verdict in sorted(by_example.get(example, {}).items()):
                yield example, candidate, verdict
