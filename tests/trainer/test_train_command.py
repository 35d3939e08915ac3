"""`gradus train` as its user runs it: the printed plan, the tables, and refusals in one line."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select

from db.check import check_store
from db.store import Store
from db.tables.training import Training
from db.trainings import training_steps

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(release: Path, tiny_model: Path, tmp_path: Path) -> Run:
    """Runs the command on a recipe with these lines; `until` ends it as a kill would, once that file is there."""

    def run(lines: str, *options: str, until: Path | None = None) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f'name = "toy"\nrelease = "{release}"\nmodel = "{tiny_model}"\nmax_length = 16\nbatch_size = 4\n'
            f'device = "cpu"\n{lines}\n'
        )
        command = [str(Path(sys.executable).parent / "gradus"), "train", str(recipe), *options]
        env = {**os.environ, "GRADUS_DATA": str(tmp_path), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while until is not None and process.poll() is None:
                time.sleep(0.02)
                if until.is_file():
                    process.kill()
            out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

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
    assert "16 steps over 64 rows; the learning rate climbs to 2e-05 in the first 2" in done.stdout
    assert "texts are longer than max_length = 16 tokens takes" in done.stdout


def test_what_a_model_does_not_take_is_told_by_the_dry_run_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    for lines, message in (
        ("max_query_length = 99", "max_query_length = 99: model "),
        ("matryoshka = { dimensions = [64, 8] }", "matryoshka.dimensions = 64: the model's embeddings have 32"),
    ):
        for options in (("--dry-run",), ()):
            done = run(lines, *options)
            assert done.returncode == 1 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("models/.*"))


def test_training_says_what_it_did_and_what_it_cut(run: Run, tmp_path: Path) -> None:
    done = run("max_steps = 4", "--json", str(tmp_path / "summary.json"))
    assert done.returncode == 0, done.stderr
    summary = orjson.loads((tmp_path / "summary.json").read_bytes())
    assert summary["num_texts_cut"] > 0
    assert f"cut: {summary['num_texts_cut']} of {summary['num_texts']} texts" in done.stdout
    assert "per rank" in done.stdout and "per block" in done.stdout
    assert (tmp_path / "models" / "toy" / "model.safetensors").is_file()
    told = " ".join(done.stdout.split())
    assert "not imported, as there is no store here; where it is: gradus import training" in told
    assert summary["imported"] is None and not list(tmp_path.glob("*.db"))


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{path}")
    yield store
    store.close()


def trainings(path: Path) -> list[str]:
    with opened(path) as store, store.read() as session:
        return list(session.scalars(select(Training.digest)))


def test_a_training_killed_before_its_import_is_imported_by_the_next_call(run: Run, tmp_path: Path) -> None:
    path, model = tmp_path / "store.db", tmp_path / "models" / "toy"
    with opened(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin immediate")  # the import waits for its turn, and is killed there
        done = run("max_steps = 4", until=model / "training.json")
        writer.execute("rollback")
    assert done.returncode == -9 and trainings(path) == []
    for count in ("4 steps, 0 new scores", "its steps were there before, 0 new scores"):
        done = run("max_steps = 4", "--json", str(tmp_path / "summary.json"))
        assert done.returncode == 0, done.stderr
        told = " ".join(done.stdout.split())
        assert "unchanged: " in told and count in told and "negatives are not in this store" in told
        report = orjson.loads((tmp_path / "summary.json").read_bytes())["imported"]
        assert trainings(path) == [report["digest"]] and report["num_unknown"] == report["num_negatives"] > 0
    with opened(path) as store:
        with store.read() as session:
            (training,) = session.scalars(select(Training))
            steps = training_steps(session, training.id)
        assert check_store(store, progress=lambda done, total: None) == []
    assert steps == [orjson.loads(line) for line in (model / "metrics.jsonl").read_bytes().splitlines()]
    assert training.started_at is not None and training.finished_at is not None
    assert training.started_at <= training.finished_at


def test_a_store_that_is_asked_for_and_not_there_is_refused_before_the_training(run: Run, tmp_path: Path) -> None:
    done = run("max_steps = 4", "--store", f"sqlite:///{tmp_path}/slip.db")
    assert done.returncode == 1 and "there is no store at" in done.stderr and "--store" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "models").exists()


def test_refusals_are_one_line(run: Run) -> None:
    for lines, message in (
        ("learning_rat = 1", "did you mean 'learning_rate'"),
        ("split = 'test'", "no split 'test'"),
        ("max_query_length = 99", "max_query_length = 99"),
    ):
        done = run(lines)
        assert done.returncode == 1
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
