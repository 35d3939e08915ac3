"""Faults of every kind, SIGKILLs, Ctrl-C, secrets: nothing is lost, nothing is paid twice, everything adds up."""

import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Completion, CompletionBody, Rejection, Request, RequestBody, Run, RunRequest
from db.tables.texts import Passage
from generator.generation import generate
from generator.recipe import GenerateRecipe

ROOT = Path(__file__).parents[2]
_GENERATE = (
    "import sys; from db.store import Store; from generator.generation import generate\n"
    "from generator.recipe import GenerateRecipe\n"
    "report = generate(Store.open(sys.argv[1]), GenerateRecipe.model_validate_json(sys.argv[2]))\n"
    "print('stopped' if report.is_stopped else 'out of budget' if report.is_out_of_budget else 'done')"
)


def start(url: str, recipe: GenerateRecipe) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _GENERATE, url, recipe.model_dump_json()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server: Any, num: int) -> None:
    deadline = time.monotonic() + 60
    while sum(server.came.values()) < num:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_fault_ends_accepted_or_rejected_and_the_counts_add_up(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    """Each kind of fault strikes its own twentieth of the requests, the first time they come."""
    num = 200
    toolbox.fill(store, num)
    good = toolbox.negatives_for
    faults = {
        "429": lambda body: toolbox.Reply(status=429, headers={"retry-after": "0.02"}, body={"error": {}}),
        "429 without a wish": lambda body: toolbox.Reply(status=429, body={"error": {"message": "slow down"}}),
        "500": lambda body: toolbox.Reply(status=500, raw=b"<html>oops</html>"),
        "truncated body": lambda body: toolbox.Reply(raw=b'{"choices": [{"mess'),
        "truncated JSON": lambda body: toolbox.Reply(good(body)[:-60]),
        "refusal": lambda body: toolbox.Reply(
            body={"choices": [{"message": {"content": None, "refusal": "I will not"}, "finish_reason": "stop"}]}
        ),
        "length": lambda body: toolbox.Reply(good(body)[:100], finish_reason="length"),
        "empty": lambda body: toolbox.Reply(""),
        "nested error": lambda body: toolbox.Reply(status=400, body={"error": {"error": {"message": "bad request"}}}),
        "hung socket": lambda body: toolbox.Reply(hangs=True),
        "no choices": lambda body: toolbox.Reply(body={"choices": []}),
        "odd usage": lambda body: toolbox.Reply(
            body={
                "choices": [{"message": {"content": good(body)}, "finish_reason": 7}],
                "usage": {"prompt_tokens": "many", "completion_tokens": -3, "prompt_tokens_details": [1]},
            }
        ),
        "not an object": lambda body: toolbox.Reply(raw=b"[1, 2]"),
    }
    names = list(faults)

    def script(body: dict[str, Any], turn: int) -> Any:
        number = int(toolbox.between(toolbox.prompt_of(body), "query").split()[1][:-1])
        kind = number % 20
        if kind < len(names) and turn == 0:
            return faults[names[kind]](body)
        return toolbox.Reply(good(body))

    model_server.script = script
    engine = {"concurrency": 16, "timeout_s": 4.0, "max_attempts": 5}
    recipe = toolbox.recipe_for(model_server, num=num, engine=engine, max_rejected=1)
    report = generate(store, recipe)
    each = num // 20
    assert report.num_waiting == 0
    # Malformed bodies and errors of the request itself are failures, asked again by the next call.
    assert report.num_failed == 3 * each
    assert report.outcomes["rejected"] == 3 * each  # refusal, length, empty
    read = sum(report.outcomes.values())
    assert read + report.num_failed == num == report.num_planned
    # JSON that was cut in a string is repaired, and what is whole of it is kept.
    assert report.num_repaired_json == each
    assert report.refused["refused"] == 2 * each and report.refused["cut_off"] == each
    again = generate(store, recipe)
    assert again.num_failed == 0 and sum(again.outcomes.values()) == num
    with store.read() as session:
        errors = Counter(error.split(":")[0] for error in session.scalars(
            select(Completion.error).where(Completion.error.is_not(None))))  # fmt: skip
    assert errors["status 400"] == each and errors["refused"] == each


def batch_line(custom_id: str, text: str | None, **changes: Any) -> bytes:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "model": "m"}
    row = {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None, **changes}
    return orjson.dumps(row) + b"\n"


