"""An edited negative is a child row beside its parent, scored by the teachers before it is accepted.

The page scores the new text first (with a callable that `app` hands in), shows the figures beside the old ones, and
only then puts the child and decides `edit`. The parent stays as it was; a child that nobody's decision names is in no
release.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.reviewing.people import require
from curation.reviewing.queue import EDITING
from db.digest import digest_text
from db.examples import NewCandidate, put_candidates
from db.insert import insert_missing
from db.runs import finish_run, start_run
from db.tables.examples import Candidate, Example, Score, Teacher
from db.tables.ledger import Run
from db.tables.review import ItemCandidate, Reviewer, ReviewItem, ReviewSession
from db.tables.texts import Passage, Query
from db.teachers import scores_likeness
from db.texts import put_passages

# Similarity of a query and a passage, by the teacher's name.
Scoring = Callable[[str, str], Mapping[str, float]]
_MAX_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Rescored:
    """An edit that has been scored and not yet accepted, beside what it changes; scores by the teachers' names."""

    candidate_id: int
    text: str
    scores: Mapping[str, float]
    scores_before: Mapping[str, float]
    positive_scores: Mapping[str, float]

    def is_above_positive(self, teacher: str) -> bool:
        """Does the edited text now stand closer to the query than the positive?"""
        positive = self.positive_scores.get(teacher)
        return positive is not None and self.scores.get(teacher, positive) > positive


def rescore(session: Session, item_id: int, candidate_id: int, text: str, scoring: Scoring) -> Rescored:
    """Score an edited text as the teachers see it; nothing is written. May take as long as a model takes.

    Raises:
        CurationError: The text is empty, too long, unchanged or stands in the example already, or the candidate is
            not asked about by the item.
    """
    text = text.strip()
    parent, query_id, query, positive_id = _parent(session, item_id, candidate_id)
    _refuse_text(session, parent, text)
    keys = (parent.passage_id, positive_id)
    known: dict[int, dict[str, float]] = {key: {} for key in keys}
    for passage, teacher, value in session.execute(
        select(Score.passage_id, Teacher.name, Score.value)
        .join(Teacher, Teacher.id == Score.teacher_id)
        .where(Score.query_id == query_id, Score.passage_id.in_(keys), scores_likeness())
        .order_by(Teacher.id)
    ):
        known[passage][teacher] = value
    return Rescored(candidate_id, text, dict(scoring(query, text)), known[parent.passage_id], known[positive_id])


def put_edit(session: Session, item_id: int, reviewer: Reviewer, rescored: Rescored) -> int:
    """Id of the child candidate that `decide(kind="edit", other_candidate_id=...)` names; its scores are stored too.

    The child has its parent's grade and no rank of its own: the parent's place is its, once a decision says so.

    Raises:
        CurationError: As for `rescore`, or the person may not review.
    """
    require(session, reviewer, "reviewer")
    parent, query_id, _, _ = _parent(session, item_id, rescored.candidate_id)
    known = _refuse_text(session, parent, rescored.text)
    if known is not None:
        return known.id
    review_session = session.scalars(
        select(ReviewSession)
        .join(ReviewItem, ReviewItem.session_id == ReviewSession.id)
        .where(ReviewItem.id == item_id)
    ).one()
    run = start_run(session, EDITING, review_session.name, {"review_session": review_session.uid}, review_session.seed)
    finish_run(session, run, {})  # nothing goes on between two edits, so no page need wait for it
    (passage,) = put_passages(session, [rescored.text])
    new = NewCandidate(
        parent.example_id, passage, "negative", "edited", run.id, grade=parent.grade,
        violated_requirement=parent.violated_requirement, parent_passage_id=parent.passage_id,
    )  # fmt: skip
    child = put_candidates(session, [new])[parent.example_id, passage]
    newest = select(Teacher.id).order_by(Teacher.id.desc()).limit(1)
    rows = []
    for teacher, value in rescored.scores.items():
        key = session.scalar(newest.where(Teacher.name == teacher))
        if key is not None:
            rows.append({"teacher_id": key, "query_id": query_id, "passage_id": passage, "value": float(value)})
    insert_missing(session, Score, rows)
    return child


def _parent(session: Session, item_id: int, candidate_id: int) -> tuple[Candidate, int, str, int]:
    """(The candidate, the query's id and text, the positive's id)."""
    row = session.execute(
        select(Candidate, Query.id, Query.text, Example.positive_id)
        .join(ItemCandidate, ItemCandidate.candidate_id == Candidate.id)
        .join(Example, Example.id == Candidate.example_id)
        .join(Query, Query.id == Example.query_id)
        .where(ItemCandidate.item_id == item_id, Candidate.id == candidate_id)
    ).one_or_none()
    if row is None:
        raise CurationError(f"candidate {candidate_id} is not asked about by this item")
    return row[0], row[1], row[2], row[3]


def _refuse_text(session: Session, parent: Candidate, text: str) -> Candidate | None:
    """The child that has this text already, if somebody made the same edit."""
    if not text:
        raise CurationError("the edited text is empty: write one, or drop the candidate")
    if "\x00" in text:
        raise CurationError("the edited text holds a NUL character, which no database can store: take it out")
    if len(text) > _MAX_CHARACTERS:
        raise CurationError(f"the edited text has {len(text):,} characters, at most {_MAX_CHARACTERS:,} can be")
    row = session.execute(
        select(Candidate, Run.kind)
        .join(Passage, Passage.id == Candidate.passage_id)
        .join(Run, Run.id == Candidate.run_id)
        .where(Candidate.example_id == parent.example_id, Passage.digest == digest_text(text))
    ).one_or_none()
    if row is None:
        return None
    known, kind = row
    if known.id == parent.id:
        raise CurationError("the edited text is the text as it was: change it, or keep the candidate")
    if known.parent_passage_id == parent.passage_id and kind == EDITING:
        return known
    raise CurationError(f"the edited text is that of candidate {known.id} of the same example: drop one of them")
