"""Torchrun and `accelerate launch` give what a start by hand gives; ranks and launchers that die cost time alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .test_training import FULL, ROOT, assert_same, run

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
# Its launcher of several processes wants GPUs or MPI, but asks for neither itself: the recipe says that it is the CPU.
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python",
]  # fmt: skip
GRADUS = [sys.executable, "-c", "from app.cli import main; main()"]
# At step 5 rank 1 dies, or rank 0 waits for its end.
_CODE = """
import os, signal, sys, time
from pathlib import Path
from trainer.recipe import TrainRecipe
from trainer.training import train
recipe, release, model, output, fault = sys.argv[1:]
rank = os.environ["RANK"]
def told(done, total):
    if done == 5 and fault == "die" and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    if done == 5 and fault == "wait" and rank == "0":
        print("waiting", flush=True)
        time.sleep(3600)
train(TrainRecipe.model_validate_json(recipe), Path(release), Path(model), output=Path(output), progress=told)
"""


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


@pytest.fixture
def data(release: Path, tiny_model: Path, tmp_path: Path) -> Path:
    """A data folder with the release, and the full recipe beside it."""
    shutil.copytree(release, tmp_path / "data" / "releases" / "toy-1.0.0")
    fields = {**FULL.model_dump(exclude_unset=True), "model": str(tiny_model)}
    (tmp_path / "recipe.toml").write_text("\n".join(f"{name} = {_toml(one)}" for name, one in fields.items()))
    return tmp_path / "data"


def _launched(launcher: list[str], command: list[str], data: Path, **more: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GRADUS_DATA": str(data), **more}
    return subprocess.Popen(
        [*launcher, *command], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def _with_fault(fault: str, data: Path, tiny_model: Path) -> list[str]:
    recipe = FULL.model_copy(update={"model": str(tiny_model)}).model_dump_json()
    folders = [data / "releases" / "toy-1.0.0", tiny_model, data / "models" / "toy"]
    return [sys.executable, "-c", _CODE, recipe, *map(str, folders), fault]


def test_launchers_equal_a_start_by_hand_after_being_cut_off_too(
    release: Path, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    straight = tmp_path / "straight" / "toy"
    run((release, tiny_model), straight, count=2)

    launched = _launched(TORCHRUN, _with_fault("die", data, tiny_model), data)
    assert "Signal 9 (SIGKILL)" in launched.communicate(timeout=600)[1] and launched.returncode == 1

    launched = _launched(TORCHRUN, _with_fault("wait", data, tiny_model), data)
    assert launched.stdout is not None and "waiting" in launched.stdout.readline()
    launched.send_signal(signal.SIGTERM)
    launched.communicate(timeout=600)
    assert launched.returncode != 0 and not (data / "models" / "toy").exists()

    for launcher in (TORCHRUN, ACCELERATE):
        command = [*GRADUS, "train", str(data.parent / "recipe.toml")]
        launched = _launched(launcher, command, data, HF_HOME=str(tmp_path / "home"))
        out, errors = launched.communicate(timeout=600)
        assert launched.returncode == 0 and out.count("saved: ") == 1, errors
        assert_same(straight, data / "models" / "toy")
        shutil.rmtree(data / "models" / "toy")


def test_a_rank_that_dies_ends_the_others_with_a_line(tiny_model: Path, data: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = _with_fault("die", data, tiny_model)
    ranks = [_launched([], command, data, RANK=rank, LOCAL_RANK=rank, **address) for rank in "01"]
    errors = [rank.communicate(timeout=600)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, -signal.SIGKILL]
    assert "process 0 of 2 lost another one" in errors[0].splitlines()[-1]


def test_another_call_is_kept_out(tiny_model: Path, data: Path) -> None:
    """As when a launcher was killed and left its processes behind."""
    first = _launched([], _with_fault("wait", data, tiny_model), data, RANK="0")
    try:
        assert first.stdout is not None and first.stderr is not None
        assert "waiting" in first.stdout.readline(), first.stderr.read()
        second = _launched([], [*GRADUS, "train", str(data.parent / "recipe.toml")], data)
        errors = second.communicate(timeout=600)[1]
        assert second.returncode == 1 and "is being trained by another call" in errors, errors
    finally:
        first.kill()
        first.communicate()
