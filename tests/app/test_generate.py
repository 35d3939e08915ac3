"""`gradus generate`, `prompts`, `status` and `import documents` as a person types them, against a live server."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest

ROOT = Path(__file__).parents[2]
GRADUS = str(Path(sys.executable).parent / "gradus")
TEXTS = {
    "otter.md": "# Otters\n\nThe otter lives near clear rivers, eats fish at dusk, and raises its young in a den that "
    "it digs into the bank.",
    "badger.txt": "The badger digs long setts in dry woodland soil, eats earthworms at night, and sleeps through the "
    "coldest weeks of winter.",
    "heron.txt": "The heron stands still in shallow water for an hour, takes frogs and small fish, and nests with "
    "others high in tall trees.",
}  # fmt: skip
QUERIES = {"Otters": "where does the otter raise its young", "The badger": "what does the badger eat",
           "The heron": "where do herons nest"}  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.set()  # type: ignore[attr-defined]
        time.sleep(self.server.delay_s)  # type: ignore[attr-defined]
        if failing := getattr(self.server, "failing", None):
            self._send(failing[0], orjson.dumps({"error": {"message": failing[1]}}))
            return
        document = re.findall("<document>(.*?)</document>", body["messages"][0]["content"], re.DOTALL)[-1]
        text = next(text for start, text in QUERIES.items() if document.startswith(start))
        words = document.split("\n")[-1][:60]
        queries = [{"text": text, "evidence": words}, {"text": "what is in the sky", "evidence": words}]
        content = orjson.dumps({"queries": queries}).decode()
        usage = {"prompt_tokens": 300, "completion_tokens": 40}
        choices = [{"message": {"content": content}, "finish_reason": "stop"}]
        data = orjson.dumps({"model": "m", "choices": choices, "usage": usage})
        self._send(200, data)

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    running.delay_s, running.asked = 0.0, threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path, server: ThreadingHTTPServer) -> Path:
    (tmp_path / "docs").mkdir()
    for name, text in TEXTS.items():
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "recipe.toml").write_text(
        f"""
