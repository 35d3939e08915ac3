"""Judging: curation says which pairs, a judge's prompt is rendered, any engine asks it, and what it answers is read.

A cheap judge screens; what it grades high enough goes to a strong one that confirms. Each is a run of its own, with its
own budget, and resumes by being run again. An answer that cannot be used is a rejection row and is asked again once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import bindparam, func, select, update
from sqlalchemy.orm import Session

from app.asking import AGAIN, Asked, ModelTable, ShowProgress, ask, enqueue_new, place_of, unanswered
from app.errors import AppError
from curation.judging.answers import Graded, Unusable, read_judgement
from curation.judging.exempt import Exempted, count_exempted
from curation.judging.judgements import NewJudgement, passages_of, put_judge, put_judgements, query_ids
from curation.judging.scope import NegativesScope, Pair, Passed, Scope, pages_of
from db.runs import Rejected, add_rejections, finish_run, start_run
from db.store import Store
from db.tables.examples import Teacher
from db.tables.judgements import Judgement
from db.tables.ledger import Completion, Rejection, RequestBody, Run, RunRequest
from generator.acceptance import Accepted
from generator.answers import Refusal, json_value
from generator.engines.batch_file import BadLine
from generator.estimate import Estimate, estimate_requests
from generator.ledger import Harvestable, decompressed, enqueue
from generator.models import facts_of
from generator.plan import Planned
from generator.progress import failures_of
from generator.prompt_pack import Entry, PromptPack, pack_from
from generator.wire import wire_body

# The same question would be cut off again.
_HOPELESS = frozenset({"cut_off"})
# These show what the answer lacked; the others are asked again as they were, for another sample.
_SHOWN = frozenset({"quote_not_in_text", "no_evidence", "wrong_shape"})
Stage = Literal["screen", "confirm"]


class ConfirmTable(ModelTable):
    """The strong judge: it is asked about what the screening one graded at least `threshold`."""

    threshold: int = Field(default=2, ge=1, le=3)


class Ceiling(BaseModel):
    """The positive-aware ceiling that machine-written negatives are exempt from, by a teacher's stored scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str = "minilm"
    percentage: float = Field(default=0.95, gt=0, le=1)


