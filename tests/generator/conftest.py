"""A scripted Chat Completions server on loopback, and a small collection to ask about."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from db.store import Store
from db.tables.texts import Collection, CollectionQuery, Document, Qrel
from db.texts import put_passages, put_queries
from generator.recipe import GenerateRecipe

LEVELS = ("high", "medium", "medium", "low")


@dataclass
class Reply:
    """What the server answers: a completion's text, or bytes of its own with a status and headers."""

    text: str | None = None
    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    delay_s: float = 0.0
    raw: bytes | None = None
    hangs: bool = False


class ModelServer(ThreadingHTTPServer):
    """Counts how often each body is answered; `script` decides how, from the body and how often it came before."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: Callable[[dict[str, Any], int], Reply] = lambda body, _: Reply(negatives_for(body))
        self.came: Counter[bytes] = Counter()
        self.answered: Counter[bytes] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
        self.lock = threading.Lock()
        self.num_open = 0
        self.most_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = orjson.loads(raw)
        server = self.server
        with server.lock:
            turn = server.came[raw]
            server.came[raw] += 1
            server.bodies.append(body)
            server.keys.add(self.headers.get("authorization"))
            server.num_open += 1
            server.most_open = max(server.most_open, server.num_open)
        try:
            reply = server.script(body, turn)
            time.sleep(reply.delay_s)
            if reply.hangs:
                time.sleep(30)
            if reply.status == 200 and reply.raw is None:
                with server.lock:
                    server.answered[raw] += 1
            self._send(reply)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.num_open -= 1

    def _send(self, reply: Reply) -> None:
        data = reply.raw if reply.raw is not None else orjson.dumps(reply.body or _completion(reply, self.server.usage))
        self.send_response(reply.status)
        self.send_header("content-length", str(len(data)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


def _completion(reply: Reply, usage: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": reply.finish_reason}
    return {"model": "served", "choices": [choice], "usage": usage}


def prompt_of(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def between(prompt: str, tag: str) -> str:
    """What stands inside the last such tag of a prompt."""
    return re.findall(f"<{tag}>(.*?)</{tag}>", prompt, re.DOTALL)[-1]


def negatives_for(body: dict[str, Any], count: int = 4) -> str:
    """Four good negatives in the form of the v1 pack, with the query's words in each."""
    mark = between(prompt_of(body), "query")
    parts = [
        {
            "similarity_level": level, "violated_requirement": "r", "plan": "p",
            "text": f"about {mark}, number {place}", "self_check": {"answers_query": False, "reason": ""},
        }
        for place, level in enumerate(LEVELS[:count])
    ]  # fmt: skip
    return orjson.dumps({"reflection": {}, "negatives": parts}).decode()


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    running = ModelServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def second_server() -> Iterator[ModelServer]:
    running = ModelServer()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def fill(store: Store, num: int, positive: Callable[[int], str] = lambda n: f"positive {n}") -> None:
    """A collection `toy` of `num` judged pairs."""
    with store.write() as session:
        collection = Collection(name="toy", kind="beir")
        session.add(collection)
        session.flush()
        passages = put_passages(session, [positive(n) for n in range(num)])
        queries = put_queries(session, [f"query {n}!" for n in range(num)])
        for n in range(num):
            document = Document(collection_id=collection.id, external_id=f"d{n}", passage_id=passages[n])
            query = CollectionQuery(collection_id=collection.id, external_id=f"q{n}", query_id=queries[n])
            session.add_all([document, query])
            session.flush()
            session.add(Qrel(collection_query_id=query.id, document_id=document.id, split="train", relevance=1))


ATTRIBUTES = {"domain": ["a", "b", "c"], "education_level": ["x", "y"], "length": ["l"], "language": ["English"]}


def recipe_for(
    server: ModelServer, plan: Any = None, *, num: int = 60, engine: dict[str, Any] | None = None, **fields: Any
) -> GenerateRecipe:
    """A recipe that asks the server; by default graded negatives of the v1 pack for `num` pairs of `toy`."""
    pairs = {
        "source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train", "num": num,
        "task_instruction": "Match.", "attributes": ATTRIBUTES,
    }  # fmt: skip
    settings = {"kind": "openai", "base_url": server.url, "concurrency": 8, "timeout_s": 20, **(engine or {})}
    return GenerateRecipe.model_validate(
        {
            "name": "live",
            "model": "m",
            "pack": "v1",
            "max_repairs": 0,
            "plan": plan or pairs,
            "engine": settings,
            **fields,
        }
    )


@pytest.fixture
def toolbox() -> Any:
    """The functions of this file for tests, which cannot import it."""
    return _TOOLBOX


class _Toolbox:
    Reply = Reply
    fill = staticmethod(fill)
    recipe_for = staticmethod(recipe_for)
    negatives_for = staticmethod(negatives_for)
    prompt_of = staticmethod(prompt_of)
    between = staticmethod(between)


_TOOLBOX = _Toolbox()
