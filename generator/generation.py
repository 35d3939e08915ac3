"""One generation run: plan, ask, read, accept. Every step is found done when it is done, so a run resumes by itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.files import digest_file
from db.runs import add_rejections, finish_run, start_run
from db.store import Store
from db.tables.examples import Task
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from db.tables.texts import Collection
from generator.acceptance import Accepting, RoundTrip
from generator.budget import WorstCase
from generator.desk import Desk, Progress
from generator.engines.batch_file import BadLine
from generator.engines.running import key_of, run_engine
from generator.errors import GeneratorError
from generator.gate import Gate
from generator.ledger import enqueue
from generator.models import facts_of, refuse_if_shut_down
from generator.plan import BLOCK, ROUND, Neighbours, Planned, Planner, Tally
from generator.prompt_pack import PromptPack
from generator.recipe import CellPlan, GenerateRecipe, OpenAiBatchEngine, TaskPlan

_CHUNK = 200
_MAX_FAILURES = 10
_Item = TypeVar("_Item")


@dataclass(slots=True)
class GenerateReport:
    """Where the run stands after this call, and what this call added (`num_new_*`)."""

    run: str
    num_planned: int = 0
    num_answered: int = 0
    num_new_answers: int = 0
    num_waiting: int = 0
    num_failed: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    num_accepted: int = 0
    num_suspect: int = 0
    num_repaired_json: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    spent_usd: float | None = None
    is_out_of_budget: bool = False
    is_stopped: bool = False
    bad_lines: list[BadLine] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Helpers:
    """What generation is handed from outside, by plan table where that matters: who finds neighbours of a query, who
    measures similarity, and who checks that a query retrieves its document."""

    neighbours: Neighbours | None = None
    gate: Gate | None = None
    round_trips: Mapping[int, RoundTrip] = field(default_factory=dict)


def generate(
    store: Store,
    recipe: GenerateRecipe,
    *,
    helpers: Helpers | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    limit: int | None = None,
    today: date | None = None,
) -> GenerateReport:
    """Bring the run of this recipe as far as its engine's answers allow; with `limit`, by that many answers: a pilot.

    Raises:
        GeneratorError: The plan cannot be made, the model was switched off, or more was refused or failed than the
            recipe allows: then the run stops as soon as some fifty answers tell so.
        EngineStopped: The engine cannot go on; the run resumes when called again.
    """
    helpers = helpers or Helpers()
    facts = facts_of(recipe.model)
    refuse_if_shut_down(facts, today)
    planner = Planner(recipe, helpers.neighbours)
    key = key_of(recipe.engine)
    with store.write() as session:
        run = start_run(session, "generate", recipe.name, resolved_recipe(recipe), recipe.seed)
        run_id, spent = run.id, (run.spent_usd, run.spent_tokens)
    report = GenerateReport(recipe.name)
    _enqueue(store, run_id, recipe, planner, planner.first)
    with store.read() as session:
        report.num_planned = _num_links(session, run_id)
        collections = [_collection_id(session, plan) for plan in recipe.plan]
    worst = WorstCase(facts, recipe.max_output_tokens or facts.max_output, isinstance(recipe.engine, OpenAiBatchEngine))
    desk = Desk(
        store,
        run_id,
        Accepting(planner, run_id, collections, helpers.gate, helpers.round_trips),
        worst=worst,
        budget=recipe.budget,
        follow_ups=lambda: _follow_up(store, run_id, recipe, planner),
        on_progress=on_progress,
        limit=limit,
        max_rejected=recipe.max_rejected,
        secret=key,
    )
    desk.progress.spent_usd, desk.progress.spent_tokens = spent
    desk.progress.num_planned = report.num_planned
    with desk:
        desk.read_waiting()
        run_engine(desk, recipe.engine, recipe.model, key, report.bad_lines.append)
    report.num_new_answers = desk.progress.num_new
    report.is_out_of_budget, report.is_stopped = desk.progress.is_out_of_budget, desk.stopping.is_set()
    _summarise(store, run_id, report)
    _close(store, run_id, recipe, report, desk.progress)
    return report


def resolved_recipe(recipe: GenerateRecipe) -> dict[str, object]:
    """The recipe's identity with digests of the files that decide what is asked: other contents are another run."""
    contents: dict[str, object] = {"pack_digest": PromptPack.load(recipe.pack).digest}
    for number, plan in enumerate(recipe.plan):
        if isinstance(plan, CellPlan):
            if not plan.cells.is_file():
                raise GeneratorError(f"plan.cells = {plan.cells}: no such file")
            contents[f"cells_digest_{number}"] = digest_file(plan.cells)
    return {**recipe.identity(), **contents}


