"""One generation run: plan, ask, read, accept. Every step is found done when it is done, so a run resumes by itself."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.files import digest_file
from db.runs import Rejected, add_rejections, finish_run, start_run
from db.store import Store
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from db.tables.texts import Collection
from generator.acceptance import accept
from generator.engines.batch_file import BadLine, read_completions, write_requests
from generator.errors import GeneratorError
from generator.ledger import Answer, enqueue, record, unread, wanted
from generator.plan import plan_requests
from generator.prompt_pack import PromptPack
from generator.recipe import BatchFileEngine, CellPlan, GenerateRecipe, OpenAiEngine

_CHUNK = 200
Progress = Callable[[int, int | None], None]


@dataclass(slots=True)
class GenerateReport:
    """Where the run stands after this call, and what this call added (`num_new_*`)."""

    run: str
    num_planned: int = 0
    num_answered: int = 0
    num_new_answers: int = 0
    num_waiting: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    num_accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def generate(store: Store, recipe: GenerateRecipe, *, progress: Progress = lambda done, total: None) -> GenerateReport:
    """Bring the run of this recipe as far as its engine's answers allow.

    Raises:
        GeneratorError: The plan cannot be made, or more completions were refused than the recipe allows.
        EngineStopped: The engine cannot go on; the run resumes when called again.
    """
    resolved = {**recipe.identity(), **_contents(recipe)}
    with store.write() as session:
        run = start_run(session, "generate", recipe.name, resolved, recipe.seed)
        run_id = run.id
    report = GenerateReport(recipe.name)
    report.num_planned = _enqueue_plan(store, run_id, recipe)
    if isinstance(recipe.engine, BatchFileEngine):
        _ingest(store, run_id, recipe.engine, report)
    else:
        _ask(store, run_id, recipe.engine, report, progress)
    _read_all(store, run_id, recipe, report, progress)
    _summarise(store, run_id, report)
    _close(store, run_id, recipe, report)
    return report


def _contents(recipe: GenerateRecipe) -> dict[str, str]:
    """Digests of the files that decide what is asked: with other contents it is another run."""
    contents = {"pack_digest": PromptPack.load(recipe.pack).digest}
    if isinstance(recipe.plan, CellPlan):
        if not recipe.plan.cells.is_file():
            raise GeneratorError(f"plan.cells = {recipe.plan.cells}: no such file")
        contents["cells_digest"] = digest_file(recipe.plan.cells)
    return contents


def _enqueue_plan(store: Store, run_id: int, recipe: GenerateRecipe) -> int:
    num = 0
    with store.read() as reading:
        for chunk in _chunks(plan_requests(reading, recipe)):
            num += len(chunk)
            indices = [item.plan_index for item in chunk]
            known = reading.scalar(
                select(func.count()).where(RunRequest.run_id == run_id, RunRequest.plan_index.in_(indices))
            )
            if known != len(chunk):
                # A reading transaction must not stand in the way of its own writer.
                with store.write() as session:
                    enqueue(session, run_id, chunk, recipe.model)
    return num


def _chunks(items: Any) -> Any:
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _ingest(store: Store, run_id: int, engine: BatchFileEngine, report: GenerateReport) -> None:
    """Record the file's answers to requests that have none yet."""
    with store.read() as session:
        rows = session.execute(
            select(RunRequest.custom_id, RunRequest.request_id, Request.state)
            .join(Request, Request.id == RunRequest.request_id)
            .where(RunRequest.run_id == run_id)
        )
        request_of: dict[str, int] = {}
        open_requests: set[int] = set()
        failed: set[int] = set()
        for custom_id, request, state in rows:
            request_of[custom_id] = request
            if state != "done":
                open_requests.add(request)
            if state == "failed":
                failed.add(request)
    if engine.completions.is_file() or engine.requests is None:
        for chunk in _chunks(read_completions(engine.completions, request_of)):
            bad = [line for line in chunk if isinstance(line, BadLine)]
            answers = [line for line in chunk if isinstance(line, Answer) and line.request_id in open_requests]
            # A failure that is recorded is not recorded again each time the same file is read.
            new = [answer for answer in answers if answer.text is not None or answer.request_id not in failed]
            open_requests -= {answer.request_id for answer in new if answer.text is not None}
            report.bad_lines += bad
            report.num_new_answers += len(new)
            if new or bad:
                with store.write() as session:
                    record(session, new)
                    add_rejections(session, run_id, [Rejected(b.where, 0, b.reason, b.detail) for b in bad])
    if engine.requests is not None and open_requests:
        with store.read() as session:
            write_requests(engine.requests, wanted(session, run_id))


