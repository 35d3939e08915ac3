"""Asking a model through the ledger on behalf of curation: any engine, nothing paid twice, budgets held.

Curation says what to ask, generation's prompts and engines ask it; here the two meet. A question's place in its run is
drawn from what names it in every store, so that resuming, paging and merging never ask it again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.store import Store
from db.tables.ledger import Completion, CompletionBody, Request, Run, RunRequest
from generator.budget import WorstCase
from generator.desk import Desk, Progress, Reader
from generator.engines.batch_file import BadLine
from generator.engines.running import key_of, run_engine
from generator.ledger import decompressed, enqueue, request_digest
from generator.models import facts_of, refuse_if_shut_down
from generator.plan import Planned
from generator.recipe import Budget, Engine, OpenAiBatchEngine, refuse_unlimited

# First questions stand below it; the second question of the same place stands this much further on.
AGAIN = 1 << 61
_CHUNK = 200
_Item = TypeVar("_Item")
ShowProgress = Callable[[Progress], None]


class ModelTable(BaseModel):
    """Which model is asked, how, through which engine and for how much at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_output_tokens: int | None = Field(default=1_000, ge=1)
    effort: str | None = None
    seed: int = 0
    model_seed: bool = False
    engine: Engine
    budget: Budget | None = None

    @model_validator(mode="after")
    def _a_budget_needs_a_limit_of_output(self) -> Self:
        refuse_unlimited(self.budget, self.model, self.max_output_tokens)
        return self

    def identity(self) -> dict[str, Any]:
        """What makes the same questions: everything but where the engine stands and what it may cost."""
        return self.model_dump(mode="json", exclude={"engine", "budget"})


@dataclass(slots=True)
class Asked:
    """Where a run of questions stands after a call."""

    num_new_answers: int = 0
    num_waiting: int = 0
    num_failed: int = 0
    is_out_of_budget: bool = False
    is_stopped: bool = False
    bad_lines: list[BadLine] = field(default_factory=list)


def place_of(*names: str | int) -> int:
    """The plan index of what these name, the same in every store: 61 bits of their digest."""
    return int(digest_of(list(names))[:16], 16) >> 3


def enqueue_new(
    store: Store, run_id: int, items: Iterable[tuple[int, _Item]], plan: Callable[[_Item], Planned], model: str
) -> int:
    """Put questions into the ledger, a chunk at a time; one whose place the run has already is not even made.

    Args:
        items: The place of each question, and what it is about.
        plan: Makes the question.

    Returns how many places are new.
    """
    num = 0
    for chunk in _chunks(items):
        by_place = dict(reversed(chunk))
        with store.read() as session:
            known = RunRequest.plan_index.in_(list(by_place))
            taken = set(session.scalars(select(RunRequest.plan_index).where(RunRequest.run_id == run_id, known)))
        fresh = [plan(item) for place, item in sorted(by_place.items(), key=_first) if place not in taken]
        if fresh:
            with store.write() as session:
                enqueue(session, run_id, fresh, model)
        num += len(fresh)
    return num


def unanswered(session: Session, questions: Iterable[Planned], model: str) -> Iterator[Planned]:
    """Those questions, each once, to which the ledger has no answer from any run: what is still to be paid."""
    seen: set[int] = set()
    for chunk in _chunks(questions):
        fresh = [item for item in chunk if item.plan_index not in seen]
        seen.update(item.plan_index for item in fresh)
        digests = {request_digest(model, item.body, item.sample_index): item for item in fresh}
        is_done = Request.digest.in_(list(digests)) & (Request.state == "done")
        done = set(session.scalars(select(Request.digest).where(is_done)))
        yield from (item for digest, item in digests.items() if digest not in done)


def ask(
    store: Store,
    run_id: int,
    asked: ModelTable,
    reader: Reader | None,
    *,
    table: str,
    on_progress: ShowProgress = lambda progress: None,
    limit: int | None = None,
) -> Asked:
    """Have the run's open questions answered and read, as far as engine and budget allow.

    Args:
        table: The recipe's name of `asked`, for errors.
        limit: At most this many answers: a pilot.

    Raises:
        GeneratorError: The model was switched off, a key is missing, or a file cannot be read.
        EngineStopped: The engine cannot go on; the run resumes when called again.
    """
    facts = facts_of(asked.model)
    refuse_if_shut_down(facts)
    key = key_of(asked.engine, f"{table}.engine")
    worst = WorstCase(facts, asked.max_output_tokens or facts.max_output, isinstance(asked.engine, OpenAiBatchEngine))
    report = Asked()
    with store.read() as session:
        run = session.get_one(Run, run_id)
        spent, num = (run.spent_usd, run.spent_tokens), _num_questions(session, run_id)
    desk = Desk(
        store, run_id, reader, worst=worst, budget=asked.budget, on_progress=on_progress, limit=limit, secret=key
    )
    desk.progress.spent_usd, desk.progress.spent_tokens = spent
    desk.progress.num_planned = num
    with desk:
        desk.read_waiting()
        run_engine(desk, asked.engine, asked.model, key, report.bad_lines.append)
    report.num_new_answers = desk.progress.num_new
    report.is_out_of_budget, report.is_stopped = desk.progress.is_out_of_budget, desk.stopping.is_set()
    with store.read() as session:
        report.num_waiting, report.num_failed = _open(session, run_id, is_read=reader is not None)
    return report


def answers_at(session: Session, run_id: int, places: Sequence[int]) -> dict[int, str]:
    """The newest good answer at each of these places of the run, as text; a place without one is left out."""
    found: dict[int, str] = {}
    for start in range(0, len(places), _CHUNK):
        rows = session.execute(
            select(RunRequest.plan_index, CompletionBody.body)
            .select_from(RunRequest)
            .join(Completion, Completion.request_id == RunRequest.request_id)
            .join(CompletionBody, CompletionBody.completion_id == Completion.id)
            .where(
                RunRequest.run_id == run_id,
                RunRequest.plan_index.in_(places[start : start + _CHUNK]),
                Completion.error.is_(None),
            )
            .order_by(Completion.attempt)
        )
        found.update({place: decompressed(body).decode() for place, body in rows})
    return found


def _num_questions(session: Session, run_id: int) -> int:
    return session.scalar(select(func.count()).select_from(RunRequest).where(RunRequest.run_id == run_id)) or 0


def _open(session: Session, run_id: int, *, is_read: bool) -> tuple[int, int]:
    """(Waiting for an answer, failed) questions of the run; without a reader what is answered is not open."""
    rows = session.execute(
        select(Request.state, func.count())
        .select_from(RunRequest)
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None))
        .group_by(Request.state)
    )
    counts: dict[str, int] = {state: num for state, num in rows}
    failed, done = counts.pop("failed", 0), counts.pop("done", 0)
    return sum(counts.values()) + (done if is_read else 0), failed


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
