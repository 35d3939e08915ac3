"""`gradus judge` as a person types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from db.store import Store

GRADUS = str(Path(sys.executable).parent / "gradus")
RECIPE = """
name = "look"
[screen]
model = "gpt-6-luna"
max_output_tokens = 300
[screen.engine]
kind = "openai"
base_url = "{url}"
concurrency = 1
[confirm]
model = "strong"
threshold = 2
[confirm.engine]
kind = "openai"
base_url = "{url}"
"""


@pytest.fixture
def folder(tmp_path: Path, chat_server: Any, tools: Any) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(url=chat_server.url))
    store = Store.open(f"sqlite:///{tmp_path}/gradus-data/store.db")
    tools.fill_negatives(store, 8)
    store.close()
    chat_server.script = tools.honest
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "COLUMNS": "120"}
    command = [GRADUS, "judge", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, env=environment)


def test_dry_run_pilot_and_all(folder: Path, chat_server: Any) -> None:
    dry = run(folder, "recipe.toml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "You judge whether a document" in dry.stdout and "price, US dollars" in dry.stdout
    assert chat_server.bodies == []
    pilot = run(folder, "recipe.toml", "--pilot", "3", "--json", "-")
    told = json.loads(pilot.stdout)
    assert told["stages"][0]["num_new_answers"] == 3 and told["estimate"]["screen"]["num_requests"] == 5
    done = run(folder, "recipe.toml", "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["stages"][0]["grades"] == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert told["stages"][1]["grades"] == {"2": 2, "3": 2} and told["exempted"] is None
    command = [GRADUS, "status", "--json", "-"]
    status = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert status.returncode == 0, status.stderr
    runs = {one["run"]: one["num_read"] for one in json.loads(status.stdout)["generation"]}
    assert runs == {"writing": 0, "look: screen": 8, "look: confirm": 4}
    assert told["stages"][0]["spent_usd"] == pytest.approx(8 * (100 * 0.10 + 20 * 0.50) / 1e6)


def test_agreement_with_a_collections_people_and_with_a_file(folder: Path, chat_server: Any, tools: Any) -> None:
    beir = folder / "set"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "text": f"set text\nnumber  {n} grade {n % 4} "} for n in range(8)]
    (beir / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (beir / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{n}", "text": f"q {n}"}) for n in range(4)))
    people = [(f"q{n // 2}", f"d{n}", 3 if n == 0 else n % 4) for n in range(8)]
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in people)]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines))
    subprocess.run([GRADUS, "import", "beir", "set", "--name", "set"], cwd=folder, capture_output=True, check=True)
    scope = '[scope]\nsource = "qrels"\ncollection = "set"\nsplit = "test"\n'
    recipe = RECIPE.format(url=chat_server.url).partition("[confirm]")[0] + scope
    (folder / "people.toml").write_text(recipe)
    done = run(folder, "people.toml", "--agreement", "set:test", "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["agreement"]
    assert found["num_compared"] == 8 and found["confusion"][3] == [1, 0, 0, 2] and found["share_same"] == 0.875
    (folder / "people.csv").write_text('query,passage,relevance\nq 1,"set text\nnumber  2 grade 2 ",2\n')
    shown = run(folder, "--agreement", "people.csv")
    assert shown.returncode == 0 and "kappa" in shown.stdout, shown.stderr
    lost = run(folder, "--agreement", "nowhere.csv")
    assert lost.returncode == 1 and "nowhere.csv" in lost.stderr and len(lost.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("threshold = 2", "treshold = 2", "did you mean 'threshold'?"),
        ("threshold = 2", "threshold = 4", "confirm.threshold = 4"),
        ('name = "look"', 'name = "look"\nentry = "lamer_passage"', "lamer_passage"),
        ('name = "look"', 'name = "look"\n[scope]\norigins = ["mind"]', "mind"),
        ('name = "look"', 'name = "look"\n[scope]\nruns = ["nobody"]', "'nobody'"),
        ('model = "strong"', 'model = "gpt-6-luna"', "a judge cannot confirm itself"),
        ('model = "strong"', 'model = "strong"\nbudget = { usd = 1.0 }', "budget.usd needs a price"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_sends_nothing(
    folder: Path, chat_server: Any, old: str, new: str, told: str
) -> None:
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace(old, new))
    done = run(folder, "recipe.toml")
    assert done.returncode == 1 and told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert chat_server.bodies == []


def test_interrupted_it_says_so_and_goes_on(folder: Path, chat_server: Any) -> None:
    chat_server.delay_s = 0.3
    process = subprocess.Popen(
        [GRADUS, "judge", "recipe.toml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(chat_server.bodies) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Run it again to go on" in out, err
    assert len(chat_server.bodies) < 8
    chat_server.delay_s = 0.0
    assert run(folder, "recipe.toml").returncode == 0 and set(chat_server.came.values()) == {1}
