"""The whole road on a small slice of the real data: twice it changes nothing, and SIGKILLs change nothing either."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest
from sqlalchemy import func, select

from app.demo.road import DATA, MODEL, RELEASE
from db.check import check_store
from db.store import Store
from db.tables.releases import Release
from db.tables.schema import METADATA

ROOT = Path(__file__).parents[2]
NUM_PAIRS, NUM_EXAMPLES, NUM_DOCUMENTS, NUM_DEV = 8, 4, 60, 5


def read(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, rows)) + b"\n"))


def slice_recorded(folder: Path, name: str, keep: set[str]) -> None:
    for file in ("plan", "completions"):
        rows = [row for row in read(DATA / "recorded" / name / f"{file}.jsonl.gz") if row["custom_id"] in keep]
        write(folder / "recorded" / name / f"{file}.jsonl.gz", rows)


@pytest.fixture(scope="module")
def sliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data cut down to a few pairs, with the documents that they need and some more."""
    folder = tmp_path_factory.mktemp("slice")
    plan = read(DATA / "recorded" / "graded" / "plan.jsonl.gz")
    pairs = [row for row in plan if row["kind"] == "graded_negatives"][:NUM_PAIRS]
    others = [row for row in plan if row["kind"] == "graded_example"][:NUM_EXAMPLES]
    edits = read(DATA / "recorded" / "minimal_edits" / "plan.jsonl.gz")[:NUM_PAIRS]
    slice_recorded(folder, "graded", {str(row["custom_id"]) for row in pairs + others})
    slice_recorded(folder, "minimal_edits", {str(row["custom_id"]) for row in edits})
    qrels = {s: (DATA / "scifact" / "qrels" / f"{s}.tsv").read_text().splitlines() for s in ("train", "dev")}
    queries = {str(row["query_id"]) for row in pairs}
    kept = {
        "train": [r for r in qrels["train"][1:] if r.split("\t")[0] in queries],
        "dev": qrels["dev"][1 : NUM_DEV + 1],
    }
    queries |= {row.split("\t")[0] for row in kept["dev"]}
    documents = {row.split("\t")[1] for rows in kept.values() for row in rows}
    documents |= {str(row["neighbour_id"]) for row in edits}
    corpus = read(DATA / "scifact" / "corpus.jsonl.gz")
    documents |= {str(row["_id"]) for row in corpus[:NUM_DOCUMENTS]}
    write(folder / "scifact" / "corpus.jsonl.gz", [row for row in corpus if row["_id"] in documents])
    asked = [row for row in read(DATA / "scifact" / "queries.jsonl.gz") if row["_id"] in queries]
    write(folder / "scifact" / "queries.jsonl.gz", asked)
    (folder / "scifact" / "qrels").mkdir()
    for split, rows in kept.items():
        (folder / "scifact" / "qrels" / f"{split}.tsv").write_text("\n".join([qrels[split][0], *rows]) + "\n")
    (folder / "recipes").mkdir()
    for recipe in (DATA / "recipes").glob("*.toml"):
        text = (
            recipe.read_text()
            .replace("max_length = 128", "max_length = 32")
            .replace("dev_share = 0.1", "dev_share = 0.0")
        )
        (folder / "recipes" / recipe.name).write_text(
            text + ("checkpoint_every = 1\n" if recipe.stem == "train" else "")
        )
    return folder


def start(data: Path, home: Path) -> subprocess.Popen[str]:
    code = "import sys; from pathlib import Path; from app.demo.road import walk; walk(Path(sys.argv[1]))"
    env = {**os.environ, "GRADUS_DATA": str(home), "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(data)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def walk(data: Path, home: Path) -> str:
    process = start(data, home)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output[-3000:]
    return output


def outcome(home: Path) -> dict[str, object]:
    """What must not depend on kills: the release's digest, the metrics, the size of every table."""
    store = Store.open(f"sqlite:///{home}/store.db")
    with store.read() as session:
        digest = session.scalars(select(Release.digest).where(Release.name == RELEASE)).one()
        sizes = {name: session.scalar(select(func.count()).select_from(t)) for name, t in METADATA.tables.items()}
    assert check_store(store, progress=lambda done, total: None) == []
    store.close()
    evaluation = orjson.loads((home / "evaluation.json").read_bytes())
    for model in evaluation["models"]:
        model.pop("model")
    weights = (home / "models" / MODEL / "model.safetensors").read_bytes()
    return {"digest": digest, "sizes": sizes, "evaluation": evaluation, "weights": hash(weights)}


@pytest.fixture(scope="module")
def whole(sliced: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    shown = walk(sliced, home)
    for command in ("import beir", "generate", "mine", "score", "audit", "release create", "train", "evaluate"):
        assert f"$ gradus {command}" in shown
    assert "gradus app" in shown and "Time of each stage" in shown
    return home


def test_twice_it_changes_nothing(sliced: Path, whole: Path) -> None:
    before = outcome(whole)
    store_bytes = dump(whole)
    walk(sliced, whole)
    assert outcome(whole) == before
    assert dump(whole) == store_bytes


def dump(home: Path) -> list[str]:
    import sqlite3

    connection = sqlite3.connect(home / "store.db")
    lines = list(connection.iterdump())
    connection.close()
    return lines


# After which shown command, and how many seconds later, each kill comes.
KILLS = [
    ("import", 0.2),
    ("generate", 0.3),
    ("mine", 2.0),
    ("score", 0.1),
    ("release", 0.3),
    ("train", 2.5),
    ("evaluate", 0.5),
]


def test_killed_at_every_stage_it_ends_the_same(sliced: Path, whole: Path, tmp_path: Path) -> None:
    num_killed = 0
    for command, delay in KILLS:
        process = start(sliced, tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"$ gradus {command}"):
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        num_killed += process.wait() == -signal.SIGKILL
    assert num_killed == len(KILLS)
    walk(sliced, tmp_path)
    assert outcome(tmp_path) == outcome(whole)
