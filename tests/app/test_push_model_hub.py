"""`gradus push-model` in processes of its own against the loopback Hub, and real clients that load what it pushed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

pytestmark = pytest.mark.slow
GRADUS = [sys.executable, "-c", "from app.cli import main; main()"]
ROOT = Path(__file__).parents[2]
RECIPE = {"name": "small", "model": "minilm", "schedule": "easy_to_hard", "pooling": "log1p", "seed": 3}
SUMMARY = {
    "recipe": RECIPE, "release": "toy-1.0.0", "release_digest": "d" * 64, "num_examples": 12, "num_steps": 4,
    "machine": "a machine",
}  # fmt: skip
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer model with ATA pooling, as training saves it."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from curation.embeddings import model_folder
    from trainer.backbones import load_model, save_model

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=30_522, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(str(model_folder("minilm"))).save_pretrained(folder / "bert")
    save_model(load_model(folder / "bert", device="cpu"), folder / "small")
    (folder / "small" / "training.json").write_text(json.dumps(SUMMARY))
    (folder / "small" / "margins.parquet").write_bytes(b"PAR1")  # clients warn of these in a model
    return folder / "small"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "small"))


def _command(hub: Any, model: Path, *more: str) -> list[str]:
    return [*GRADUS, "push-model", str(model), "--repo", hub.repo, *more]


@pytest.fixture
def push(hub: Any, model: Path, tmp_path: Path) -> Run:
    def run(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            _command(hub, model, *more), env=hub.environment(tmp_path / "home", COLUMNS="200", **environment), cwd=ROOT,
            check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


def _pushed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stdout + done.stderr
    return orjson.loads(done.stdout)


def _refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a person sees."""
    assert done.returncode == 1, done.stdout + done.stderr
    line = done.stderr.strip()
    assert line.startswith("gradus: ") and "\n" not in line and "hf_test" not in line, done.stderr
    return line


