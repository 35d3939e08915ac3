"""Judging from end to end against a scripted server: screen and confirm, made-up quotes, garbage, kills, secrets."""

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select, update

from app.asking import AGAIN
from app.errors import AppError
from app.judging import JudgeRecipe, Judging, estimate_judging, exempted, judge
from curation.errors import CurationError
from curation.judging.verdicts import false_negatives, judged_rate
from db.check import check_store
from db.digest import canonical_json
from db.examples import NewCandidate, put_candidates, put_examples, put_task
from db.insert import insert_missing
from db.merge import merge
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Example, Score
from db.tables.judgements import Judge, Judgement
from db.tables.ledger import Completion, Rejection, Request, Run, RunRequest
from db.tables.texts import Query
from db.teachers import put_teacher
from db.texts import put_passages, put_queries
from generator.errors import EngineStopped
from generator.plan import Planned
from generator.prompt_pack import PromptPack

ROOT = Path(__file__).parents[2]


def quiet(done: int, total: int | None) -> None: ...


def questions(store: Store, recipe: JudgeRecipe) -> list[Planned]:
    with store.read() as session:
        return list(Judging(store, recipe, "screen").questions(session))


def recipe_for(server: Any, **fields: Any) -> JudgeRecipe:
    engine = {"kind": "openai", "base_url": server.url, "concurrency": 4, "timeout_s": 20, "max_attempts": 2}
    table = {"model": "cheap", "engine": engine}
    confirm = fields.pop("confirm", None)
    known = {"name": "look", "task_instruction": "Match.", "screen": table, **fields}
    if confirm is not None:
        known["confirm"] = {"model": "strong", "engine": engine, **confirm}
    return JudgeRecipe.model_validate(known)


def test_the_cheap_judge_screens_and_the_strong_one_has_the_last_word(
    store: Store, chat_server: Any, tools: Any
) -> None:
    tools.fill_negatives(store, 8, origins=("synthetic", "mined"))

    def script(body: dict[str, Any]) -> str:
        if body["model"] == "strong" and tools.asked_about(body, "query") == "question 3?":
            return str(tools.verdict(1, "", "a near miss"))
        return str(tools.honest(body))

    chat_server.script = script
    recipe = recipe_for(chat_server, confirm={"threshold": 2})
    screen, confirm = judge(store, recipe)
    # Mined negatives are left out by default; grades are 0 to 3 twice over.
    assert (screen.num_pairs, screen.grades) == (8, {0: 2, 1: 2, 2: 2, 3: 2})
    assert (confirm.num_pairs, confirm.grades) == (4, {1: 1, 2: 2, 3: 1})
    assert Counter(body["model"] for body in chat_server.bodies) == {"cheap": 8, "strong": 4}
    with store.read() as session:
        examples = list(session.scalars(select(Example.id).order_by(Example.id)))
        queries = dict(tuple(row) for row in session.execute(select(Example.query_id, Example.id)))
        places = {examples.index(queries[query]) for query, _ in false_negatives(session, examples)}
        assert places == {2, 6, 7}  # the confirming judge has cleared number 3
        assert len(false_negatives(session, examples, judge="cheap")) == 4
        assert len(false_negatives(session, examples, threshold=3)) == 1
        assert false_negatives(session, examples[:2]) == set()
        assert {state for state in session.scalars(select(Run.state).where(Run.kind == "judge"))} == {"finished"}
    rate = judged_rate(store, ["writing"])
    assert (rate["num_negatives"], rate["num_judged"], rate["num_false"], rate["rate"]) == (16, 8, 3, 3 / 8)
    assert judged_rate(store, judge="cheap")["num_false"] == 4
    assert {row["judge"] for row in rate["rows"]} == {"strong"} and rate["rows"][0]["relevance"] == 2
    with pytest.raises(CurationError, match="'nobody'"):
        judged_rate(store, ["nobody"])
    # Run again, nothing is asked; a new negative is asked alone.
    judge(store, recipe)
    assert len(chat_server.bodies) == 12
    tools.fill_negatives(store, 9)
    screen, confirm = judge(store, recipe)
    assert screen.num_new_answers == 1 and confirm.num_new_answers == 0 and len(chat_server.bodies) == 13
    assert not [finding for finding in check_store(store, progress=quiet) if "evidence" in finding.promise]