def _ask(store: Store, run_id: int, engine: OpenAiEngine, report: GenerateReport, progress: Progress) -> None:
    from generator.engines.openai import ask_all

    key = os.environ.get(engine.api_key_env)
    if key is None and "api.openai.com" in engine.base_url:
        raise GeneratorError(f"engine.api_key_env = {engine.api_key_env!r}: this environment variable is not set")

    def asked(num: int) -> None:
        report.num_new_answers = num
        progress(num, report.num_planned)

    ask_all(store, run_id, engine, key, asked)


def _read_all(store: Store, run_id: int, recipe: GenerateRecipe, report: GenerateReport, progress: Progress) -> None:
    """Turn completions into candidates, a group a transaction."""
    num_read = 0
    while True:
        with store.write() as session:
            collection = _collection_id(session, recipe.plan.collection)
            items = unread(session, run_id, _CHUNK)
            for item in items:
                accept(session, run_id, item, collection)
        if not items:
            return
        num_read += len(items)
        progress(num_read, report.num_planned)


def _collection_id(session: Session, name: str | None) -> int | None:
    return session.scalar(select(Collection.id).where(Collection.name == name)) if name else None


def _summarise(store: Store, run_id: int, report: GenerateReport) -> None:
    """Totals of the run from the store, so that a resumed run reports the same as an uninterrupted one."""
    with store.read() as session:
        links = session.execute(
            select(RunRequest.outcome, func.count(), func.sum(RunRequest.num_accepted))
            .where(RunRequest.run_id == run_id)
            .group_by(RunRequest.outcome)
        )
        for outcome, num, accepted in links:
            if outcome is None:
                report.num_waiting = num
            else:
                report.outcomes[outcome] = num
                report.num_accepted += int(accepted)
        reasons = select(Rejection.reason, func.count()).where(Rejection.run_id == run_id).group_by(Rejection.reason)
        report.refused = dict(sorted((reason, num) for reason, num in session.execute(reasons)))
        tokens = session.execute(
            select(func.sum(Completion.input_tokens), func.sum(Completion.output_tokens), func.count(Completion.id))
            .join(RunRequest, RunRequest.request_id == Completion.request_id)
            .where(RunRequest.run_id == run_id, Completion.error.is_(None))
        ).one()
        report.input_tokens, report.output_tokens, report.num_answered = (int(value or 0) for value in tokens)


def _close(store: Store, run_id: int, recipe: GenerateRecipe, report: GenerateReport) -> None:
    read = sum(report.outcomes.values())
    share = report.outcomes.get("rejected", 0) / read if read else 0.0
    failed = share > recipe.max_rejected
    state = "failed" if failed else "running" if report.num_waiting else "finished"
    totals = report.to_dict()
    for fleeting in ("num_new_answers", "bad_lines"):
        totals.pop(fleeting)
    with store.write() as session:
        finish_run(session, session.get_one(Run, run_id), totals, state=state)
    if failed:
        top = Counter(report.refused).most_common(1)[0][0]
        raise GeneratorError(
            f"{share:.0%} of the completions were refused, above max_rejected = {recipe.max_rejected:.0%} "
            f"(most: {top}); nothing is lost: see 'gradus status', then mend the prompt or raise max_rejected"
        )
