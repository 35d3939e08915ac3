"""`gradus train` as its user runs it: the printed plan, the tables, and refusals in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(release: Path, tiny_model: Path, tmp_path: Path) -> Run:
    """Runs the command on a recipe with these lines."""

    def run(lines: str, *options: str) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f'name = "toy"\nrelease = "{release}"\nmodel = "{tiny_model}"\nmax_length = 16\nbatch_size = 4\n'
            f'device = "cpu"\n{lines}\n'
        )
        command = [str(Path(sys.executable).parent / "gradus"), "train", str(recipe), *options]
        env = {**os.environ, "GRADUS_DATA": str(tmp_path), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)

    return run


def test_the_plan_is_printed_and_nothing_is_trained(run: Run, tmp_path: Path) -> None:
    done = run(
        "max_steps = 16\nshares = [0.25, 0.25, 0.125, 0.375]", "--dry-run", "--json", str(tmp_path / "plan.json")
    )
    assert done.returncode == 0, done.stderr
    plan = orjson.loads((tmp_path / "plan.json").read_bytes())["plan"]
    assert [(row["rank"], row["from step"], row["to step"]) for row in plan] == [
        (4, 1, 4), (3, 5, 8), (2, 9, 10), (1, 11, 16),
    ]  # fmt: skip
    assert "Curriculum" in done.stdout and not (tmp_path / "models").exists()


def test_training_says_what_it_did_and_what_it_cut(run: Run, tmp_path: Path) -> None:
    done = run("max_steps = 4", "--json", str(tmp_path / "summary.json"))
    assert done.returncode == 0, done.stderr
    summary = orjson.loads((tmp_path / "summary.json").read_bytes())
    assert summary["num_texts_cut"] > 0
    assert f"cut: {summary['num_texts_cut']} of {summary['num_texts']} texts" in done.stdout
    assert "per rank" in done.stdout and "per block" in done.stdout
    assert (tmp_path / "models" / "toy" / "model.safetensors").is_file()


def test_refusals_are_one_line(run: Run) -> None:
    for lines, message in (
        ("learning_rat = 1", "did you mean 'learning_rate'"),
        ("split = 'test'", "no split 'test'"),
        ("max_query_length = 99", "max_query_length = 99"),
    ):
        done = run(lines)
        assert done.returncode == 1
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