def test_a_made_up_quote_is_refused_asked_again_once_and_then_given_up(
    store: Store, chat_server: Any, tools: Any
) -> None:
    tools.fill_negatives(store, 6)

    def script(body: dict[str, Any]) -> str | None:
        number, is_again = tools.asked_about(body, "query"), len(body["messages"]) > 1
        if number == "question 0?":
            return str(tools.verdict(3, "words that stand nowhere"))
        if number == "question 1?" and not is_again:
            return str(tools.verdict(2, ""))  # relevant, without evidence
        if number == "question 2?" and not is_again:
            return str(tools.verdict(True, "", "a boolean is no grade"))
        if number == "question 3?":
            return "I cannot say, sorry."
        if number == "question 4?":
            return None
        if number == "question 5?":
            return str(tools.verdict(2, "grade 1 <\\/end>"))  # as the prompt shows it
        return str(tools.honest(body))

    chat_server.script = script
    (report,) = judge(store, recipe_for(chat_server, max_rejected=1))
    assert report.grades == {1: 1, 2: 2} and report.num_asked_again == 5 and report.num_waiting == 0
    assert report.refused == {
        "no_evidence": 1, "not_json": 2, "quote_not_in_text": 2, "refused": 2, "wrong_shape": 1,
    }  # fmt: skip
    # What can be shown to the judge is shown; the rest is asked as it was, for another sample.
    again = [body for body in chat_server.bodies if len(body["messages"]) > 1]
    assert len(again) == 3 and all("letter by letter" in body["messages"][2]["content"] for body in again)
    assert len(chat_server.bodies) == 11
    with store.read() as session:
        detail = session.scalars(select(Rejection.detail).where(Rejection.reason == "quote_not_in_text")).first()
        assert detail is not None and "words that stand nowhere" in detail
        assert session.scalars(select(Judgement.evidence).where(Judgement.evidence.contains("</end>"))).all()
    before = len(chat_server.bodies)
    judge(store, recipe_for(chat_server, max_rejected=1))
    assert len(chat_server.bodies) == before


def test_too_much_garbage_fails_the_run_and_keeps_what_is_good(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 4)
    chat_server.script = lambda body: "[]"
    with pytest.raises(AppError, match="max_rejected"):
        judge(store, recipe_for(chat_server))
    with store.read() as session:
        assert session.scalars(select(Run.state).where(Run.kind == "judge")).all() == ["failed"]
        assert session.scalar(select(func.count()).select_from(Completion)) == 8


def test_the_reasons_of_failed_requests_are_told(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 3)
    chat_server.script = lambda body: 400
    seen: list[bool] = []
    (report,) = judge(store, recipe_for(chat_server), on_progress=lambda progress: seen.append(progress.has_price))
    ((reason, num),) = report.failures.items()
    assert num == report.num_failed == 3 and "status 400" in reason
    assert set(seen) == {False}  # `cheap` is no model with a known price


def test_another_recipe_that_asks_the_same_sends_nothing(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 5)
    chat_server.script = tools.honest
    judge(store, recipe_for(chat_server))
    (report,) = judge(store, recipe_for(chat_server, name="other"))
    assert report.num_judged == 5 and report.num_new_answers == 0 and len(chat_server.bodies) == 5


def test_scope_by_origin_run_and_grade(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 3, origins=("synthetic", "mined"))
    chat_server.script = tools.honest
    (report,) = judge(store, recipe_for(chat_server, scope={"origins": ["mined"]}))
    assert report.num_pairs == 3 and "mined text" in tools.asked_about(chat_server.bodies[0], "document")
    (report,) = judge(store, recipe_for(chat_server, scope={"grades": ["hard"]}))
    assert report.num_pairs == 0
    with pytest.raises(CurationError, match="runs = 'nobody'"):
        judge(store, recipe_for(chat_server, scope={"runs": ["nobody"]}))


def test_a_dry_run_tells_what_is_unasked_and_sends_nothing(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 6)
    chat_server.script = tools.honest
    recipe = recipe_for(chat_server, confirm={"model": "gpt-6-luna"})
    told = estimate_judging(store, recipe)
    assert told["screen"].num_requests == 6 and told["confirm"].num_requests == 0 and chat_server.bodies == []
    assert "<query>question 0?</query>" in told["screen"].first_prompts[0]
    judge(store, recipe.model_copy(update={"confirm": None}), limit=2)
    told = estimate_judging(store, recipe)
    assert told["screen"].num_requests == 4 and told["screen"].num_pilot == 2
    assert told["screen"].output_tokens is not None and told["screen"].output_tokens.mean == 80
    judge(store, recipe.model_copy(update={"confirm": None}))
    told = estimate_judging(store, recipe)
    assert told["screen"].num_requests == 0 and told["confirm"].num_requests == 2
    assert told["confirm"].worst_cost_usd is not None and told["confirm"].worst_cost_usd > 0


