"""`gradus train` where the machine has too little, or another call is at it: one line, and nothing is lost."""

import fcntl
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from trainer.checkpoints import held
from trainer.errors import TrainerError
from trainer.training import train

from .conftest import toy_rows
from .test_training import assert_same, recipe

_MAIN = [sys.executable, "-c", "from app.cli import main; main()", "train"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Run:
    """Runs the command on a release and a recipe with these lines."""

    def run(data: Path, lines: str = "") -> subprocess.CompletedProcess[str]:
        file = tmp_path / "recipe.toml"
        file.write_text(
            f'name = "toy"\nrelease = "{data}"\nmodel = "{tiny_model}"\nmax_length = 16\nbatch_size = 4\n'
            f'device = "cpu"\n{lines}\n'
        )
        env = {**os.environ, "GRADUS_DATA": str(tmp_path), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        return subprocess.run([*_MAIN, str(file)], env=env, capture_output=True, text=True, check=False, timeout=600)

    return run


def _line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("gradus: "), done.stderr
    return lines[0]


@contextmanager
def _largest_file(num_bytes: int) -> Iterator[None]:
    """A disk that takes no larger file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_the_next_call_goes_on(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole = train(recipe(), release, tiny_model, output=tmp_path / "whole" / "toy").folder
    size = (whole / "model.safetensors").stat().st_size
    output, seen = tmp_path / "cut" / "toy", []
    # Less than the tokens take; less than a checkpoint takes, which holds the weights and two moments of each.
    for most in (1_000, 2 * size):
        with _largest_file(most), pytest.raises(TrainerError, match="cannot be written"):
            train(recipe(), release, tiny_model, output=output)
    assert not (output.with_name(".toy.partial") / "checkpoint.partial").exists()

    def fill(done: int, total: int | None) -> None:
        seen.append(done)
        if done == 5:  # checkpoints are made after steps 2, 4 and 6
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    with _largest_file(unlimited), pytest.raises(TrainerError, match="goes on from the last checkpoint"):
        train(recipe(), release, tiny_model, output=output, progress=fill)
    assert seen == [0, 1, 2, 3, 4, 5]
    train(recipe(), release, tiny_model, output=output, progress=lambda done, total: seen.append(done))
    assert seen[6:] == [4, 5, 6, 7, 8]
    assert_same(whole, output)


def test_rows_without_negatives_learn_from_each_other(
    run: Run, release_of: Callable[[list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    rows = [{**row, "negatives": []} for row in toy_rows()]
    assert "no graded negatives" in _line(run(release_of(rows)))
    done = run(tmp_path / "other-release", 'schedule = "mixture"')
    assert done.returncode == 0 and "per block" in done.stdout and "per rank" not in done.stdout, done.stderr


def test_another_call_is_kept_out_while_one_trains(release: Path, tiny_model: Path, tmp_path: Path) -> None:
    def again(done: int, total: int | None) -> None:
        if done == 3:
            with pytest.raises(TrainerError, match="being trained by another call"):
                train(recipe(), release, tiny_model, output=tmp_path / "toy")

    assert train(recipe(), release, tiny_model, output=tmp_path / "toy", progress=again).is_new
    assert not list(tmp_path.glob(".*"))


def test_a_held_folder_goes_when_it_stays_empty(tmp_path: Path) -> None:
    with held(tmp_path / "a" / "b"):
        handle = os.open(tmp_path / "a" / "b", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
    assert not (tmp_path / "a" / "b").exists()
    with held(tmp_path / "c"):
        (tmp_path / "c" / "file").write_text("x")
    assert (tmp_path / "c" / "file").is_file()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("not JSON"), "cannot be loaded"),
        (lambda folder: (folder / "modules.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\1\2\3"), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no vocabulary"),
        (
            lambda folder: (folder / "config.json").write_bytes(
                orjson.dumps(orjson.loads((folder / "config.json").read_bytes()) | {"hidden_size": 64})
            ),
            "cannot be loaded",
        ),
    ],
)
def test_a_folder_that_is_no_model_is_told(
    spoil: Callable[[Path], Any], message: str, release: Path, tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(TrainerError, match=message) as told:
        train(recipe(), release, folder, output=tmp_path / "toy")
    assert "\n" not in str(told.value) and str(folder) in str(told.value)
