"""A fast Chat Completions server on loopback, in its own process, for benchmarks of clients.

Usage: python benchmarks/loopback_server.py [--delay-ms 0]        prints `ready PORT`

Every answer holds four graded negatives, about 1 kB, with a number of its own in each text, so that no two answers are
the same. GET /counts tells how many requests came, and how many different ones.
"""

import argparse
import asyncio
import hashlib
import itertools
from typing import ClassVar

import httptools
import orjson
import uvloop

_FILL = "the assay of the second cohort shows no change in the rate of uptake under these conditions"


def negatives(number: int) -> str:
    """A completion's text: four negatives in the form of the v1 pack."""
    parts = [
        {
            "similarity_level": level,
            "violated_requirement": "the outcome that was measured",
            "plan": "keep the topic",
            "text": f"Sample {place} of series {number}: {_FILL}, {place}.",
            "self_check": {"answers_query": False, "reason": "other outcome"},
        }
        for place, level in enumerate(("high", "medium", "medium", "low"))
    ]
    reflection = {"query_need": "a finding", "requirements": ["the outcome"], "positive_evidence": "it states it"}
    return orjson.dumps({"reflection": reflection, "negatives": parts}).decode()


class Connection(asyncio.Protocol):
    """One keep-alive connection; the smallest server that Python allows."""

    seen: ClassVar[set[bytes]] = set()
    numbers = itertools.count()
    delay_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body: list[bytes] = []
        self.url = b""

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_message_begin(self) -> None:
        self.body = []

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        answer = self._answer(b"".join(self.body))
        if self.delay_s:
            asyncio.get_running_loop().call_later(self.delay_s, self._write, answer)
        else:
            self._write(answer)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def _answer(self, body: bytes) -> bytes:
        cls = type(self)
        if self.url.endswith(b"/counts"):
            return orjson.dumps({"requests": next(cls.numbers), "distinct": len(cls.seen)})
        if not body:
            return orjson.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]})
        cls.seen.add(hashlib.blake2b(body, digest_size=8).digest())
        message = {"role": "assistant", "content": negatives(next(cls.numbers))}
        return orjson.dumps(
            {
                "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 400, "completion_tokens": 260, "total_tokens": 660},
            }
        )  # fmt: skip

    def _write(self, answer: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
        self.transport.write(head + answer)  # type: ignore[attr-defined]


async def serve(delay_ms: float) -> None:
    Connection.delay_s = delay_ms / 1000
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=2048)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay-ms", type=float, default=0)
    uvloop.run(serve(parser.parse_args().delay_ms))
