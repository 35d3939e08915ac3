"""A store to review: examples with graded negatives, scored; and people."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from curation.reviewing.people import put_reviewer
from curation.reviewing.recipe import SessionRecipe
from curation.reviewing.sessions import create_session
from db.examples import NewCandidate, put_candidates, put_examples
from db.insert import insert_missing
from db.runs import start_run
from db.store import Store
from db.tables.examples import Score
from db.tables.review import Reviewer, ReviewSession
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from tests.curation.desk import Desk

GRADES = ("hard", "medium", "medium", "easy")


@dataclass(slots=True)
class Reviewing:
    """A store with `num` examples of one to four negatives, people who may review, and a clock that only goes on."""

    store: Store
    people: dict[str, Reviewer] = field(default_factory=dict)
    now: datetime = datetime(2026, 3, 1, tzinfo=UTC)

    def fill(self, num: int) -> None:
        with self.store.write() as session:
            run = start_run(session, "generate", "graded", {"n": num}, 0)
            teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=8)
            queries = put_queries(session, [f"query {n}" for n in range(num)])
            positives = put_passages(session, [f"positive {n}" for n in range(num)])
            examples = put_examples(session, list(zip(queries, positives, strict=True)), origin="synthetic")
            candidates, scores = [], []
            for n, (example, query, positive) in enumerate(zip(examples, queries, positives, strict=True)):
                candidates.append(NewCandidate(example, positive, "positive", "corpus", run.id))
                scores.append({"query_id": query, "passage_id": positive, "value": 0.9})
                texts = [f"negative {n} {rank}" for rank in range(1, 5 - n % 4)]
                for rank, passage in enumerate(put_passages(session, texts), start=1):
                    grade = GRADES[rank - 1]
                    origin = "mined" if rank == 3 else "synthetic"
                    new = NewCandidate(example, passage, "negative", origin, run.id, grade=grade, rank=rank)
                    candidates.append(new)
                    scores.append({"query_id": query, "passage_id": passage, "value": 0.9 - 0.1 * rank})
            put_candidates(session, candidates)
            insert_missing(session, Score, [{"teacher_id": teacher, "num_tokens": 3, **score} for score in scores])

    def person(self, name: str, role: str = "reviewer") -> Reviewer:
        with self.store.write() as session:
            by = self.people.get("boss")
            self.people[name] = put_reviewer(session, name, role, by=by)  # type: ignore[arg-type]
        return self.people[name]

    def start(self, name: str = "s", **fields: object) -> ReviewSession:
        recipe = SessionRecipe.model_validate({"name": name, "queue": {"order": "random"}, **fields})
        with self.store.write() as session:
            return create_session(session, recipe, self.people["boss"])

    def tick(self, seconds: float = 1.0) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@pytest.fixture
def make_reviewing() -> Callable[[Store], Reviewing]:
    def make(store: Store) -> Reviewing:
        made = Reviewing(store)
        made.person("boss", "admin")
        return made

    return make


@pytest.fixture
def reviewing(store: Store, make_reviewing: Callable[[Store], Reviewing]) -> Reviewing:
    return make_reviewing(store)


@pytest.fixture
def filled(reviewing: Reviewing) -> Callable[[int], Reviewing]:
    def fill(num: int) -> Reviewing:
        reviewing.fill(num)
        for name in ("ann", "ben", "eve"):
            reviewing.person(name)
        return reviewing

    return fill


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)