def test_faults_of_a_batch_output_are_named_and_never_stop_the_good_lines(
    store: Store, model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    num = 100
    toolbox.fill(store, num)
    out, back = tmp_path / "requests.jsonl", tmp_path / "completions.jsonl"
    engine = {"kind": "batch_file", "requests": str(out), "completions": str(back)}
    recipe = toolbox.recipe_for(model_server, num=num)
    recipe = GenerateRecipe.model_validate({**recipe.model_dump(), "engine": engine, "max_rejected": 1})
    assert generate(store, recipe).num_waiting == num
    asked = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    lines = []
    for place, row in enumerate(asked):
        text = toolbox.negatives_for(row["body"])
        if place % 20 == 0:
            lines.append(batch_line("nobody-" + row["custom_id"], text))  # its own answer is missing
        elif place % 20 == 1:
            lines += [batch_line(row["custom_id"], text)] * 2
        elif place % 20 == 2:
            error = {"error": {"message": "too long", "type": "x"}}
            lines.append(batch_line(row["custom_id"], None, response=None, error=error))
        elif place % 20 == 3:
            lines.append(batch_line(row["custom_id"], text)[:-30] + b"\n")
        else:
            lines.append(batch_line(row["custom_id"], text))
    random.Random(1).shuffle(lines)
    back.write_bytes(b"".join(lines))
    report = generate(store, recipe)
    assert report.outcomes == {"accepted": 85} and report.num_failed == 5 and report.num_waiting == 10
    assert Counter(line.reason for line in report.bad_lines) == {"unknown_request": 5, "malformed_line": 5}
    assert len(out.read_bytes().splitlines()) == 15


def bodies_committed(store: Store) -> set[bytes]:
    """The wire bodies of all requests that have an answer in the store."""
    with store.read() as session:
        rows = select(RequestBody.body).join(Request, Request.id == RequestBody.request_id)
        return {zlib.decompress(body) for body in session.scalars(rows.where(Request.state == "done"))}


def file_recipe(toolbox: Any, server: Any, folder: Path, name: str = "requests", **fields: Any) -> GenerateRecipe:
    recipe = toolbox.recipe_for(server, num=60, max_output_tokens=100, **fields)
    engine = {
        "kind": "batch_file",
        "requests": str(folder / f"{name}.jsonl"),
        "completions": str(folder / "back.jsonl"),
    }
    return GenerateRecipe.model_validate({**recipe.model_dump(), "engine": engine})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def test_a_file_of_requests_keeps_to_a_pilot_and_to_the_budget(
    store: Store, model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    toolbox.fill(store, 60)
    out, back = tmp_path / "requests.jsonl", tmp_path / "back.jsonl"
    recipe = file_recipe(toolbox, model_server, tmp_path, budget={"tokens": 10_000})
    for _ in range(2):  # the same call again writes the same file
        assert generate(store, recipe, limit=3).waiting_in == {str(out): 3}
        assert len(lines_of(out)) == 3
    report = generate(store, recipe)
    first = lines_of(out)
    worst = [len(orjson.dumps(row["body"])) + 100 for row in first]
    assert 10_000 - 2 * max(worst) < sum(worst) <= 10_000 and not report.is_out_of_budget
    with store.read() as session:
        assert session.scalars(select(Run.reserved_tokens)).one() == sum(worst)
    usage = {"prompt_tokens": 200, "completion_tokens": 50}
    answers = b""
    for row in first:
        body = {"choices": [{"message": {"content": toolbox.negatives_for(row["body"])}, "finish_reason": "stop"}]}
        response = {"status_code": 200, "body": {**body, "usage": usage}}
        answers += batch_line(row["custom_id"], None, response=response)
    back.write_bytes(answers)
    assert generate(store, recipe).outcomes == {"accepted": len(first)}
    second = lines_of(out)
    spent = 250 * len(first)
    assert not {row["custom_id"] for row in first} & {row["custom_id"] for row in second}
    assert sum(len(orjson.dumps(row["body"])) + 100 for row in second) <= 10_000 - spent
    with store.read() as session:
        assert session.scalars(select(Run.spent_tokens)).one() == spent


def test_two_files_never_hold_the_same_request_and_a_deleted_one_frees_its_own(
    store: Store, model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    toolbox.fill(store, 60)
    first = file_recipe(toolbox, model_server, tmp_path, "first")
    second = file_recipe(toolbox, model_server, tmp_path, "second")
    generate(store, first, limit=20)
    generate(store, second)
    generate(store, first)
    ours, theirs = (lines_of(tmp_path / f"{name}.jsonl") for name in ("first", "second"))
    assert (len(ours), len(theirs)) == (20, 40)
    assert len({row["custom_id"] for row in ours + theirs}) == 60
    # What stands in a file is not asked otherwise as long as the file is there.
    live = toolbox.recipe_for(model_server, max_output_tokens=100)
    report = generate(store, live)
    assert report.num_waiting == 60 and not model_server.came
    assert report.waiting_in == {str(tmp_path / "first.jsonl"): 20, str(tmp_path / "second.jsonl"): 40}
    (tmp_path / "second.jsonl").unlink()
    assert generate(store, live).outcomes == {"accepted": 40}
    assert sum(model_server.came.values()) == 40


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_pay_at_most_the_window_twice(
    model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    num, concurrency, kills = 2_000, 16, 20
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    toolbox.fill(store, num)
    recipe = toolbox.recipe_for(model_server, num=num, engine={"concurrency": concurrency})
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.004)
    moments = random.Random(7)
    seen: dict[bytes, int] = {}
    for kill in range(kills):
        process = start(url, recipe)
        wait_for(model_server, sum(model_server.came.values()) + 1 + moments.randrange(num // (kills + 2)))
        process.kill()
        process.communicate()
        committed = bodies_committed(store)
        came = dict(model_server.came)
        # In flight, or answered and on the way to the next commit.
        assert sum(came.values()) - len(committed) <= 2 * concurrency * (kill + 1), f"kill {kill}"
        # Nothing that was committed at the kill before has been asked since.
        assert {wire: came[wire] for wire in seen} == seen, f"kill {kill}"
        seen = {wire: came[wire] for wire in committed}
    report = generate(store, recipe)
    assert report.outcomes == {"accepted": num}
    assert {wire: model_server.came[wire] for wire in seen} == seen
    assert len(model_server.came) == num
    assert sum(model_server.came.values()) - num <= 2 * concurrency * kills
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Completion)) == num
        assert session.scalar(select(func.count()).select_from(Candidate)) == 5 * num
        assert session.scalar(select(func.count()).where(RunRequest.outcome.is_(None))) == 0
    before = sum(model_server.came.values())
    assert generate(store, recipe).num_new_answers == 0 and sum(model_server.came.values()) == before
    store.close()


def test_the_first_interrupt_lets_what_is_in_flight_land(model_server: Any, toolbox: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    toolbox.fill(store, 60)
    recipe = toolbox.recipe_for(model_server, engine={"concurrency": 4})
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.2)
    process = start(url, recipe)
    wait_for(model_server, 9)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert out.strip() == "stopped", err
    came = sum(model_server.came.values())
    assert came < 60
    with store.read() as session:
        states = {state: n for state, n in session.execute(select(Request.state, func.count()).group_by(Request.state))}
    assert states == {"done": came, "pending": 60 - came}
    assert generate(store, recipe).outcomes == {"accepted": 60} and set(model_server.came.values()) == {1}
    store.close()


def test_the_second_interrupt_stops_at_once_and_keeps_what_came(
    model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    toolbox.fill(store, 60)
    recipe = toolbox.recipe_for(model_server, engine={"concurrency": 4})
    model_server.script = lambda body, turn: toolbox.Reply(
        toolbox.negatives_for(body), delay_s=0.05 if len(model_server.came) < 10 else 15
    )
    process = start(url, recipe)
    wait_for(model_server, 13)
    began = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    process.communicate(timeout=30)
    assert time.monotonic() - began < 10 and process.returncode != 0
    with store.read() as session:
        states = {state: n for state, n in session.execute(select(Request.state, func.count()).group_by(Request.state))}
    assert states["done"] >= 9
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body))
    assert generate(store, recipe).outcomes == {"accepted": 60}
    store.close()


def test_several_processes_drain_one_run_within_its_budget(
    store: Store, store_url: str, model_server: Any, toolbox: Any
) -> None:
    """The worst cases of a few requests fill the budget, the answers need a tenth of it: who finds no room waits for
    what the others settle, and none gives up early."""
    toolbox.fill(store, 60)
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.05)
    recipe = toolbox.recipe_for(
        model_server, max_output_tokens=100, budget={"tokens": 10_000}, engine={"concurrency": 8}
    )
    processes = [start(store_url, recipe) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in ended] == ["done"] * 3, ended
    assert len(model_server.came) == 60 and set(model_server.came.values()) == {1}
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert (run.spent_tokens, run.reserved_tokens) == (60 * 15, 0)
        assert session.scalar(select(func.count()).select_from(Candidate)) == 5 * 60


def test_several_processes_together_never_exceed_a_budget(
    store: Store, store_url: str, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    model_server.usage = {"prompt_tokens": 700, "completion_tokens": 100}
    recipe = toolbox.recipe_for(model_server, max_output_tokens=100, budget={"tokens": 20_000})
    processes = [start(store_url, recipe) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in ended] == ["out of budget"] * 3, ended
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        assert 20_000 - 4_000 < run.spent_tokens <= 20_000 and run.reserved_tokens == 0
    assert run.spent_tokens == 800 * sum(model_server.came.values())


def test_requests_that_failed_for_good_end_in_exit_code_1_and_one_line(
    model_server: Any, toolbox: Any, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    toolbox.fill(store, 60)
    store.close()
    model_server.script = lambda body, turn: (
        toolbox.Reply(status=400, body={"error": {"message": "no such field"}})
        if "query 7!" in toolbox.prompt_of(body) and len(model_server.came) < 61
        else toolbox.Reply(toolbox.negatives_for(body))
    )
    (tmp_path / "recipe.toml").write_text(
        f"""
name = "live"
model = "m"
pack = "v1"
max_repairs = 0
[plan]
source = "pairs"
entry = "graded_negatives"
collection = "toy"
split = "train"
num = 60
task_instruction = "Match."
[engine]
kind = "openai"
base_url = "{model_server.url}"
"""
    )
    command = [str(Path(sys.executable).parent / "gradus"), "generate", str(tmp_path / "recipe.toml"), "--store", url]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "1 of 60 requests failed, most often: status 400" in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr


SECRET = "sk-planted-7f3a9c/+x"


def everything_in(store: Store) -> list[str]:
    """Every text of the store, with what is compressed."""
    with store.read() as session:
        seen = [error or "" for error in session.scalars(select(Completion.error))]
        seen += [f"{row.subject} {row.detail}" for row in session.execute(select(Rejection.subject, Rejection.detail))]
        seen += [f"{run.recipe} {run.totals}" for run in session.scalars(select(Run))]
        seen += list(session.scalars(select(Passage.text)))
        bodies = [*session.scalars(select(CompletionBody.body)), *session.scalars(select(RequestBody.body))]
    assert len(bodies) > 60
    return seen + [zlib.decompress(body).decode() for body in bodies]


def test_a_secret_reaches_the_server_and_nothing_else(
    store: Store, model_server: Any, toolbox: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """A server repeats the key wherever it can: in errors, so that it is cut in the middle, and in its texts."""
    toolbox.fill(store, 60)
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    told = {"error": {"message": f"Incorrect API key provided: {SECRET}"}}

    def script(body: dict[str, Any], turn: int) -> Any:
        number = int(toolbox.between(toolbox.prompt_of(body), "query").split()[1][:-1])
        good = toolbox.negatives_for(body)
        if number == 3:
            return toolbox.Reply(status=400, body=told)
        if number == 4 and turn == 0:
            return toolbox.Reply(status=500, body=told)
        if number == 5:
            return toolbox.Reply(status=400, raw=b"x" * 490 + SECRET.encode())
        if number == 6:
            message = f"{'x' * 1_985}{SECRET}".replace("/", "\\/")
            return toolbox.Reply(status=400, raw=b'{"error": {"message": "' + message.encode() + b'"}}')
        if number == 7:
            return toolbox.Reply(good.replace("number 0", f"key {SECRET}"))
        if number == 8:
            return toolbox.Reply(None, body={"choices": [{"message": {"content": None, "refusal": SECRET}}]})
        return toolbox.Reply(good)

    model_server.script = script
    recipe = toolbox.recipe_for(model_server, engine={"api_key_env": "PLANTED_KEY"})
    report = generate(store, recipe)
    assert model_server.keys == {f"Bearer {SECRET}"} and report.num_failed == 3
    failures = []
    for lead in (0, 190):
        raw = b"x" * lead + SECRET.encode()
        model_server.script = lambda body, turn, raw=raw: toolbox.Reply(status=401, raw=raw)
        with pytest.raises(Exception, match="key was refused") as failure:
            generate(store, toolbox.recipe_for(model_server, seed=5, engine={"api_key_env": "PLANTED_KEY"}))
        failures.append(repr(failure.value))
    seen = [repr(report), *failures, *capfd.readouterr(), recipe.model_dump_json(), *everything_in(store)]
    seen += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in seen if "sk-planted" in text] and any("[key]" in text for text in seen)
    assert os.environ["PLANTED_KEY"] == SECRET