class JudgeRecipe(BaseModel):
    """A judging recipe. `task_instruction` is for examples that bring none of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    pack: str = "curation_v1"
    entry: str = "relevance_judgement"
    task_instruction: str = "Given a query, retrieve documents that answer it."
    scope: Scope = NegativesScope()
    screen: ModelTable
    confirm: ConfirmTable | None = None
    ceiling: Ceiling = Ceiling()
    max_rejected: float = Field(default=0.5, gt=0, le=1, description="Share of answers; above it the run fails.")

    @model_validator(mode="after")
    def _two_judges_are_two(self) -> Self:
        if self.confirm is not None and self.confirm.model == self.screen.model:
            raise ValueError(f"confirm.model = {self.confirm.model!r} screens already: a judge cannot confirm itself")
        return self

    @field_validator("scope", mode="before")
    @classmethod
    def _negatives_by_default(cls, value: Any) -> Any:
        return {"source": "negatives", **value} if isinstance(value, dict) else value

    def with_names_from(self, folder: Path) -> Self:
        """The recipe with a pack that is not a bundled one taken from this folder."""
        return self.model_copy(update={"pack": pack_from(folder, self.pack)})


@dataclass(slots=True)
class StageReport:
    """Where one judge stands: pairs, grades, what was refused, why requests failed, and what it cost."""

    stage: Stage
    run: str
    model: str
    num_pairs: int = 0
    num_judged: int = 0
    num_asked_again: int = 0
    num_new_answers: int = 0
    num_waiting: int = 0
    num_failed: int = 0
    grades: dict[int, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    spent_usd: float | None = None
    is_out_of_budget: bool = False
    is_stopped: bool = False
    bad_lines: list[BadLine] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grades": {str(grade): num for grade, num in self.grades.items()}}


def judge(
    store: Store,
    recipe: JudgeRecipe,
    *,
    on_progress: ShowProgress = lambda progress: None,
    limit: int | None = None,
) -> list[StageReport]:
    """Have the recipe's pairs judged, as far as its engines allow; with `limit`, that many by each judge: a pilot.

    Raises:
        CurationError: The scope names what the store does not have.
        GeneratorError: A prompt or a model cannot be used.
        EngineStopped: An engine cannot go on; the run resumes when called again.
        AppError: More answers were refused than the recipe allows.
    """
    reports = []
    for stage in _stages(recipe):
        judging = Judging(store, recipe, stage)
        judging.plan()
        asked = ask(store, judging.run_id, judging.table, judging, table=stage, on_progress=on_progress, limit=limit)
        report = judging.close(asked)
        reports.append(report)
        if asked.is_stopped:
            break
    return reports


def estimate_judging(store: Store, recipe: JudgeRecipe) -> dict[Stage, Estimate]:
    """What is still to be asked, its tokens and its price, without sending anything.

    The confirming judge is estimated on the pairs that are known to come to it; more may come from the screening one.
    """
    told: dict[Stage, Estimate] = {}
    for stage in _stages(recipe):
        judging = Judging(store, recipe, stage)
        with store.read() as session:
            questions = unanswered(session, judging.questions(session), judging.table.model)
            told[stage] = estimate_requests(
                session, questions, model=judging.table.model, engine=judging.table.engine, pilot_below=AGAIN,
                max_repairs=1,
            )  # fmt: skip
    return told


def _stages(recipe: JudgeRecipe) -> tuple[Stage, ...]:
    return ("screen",) if recipe.confirm is None else ("screen", "confirm")


class Judging:
    """One judge of a recipe: plans its questions and reads its answers."""

    def __init__(self, store: Store, recipe: JudgeRecipe, stage: Stage) -> None:
        table = recipe.screen if stage == "screen" else recipe.confirm
        assert table is not None
        self.store, self.recipe, self.stage, self.table = store, recipe, stage, table
        self.entry = _entry(recipe)
        with store.write() as session:
            self.judge_id = _put_judge(session, recipe, self.entry, table.model)
            self._passed = None
            if recipe.confirm is not None and stage == "confirm":
                screening = _put_judge(session, recipe, self.entry, recipe.screen.model)
                self._passed = Passed(screening, recipe.confirm.threshold)
            run = start_run(session, "judge", f"{recipe.name}: {stage}", self._identity(), table.seed)
            self.run_id, self.name = run.id, run.name

    def _identity(self) -> dict[str, Any]:
        recipe = self.recipe
        shared = {
            "name": recipe.name,
            "stage": self.stage,
            "entry": recipe.entry,
            "prompt_digest": self.entry.digest,
            "task_instruction": recipe.task_instruction,
            "scope": recipe.scope.model_dump(mode="json"),
        }
        screened_by = {} if self.stage == "screen" else {"screened_by": recipe.screen.identity()}
        return {**shared, **screened_by, **self.table.identity()}

    def plan(self) -> None:
        """Put every question into the ledger that is not there yet."""
        with self.store.read() as reading:
            pairs = ((_place(pair), pair) for pair in self._pairs(reading))
            enqueue_new(self.store, self.run_id, pairs, self._question, self.table.model)

    def questions(self, session: Session) -> Iterator[Planned]:
        """Every question of the scope, in the order of ids."""
        return (self._question(pair) for pair in self._pairs(session))

    def _pairs(self, session: Session) -> Iterator[Pair]:
        return chain.from_iterable(pages_of(session, self.recipe.scope, self._passed))

    def _question(self, pair: Pair) -> Planned:
        given = {
            "task_instruction": pair.task or self.recipe.task_instruction,
            "query": pair.query,
            "document": pair.passage,
        }
        custom_id = f"{pair.query_digest[:20]}-{pair.passage_digest[:20]}"
        body = wire_body(self.table, self.entry, self.entry.render(given), key=custom_id)
        # Digests, not keys: the answer is read in whichever store it comes to.
        source = {"query": pair.query_digest, "passage": pair.passage_digest}
        return Planned(_place(pair), custom_id, self.entry.name, {}, source, body)

    def cell_of(self, plan_index: int) -> int:
        """Judging has no attribute cells."""
        return -1

    def read(self, session: Session, items: Sequence[Harvestable]) -> Accepted:
        """Read answers: judgements, rejections, and second questions."""
        queries = query_ids(session, sorted({item.source["query"] for item in items}))
        passages = passages_of(session, sorted({item.source["passage"] for item in items}))
        report = Accepted()
        good, rejected, changes, again = [], [], [], []
        for item in items:
            query_id, (passage_id, text) = queries[item.source["query"]], passages[item.source["passage"]]
            outcome = _read(item, text)
            if isinstance(outcome, Graded):
                good.append(NewJudgement(query_id, passage_id, item.request_id, outcome))
            else:
                rejected.append(Rejected(item.custom_id, 0, outcome.reason, outcome.detail))
                report.reasons[outcome.reason] = report.reasons.get(outcome.reason, 0) + 1
                if item.plan_index < AGAIN and outcome.reason not in _HOPELESS:
                    again.append(self._second_question(session, item, outcome))
            settled = "accepted" if isinstance(outcome, Graded) else "rejected"
            report.outcomes[settled] = report.outcomes.get(settled, 0) + 1
            changes.append(
                {"b_id": item.run_request_id, "outcome": settled, "num_accepted": int(settled == "accepted")}
            )
        report.num_accepted = len(good)
        put_judgements(session, self.judge_id, self.stage, good)
        add_rejections(session, self.run_id, rejected)
        if changes:
            _settle(session, changes)
        if again:
            enqueue(session, self.run_id, again, self.table.model)
            report.new_plan_indices = [item.plan_index for item in again]
        return report

    def _second_question(self, session: Session, item: Harvestable, fault: Unusable) -> Planned:
        wire = session.scalars(select(RequestBody.body).where(RequestBody.request_id == item.request_id)).one()
        body = orjson.loads(decompressed(wire))
        sample_index = 1
        if fault.reason in _SHOWN and (self.entry.folder / "repair.j2").is_file():
            follow_up = [
                {"role": "assistant", "content": item.text},
                {"role": "user", "content": self.entry.render_repair([{"position": 0, "detail": fault.detail}])},
            ]
            body, sample_index = {**body, "messages": [*body["messages"], *follow_up]}, 0
        name = f"{item.custom_id}~1"
        return Planned(item.plan_index + AGAIN, name, item.kind, {}, item.source, body, sample_index)

    def close(self, asked: Asked) -> StageReport:
        """The stage's report, stored as the run's totals.

        Raises:
            AppError: More answers were refused than the recipe allows.
        """
        with self.store.read() as session:
            report = _summary(session, self, asked)
        num_refused = sum(report.refused.values())
        share = num_refused / (num_refused + report.num_judged) if num_refused else 0.0
        has_failed = share > self.recipe.max_rejected
        state = "failed" if has_failed else "running" if report.num_waiting or report.num_failed else "finished"
        totals = report.to_dict()
        for fleeting in ("num_new_answers", "bad_lines", "is_stopped"):
            totals.pop(fleeting)
        with self.store.write() as session:
            finish_run(session, session.get_one(Run, self.run_id), totals, state=state)
        if has_failed:
            most = max(report.refused, key=lambda reason: report.refused[reason])
            raise AppError(
                f"{share:.0%} of the answers of {self.table.model!r} cannot be used, above max_rejected = "
                f"{self.recipe.max_rejected:.0%} (most: {most}); nothing is lost: try another model or raise it"
            )
        return report


def _place(pair: Pair) -> int:
    return place_of(pair.query_digest, pair.passage_digest)


def _entry(recipe: JudgeRecipe) -> Entry:
    entry = PromptPack.load(recipe.pack).entry(recipe.entry)
    if entry.facts.subject != "judgement":
        raise AppError(
            f"entry = {recipe.entry!r} asks about a {entry.facts.subject}, not for a judgement: see 'gradus prompts'"
        )
    return entry


def _put_judge(session: Session, recipe: JudgeRecipe, entry: Entry, model: str) -> int:
    name = f"{Path(recipe.pack).name}/{recipe.entry}"  # where a folder lies makes no other judge
    return put_judge(session, model=model, entry=name, prompt_digest=entry.digest)


def _read(item: Harvestable, passage: str) -> Graded | Unusable:
    if item.refused is not None:
        return Unusable("refused", item.refused)
    if item.finish_reason == "length":
        return Unusable("cut_off", "the answer was cut off at its length limit")
    value, _ = json_value(item.text)
    if isinstance(value, Refusal):
        return Unusable(value.reason, value.detail)
    return read_judgement(value, passage)


def _settle(session: Session, changes: list[dict[str, Any]]) -> None:
    links = RunRequest.__table__
    change = update(links).where(links.c.id == bindparam("b_id"))  # type: ignore[arg-type]
    session.connection().execute(change, changes)


def _summary(session: Session, judging: Judging, asked: Asked) -> StageReport:
    """Counts of the run from the store, so that a resumed run reports the same as an uninterrupted one."""
    run_id = judging.run_id
    of_run = RunRequest.run_id == run_id
    grades = session.execute(
        select(Judgement.relevance, func.count())
        .select_from(RunRequest)
        .join(Judgement, Judgement.request_id == RunRequest.request_id)
        .where(of_run, Judgement.judge_id == judging.judge_id)
        .group_by(Judgement.relevance)
    )
    is_again = RunRequest.plan_index >= AGAIN
    counted = select(func.count().filter(~is_again), func.count().filter(is_again)).where(of_run)
    num_pairs, num_again = session.execute(counted).one()
    reasons = select(Rejection.reason, func.count()).where(Rejection.run_id == run_id).group_by(Rejection.reason)
    tokens = session.execute(
        select(func.sum(Completion.input_tokens), func.sum(Completion.output_tokens))
        .select_from(RunRequest)
        .join(Completion, Completion.request_id == RunRequest.request_id)
        .where(of_run, Completion.error.is_(None))
    ).one()
    run = session.get_one(Run, run_id)
    by_grade = {grade: count for grade, count in sorted(tuple(row) for row in grades)}
    return StageReport(
        stage=judging.stage,
        run=judging.name,
        model=judging.table.model,
        num_pairs=num_pairs,
        num_judged=sum(by_grade.values()),
        num_asked_again=num_again,
        num_new_answers=asked.num_new_answers,
        num_waiting=asked.num_waiting,
        num_failed=asked.num_failed,
        grades=by_grade,
        refused=dict(sorted((reason, count) for reason, count in session.execute(reasons))),
        failures=failures_of(session, run_id),
        input_tokens=int(tokens[0] or 0),
        output_tokens=int(tokens[1] or 0),
        spent_usd=run.spent_usd if facts_of(judging.table.model).has_price else None,
        is_out_of_budget=asked.is_out_of_budget,
        is_stopped=asked.is_stopped,
        bad_lines=asked.bad_lines,
    )


def exempted(store: Store, recipe: JudgeRecipe) -> Exempted | None:
    """What the recipe's ceiling would have removed of the scope's machine-written negatives; None where its teacher
    has scored nothing, or the scope is not of negatives."""
    if not isinstance(recipe.scope, NegativesScope):
        return None
    ceiling = recipe.ceiling
    with store.read() as session:
        if session.scalar(select(Teacher.id).where(Teacher.name == ceiling.teacher).limit(1)) is None:
            return None
        return count_exempted(session, recipe.scope, teacher=ceiling.teacher, percentage=ceiling.percentage)
