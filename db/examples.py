"""Putting examples and candidates into the store, each once, and finding their ids again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, tuple_, update
from sqlalchemy.orm import Session

from db.digest import digest_of, digest_text
from db.insert import as_row, insert_missing
from db.tables.examples import Candidate, Example, Sourcing, Task
from db.tables.texts import Passage, Query

_LOOKUP_SIZE = 400


@dataclass(frozen=True, slots=True)
class NewExample:
    """A query with its positive, both in the store, to be put as one example."""

    query_id: int
    positive_id: int
    origin: str
    collection_id: int | None = None
    task_id: int | None = None
    language: str | None = None

    @property
    def pair(self) -> tuple[int, int]:
        return self.query_id, self.positive_id


@dataclass(frozen=True, slots=True)
class NewCandidate:
    """A candidate to be put, and how this run found it (by a request, by a teacher, or by an import)."""

    example_id: int
    passage_id: int
    role: str
    origin: str
    run_id: int
    grade: str | None = None
    rank: int | None = None
    violated_requirement: str | None = None
    parent_passage_id: int | None = None


@dataclass(frozen=True, slots=True)
class NewSourcing:
    """One way in which a run found a candidate."""

    candidate_id: int
    run_id: int
    request_id: int | None = None
    teacher_id: int | None = None
    retrieval_rank: int | None = None
    score: float | None = None
    threshold: float | None = None


def put_task(session: Session, task_type: str, instruction: str) -> int:
    """Id of the task; added when it is new."""
    digest = digest_of([task_type, instruction])
    insert_missing(session, Task, [{"digest": digest, "task_type": task_type, "instruction": instruction}])
    return session.scalars(select(Task.id).where(Task.digest == digest)).one()


def put_examples(
    session: Session,
    pairs: Sequence[tuple[int, int]],
    *,
    origin: str,
    collection_id: int | None = None,
    task_id: int | None = None,
    language: str | None = None,
) -> list[int]:
    """Ids of the examples with these (query id, passage id of the positive), in order; missing ones are added."""
    rows = [NewExample(query, positive, origin, collection_id, task_id, language) for query, positive in pairs]
    return put_new_examples(session, rows)


def put_new_examples(session: Session, examples: Sequence[NewExample]) -> list[int]:
    """Ids of these examples, in order; one that is there already stays as it is."""
    pairs = [example.pair for example in examples]
    known = _example_ids(session, pairs)
    missing = {example.pair: example for example in reversed(examples) if example.pair not in known}
    if missing:
        texts = _pair_digests(session, sorted(missing))
        rows = [{"digest": digest_text("\n".join(texts[pair])), **as_row(missing[pair])} for pair in sorted(missing)]
        insert_missing(session, Example, rows)
        known |= _example_ids(session, sorted(missing))
    return [known[pair] for pair in pairs]


def _example_ids(session: Session, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    key = tuple_(Example.query_id, Example.positive_id)
    for start in range(0, len(pairs), _LOOKUP_SIZE):
        wanted = key.in_(pairs[start : start + _LOOKUP_SIZE])
        rows = session.execute(select(Example.query_id, Example.positive_id, Example.id).where(wanted))
        found.update({(query, positive): example for query, positive, example in rows})
    return found


def _pair_digests(session: Session, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], tuple[str, str]]:
    queries = _digests(session, Query, [query for query, _ in pairs])
    passages = _digests(session, Passage, [passage for _, passage in pairs])
    return {(query, passage): (queries[query], passages[passage]) for query, passage in pairs}


def _digests(session: Session, table: type[Query] | type[Passage], ids: Sequence[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for start in range(0, len(ids), _LOOKUP_SIZE):
        wanted = table.id.in_(ids[start : start + _LOOKUP_SIZE])
        found.update({key: digest for key, digest in session.execute(select(table.id, table.digest).where(wanted))})
    return found


def put_candidates(session: Session, candidates: Sequence[NewCandidate]) -> dict[tuple[int, int], int]:
    """Ids by (example id, passage id); a passage that its example has already keeps its role, grade and origin.

    A negative that stands without a rank, a mined one say, takes the rank and grade that it is given now.
    """
    # Examples in one order for all, so that processes seldom wait for each other's rows; within one the order given,
    # the hardest first, is the order of the rows.
    in_order = sorted(candidates, key=lambda candidate: candidate.example_id)
    insert_missing(session, Candidate, [as_row(candidate) for candidate in in_order])
    wanted = {(candidate.example_id, candidate.passage_id) for candidate in candidates}
    examples = sorted({example for example, _ in wanted})
    found: dict[tuple[int, int], int] = {}
    unranked: set[tuple[int, int]] = set()
    for start in range(0, len(examples), _LOOKUP_SIZE):
        # By example alone: a list of pairs takes the database and SQLAlchemy several times as long.
        of_these = Candidate.example_id.in_(examples[start : start + _LOOKUP_SIZE])
        columns = select(Candidate.example_id, Candidate.passage_id, Candidate.id, Candidate.rank, Candidate.role)
        for example, passage, key, rank, role in session.execute(columns.where(of_these)):
            if (example, passage) in wanted:
                found[example, passage] = key
                if rank is None and role == "negative":
                    unranked.add((example, passage))
    _give_ranks(
        session, [one for one in candidates if one.rank and (one.example_id, one.passage_id) in unranked], found
    )
    return found


def _give_ranks(session: Session, ranked: Sequence[NewCandidate], keys: dict[tuple[int, int], int]) -> None:
    rows = [{"b_id": keys[one.example_id, one.passage_id], "b_rank": one.rank, "b_grade": one.grade} for one in ranked]
    if rows:
        of_row = Candidate.id == bindparam("b_id")
        values: dict[str, Any] = {"rank": bindparam("b_rank"), "grade": bindparam("b_grade")}
        session.connection().execute(update(Candidate.__table__).where(of_row).values(values), rows)  # type: ignore[arg-type]


def put_sourcings(session: Session, sourcings: Sequence[NewSourcing]) -> int:
    """Record how candidates were found; the same finding again writes nothing. Returns how many were new."""
    return insert_missing(session, Sourcing, [as_row(sourcing) for sourcing in sourcings])