def test_a_budget_holds_and_raising_it_goes_on(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 6)
    chat_server.script = tools.honest
    recipe = recipe_for(chat_server)
    worst = max(len(canonical_json(planned.body)) for planned in questions(store, recipe)) + 1_000
    # Room for one at its worst, and for what two others really took (120 tokens each).
    fields = recipe.model_dump()
    fields["screen"]["budget"] = {"tokens": worst + 2 * 120}
    (report,) = judge(store, JudgeRecipe.model_validate(fields))
    assert report.is_out_of_budget and report.num_judged == 3 and report.num_waiting == 3
    (report,) = judge(store, recipe)
    assert report.num_judged == 6 and set(chat_server.came.values()) == {1}


_JUDGE = (
    "import sys; from db.store import Store; from app.judging import JudgeRecipe, judge\n"
    "judge(Store.open(sys.argv[1]), JudgeRecipe.model_validate_json(sys.argv[2]))"
)


def test_killed_in_the_middle_nothing_that_was_read_is_asked_again(
    chat_server: Any, tools: Any, tmp_path: Path
) -> None:
    num = 60
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    tools.fill_negatives(store, num)
    chat_server.script, chat_server.delay_s = tools.honest, 0.05
    recipe = recipe_for(chat_server, confirm={})
    command = [sys.executable, "-c", _JUDGE, url, recipe.model_dump_json()]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(chat_server.bodies) < num // 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with store.read() as session:
        done = session.scalar(select(func.count()).where(Request.state == "done")) or 0
    assert done > 0
    chat_server.delay_s = 0.0
    before = Counter(chat_server.came)
    screen, confirm = judge(store, recipe)
    assert screen.num_judged == num and confirm.num_judged == num // 2
    # Only what no commit had seen came twice: the window, and the group that was about to be committed.
    twice = [raw for raw, times in chat_server.came.items() if times > 1]
    assert len(twice) <= sum(before.values()) - done and max(chat_server.came.values()) <= 2
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Judgement)) == num + num // 2
        assert session.scalar(select(func.count()).where(RunRequest.outcome.is_(None))) == 0
    store.close()


SECRET = "sk-planted-90c1"


def test_a_secret_reaches_the_server_and_nothing_else(
    store: Store, chat_server: Any, tools: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools.fill_negatives(store, 5)
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    recipe = recipe_for(chat_server)
    engine = recipe.screen.engine.model_copy(update={"api_key_env": "PLANTED_KEY"})
    recipe = recipe.model_copy(update={"screen": recipe.screen.model_copy(update={"engine": engine})})

    def script(body: dict[str, Any]) -> str | int:
        return 400 if tools.asked_about(body, "query") == "question 2?" else str(tools.honest(body))

    chat_server.script = script
    (report,) = judge(store, recipe)
    assert chat_server.keys == {f"Bearer {SECRET}"} and report.num_failed == 1 and report.num_judged == 4
    chat_server.script = lambda body: 401
    with pytest.raises(EngineStopped, match="key was refused") as failure:
        judge(store, recipe)
    seen = [repr(report), repr(failure.value)]
    with store.read() as session:
        seen += [error or "" for error in session.scalars(select(Completion.error))]
        seen += [str(run.recipe) + str(run.totals) for run in session.scalars(select(Run))]
        seen += list(session.scalars(select(Rejection.detail)))
    seen += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in seen if SECRET in text]
    assert any("status 400" in text for text in seen)


