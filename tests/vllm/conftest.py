"""A tiny chat model, a store of pairs to ask about, and recipes that ask with a JSON schema."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest

from db.store import Store
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries
from generator.recipe import GenerateRecipe

NUM = 6
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "negatives": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "level": {"type": "string", "enum": ["hard", "easy"]},
                    "text": {"type": "string", "maxLength": 40},
                },
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
# One GiB of cache is plenty, and two threads for 0.7 million weights wait for each other.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
# Longer than one block of the prefix cache.
_STABLE = "Every prompt begins with the same words. " * 20


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: run scripts/install_vllm.sh, then .venv-vllm/bin/pytest tests/vllm")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def model(_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    script = Path(__file__).with_name("make_tiny_model.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=120)
    return folder


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def fill(store: Store) -> Callable[..., None]:
    """Puts pairs into the store; with `too_long` the last one's query is longer than the model's context."""

    def fill_with(num: int, *, too_long: bool = False) -> None:
        with store.write() as session:
            collection = Collection(name="toy", kind="beir")
            session.add(collection)
            session.flush()
            passages = put_passages(session, [f"positive {n}" for n in range(num)])
            words = ["word " * 2_000 if too_long and n == num - 1 else f"query {n}" for n in range(num)]
            for n, (passage, query) in enumerate(zip(passages, put_queries(session, words), strict=True)):
                document = Document(collection_id=collection.id, external_id=f"d{n}", passage_id=passage)
                asked = CollectionQuery(collection_id=collection.id, external_id=f"q{n}", query_id=query)
                session.add_all([document, asked])
                session.flush()
                session.add(Qrel(collection_query_id=asked.id, document_id=document.id, split="train", relevance=1))

    return fill_with


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., GenerateRecipe]:
    entry = tmp_path / "pack" / "levels"
    entry.mkdir(parents=True)
    (entry / "prompt.j2").write_text(_STABLE + "Grade this: {{ query }}")
    (entry / "schema.json").write_bytes(orjson.dumps(SCHEMA))
    slots = '[[slots]]\ngrade = "hard"\n[[slots]]\ngrade = "easy"\n'
    (entry / "entry.toml").write_text(f'title = "Levels"\nsubject = "pair"\n{slots}')

    def recipe(engine: dict[str, Any], num: int = NUM, **changes: Any) -> GenerateRecipe:
        plan = {
            "source": "pairs", "entry": "levels", "collection": "toy", "split": "train", "num": num,
            "task_instruction": "Match.",
        }  # fmt: skip
        fields = {
            "name": "real", "model": "tiny", "pack": str(tmp_path / "pack"), "plan": plan, "engine": engine,
            "max_output_tokens": 300, "model_seed": True, "max_repairs": 0, "max_rejected": 1,
        }  # fmt: skip
        return GenerateRecipe.model_validate(fields | changes)

    return recipe


@pytest.fixture
def offline(model: Path) -> dict[str, Any]:
    """The offline engine's table of a recipe: no more than a CPU needs."""
    return {
        "kind": "vllm", "model_path": str(model), "max_model_len": 1_024, "max_num_seqs": 4, "batch": 16,
        "engine_args": {"enforce_eager": True},
    }  # fmt: skip


@pytest.fixture
def vllm_command(model: Path) -> Callable[..., list[str]]:
    """The command line of one of vLLM's servers. The console script of the CPU build (`vllm serve`) does not start:
    it looks for the metadata of a package named `vllm`."""

    def command(module: str, *options: str) -> list[str]:
        structured = orjson.dumps({"backend": "guidance", "disable_any_whitespace": True}).decode()
        return [
            sys.executable, "-m", f"vllm.entrypoints.openai.{module}", "--model", str(model),
            "--served-model-name", "tiny", "--max-model-len", "1024", "--enforce-eager", "--max-num-seqs", "8",
            "--no-enable-chunked-prefill", "--structured-outputs-config", structured, *options,
        ]  # fmt: skip

    return command