def _enqueue(
    store: Store,
    run_id: int,
    recipe: GenerateRecipe,
    planner: Planner,
    planned: Callable[[Session], Iterator[Planned]],
) -> tuple[int, int]:
    """Put what is planned into the ledger, as far as it is not there. Returns how many places were planned or found
    impossible, and how many requests are new to the run."""
    num, num_new = 0, 0
    with store.read() as reading:
        for chunk in _chunks(planned(reading)):
            num += len(chunk)
            indices = [item.plan_index for item in chunk]
            known = reading.scalar(
                select(func.count()).where(RunRequest.run_id == run_id, RunRequest.plan_index.in_(indices))
            )
            if known != len(chunk):
                # A reading transaction must not stand in the way of its own writer.
                with store.write() as session:
                    num_new += enqueue(session, run_id, chunk, recipe.model)
    if planner.skipped:
        with store.write() as session:
            add_rejections(session, run_id, planner.skipped)
        num += len(planner.skipped)
        planner.skipped.clear()
    return num, num_new


def _num_links(session: Session, run_id: int) -> int:
    return session.scalar(select(func.count()).where(RunRequest.run_id == run_id)) or 0


def _follow_up(store: Store, run_id: int, recipe: GenerateRecipe, planner: Planner) -> int:
    """Second stages and refills of cells that lack accepted texts. Returns how many requests that adds."""
    num = 0
    for number, plan in enumerate(recipe.plan):
        if not isinstance(plan, CellPlan) and (isinstance(plan, TaskPlan) or plan.accepted_per_cell):
            num += _more(store, run_id, recipe, planner, number)
    return num


def _more(store: Store, run_id: int, recipe: GenerateRecipe, planner: Planner, number: int) -> int:
    """What one plan table asks next. Where a refill brings nothing new (the same document stands twice, say), the
    cell's next turns are tried, until one does or none is left."""
    while True:
        with store.read() as session:
            tally = tally_of(session, run_id, planner, number)
        num_planned, num_new = _enqueue(store, run_id, recipe, planner, lambda s, t=tally: planner.more(s, number, t))  # type: ignore[misc]
        if num_new or num_planned == 0 or getattr(recipe.plan[number], "num", None) is not None:
            return num_new


def tally_of(session: Session, run_id: int, planner: Planner, number: int) -> Tally:
    """What came of the cells of one plan table so far, from the store."""
    asked: Counter[int] = Counter()
    pending: Counter[int] = Counter()
    accepted: dict[int, Counter[int]] = {}
    is_brainstormed = True
    rows = session.execute(
        select(RunRequest.plan_index, RunRequest.outcome, RunRequest.notes, Request.state)
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id),
        execution_options={"yield_per": 5_000},
    )
    for plan_index, outcome, notes, state in rows:
        if plan_index % ROUND // BLOCK != number:
            continue
        is_open = outcome is None and state != "failed"
        placed = planner.place_of(plan_index)
        if placed is None:
            is_brainstormed = is_brainstormed and not is_open
            continue
        cell = placed[1].cell
        if plan_index < ROUND:
            asked[cell] = max(asked[cell], placed[1].turn + 1)
        pending[cell] += is_open
        accepted.setdefault(cell, Counter()).update((notes or {}).get("ranks", ()))
    plan = planner.recipe.plan[number]
    tasks: tuple[tuple[int, str, str], ...] = ()
    if is_brainstormed and isinstance(plan, TaskPlan):
        tasks = tuple(_tasks(session, run_id, number, plan.tasks_per_type))
    by_rank = {cell: dict(ranks) for cell, ranks in accepted.items()}
    return Tally(dict(asked), dict(pending), by_rank, tasks, is_brainstormed)


def _tasks(session: Session, run_id: int, number: int, per_type: int) -> Iterator[tuple[int, str, str]]:
    """Tasks that this table's brainstorms brought, in turn over the types so that each gets its share."""
    low, high = number * BLOCK, number * BLOCK + BLOCK // 2
    rows = session.execute(
        select(RunRequest.plan_index, RunRequest.notes).where(
            RunRequest.run_id == run_id, RunRequest.outcome.in_(("accepted", "partial"))
        )
    ).all()
    keys = [
        key for index, notes in sorted(rows, key=lambda row: (row[0] % ROUND, row[0]))
        if low <= index % ROUND < high for key in (notes or {}).get("tasks", ())
    ]  # fmt: skip
    by_type: dict[str, list[tuple[int, str, str]]] = {}
    for key in dict.fromkeys(keys):
        task = session.get_one(Task, key)
        by_type.setdefault(task.task_type, []).append((task.id, task.task_type, task.instruction))
    columns = [tasks[:per_type] for _, tasks in sorted(by_type.items())]
    for turn in range(max((len(column) for column in columns), default=0)):
        yield from (column[turn] for column in columns if turn < len(column))