name = "own-queries"
model = "gpt-6-luna"
max_output_tokens = 200
max_rejected = 1.0
[plan]
source = "documents"
collection = "docs"
num = 3
top_k = 1
[engine]
kind = "openai"
base_url = "http://127.0.0.1:{server.server_address[1]}/v1"
concurrency = 1
"""
    )
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [GRADUS, *arguments], capture_output=True, text=True, cwd=folder, check=False, env=environment
    )


def test_queries_from_ones_own_documents(folder: Path) -> None:
    assert run(folder, "import", "documents", "docs").returncode == 0
    dry = run(folder, "generate", "recipe.toml", "--dry-run")
    assert dry.returncode == 0 and "You write search queries" in dry.stdout and "price, US dollars" in dry.stdout
    assert "answered" not in dry.stdout
    pilot = run(folder, "generate", "recipe.toml", "--pilot", "1", "--json", "pilot.json")
    assert pilot.returncode == 0, pilot.stderr
    told = json.loads((folder / "pilot.json").read_text())
    assert told["num_new_answers"] == 1 and told["estimate"]["num_pilot"] == 1
    assert told["estimate"]["output_tokens"]["mean"] == 120
    done = run(folder, "generate", "recipe.toml", "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["num_new_answers"] == 2 and report["outcomes"] == {"partial": 3} and report["num_accepted"] == 3
    assert report["refused"] == {"not_retrieved": 3}
    assert report["spent_usd"] == pytest.approx(3 * (300 * 0.10 + 40 * 0.50) / 1e6)
    status = run(folder, "status", "--json", "-")
    one = json.loads(status.stdout)["generation"][0]
    assert (one["run"], one["num_read"], one["num_planned"], one["state"]) == ("own-queries", 3, 3, "finished")


def asking(folder: Path, server: ThreadingHTTPServer) -> subprocess.Popen[str]:
    """A run that waits for its first answer."""
    server.asked.clear()  # type: ignore[attr-defined]
    process = subprocess.Popen(
        [GRADUS, "generate", "recipe.toml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.asked.wait(60)  # type: ignore[attr-defined]
    return process


def test_interrupted_it_says_so_and_goes_on(folder: Path, server: ThreadingHTTPServer) -> None:
    run(folder, "import", "documents", "docs")
    server.delay_s = 3.0  # type: ignore[attr-defined]
    process = asking(folder, server)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Run it again to go on" in out, (out, err)
    server.delay_s = 0.0  # type: ignore[attr-defined]
    assert run(folder, "generate", "recipe.toml").returncode == 0


def test_interrupted_twice_or_early_it_says_what_was_kept(folder: Path, server: ThreadingHTTPServer) -> None:
    run(folder, "import", "documents", "docs")
    assert run(folder, "generate", "recipe.toml", "--pilot", "1").returncode == 0
    server.delay_s = 60.0  # type: ignore[attr-defined]
    process = asking(folder, server)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(2)  # two that wait together are one
    out, err = process.communicate(timeout=40)
    told = " ".join(out.split())
    assert process.returncode == 130, (out, err)
    assert "1 of 3 requests have answers in the store. Run it again to go on" in told and "Traceback" not in err


@pytest.mark.parametrize("status", [400, 500])
def test_requests_that_failed_are_told_with_the_reason(folder: Path, server: ThreadingHTTPServer, status: int) -> None:
    run(folder, "import", "documents", "docs")
    server.failing = (status, "no \x1b[31m such\nthing")  # type: ignore[attr-defined]
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(recipe + "max_attempts = 1\n")
    done = run(folder, "generate", "recipe.toml", "--json=-")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) > 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("gradus: 3 of 3 requests failed, most often: ") and line.endswith("to ask them again")
    assert "\x1b" not in done.stderr
    report = json.loads(done.stdout)
    assert (report["num_planned"], report["num_failed"], sum(report["failures"].values())) == (3, 3, 3)
    shown = run(folder, "status")
    assert "failed: " in shown.stdout


def test_too_many_refusals_are_reported_before_they_are_an_error(folder: Path) -> None:
    run(folder, "import", "documents", "docs")
    recipe = (folder / "recipe.toml").read_text().replace("max_rejected = 1.0", "max_rejected = 0.2\nmax_repairs = 0")
    (folder / "docs" / "heron.txt").write_text("The heron " + "is silent and speaks of nothing at all " * 3)
    (folder / "recipe.toml").write_text(recipe.replace("num = 3", 'num = 3\nentry = "logical_negatives"'))
    done = run(folder, "generate", "recipe.toml", "--json", "out.json")
    assert done.returncode == 1 and "above max_rejected = 20%" in done.stderr
    assert "requests planned" in done.stdout
    report = json.loads((folder / "out.json").read_text())
    assert report["outcomes"] == {"rejected": 3} and report["output_tokens"] == 120


def test_a_dry_run_and_a_pilot_are_not_one(folder: Path) -> None:
    done = run(folder, "generate", "recipe.toml", "--dry-run", "--pilot", "3")
    assert done.returncode == 2 and "give one of them" in " ".join(done.stderr.split())


def test_a_slip_in_the_collection_is_told_before_anything_is_indexed(folder: Path) -> None:
    run(folder, "import", "documents", "docs")
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(recipe.replace('"docs"', '"doc"'))
    done = run(folder, "generate", "recipe.toml", "--dry-run")
    assert done.returncode == 1 and "did you mean 'docs'?" in done.stderr


def test_the_live_view_shows_laggards_by_name_and_no_price_where_none_is_known() -> None:
    from app.live import _View
    from generator.desk import Progress

    progress = Progress(num_planned=10, spent_tokens=7, has_price=False)
    progress.cells.update({(0, 1): 3, (0, 2): 1, (2, 1): 2, (-1, 1): 9})
    facts = dict(_View("t", ["biology, short", "law, long", "art, long"])._facts(progress))
    assert facts["attribute cells"] == ("3, 0 to 4 texts each; fewest: law, long 0; art, long 2; biology, short 4")
    assert facts["spent"] == "no known price, 7 tokens"
    progress.has_price = True
    assert dict(_View("t", [])._facts(progress))["spent"] == "$0.0000, 7 tokens"


def test_a_budget_that_is_spent_is_one_clear_line(folder: Path) -> None:
    run(folder, "import", "documents", "docs")
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(recipe + "[budget]\ntokens = 2000\n")
    done = run(folder, "generate", "recipe.toml")
    assert done.returncode == 1 and "the budget is spent" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_prompts_are_listed_shown_and_compared_only_where_there_are_answers(folder: Path) -> None:
    listed = run(folder, "prompts", "--json", "-")
    names = {entry["entry"] for entry in json.loads(listed.stdout)["entries"]}
    assert {"v1/graded_negatives", "v2/minimal_edits", "v2/logical_negatives"} <= names
    shown = run(folder, "prompts", "show", "v2/minimal_edits")
    assert "critical_unmet" in shown.stdout and "neighbour_3" in shown.stdout
    for arguments, told in (
        (("v1/graded_negatives", "v2/nothing"), "no run in the store used"),
        (("v2/nothing", "v1/graded_negatives"), "has no entry 'nothing'"),
        (("minimal_edits", "v1/graded_negatives"), "PACK/ENTRY"),
    ):
        done = run(folder, "prompts", "compare", *arguments)
        assert done.returncode == 1 and told in done.stderr


@pytest.mark.slow
def test_the_recorded_ways_of_writing_stand_side_by_side(tmp_path: Path) -> None:
    demo = ROOT / "app" / "demo"
    assert run(tmp_path, "import", "beir", str(demo / "scifact"), "--name", "scifact").returncode == 0
    for name in ("graded", "minimal_edits"):
        assert run(tmp_path, "generate", str(demo / "recipes" / f"{name}.toml")).returncode == 0
    done = run(tmp_path, "prompts", "compare", "v1/graded_negatives", "v2_pilot/minimal_edit", "--json", "way.json")
    assert done.returncode == 0, done.stderr
    free, edits = json.loads((tmp_path / "way.json").read_text())["ways"]
    assert free["num_pairs"] == edits["num_pairs"] == 200
    assert free["leaks"]["1"]["auc"] > 0.99 and edits["leaks"]["1"]["auc"] < 0.6
    assert free["order_accuracy"] > 0.85 and 0.4 < edits["order_accuracy"] < 0.6
    assert edits["above_positive"]["2"] > free["above_positive"]["2"]


def test_the_gate_measures_with_a_real_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.encoders import embedding_cache
    from app.generation import CosineGate
    from generator.recipe import EmbeddingGate

    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    gate = CosineGate(embedding_cache("minilm"), EmbeddingGate())
    groups = [("where do otters live", [TEXTS["otter.md"], TEXTS["badger.txt"]]), ("setts", [TEXTS["badger.txt"]])]
    (near, far), (alone,) = gate.similarities(groups)
    assert 1 > near > far > -1 and alone > 0.1
