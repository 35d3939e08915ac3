"""Where a run stands, read from the store: what `gradus status` shows from another terminal while a run goes on."""

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from db.tables.base import utc_now
from db.tables.ledger import Completion, Request, Run, RunRequest
from generator.holders import FILE
from generator.models import facts_of

_RECENT = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Counts of one run. `per_minute` is of the last minute, `eta_s` follows from it; `failures` are the commonest
    reasons of requests that failed."""

    run: str
    state: str
    num_planned: int
    num_read: int
    num_leased: int
    num_failed: int
    num_waiting: int
    outcomes: dict[str, int]
    failures: dict[str, int]
    accepted_by_rank: dict[int, int]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    spent_usd: float | None
    reserved_usd: float | None
    spent_tokens: int
    per_minute: int
    eta_s: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def progress_of_last_runs(session: Session, limit: int = 3) -> list[RunProgress]:
    """The newest runs that ask a model, generation and judging, those that go on first."""
    runs = (
        select(Run)
        .where(Run.kind.in_(("generate", "judge")))
        .order_by(Run.state != "running", Run.id.desc())
        .limit(limit)
    )
    return [run_progress(session, run) for run in session.scalars(runs)]


def newest_run(session: Session, name: str) -> tuple[int, int] | None:
    """(answered, planned) requests of the newest generation run of this name; None when there is none."""
    run = session.scalar(select(Run).where(Run.kind == "generate", Run.name == name).order_by(Run.id.desc()).limit(1))
    if run is None:
        return None
    now = run_progress(session, run)
    return now.num_planned - now.num_waiting - now.num_failed, now.num_planned


def run_progress(session: Session, run: Run) -> RunProgress:
    """The counts of a generation run as they are now."""
    outcomes: Counter[str] = Counter()
    states: Counter[str] = Counter()
    rows = session.execute(
        select(RunRequest.outcome, Request.state, func.count())
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run.id)
        .group_by(RunRequest.outcome, Request.state)
    )
    for outcome, state, num in rows:
        if outcome is None:
            states[state] += num
        else:
            outcomes[outcome] += num
    answered = (
        select(
            func.count(Completion.id),
            func.sum(Completion.input_tokens),
            func.sum(Completion.cached_tokens),
            func.sum(Completion.output_tokens),
        )
        .join(RunRequest, RunRequest.request_id == Completion.request_id)
        .where(RunRequest.run_id == run.id)
    )
    _, *tokens = (int(value or 0) for value in session.execute(answered).one())
    recent = session.execute(answered.where(Completion.received_at > utc_now() - _RECENT)).one()[0]
    has_price = facts_of(run.recipe["model"]).has_price
    waiting = states["pending"] + states["leased"]
    return RunProgress(
        run=run.name,
        state=run.state,
        num_planned=sum(outcomes.values()) + sum(states.values()),
        num_read=sum(outcomes.values()),
        num_leased=states["leased"],
        num_failed=states["failed"],
        num_waiting=waiting,
        outcomes=dict(outcomes),
        failures=failures_of(session, run.id),
        accepted_by_rank=_by_rank(session, run.id),
        input_tokens=tokens[0],
        cached_tokens=tokens[1],
        output_tokens=tokens[2],
        spent_usd=run.spent_usd if has_price else None,
        reserved_usd=run.reserved_usd if has_price else None,
        spent_tokens=run.spent_tokens,
        per_minute=int(recent),
        eta_s=waiting / recent * 60 if recent else None,
    )


_Earlier = aliased(Completion)
# What failed and stands in a file of requests again has still failed, until its answer comes.
HAS_FAILED = or_(
    Request.state == "failed",
    (Request.state == "leased")
    & func.coalesce(Request.lease_holder, "").startswith(FILE)
    & exists(select(_Earlier.id).where(_Earlier.request_id == Request.id).correlate(Request)),
)


def failures_of(session: Session, run_id: int, limit: int = 5) -> dict[str, int]:
    """Why requests of the run failed, by the last attempt at each: the commonest reasons, each with how many."""
    last = (
        select(func.max(Completion.attempt))
        .where(Completion.request_id == RunRequest.request_id)
        .correlate(RunRequest)
        .scalar_subquery()
    )
    rows = session.execute(
        select(Completion.error, func.count())
        .join(RunRequest, (RunRequest.request_id == Completion.request_id) & (Completion.attempt == last))
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None), HAS_FAILED)
        .group_by(Completion.error)
        .order_by(func.count().desc(), Completion.error)
        .limit(limit)
    )
    return {error or "no reason was given": num for error, num in rows}


def _by_rank(session: Session, run_id: int) -> dict[int, int]:
    ranks: Counter[int] = Counter()
    notes = select(RunRequest.notes).where(RunRequest.run_id == run_id, RunRequest.notes.is_not(None))
    for note in session.scalars(notes, execution_options={"yield_per": 5_000}):
        ranks.update((note or {}).get("ranks", ()))
    return dict(sorted(ranks.items()))