def _chunks(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _collection_id(session: Session, plan: Any) -> int | None:
    name = getattr(plan, "collection", None)
    return session.scalar(select(Collection.id).where(Collection.name == name)) if name else None


def _summarise(store: Store, run_id: int, report: GenerateReport) -> None:
    """Totals of the run from the store, so that a resumed run reports the same as an uninterrupted one."""
    with store.read() as session:
        links = session.execute(
            select(RunRequest.outcome, Request.state, func.count(), func.sum(RunRequest.num_accepted))
            .join(Request, Request.id == RunRequest.request_id)
            .where(RunRequest.run_id == run_id)
            .group_by(RunRequest.outcome, Request.state)
        ).all()
        for outcome, state, num, accepted in links:
            if outcome is None and state == "failed":
                report.num_failed += num
            elif outcome is None:
                report.num_waiting += num
            else:
                report.outcomes[outcome] = report.outcomes.get(outcome, 0) + num
                report.num_accepted += int(accepted)
        report.num_planned = sum(num for *_, num, _ in links)
        reasons = select(Rejection.reason, func.count()).where(Rejection.run_id == run_id).group_by(Rejection.reason)
        report.refused = dict(sorted((reason, num) for reason, num in session.execute(reasons)))
        if report.num_failed:
            report.failures = _failures(session, run_id)
        _sum_tokens(session, run_id, report)
        for notes in session.scalars(
            select(RunRequest.notes).where(RunRequest.run_id == run_id, RunRequest.notes.is_not(None)),
            execution_options={"yield_per": 5_000},
        ):
            report.num_suspect += len((notes or {}).get("suspect", ()))
            report.num_repaired_json += bool((notes or {}).get("json_repaired"))


def _sum_tokens(session: Session, run_id: int, report: GenerateReport) -> None:
    """Tokens of the answers that this run reads, whichever run paid for them; money is what this run paid."""
    sums = session.execute(
        select(
            func.sum(Completion.input_tokens),
            func.sum(Completion.cached_tokens),
            func.sum(Completion.output_tokens),
            func.count(func.distinct(Completion.request_id)),
        )
        .join(RunRequest, RunRequest.request_id == Completion.request_id)
        .where(RunRequest.run_id == run_id, Completion.error.is_(None))
    ).one()
    values = [int(value or 0) for value in sums]
    report.input_tokens, report.cached_tokens, report.output_tokens, report.num_answered = values
    run = session.get_one(Run, run_id)
    report.spent_usd = run.spent_usd if facts_of(run.recipe["model"]).has_price else None


def _failures(session: Session, run_id: int) -> dict[str, int]:
    """What the last attempts at the requests that failed say, the commonest first."""
    newest = (
        select(func.max(Completion.attempt))
        .where(Completion.request_id == RunRequest.request_id)
        .correlate(RunRequest)
        .scalar_subquery()
    )
    rows = session.execute(
        select(Completion.error, func.count())
        .join(RunRequest, RunRequest.request_id == Completion.request_id)
        .join(Request, Request.id == RunRequest.request_id)
        .where(
            RunRequest.run_id == run_id,
            RunRequest.outcome.is_(None),
            Request.state == "failed",
            Completion.attempt == newest,
        )
        .group_by(Completion.error)
        .order_by(func.count().desc(), Completion.error)
        .limit(_MAX_FAILURES)
    )
    return {error or "no reason given": num for error, num in rows}


def _close(store: Store, run_id: int, recipe: GenerateRecipe, report: GenerateReport, progress: Progress) -> None:
    num = sum(report.outcomes.values()) + report.num_failed
    share = (report.outcomes.get("rejected", 0) + report.num_failed) / num if num else 0.0
    if progress.is_mostly_rejected:
        share = max(share, progress.share_rejected)
    failed = share > recipe.max_rejected
    state = "failed" if failed else "running" if report.num_waiting or report.num_failed else "finished"
    totals = report.to_dict()
    for fleeting in ("num_new_answers", "bad_lines", "is_stopped"):
        totals.pop(fleeting)
    with store.write() as session:
        finish_run(session, session.get_one(Run, run_id), totals, state=state)
        why = _commonest(session, run_id, report) if failed else ""
    if failed:
        early = (
            f"; stopped with {report.num_waiting:,} not asked"
            if progress.is_mostly_rejected and report.num_waiting
            else ""
        )
        raise GeneratorError(
            f"{share:.0%} of the completions were refused or failed, above max_rejected = {recipe.max_rejected:.0%} "
            f"(most: {why}){early}; nothing is lost: see 'gradus status', then mend the prompt or raise max_rejected"
        )


def _commonest(session: Session, run_id: int, report: GenerateReport) -> str:
    """The commonest reason of what was refused or failed, with an example."""
    refused = Counter(report.refused).most_common(1)
    if not refused or report.num_failed > refused[0][1]:
        return f"failed, {next(iter(report.failures), 'no reason given')[:200]}"
    reason = refused[0][0]
    example = session.execute(
        select(Rejection.subject, Rejection.detail)
        .where(Rejection.run_id == run_id, Rejection.reason == reason)
        .order_by(Rejection.id.desc())
        .limit(1)
    ).one()
    return f"{reason}, as in {example.subject}: {example.detail[:200]}"
