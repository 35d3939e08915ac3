"""What people found, as facts for a page, a manifest and a card: how much they looked at, what they changed, how far
they agree, and of an audit sample the error rate of the whole with an interval.

A negative counts as wrong that people would not leave as it is: dropped, a false negative, regraded, edited, and, until
it is settled, one on which they disagree. Skipped examples were not looked at. Reviewers are told by pseudonym.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session, aliased

from curation.judging.verdicts import wilson
from curation.reviewing.agreement import SessionAgreement, agreement_of, verdicts_of
from curation.reviewing.quality import Accuracy, Check, Pace, Press, accuracies, checks, paces, presses
from curation.reviewing.sampling import Audited, Stratum, audited
from curation.reviewing.sessions import session_named
from curation.reviewing.verdicts import Verdict
from db.reading import among, read
from db.tables.examples import Candidate
from db.tables.review import Decision, ItemCandidate, ReviewItem, ReviewSession, Rubric

FATES = ("kept", "regraded", "drop", "false_negative", "edit", "disputed")
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Reviewed:
    """A candidate that people decided on: what they decided together, and what it was before."""

    example: int
    candidate: int
    verdict: Verdict
    was: tuple[str | None, int | None]

    @property
    def fate(self) -> str:
        """One of `FATES`."""
        word = self.verdict.word
        if word is None:
            return "disputed"
        if word.outcome != "keep":
            return word.outcome
        return "kept" if not word.has_grade or (word.grade, word.rank) == self.was else "regraded"


def reviewed(session: Session, name: str, *, until: datetime | None = None) -> list[Reviewed]:
    """Every candidate that somebody decided on in a session.

    Raises:
        CurationError: There is no such session.
    """
    rows = list(verdicts_of(session, name, until=until))
    places: dict[int, tuple[str | None, int | None]] = {}
    statement: Any = select(Candidate.id, Candidate.grade, Candidate.rank).where(among(session, Candidate.id))
    for start in range(0, len(rows), _PAGE):
        keys = [candidate for _, candidate, _ in rows[start : start + _PAGE]]
        places.update({key: (grade, rank) for key, grade, rank in read(session, statement, keys)})
    return [Reviewed(example, candidate, verdict, places[candidate]) for example, candidate, verdict in rows]


def audit_of(session: Session, review_session: ReviewSession, found: Iterable[Reviewed]) -> Audited | None:
    """Error rates of an audit sample by stratum and over all, valid at whatever moment this is asked; None for a
    session that is no sample."""
    strata = review_session.facts.get("strata")
    sample = review_session.definition.get("queue", {}).get("sample")
    if not strata or not sample:
        return None
    strata_rows = session.execute(
        select(ItemCandidate.candidate_id, ItemCandidate.stratum)
        .join(ReviewItem, ReviewItem.id == ItemCandidate.item_id)
        .where(
            ReviewItem.session_id == review_session.id,
            ReviewItem.kind == "regular",
            ItemCandidate.stratum.is_not(None),
        )
    )
    stratum_of = {candidate: stratum for candidate, stratum in strata_rows}
    looked_at: Counter[str | None] = Counter()
    wrong: Counter[str | None] = Counter()
    for one in found:
        if (stratum := stratum_of.get(one.candidate)) is not None:
            looked_at[stratum] += 1
            wrong[stratum] += one.fate != "kept"
    return audited(
        [Stratum(one["name"], one["size"], looked_at[one["name"]], wrong[one["name"]]) for one in strata],
        max_error_rate=sample.get("max_error_rate"),
        confidence=sample.get("confidence", 0.95),
    )


@dataclass(frozen=True, slots=True)
class SessionReport:
    """A review session as it stands: how far people agree, what their sample says, how carefully they decide.

    `fates` counts candidates by what people make of them, `num_changed` all that are not kept as they were; `skipped`
    and `flagged` are examples.
    """

    num: int
    fates: dict[str, int]
    num_changed: int
    num_settled: int
    num_skipped: int
    num_flagged: int
    agreement: SessionAgreement
    audit: Audited | None
    paces: list[Pace]
    accuracies: list[Accuracy]


def session_report(session: Session, name: str, *, num_resamples: int = 1_000) -> SessionReport:
    """Everything of a session by now.

    Raises:
        CurationError: There is no such session.
    """
    review_session = session_named(session, name)
    found = reviewed(session, name)
    fates = Counter(one.fate for one in found)
    return SessionReport(
        num=len(found),
        fates={fate: fates[fate] for fate in FATES},
        num_changed=len(found) - fates["kept"],
        num_settled=sum(one.verdict.state == "settled" for one in found),
        **_passed_over(session, review_session, None),
        agreement=agreement_of(_told(found), num_resamples=num_resamples),
        audit=audit_of(session, review_session, found),
        paces=paces(presses(session, review_session.id)),
        accuracies=accuracies(checks(session, review_session.id)),
    )


def _passed_over(session: Session, review_session: ReviewSession, until: datetime | None) -> dict[str, int]:
    """How many examples somebody skipped, and how many somebody flagged, as it stood at the moment."""
    undo = aliased(Decision)
    undone = and_(undo.undoes_id == Decision.id, *([undo.decided_at <= until] if until else []))
    rows = session.execute(
        select(Decision.kind, func.count(Decision.item_id.distinct()))
        .join(ReviewItem, ReviewItem.id == Decision.item_id)
        .outerjoin(undo, undone)
        .where(
            ReviewItem.session_id == review_session.id,
            ReviewItem.kind == "regular",
            Decision.kind.in_(("skip", "flag")),
            undo.id.is_(None),
            *([Decision.decided_at <= until] if until else []),
        )
        .group_by(Decision.kind)
    )
    found = {kind: num for kind, num in rows}
    return {"num_skipped": found.get("skip", 0), "num_flagged": found.get("flag", 0)}


def _told(found: Iterable[Reviewed]) -> Iterator[tuple[int, int, Verdict]]:
    return ((one.example, one.candidate, one.verdict) for one in found)


def human_audit(
    session: Session, *, sessions: Collection[str] = (), examples: Collection[int] | None = None,
    until: datetime | None = None, num_resamples: int = 1_000,
) -> list[dict[str, Any]]:  # fmt: skip
    """The facts of each review session that decided anything, by name.

    Args:
        sessions: Names of those that count; all when empty.
        examples: Leave out sessions that reviewed none of these examples; None for all.
        until: As of this moment.
    """
    statement = select(ReviewSession, Rubric).join(Rubric, Rubric.id == ReviewSession.rubric_id)
    if sessions:
        statement = statement.where(ReviewSession.name.in_(sessions))
    facts = []
    known = None if examples is None else np.unique(np.fromiter(examples, np.int64))
    for review_session, rubric in session.execute(statement.order_by(ReviewSession.name)):
        found = reviewed(session, review_session.name, until=until)
        seen = np.array([one.example for one in found], np.int64)
        num_here = len(found) if known is None else int(np.isin(seen, known).sum())
        if num_here:
            told = _facts(session, review_session, rubric, found, until, num_resamples)
            facts.append(told | {"num_in_examples_of_this": num_here})
    return facts


def _facts(
    session: Session, review_session: ReviewSession, rubric: Rubric, found: list[Reviewed], until: datetime | None,
    num_resamples: int,
) -> dict[str, Any]:  # fmt: skip
    fates = Counter(one.fate for one in found)
    changed = len(found) - fates["kept"]
    agreement = agreement_of(((one.example, one.candidate, one.verdict) for one in found), num_resamples=num_resamples)
    by_person = Counter(word.reviewer for one in found for word in one.verdict.words)
    audit = audit_of(session, review_session, found)
    return {
        "session": review_session.name,
        "rubric": f"{rubric.name} v{rubric.version}",
        "rubric_digest": rubric.digest,
        "is_blind": review_session.is_blind,
        "overlap": review_session.overlap,
        "reviewers": [{"reviewer": reviewer, "num": num} for reviewer, num in sorted(by_person.items())],
        "num": len(found),
        "num_examples": len({one.example for one in found}),
        "fates": {fate: fates[fate] for fate in FATES},
        "num_settled": sum(one.verdict.state == "settled" for one in found),
        **_passed_over(session, review_session, until),
        "num_changed": changed,
        "changed_interval_95": wilson(changed, len(found)),
        "agreement": {
            "num_shared": agreement.outcome.num_shared_units,
            "share_same": agreement.outcome.share_same,
            "outcome_alpha": asdict(agreement.outcome.alpha),
            "grade_alpha": asdict(agreement.grade.alpha),
            "num_graded_by_several": agreement.grade.num_shared_units,
        },
        "checks": _checked([one for one in checks(session, review_session.id) if until is None or one.at <= until]),
        "warnings": _warned(presses(session, review_session.id, until=until)),
        "audit": None if audit is None else asdict(audit),
    }  # fmt: skip


def _checked(found: list[Check]) -> dict[str, dict[str, int]]:
    return {
        kind: {
            "num": sum(one.kind == kind for one in found),
            "num_right": sum(one.kind == kind and one.is_right for one in found),
        }
        for kind in ("gold", "repeat")
    }


def _warned(pressed: list[Press]) -> dict[str, int]:
    return {
        "num_presses": len(pressed),
        "num_faster_than_reading": sum(one.is_faster_than_reading for one in pressed),
        "num_people_with_warnings": sum(bool(one.warnings) for one in paces(pressed)),
    }
