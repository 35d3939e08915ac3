"""One generation run: plan, ask, read, accept. Every step is found done when it is done, so a run resumes by itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.files import digest_file
from db.runs import add_rejections, finish_run, start_run
from db.store import Store
from db.tables.examples import Task
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from db.tables.texts import Collection
from generator.acceptance import Accepted, Accepting, RoundTrip
from generator.budget import WorstCase
from generator.desk import Desk, Progress
from generator.engines.batch_file import BadLine
from generator.engines.running import key_of, run_engine
from generator.errors import GeneratorError, TooManyRefused
from generator.gate import Gate
from generator.holders import file_of, waits_for_outside
from generator.ledger import Harvestable, enqueue
from generator.models import facts_of, refuse_if_shut_down
from generator.plan import BLOCK, ROUND, Neighbours, Planned, Planner, Tally, attributes_of
from generator.progress import HAS_FAILED, failures_of
from generator.prompt_pack import PromptPack
from generator.recipe import CellPlan, DocumentPlan, GenerateRecipe, OpenAiBatchEngine, TaskPlan

_CHUNK = 200
_Item = TypeVar("_Item")


@dataclass(slots=True)
class GenerateReport:
    """Where the run stands after this call, and what this call added (`num_new_*`).

    Every planned request is answered, waiting or failed. Tokens are of every attempt at what this run asks, whichever
    run paid for it; `spent_*` is what this run paid. `failures` are the reasons of failed requests, the commonest
    first.
    """

    run: str
    num_planned: int = 0
    num_answered: int = 0
    num_new_answers: int = 0
    num_waiting: int = 0
    waiting_in: dict[str, int] = field(default_factory=dict)
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
    spent_tokens: int = 0
    is_out_of_budget: bool = False
    is_stopped: bool = False
    bad_lines: list[BadLine] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Seams:
    """What generation is handed from outside, by plan table where that matters: who finds neighbours of a query, who
    measures similarity, and who checks that a query retrieves its document."""

    neighbours: Neighbours | None = None
    gate: Gate | None = None
    round_trips: Mapping[int, RoundTrip] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads answers for the desk; its cells are numbered over all plan tables, as a person sees them."""

    accepting: Accepting

    def read(self, session: Session, items: Sequence[Harvestable]) -> Accepted:
        return self.accepting.read(session, items)

    def cell_of(self, plan_index: int) -> int:
        return self.accepting.planner.cell_of(plan_index)


def generate(
    store: Store,
    recipe: GenerateRecipe,
    *,
    seams: Seams | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    limit: int | None = None,
    today: date | None = None,
) -> GenerateReport:
    """Bring the run of this recipe as far as its engine's answers allow; with `limit`, by that many answers: a pilot.

    Raises:
        GeneratorError: The plan cannot be made, the model was switched off, or the recipe needs seams that were not
            given.
        TooManyRefused: More was refused or failed than the recipe allows; the run stops as soon as some fifty answers
            tell so. The report comes with it.
        EngineStopped: The engine cannot go on; the run resumes when called again.
    """
    seams = seams or Seams()
    _refuse_missing_seams(recipe, seams)
    facts = facts_of(recipe.model)
    refuse_if_shut_down(facts, today)
    planner = Planner(recipe, seams.neighbours)
    key = key_of(recipe.engine)
    with store.write() as session:
        run = start_run(session, "generate", recipe.name, resolved_recipe(recipe), recipe.seed)
        run_id, spent = run.id, (run.spent_usd, run.spent_tokens)
    report = GenerateReport(recipe.name)
    _enqueue(store, run_id, recipe, planner, planner.first)
    with store.read() as session:
        collections = [_collection_id(session, plan) for plan in recipe.plan]
    worst = WorstCase(facts, recipe.max_output_tokens or facts.max_output, isinstance(recipe.engine, OpenAiBatchEngine))
    desk = Desk(
        store,
        run_id,
        _Reader(Accepting(planner, run_id, collections, seams.gate, seams.round_trips)),
        worst=worst,
        budget=recipe.budget,
        follow_ups=lambda: _follow_up(store, run_id, recipe, planner),
        on_progress=on_progress,
        limit=limit,
        max_rejected=recipe.max_rejected,
        secret=key,
    )
    desk.progress.spent_usd, desk.progress.spent_tokens = spent
    _resume(store, run_id, planner, desk.progress)
    with desk:
        desk.read_waiting()
        run_engine(desk, recipe.engine, recipe.model, key, report.bad_lines.append)
    report.num_new_answers = desk.progress.num_new
    report.is_out_of_budget, report.is_stopped = desk.progress.is_out_of_budget, desk.stopping.is_set()
    _summarise(store, run_id, report)
    _close(store, run_id, recipe, report, desk.progress)
    return report


def _refuse_missing_seams(recipe: GenerateRecipe, seams: Seams) -> None:
    """A gate or a round trip that the recipe names and nobody measures would let everything through."""
    if recipe.gate is not None and seams.gate is None:
        raise GeneratorError("the recipe has a [gate], and nothing that measures similarity was given: pass seams=")
    for number, plan in enumerate(recipe.plan):
        if isinstance(plan, DocumentPlan) and plan.top_k and number not in seams.round_trips:
            raise GeneratorError(
                f"plan.top_k = {plan.top_k}, and nothing that checks round trips was given for plan table {number}: "
                "pass seams=, or set top_k = 0"
            )


