"""vLLM's own servers on the CPU with a tiny model, asked by the engines that know nothing of vLLM."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select

from db.store import Store
from db.tables.ledger import Completion, CompletionBody, Request
from generator.generation import generate
from generator.ledger import decompressed
from generator.recipe import GenerateRecipe

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
NUM = 6
Recipes = Callable[..., GenerateRecipe]
Commands = Callable[..., list[str]]


def assert_all_but_the_long_one_fit_the_schema(store: Store, engine: str, told: str, *, state: str = "failed") -> None:
    with store.read() as session:
        rows = session.execute(
            select(CompletionBody.body, Completion).join(Completion, Completion.id == CompletionBody.completion_id)
        ).all()
        failed = list(session.scalars(select(Completion.error).where(Completion.error.is_not(None))))
        states = sorted(session.scalars(select(Request.state)))
    assert len(rows) == NUM - 1 and states == ["done"] * (NUM - 1) + [state], (failed, states)
    for body, completion in rows:
        value = orjson.loads(decompressed(body))
        assert 1 <= len(value["negatives"]) <= 2
        assert all(
            len(negative["text"]) <= 40 and negative["level"] in ("hard", "easy") for negative in value["negatives"]
        )
        assert completion.engine == engine and completion.input_tokens > 5 and completion.output_tokens > 5
        assert completion.finish_reason == "stop" and completion.model_reported == "tiny"
    assert len(failed) == 1 and told in failed[0], failed


def test_serve_through_the_openai_engine(
    tmp_path: Path, store: Store, fill: Callable[..., None], make_recipe: Recipes, vllm_command: Commands
) -> None:
    fill(NUM, too_long=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        command = vllm_command("api_server", "--host", "127.0.0.1", "--port", str(port))
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 240
        while not is_ready(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        engine = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": 4}
        generate(store, make_recipe(engine))
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert_all_but_the_long_one_fit_the_schema(store, "openai", "400")


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_run_batch_through_the_batch_file_engine(
    tmp_path: Path, store: Store, fill: Callable[..., None], make_recipe: Recipes, vllm_command: Commands
) -> None:
    fill(NUM, too_long=True)
    asked, answered = tmp_path / "requests.jsonl", tmp_path / "completions.jsonl"
    recipe = make_recipe({"kind": "batch_file", "requests": str(asked), "completions": str(answered)})
    assert generate(store, recipe).num_waiting == NUM
    command = vllm_command("run_batch", "-i", str(asked), "-o", str(answered))
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [orjson.loads(line) for line in answered.read_bytes().splitlines()]
    # run-batch puts the error of a line one level deeper than OpenAI's Batch API does, and leaves the body empty.
    (bad,) = [line for line in lines if line["error"]]
    assert "message" in bad["error"]["error"]
    report = generate(store, recipe)
    assert (report.num_new_answers, report.num_failed, report.bad_lines) == (NUM, 1, [])
    # What failed stands in the file again, which holds it until its next answer.
    assert_all_but_the_long_one_fit_the_schema(store, "batch_file", "1024", state="leased")