def test_batch_files_carry_both_judges_and_second_questions(store: Store, tools: Any, tmp_path: Path) -> None:
    """What answers stands outside: requests go out as files and come back as files, round by round."""
    tools.fill_negatives(store, 4)
    tables = {
        stage: {
            "model": model,
            "engine": {
                "kind": "batch_file",
                "requests": str(tmp_path / f"{stage}.out"),
                "completions": str(tmp_path / f"{stage}.in"),
            },
        }
        for stage, model in (("screen", "cheap"), ("confirm", "strong"))
    }
    recipe = JudgeRecipe.model_validate({"name": "files", "task_instruction": "Match.", **tables})

    def answer(stage: str, made_up: str | None = None) -> int:
        lines = []
        for line in (tmp_path / f"{stage}.out").read_bytes().splitlines():
            row = orjson.loads(line)
            text = tools.honest(row["body"])
            if tools.asked_about(row["body"], "query") == made_up:
                text = tools.verdict(3, "made up")
            body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
            response = {"status_code": 200, "body": body}
            lines.append(orjson.dumps({"custom_id": row["custom_id"], "response": response, "error": None}))
        (tmp_path / f"{stage}.in").write_bytes(b"\n".join(lines))
        return len(lines)

    screen, confirm = judge(store, recipe)
    assert screen.num_waiting == 4 and confirm.num_pairs == 0
    assert answer("screen", made_up="question 3?") == 4
    screen, confirm = judge(store, recipe)
    assert screen.num_judged == 3 and screen.num_waiting == 1 and confirm.num_waiting == 1
    assert answer("screen") == 1 and answer("confirm") == 1
    screen, confirm = judge(store, recipe)
    assert screen.num_judged == 4 and screen.num_waiting == 0 and confirm.num_judged == 1
    assert answer("confirm") == 1
    screen, confirm = judge(store, recipe)
    assert confirm.grades == {2: 1, 3: 1} and not (tmp_path / "confirm.out").exists()


def test_answers_are_read_in_whichever_store_they_come_to(chat_server: Any, tools: Any, tmp_path: Path) -> None:
    """The other store gave its texts other keys; what it has answered and not read is read right after a merge."""
    here, there = (Store.open(f"sqlite:///{tmp_path}/{name}.db") for name in ("here", "there"))
    tools.fill_negatives(here, 3, origins=("mined", "synthetic"))
    tools.fill_negatives(there, 4)
    chat_server.script = tools.honest
    judge(there, recipe_for(chat_server))
    with there.write() as session:
        session.execute(RunRequest.__table__.update().values(outcome=None))  # type: ignore[attr-defined]
        session.execute(Judgement.__table__.delete())  # type: ignore[attr-defined]
    merge(here, there, progress=quiet)
    (report,) = judge(here, recipe_for(chat_server))
    assert report.grades == {0: 1, 1: 1, 2: 1, 3: 1} and len(chat_server.bodies) == 4
    assert not [finding for finding in check_store(here, progress=quiet) if "evidence" in finding.promise]
    here.close()
    there.close()


def test_what_the_ceiling_would_have_removed_is_counted(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 8, origins=("synthetic", "mined"))
    chat_server.script = tools.honest
    recipe = recipe_for(chat_server, ceiling={"teacher": "t", "percentage": 0.5})
    assert exempted(store, recipe) is None
    # (positive, negative): ceilings 0.4, -0.6, ...; equal to the ceiling is removed, and so is above it.
    scores = [(0.8, 0.4), (-0.4, -0.61), (0.8, 0.39), (-0.4, -0.6), (0.8, 0.9), (0.8, 0.1), (0.8, None), (None, 0.9)]
    with store.write() as session:
        teacher = put_teacher(session, name="t", version="1", kind="bi-encoder")
        rows = []
        examples = session.execute(select(Example.id, Example.query_id, Example.positive_id).order_by(Example.id)).all()
        for (example, query, positive), (of_positive, of_negative) in zip(examples, scores, strict=True):
            written = (Candidate.example_id == example) & (Candidate.origin == "synthetic")
            negative = session.scalars(select(Candidate.passage_id).where(written, Candidate.role == "negative")).one()
            for passage, value in ((positive, of_positive), (negative, of_negative)):
                if value is not None:
                    row = {"teacher_id": teacher, "query_id": query, "passage_id": passage, "value": value}
                    rows.append({**row, "num_tokens": None})
        insert_missing(session, Score, rows)
    judge(store, recipe, limit=None)
    counted = exempted(store, recipe)
    assert counted is not None
    # Numbers 0, 3 and 4 are at or over it, with grades 0, 3 and 0; 1, 2 and 5 under it with grades 1, 2 and 1.
    assert (counted.num_written, counted.num_scored, counted.num_over) == (8, 6, 3)
    assert (counted.num_over_judged, counted.num_over_relevant) == (3, 1)
    assert (counted.num_under_judged, counted.num_under_relevant) == (3, 1)