def resolved_recipe(recipe: GenerateRecipe) -> dict[str, object]:
    """The recipe's identity with digests of what else decides what is asked (the pack, plan files, named attribute
    sets): other contents are another run."""
    pack = PromptPack.load(recipe.pack)
    contents: dict[str, object] = {"pack_digest": pack.digest}
    for number, plan in enumerate(recipe.plan):
        if isinstance(plan, CellPlan):
            if not plan.cells.is_file():
                raise GeneratorError(f"plan.cells = {plan.cells}: no such file")
            contents[f"cells_digest_{number}"] = digest_file(plan.cells)
            continue
        entry = pack.entry(plan.entry)
        # A named set stands in a file of ours; a table of one's own stands in the recipe.
        if isinstance(plan.attributes or entry.facts.attributes, str):
            contents[f"attributes_digest_{number}"] = digest_of(attributes_of(plan, entry))
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


def _resume(store: Store, run_id: int, planner: Planner, progress: Progress) -> None:
    """Start the progress from what the store has of this run; a run with open requests goes on."""
    num_open = 0
    with store.read() as session:
        rows = session.execute(
            select(RunRequest.plan_index, RunRequest.outcome, RunRequest.num_accepted, RunRequest.notes).where(
                RunRequest.run_id == run_id
            ),
            execution_options={"yield_per": 5_000},
        )
        for plan_index, outcome, num_accepted, notes in rows:
            progress.num_planned += 1
            if outcome is None:
                num_open += 1
                continue
            progress.outcomes[outcome] += 1
            progress.num_accepted += num_accepted
            progress.num_suspect += len((notes or {}).get("suspect", ()))
            cell = planner.cell_of(plan_index)
            progress.cells.update((cell, rank) for rank in (notes or {}).get("ranks", ()))
    if num_open:
        with store.write() as session:
            run = session.get_one(Run, run_id)
            run.state, run.finished_at = "running", None


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
        has_answer = (Request.state == "done").label("has_answer")
        links = session.execute(
            select(RunRequest.outcome, has_answer, HAS_FAILED, func.count(), func.sum(RunRequest.num_accepted))
            .join(Request, Request.id == RunRequest.request_id)
            .where(RunRequest.run_id == run_id)
            .group_by(RunRequest.outcome, has_answer, HAS_FAILED)
        ).all()
        for outcome, is_done, has_failed, num, accepted in links:
            report.num_planned += num
            report.num_accepted += int(accepted)
            if outcome is not None:
                report.outcomes[outcome] = report.outcomes.get(outcome, 0) + num
            # What was read is answered, with a text or without: a refusal leaves its request failed.
            if outcome is not None or is_done:
                report.num_answered += num
            elif has_failed:
                report.num_failed += num
            else:
                report.num_waiting += num
        reasons = select(Rejection.reason, func.count()).where(Rejection.run_id == run_id).group_by(Rejection.reason)
        report.refused = dict(sorted((reason, num) for reason, num in session.execute(reasons)))
        report.waiting_in = _waiting_in(session, run_id)
        report.failures = failures_of(session, run_id)
        _sum_spent(session, run_id, report)
        for notes in session.scalars(
            select(RunRequest.notes).where(RunRequest.run_id == run_id, RunRequest.notes.is_not(None)),
            execution_options={"yield_per": 5_000},
        ):
            report.num_suspect += len((notes or {}).get("suspect", ()))
            report.num_repaired_json += bool((notes or {}).get("json_repaired"))


def _sum_spent(session: Session, run_id: int, report: GenerateReport) -> None:
    """Tokens of every attempt, good or not, as all of them are paid for; and what this run has paid."""
    sums = session.execute(
        select(
            func.sum(Completion.input_tokens), func.sum(Completion.cached_tokens), func.sum(Completion.output_tokens)
        )
        .join(RunRequest, RunRequest.request_id == Completion.request_id)
        .where(RunRequest.run_id == run_id)
    ).one()
    report.input_tokens, report.cached_tokens, report.output_tokens = (int(value or 0) for value in sums)
    run = session.get_one(Run, run_id)
    report.spent_tokens = run.spent_tokens
    report.spent_usd = run.spent_usd if facts_of(run.recipe["model"]).has_price else None


def _waiting_in(session: Session, run_id: int) -> dict[str, int]:
    """Files and batches that hold requests of the run, with how many."""
    rows = session.execute(
        select(Request.lease_holder, func.count())
        .join(RunRequest, RunRequest.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.outcome.is_(None), Request.state == "leased")
        .group_by(Request.lease_holder)
    )
    return {
        str(file_of(holder) or holder): num for holder, num in rows if holder is not None and waits_for_outside(holder)
    }


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
        raise TooManyRefused(
            f"{share:.0%} of the completions were refused or failed, above max_rejected = {recipe.max_rejected:.0%} "
            f"(most: {why}){early}; nothing is lost: see 'gradus status', then mend the prompt or raise max_rejected",
            report,
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
