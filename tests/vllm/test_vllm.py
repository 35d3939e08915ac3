"""Real vLLM on the CPU with a tiny model: the offline engine, `serve` and `run-batch`, all with a JSON schema.

Runs in .venv-vllm (scripts/install_vllm.sh); elsewhere these tests are skipped.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import select

from db.store import Store
from db.tables.ledger import Completion, CompletionBody, Request
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries
from generator.generation import generate
from generator.ledger import decompressed
from generator.recipe import GenerateRecipe

pytest.importorskip("vllm", reason="vLLM is not installed here: scripts/install_vllm.sh makes .venv-vllm")
# vLLM and torch warn of themselves; that is theirs to mend.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
NUM = 6
SCHEMA = {
    "type": "object",
    "properties": {
        "negatives": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"level": {"type": "string", "enum": ["hard", "easy"]}, "text": {"type": "boolean"}},
                "required": ["level", "text"],
                "additionalProperties": False,
            },
            "minItems": 1,
            "maxItems": 2,
        }
    },
    "required": ["negatives"],
    "additionalProperties": False,
}
# What the CPU build needs to run at all; see the recipe's engine_args for what each engine needs.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
_STRUCTURED = {"backend": "guidance", "disable_any_whitespace": True}
# Chunked prefill and seeds together stop the CPU engine.
_ENGINE = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 4_096}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    script = Path(__file__).with_name("make_tiny_model.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, env={**os.environ, **_ENVIRONMENT})
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/store.db")
    with opened.write() as session:
        collection = Collection(name="toy", kind="beir")
        session.add(collection)
        session.flush()
        passages = put_passages(session, [f"positive {n}" for n in range(NUM)])
        # The last query is longer than the model's context.
        words = ["word " * 2_000 if n == NUM - 1 else f"query {n}" for n in range(NUM)]
        for n, (passage, query) in enumerate(zip(passages, put_queries(session, words), strict=True)):
            document = Document(collection_id=collection.id, external_id=f"d{n}", passage_id=passage)
            asked = CollectionQuery(collection_id=collection.id, external_id=f"q{n}", query_id=query)
            session.add_all([document, asked])
            session.flush()
            session.add(Qrel(collection_query_id=asked.id, document_id=document.id, split="train", relevance=1))
    yield opened
    opened.close()


def recipe(folder: Path, model: Path, engine: dict[str, Any]) -> GenerateRecipe:
    entry = folder / "pack" / "levels"
    entry.mkdir(parents=True)
    (entry / "prompt.j2").write_text("Grade this: {{ query }}")
    (entry / "schema.json").write_bytes(orjson.dumps(SCHEMA))
    slots = '[[slots]]\ngrade = "hard"\n[[slots]]\ngrade = "easy"\n'
    (entry / "entry.toml").write_text(f'title = "Levels"\nsubject = "pair"\n{slots}')
    plan = {
        "source": "pairs", "entry": "levels", "collection": "toy", "split": "train", "num": NUM,
        "task_instruction": "Match.",
    }  # fmt: skip
    return GenerateRecipe.model_validate(
        {
            "name": "real", "model": "tiny", "pack": str(folder / "pack"), "plan": plan, "engine": engine,
            "max_output_tokens": 200, "model_seed": True, "max_repairs": 0, "max_rejected": 1,
        }
    )  # fmt: skip


def assert_all_answers_fit_the_schema(store: Store, engine: str, kind: str) -> None:
    with store.read() as session:
        rows = session.execute(
            select(CompletionBody.body, Completion)
            .join(Completion, Completion.id == CompletionBody.completion_id)
        ).all()  # fmt: skip
        failed = list(session.scalars(select(Completion.error).where(Completion.error.is_not(None))))
        states = sorted(session.scalars(select(Request.state)))
    assert len(rows) == NUM - 1 and states == ["done"] * (NUM - 1) + ["failed"], (failed, states)
    for body, completion in rows:
        value = orjson.loads(decompressed(body))
        assert 1 <= len(value["negatives"]) <= 2 and isinstance(value["negatives"][0]["text"], bool)
        assert completion.engine == engine and completion.input_tokens > 5 and completion.output_tokens > 5
        assert completion.finish_reason == "stop"
    assert len(failed) == 1 and kind in failed[0], failed


def test_offline_engine(tmp_path: Path, store: Store, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    engine = {
        "kind": "vllm", "model_path": str(model), "dtype": "bfloat16", "max_model_len": 1_024, "max_num_seqs": 8,
        "engine_args": {**_ENGINE, "structured_outputs_config": _STRUCTURED},
    }  # fmt: skip
    made = recipe(tmp_path, model, engine)
    report = generate(store, made)
    assert report.num_new_answers == NUM and report.num_failed == 1
    assert_all_answers_fit_the_schema(store, "vllm", "1024")


def serving(model: Path, module: str, *options: str) -> list[str]:
    return [
        sys.executable, "-m", f"vllm.entrypoints.openai.{module}", "--model", str(model), "--served-model-name", "tiny",
        "--dtype", "bfloat16", "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "8",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096",
        "--structured-outputs-config", orjson.dumps(_STRUCTURED).decode(), *options,
    ]  # fmt: skip


def test_serve_through_the_openai_engine(tmp_path: Path, store: Store, model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = serving(model, "api_server", "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm")
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **_ENVIRONMENT}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 400
        while not _is_ready(port):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "serve.log").read_text()[-3000:]
            time.sleep(1)
        engine = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": 4}
        generate(store, recipe(tmp_path, model, engine))
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert_all_answers_fit_the_schema(store, "openai", "400")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_run_batch_through_the_batch_file_engine(tmp_path: Path, store: Store, model: Path) -> None:
    out, back = tmp_path / "requests.jsonl", tmp_path / "completions.jsonl"
    engine = {"kind": "batch_file", "requests": str(out), "completions": str(back)}
    made = recipe(tmp_path, model, engine)
    assert generate(store, made).num_waiting == NUM
    command = serving(model, "run_batch", "-i", str(out), "-o", str(back))
    done = subprocess.run(
        command, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    generate(store, made)
    assert_all_answers_fit_the_schema(store, "batch_file", "1024")
