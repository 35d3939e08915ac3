"""The live engine against a real server on loopback: overload, garbage, wrong keys, and a SIGKILL in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from sqlalchemy import func, select

from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Completion
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries
from generator.engines.endpoint import Window
from generator.errors import EngineStopped
from generator.generation import generate
from generator.recipe import GenerateRecipe

ROOT = Path(__file__).parents[2]
NUM = 60


class Server(ThreadingHTTPServer):
    """Counts how often each prompt is asked; `faults` are statuses to answer first, once each."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.faults: list[int] = []
        self.garbage_for: set[str] = set()
        self.delay_s = 0.0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"]
        with self.server.lock:
            status = self.server.faults.pop() if self.server.faults else 200
            if status == 200:
                self.server.asked[prompt] += 1
        time.sleep(self.server.delay_s)
        if status != 200:
            self._reply(status, {"error": {"message": f"scripted {status}"}})
            return
        text = "no json" if any(word in prompt for word in self.server.garbage_for) else _negatives(prompt)
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        self._reply(200, {"model": "served", "choices": choices, "usage": usage})

    def _reply(self, status: int, body: object) -> None:
        data = orjson.dumps(body)
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "0.05")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


def _negatives(prompt: str) -> str:
    mark = prompt.rpartition("<query>")[2].partition("</query>")[0]
    negatives = [
        {
            "similarity_level": level, "violated_requirement": "r", "plan": "p",
            "text": f"about {mark}, number {place}", "self_check": {"answers_query": False, "reason": ""},
        }
        for place, level in enumerate(["high", "medium", "medium", "low"])
    ]  # fmt: skip
    return orjson.dumps({"reflection": {}, "negatives": negatives}).decode()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def fill(store: Store, num: int = NUM) -> None:
    with store.write() as session:
        collection = Collection(name="toy", kind="beir")
        session.add(collection)
        session.flush()
        passages = put_passages(session, [f"positive {n}" for n in range(num)])
        queries = put_queries(session, [f"query {n}!" for n in range(num)])
        for n in range(num):
            document = Document(collection_id=collection.id, external_id=f"d{n}", passage_id=passages[n])
            query = CollectionQuery(collection_id=collection.id, external_id=f"q{n}", query_id=queries[n])
            session.add_all([document, query])
            session.flush()
            session.add(Qrel(collection_query_id=query.id, document_id=document.id, split="train", relevance=1))


def recipe(server: Server, **engine: object) -> GenerateRecipe:
    return GenerateRecipe.model_validate(
        {
            "name": "live", "model": "m", "pack": "v1", "max_repairs": 0,
            "plan": {
                "source": "pairs", "entry": "graded_negatives",
                "collection": "toy", "split": "train", "num": NUM, "task_instruction": "Match.",
                "attributes": {
                    "domain": ["a", "b", "c"], "education_level": ["x", "y"], "length": ["l"], "language": ["English"],
                },
            },
            "engine": {"kind": "openai", "base_url": server.url, "concurrency": 8, "timeout_s": 20, **engine},
        }
    )  # fmt: skip


def test_every_request_is_asked_once_through_overload(store: Store, server: Server) -> None:
    fill(store)
    server.faults = [429, 500, 503, 429, 502]
    report = generate(store, recipe(server))
    assert (report.num_waiting, report.outcomes) == (0, {"accepted": NUM})
    assert set(server.asked.values()) == {1} and len(server.asked) == NUM
    generate(store, recipe(server))
    assert sum(server.asked.values()) == NUM
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Candidate)) == 5 * NUM
        tokens = select(func.sum(Completion.input_tokens), func.sum(Completion.cached_tokens))
        assert tuple(session.execute(tokens).one()) == (10 * NUM, 4 * NUM)


def test_attributes_are_balanced_over_their_combinations(store: Store, server: Server) -> None:
    fill(store)
    generate(store, recipe(server))
    cells = Counter((p.partition("expert in ")[2][0], p.partition("education level: ")[2][0]) for p in server.asked)
    assert len(cells) == 6 and set(cells.values()) == {NUM // 6}


def test_garbage_is_a_row_with_a_reason_and_too_much_of_it_fails_the_run(store: Store, server: Server) -> None:
    fill(store)
    server.garbage_for = {"query 7!", "query 9!"}
    report = generate(store, recipe(server))
    assert report.outcomes == {"accepted": NUM - 2, "rejected": 2} and report.refused == {"not_json": 2}


@pytest.mark.parametrize(("status", "told"), [(401, "key"), (404, "model")])
def test_a_wrong_key_or_model_stops_the_run_and_it_resumes(
    store: Store, server: Server, status: int, told: str
) -> None:
    fill(store)
    server.faults = [status] * 50
    with pytest.raises(EngineStopped, match=told):
        generate(store, recipe(server))
    server.faults = []
    assert generate(store, recipe(server)).num_waiting == 0
    assert set(server.asked.values()) == {1}


def test_an_unreachable_server_is_one_clear_error(store: Store, server: Server) -> None:
    fill(store, 60)
    lost = recipe(server, base_url="http://127.0.0.1:9/v1", max_attempts=1)
    with pytest.raises(EngineStopped, match="start the server"):
        generate(store, lost)


def test_a_bad_request_is_given_up_alone(store: Store, server: Server) -> None:
    fill(store)
    server.faults = [400]
    report = generate(store, recipe(server))
    assert report.num_failed == 1 and report.outcomes == {"accepted": NUM - 1}
    assert generate(store, recipe(server)).num_waiting == 0


def test_killed_in_the_middle_it_pays_at_most_the_window_twice(tmp_path: Path, server: Server) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    fill(store)
    server.delay_s = 0.05
    resolved = recipe(server, timeout_s=1, max_attempts=1)
    code = (
        "import sys; from db.store import Store; from generator.generation import generate\n"
        "from generator.recipe import GenerateRecipe\n"
        "generate(Store.open(sys.argv[1]), GenerateRecipe.model_validate_json(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, url, resolved.model_dump_json()]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ})
    while sum(server.asked.values()) < NUM // 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = generate(store, resolved)
    store.close()
    assert report.num_waiting == 0
    # In flight, or answered within the group that was about to be committed.
    assert sum(server.asked.values()) - NUM <= 8 + 64
    assert max(server.asked.values()) <= 2
    with Store.open(url).read() as session:
        assert session.scalar(select(func.count()).select_from(Completion)) == NUM


def test_window_halves_on_overload_and_grows_one_by_one() -> None:
    window = Window(8)
    assert window.shrink(sent_at=1, now=2) and not window.shrink(sent_at=1.5, now=3)
    assert window.size == 4  # what was in flight together tells of one overload
    for _ in range(4):
        window.grow()
    assert window.size == 5
    for _ in range(100):
        window.grow()
    assert window.size == 8
    for moment in range(3, 13):
        window.shrink(sent_at=moment, now=moment)
    assert window.size == 1