def _python(script: str, environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, cwd=ROOT,
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_LOAD = """
import json, sys
from sentence_transformers import SentenceTransformer
where, *revisions = sys.argv[1:]
for revision in revisions:
    options = {"revision": revision} if revision != "local" else {}
    model = SentenceTransformer(where, trust_remote_code=True, device="cpu", **options)
    assert type(model[1]).__name__ == "ATAPooling"
    print("loaded", json.dumps(model.encode(["a claim", "a longer text about bones"]).tolist()))
"""
_CODE_THAT_CAME_LATER = """
_before = ATAPooling.forward
def _ones(self, features, **more):
    features = _before(self, features, **more)
    features["sentence_embedding"] = features["sentence_embedding"] * 0 + 1
    return features
ATAPooling.forward = _ones
"""
_CARD = """
import sys
from huggingface_hub import ModelCard
card = ModelCard.load(sys.argv[1])
card.validate(repo_type="model")
print(card.data.library_name, card.text.count("d" * 64))
"""


def _loaded(environment: dict[str, str], *arguments: str) -> list[Any]:
    lines = _python(_LOAD, environment, *arguments).splitlines()
    return [json.loads(line.removeprefix("loaded ")) for line in lines if line.startswith("loaded ")]


def test_a_tag_loads_what_was_pushed_with_its_code_after_main_has_moved(
    hub: Any, model: Path, push: Run, tmp_path: Path
) -> None:
    first = _pushed(push("--tag", "v1", "--json", "-"))
    assert first["is_new"] and first["is_new_tag"] and first["tag"] == "v1"
    reader = hub.environment(tmp_path / "reader")
    (local,) = _loaded(reader, str(model), "local")
    with (model / "modeling_ata.py").open("a") as code:
        code.write(_CODE_THAT_CAME_LATER)
    second = _pushed(push("--json", "-"))
    assert second["is_new"] and second["tag"] is None and second["commit"] != first["commit"]
    tagged, head = _loaded(reader, hub.repo, "v1", "main")
    assert tagged == local and head != local
    assert _python(_CARD, reader, hub.repo).split() == ["sentence-transformers", "1"]


def test_again_it_writes_nothing(hub: Any, push: Run) -> None:
    first = _pushed(push("--tag", "v1", "--json", "-"))
    hub.faults("DELETE")
    again = _pushed(push("--tag", "v1", "--json", "-"))
    assert again == first | {"is_new": False, "is_new_tag": False}
    assert not {"create", "preupload", "batch", "upload", "commit", "tag"} & set(hub.faults()["seen"])


def test_a_tag_is_a_promise(hub: Any, model: Path, push: Run) -> None:
    first = _pushed(push("--tag", "v1", "--json", "-"))
    (model / "metrics.jsonl").write_text("{}\n")
    assert "has that tag with another metrics.jsonl" in _refused(push("--tag", "v1"))
    hub.faults("POST", at="tag", do="take", message="v2")
    assert "has that tag with another" in _refused(push("--tag", "v2"))
    third = _pushed(push("--tag", "v3", "--json", "-"))
    assert third["is_new_tag"] and third["commit"] != first["commit"]


def test_a_head_that_moves_is_told_and_built_on(hub: Any, push: Run, tmp_path: Path) -> None:
    hub.faults("POST", at="commit", do="move")
    assert "new head" in (line := _refused(push("--tag", "v1"))) and "run the same command again" in line
    report = _pushed(push("--tag", "v1", "--json", "-"))
    assert report["is_new"] and report["is_new_tag"]
    listed = "import sys; from huggingface_hub import HfApi; print(HfApi().list_repo_files(sys.argv[1]))"
    files = _python(listed, hub.environment(tmp_path / "reader"), hub.repo)
    assert "elsewhere.txt" in files and "model.safetensors" in files


@pytest.mark.parametrize("at", ["upload", "commit", "tag"])
def test_killed_at_a_step_the_next_call_finishes_it(hub: Any, model: Path, push: Run, tmp_path: Path, at: str) -> None:
    hub.faults("POST", at=at, do="hold")
    environment = hub.environment(tmp_path / "home")
    running = subprocess.Popen(
        _command(hub, model, "--tag", "v1"), env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not hub.faults()["active"][0]["waiting"]:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    hub.faults("DELETE")
    if at == "tag":
        edit = "import sys; from huggingface_hub import HfApi; HfApi().upload_file(path_or_fileobj=b'x', " \
            "path_in_repo='README.md', repo_id=sys.argv[1])"  # fmt: skip
        _python(edit, environment | {"HF_HUB_DISABLE_XET": "1"}, hub.repo)
    report = _pushed(push("--tag", "v1", "--json", "-"))
    assert report["is_new"] == (at != "tag") and report["is_new_tag"]


def test_an_answer_that_got_lost_is_found_again(hub: Any, push: Run) -> None:
    hub.faults("POST", at="commit", do="cut-after")
    assert "run the same command again, it goes on from what is there" in _refused(push("--tag", "v1"))
    report = _pushed(push("--tag", "v1", "--json", "-"))
    assert not report["is_new"] and report["is_new_tag"]


def test_what_is_not_allowed_is_one_line(hub: Any, push: Run) -> None:
    assert "no token" in _refused(push(HF_TOKEN=""))
    for at in ("create", "commit", "tag"):
        hub.faults("POST", at=at, do="refuse", status=403, message="You do not have write access")
        assert "may not write to" in _refused(push("--tag", "v1"))
    hub.faults("POST", at="create", do="refuse", status=401, message="bad token")
    assert "--private was asked for" in _refused(push("--private"))


def test_a_private_model_is_loaded_with_a_token_alone(hub: Any, model: Path, push: Run, tmp_path: Path) -> None:
    _pushed(push("--private", "--tag", "v1", "--json", "-"))
    reader = hub.environment(tmp_path / "reader")
    assert _loaded(reader, hub.repo, "v1") == _loaded(reader, str(model), "local")
    seen = "import sys; from huggingface_hub import HfApi; print(HfApi(token=False).repo_exists(sys.argv[1]))"
    assert _python(seen, reader, hub.repo).strip() == "False"


def test_a_dry_run_prints_the_card_and_asks_nobody(hub: Any, model: Path, push: Run) -> None:
    done = push("--dry-run", "--tag", "v1")
    assert done.returncode == 0 and 'revision="v1"' in done.stdout and "model.safetensors" in done.stdout
    assert hub.faults()["seen"] == [] and not (model / "README.md").exists()
