"""A session's events for others to read: digests instead of keys, pseudonyms instead of names."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, aliased

from db.tables.examples import Candidate, Example
from db.tables.review import CurrentDecision, Decision, Reviewer, ReviewItem, ReviewSession, Rubric
from db.tables.texts import Passage, Query

_PAGE = 2_000


def exported_events(session: Session, review_session: ReviewSession) -> Iterator[dict[str, Any]]:
    """Every event of a session in the order in which it was written, the undone and the undoing ones too.

    `stands` says whether an event still holds; `undoes` is the uid of the one that it takes back.
    """
    candidate, passage, other, other_passage = (
        aliased(Candidate), aliased(Passage), aliased(Candidate), aliased(Passage),
    )  # fmt: skip
    undone = aliased(Decision)
    stands = exists().where(CurrentDecision.decision_id == Decision.id)
    rows = session.execute(
        select(
            Decision, ReviewItem.position, ReviewItem.kind, Reviewer.pseudonym, Query.digest, passage.digest,
            other_passage.digest, undone.uid, stands, Rubric.name, Rubric.version, Rubric.digest,
        )
        .select_from(Decision)
        .join(ReviewItem, ReviewItem.id == Decision.item_id)
        .join(Example, Example.id == ReviewItem.example_id)
        .join(Query, Query.id == Example.query_id)
        .join(Reviewer, Reviewer.id == Decision.reviewer_id)
        .join(Rubric, Rubric.id == Decision.rubric_id)
        .outerjoin(candidate, candidate.id == Decision.candidate_id)
        .outerjoin(passage, passage.id == candidate.passage_id)
        .outerjoin(other, other.id == Decision.other_candidate_id)
        .outerjoin(other_passage, other_passage.id == other.passage_id)
        .outerjoin(undone, undone.id == Decision.undoes_id)
        .where(ReviewItem.session_id == review_session.id)
        .order_by(Decision.id),
        execution_options={"yield_per": _PAGE},
    )  # fmt: skip
    for one, position, item, pseudonym, query, text, other_text, undoes, is_standing, name, version, rubric in rows:
        yield {
            "uid": one.uid, "session": review_session.name, "position": position, "item": item, "reviewer": pseudonym,
            "kind": one.kind, "verdict": one.verdict, "grade": one.grade, "query": query, "passage": text,
            "other_passage": other_text, "payload": one.payload, "undoes": undoes, "stands": bool(is_standing),
            "bulk": one.bulk_id, "rubric": {"name": name, "version": version, "digest": rubric},
            "shown_at": one.shown_at, "decided_at": one.decided_at, "client_ms": one.client_ms,
        }  # fmt: skip
