"""A desk for review: a small store, a session over it, and people who decide, with their clock in the test's hand."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.reviewing.events import NewDecision, record, revoke
from db.digest import digest_text
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Score
from db.tables.review import (
    Assignment,
    Decision,
    ItemCandidate,
    Reviewer,
    ReviewItem,
    ReviewSession,
    Rubric,
    SessionReviewer,
)
from db.teachers import put_teacher
from db.texts import put_passages, put_queries

START = datetime(2026, 5, 4, 9, 0, tzinfo=UTC)
GRADES = ("hard", "medium", "medium", "easy")


@dataclass
class Desk:
    """Examples `q n` with negatives `w n rank`, and whatever sessions and decisions a test puts on them."""

    store: Store
    examples: list[int] = field(default_factory=list)
    candidates: dict[str, int] = field(default_factory=dict)
    items: dict[tuple[str, int], int] = field(default_factory=dict)
    clock: datetime = START

    def fill(self, nums: list[int]) -> None:
        """One example for each number, with so many ranked negatives and a mined one."""
        with self.store.write() as session:
            run = start_run(session, "generate", "toy", {"pack": "v1", "pack_digest": "f" * 64}, 0).id
            teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=8)
            for n, num in enumerate(nums):
                texts = [f"p {n}", *(f"w {n} {rank}" for rank in range(1, num + 1)), f"m {n}"]
                passages = dict(zip(texts, put_passages(session, texts), strict=True))
                (query,) = put_queries(session, [f"q {n}"])
                (example,) = put_examples(session, [(query, passages[f"p {n}"])], origin="corpus")
                rows = [NewCandidate(example, passages[f"p {n}"], "positive", "corpus", run)]
                for rank in range(1, num + 1):
                    rows.append(NewCandidate(example, passages[f"w {n} {rank}"], "negative", "synthetic", run,
                                             grade=GRADES[rank - 1], rank=rank))  # fmt: skip
                rows.append(NewCandidate(example, passages[f"m {n}"], "negative", "mined", run))
                keys = put_candidates(session, rows)
                self.examples.append(example)
                self.candidates |= {text: keys[example, passages[text]] for text in texts}
                insert_missing(session, Score, [
                    {"teacher_id": teacher, "query_id": query, "passage_id": passages[text], "value": 0.9 - 0.1 * at,
                     "num_tokens": 3}
                    for at, text in enumerate(texts)
                ])  # fmt: skip

    def person(self, name: str, role: str = "reviewer") -> Reviewer:
        with self.store.write() as session:
            known = session.scalars(select(Reviewer).where(Reviewer.name == name)).one_or_none()
            if known is None:
                known = Reviewer(name=name, pseudonym=f"reviewer-{name}-x", role=role)
                session.add(known)
            return known

    def session(
        self, name: str = "s", *, nums: list[int] | None = None, overlap: int = 2, strata: bool = False, **more: Any
    ) -> ReviewSession:
        """A session over these examples by number (all), asking about every negative."""
        owner = self.person("owner", "admin")
        with self.store.write() as session:
            text = "# Rubric"
            rubric = session.scalars(select(Rubric)).first()
            if rubric is None:
                rubric = Rubric(name="default", version=1, digest=digest_text(text), text=text)
                session.add(rubric)
                session.flush()
            values = {"definition": {}, "facts": {}, "is_blind": False, "is_by_invitation": False, "lease_s": 900.0,
                      "seed": 0} | more  # fmt: skip
            numbers = list(range(len(self.examples))) if nums is None else nums
            values["facts"] = {"items": {"regular": len(numbers)}} | values["facts"]
            values["num_slots"] = overlap * len(numbers)
            made = ReviewSession(
                uid=uuid4().hex, name=name, rubric_id=rubric.id, overlap=overlap, created_by=owner.id, **values
            )
            session.add(made)
            session.flush()
            for position, n in enumerate(numbers):
                self.items[name, n] = self.item(session, made.id, position, n, strata=strata)
            return made

    def item(
        self, session: Session, session_id: int, position: int, n: int, *, kind: str = "regular", strata: bool = False,
        repeats: int | None = None, expected: dict[str, tuple[str, str | None]] | None = None,
    ) -> int:  # fmt: skip
        item = ReviewItem(session_id=session_id, position=position, example_id=self.examples[n], kind=kind,
                          repeats_position=repeats)  # fmt: skip
        session.add(item)
        session.flush()
        for text, key in self.candidates.items():
            parts = text.split()
            if parts[0] in "wm" and int(parts[1]) == n:
                grade = GRADES[int(parts[2]) - 1] if parts[0] == "w" else "ungraded"
                answer = (expected or {}).get(text, (None, None))
                session.add(
                    ItemCandidate(
                        item_id=item.id, candidate_id=key, expected=answer[0], expected_grade=answer[1],
                        stratum=f"{grade}/{'synthetic' if parts[0] == 'w' else 'mined'}" if strata else None,
                    )
                )  # fmt: skip
        session.flush()
        return item.id

    def say(
        self, who: str, text: str, kind: str, *, session: str = "s", grade: str | None = None, other: str | None = None,
        seconds: float = 8.0, verdict: str | None = None, item: int | None = None, role: str = "reviewer",
        bulk_id: str | None = None, shown: datetime | None = None,
    ) -> Decision:  # fmt: skip
        """A decision of a person on the candidate of this text, `seconds` from now; the clock goes on.

        `shown` is when it was shown, by default now.
        """
        person = self.person(who, role)
        n = int(text.split()[1])
        key = self.items[session, n] if item is None else item
        with self.store.write() as opened:
            review_session = opened.scalars(
                select(ReviewSession).join(ReviewItem, ReviewItem.session_id == ReviewSession.id).where(
                    ReviewItem.id == key
                )
            ).one()  # fmt: skip
            assignment = (
                None if kind == "settle" or bulk_id else self._assignment(opened, key, review_session.id, person)
            )
            shown, self.clock = shown or self.clock, self.clock + timedelta(seconds=seconds)
            (made,) = record(opened, review_session.id, [
                NewDecision(
                    item_id=key, reviewer_id=person.id, kind=kind, rubric_id=review_session.rubric_id,
                    decided_at=self.clock, candidate_id=self.candidates[text], verdict=verdict, grade=grade,
                    other_candidate_id=self.candidates[other] if other else None, shown_at=shown,
                    assignment_id=assignment, bulk_id=bulk_id,
                )
            ])  # fmt: skip
            return made

    def pass_over(self, who: str, n: int, kind: str, *, session: str = "s") -> Decision:
        """A skip or a flag of the whole example."""
        person, key = self.person(who), self.items[session, n]
        self.clock += timedelta(seconds=8)
        with self.store.write() as opened:
            of = opened.get_one(ReviewItem, key).session_id
            rubric = opened.get_one(ReviewSession, of).rubric_id
            new = NewDecision(
                item_id=key, reviewer_id=person.id, kind=kind, rubric_id=rubric, decided_at=self.clock,
                shown_at=self.clock, assignment_id=self._assignment(opened, key, of, person),
            )  # fmt: skip
            return record(opened, of, [new])[0]

    def _assignment(self, session: Session, item: int, session_id: int, person: Reviewer) -> int:
        known = session.scalars(
            select(Assignment).where(Assignment.item_id == item, Assignment.reviewer_id == person.id)
        ).one_or_none()
        if known is None:
            insert_missing(session, SessionReviewer, [
                {"session_id": session_id, "reviewer_id": person.id, "is_invited": False, "cursor": 0,
                 "num_finished": 0}
            ])  # fmt: skip
            slots = len(session.scalars(select(Assignment.slot).where(Assignment.item_id == item)).all())
            position = session.scalars(select(ReviewItem.position).where(ReviewItem.id == item)).one()
            known = Assignment(session_id=session_id, item_id=item, position=position, slot=slots + 1,
                               reviewer_id=person.id, opened_at=self.clock,
                               leased_until=self.clock + timedelta(minutes=15))  # fmt: skip
            session.add(known)
            session.flush()
        return known.id

    def undo(self, decision: Decision) -> None:
        self.clock += timedelta(seconds=1)
        with self.store.write() as session:
            revoke(session, [session.get_one(Decision, decision.id)], decision.reviewer_id, self.clock)

    def edit(self, text: str, words: str, run_name: str = "s") -> str:
        """A child candidate of `text` with other words, under the name of its words."""
        with self.store.write() as session:
            parent = session.get_one(Candidate, self.candidates[text])
            run = start_run(session, "review", run_name, {"review_session": run_name}, 0)
            (passage,) = put_passages(session, [words])
            new = NewCandidate(parent.example_id, passage, "negative", "edited", run.id, grade=parent.grade,
                               parent_passage_id=parent.passage_id)  # fmt: skip
            self.candidates[words] = put_candidates(session, [new])[parent.example_id, passage]
        return words