def test_the_lowest_scoring_positive_of_a_query_makes_its_ceiling(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 1)
    with store.write() as session:
        query = session.scalars(select(Query.id)).one()
        (low,) = put_passages(session, ["another answer"])
        put_examples(session, [(query, low)], origin="synthetic")
        teacher = put_teacher(session, name="t", version="1", kind="bi-encoder")
        scores = {low: 0.4, **{key: value for key, value in zip(session.scalars(
            select(Candidate.passage_id).order_by(Candidate.id)), (0.9, 0.5), strict=True)}}  # fmt: skip
        rows = [
            {"teacher_id": teacher, "query_id": query, "passage_id": key, "value": value, "num_tokens": None}
            for key, value in scores.items()
        ]
        insert_missing(session, Score, rows)
    counted = exempted(store, recipe_for(chat_server, ceiling={"teacher": "t", "percentage": 0.95}))
    assert counted is not None and (counted.num_scored, counted.num_over) == (1, 1)


def test_the_same_prompt_under_another_digest_is_another_judge_and_costs_nothing(
    store: Store, chat_server: Any, tools: Any, tmp_path: Path
) -> None:
    tools.fill_negatives(store, 4)
    chat_server.script = tools.honest
    judge(store, recipe_for(chat_server))
    pack = tmp_path / "mine"
    shutil.copytree(PromptPack.load("curation_v1").folder / "relevance_judgement", pack / "relevance_judgement")
    with (pack / "relevance_judgement" / "entry.toml").open("a") as file:
        file.write("# a comment\n")
    (report,) = judge(store, recipe_for(chat_server, pack=str(pack)))
    assert report.num_judged == 4 and len(chat_server.bodies) == 4
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Judge)) == 2
        assert session.scalar(select(func.count()).select_from(Judgement)) == 8


def test_only_its_own_screening_judge_sends_pairs_to_the_strong_one(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 4)
    chat_server.script = lambda body: tools.verdict(0, "")
    recipe = recipe_for(chat_server, confirm={})
    lenient = recipe.screen.model_copy(update={"model": "lenient"})
    assert judge(store, recipe)[1].num_pairs == 0
    chat_server.script = tools.honest
    judge(store, recipe.model_copy(update={"name": "other", "screen": lenient, "confirm": None}))
    assert judge(store, recipe)[1].num_pairs == 0


def test_a_pair_of_two_tasks_is_asked_once_by_the_first(store: Store, chat_server: Any, tools: Any) -> None:
    """Example by example the instruction differs; the pair is one."""
    chat_server.script = lambda body: tools.verdict(0, "")
    with store.write() as session:
        run = start_run(session, "generate", "w", {"model": "m"}, 0)
        (query,), (first, second, negative) = put_queries(session, ["q"]), put_passages(session, ["a", "b", "n"])
        for positive, task in ((first, "Find causes."), (second, "Find cures.")):
            key = put_task(session, "short-long", task)
            (example,) = put_examples(session, [(query, positive)], origin="synthetic", task_id=key)
            put_candidates(session, [NewCandidate(example, negative, "negative", "synthetic", run.id)])
    for _ in range(2):
        (report,) = judge(store, recipe_for(chat_server))
        assert report.num_pairs == 1 and report.refused == {}
        # A second call finds the place taken, even when the other task's question would be new.
        with store.write() as session:
            session.execute(update(Example).values(task_id=Example.task_id + 1).where(Example.task_id == 1))
    assert len(chat_server.bodies) == 1 and "Find causes." in chat_server.bodies[0]["messages"][0]["content"]
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Request)) == 1


def test_second_questions_stand_far_from_first_ones(store: Store, chat_server: Any, tools: Any) -> None:
    tools.fill_negatives(store, 3)
    chat_server.script = lambda body: tools.verdict(3, "made up")
    judge(store, recipe_for(chat_server, max_rejected=1))
    with store.read() as session:
        places = sorted(session.scalars(select(RunRequest.plan_index)))
        assert [place - AGAIN for place in places[3:]] == places[:3] and places[2] < AGAIN
        assert session.scalar(select(func.count()).select_from(Judge)) == 1
