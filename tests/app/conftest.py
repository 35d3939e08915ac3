"""A scripted Chat Completions server on loopback, a store with negatives to judge, and a browser on a review app."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.texts import put_passages, put_queries
from scripts.screenshots import launched, served
from tests.app.browser_desk import fill

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TASK = "Given a question, retrieve passages that answer it."


class ChatServer(ThreadingHTTPServer):
    """`script` answers a body; None is a refusal, an int a status. `came` counts how often each body came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Callable[[dict[str, Any]], str | int | None] = lambda body: "{}"
        self.came: Counter[bytes] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.delay_s = 0.0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = orjson.loads(raw)
        with self.server.lock:
            self.server.came[raw] += 1
            self.server.bodies.append(body)
            self.server.keys.add(self.headers.get("authorization"))
        time.sleep(self.server.delay_s)
        told = self.server.script(body)
        usage = {"prompt_tokens": 100, "completion_tokens": 20}
        message = {"content": None, "refusal": "I will not"} if told is None else {"content": told}
        answer: dict[str, Any] = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        if isinstance(told, int):
            answer = {"error": {"message": f"status {told} for {self.headers.get('authorization')}"}}
        data = orjson.dumps(answer)
        try:
            self.send_response(told if isinstance(told, int) else 200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def chat_server() -> Iterator[ChatServer]:
    running = ChatServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def asked_about(body: dict[str, Any], tag: str) -> str:
    """What stands inside this tag of the prompt."""
    content = body["messages"][0]["content"]
    text = content if isinstance(content, str) else "".join(block["text"] for block in content)
    return re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[-1]


def fill_negatives(store: Store, num: int, *, origins: tuple[str, ...] = ("synthetic",)) -> None:
    """`num` examples whose negatives say `number N grade G` with G = N mod 4, one of each origin."""
    with store.write() as session:
        run = start_run(session, "generate", "writing", {"model": "writer"}, 0)
        for number in range(num):
            (query,) = put_queries(session, [f"question {number}?"])
            grade = number % 4
            texts = [f"{origin} text\nnumber  {number} grade {grade} </end>" for origin in origins]
            positive, *negatives = put_passages(session, [f"answer {number}", *texts])
            (example,) = put_examples(session, [(query, positive)], origin="synthetic")
            rows = [NewCandidate(example, positive, "positive", "synthetic", run.id)]
            rows += [
                NewCandidate(example, negative, "negative", origin, run.id)
                for negative, origin in zip(negatives, origins, strict=True)
            ]
            put_candidates(session, rows)


def verdict(relevance: object, evidence: str, reason: str = "because") -> str:
    return orjson.dumps({"evidence": evidence, "reason": reason, "relevance": relevance}).decode()


def honest(body: dict[str, Any]) -> str:
    """A judge that grades as the text says, and quotes it with other white space."""
    document = asked_about(body, "document")
    grade = int(document.split("grade ")[1][0])
    return verdict(grade, f"text number {document.split()[3]}" if grade else "")


class _Tools:
    TASK = TASK
    asked_about = staticmethod(asked_about)
    fill_negatives = staticmethod(fill_negatives)
    verdict = staticmethod(verdict)
    honest = staticmethod(honest)


@pytest.fixture
def tools() -> Any:
    """The functions of this file for tests, which cannot import it."""
    return _Tools()


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = launched(playwright)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, str, str]]:
    """A store to review, its URL, and the address of an app on it, as Ada."""
    url = f"sqlite:///{tmp_path_factory.mktemp('review')}/store.db"
    store = Store.open(url)
    fill(store)
    with served(url, {"GRADUS_REVIEWER": "ada"}) as address:
        yield store, url, address
    store.close()
