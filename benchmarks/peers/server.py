"""A Chat Completions server on the loopback that costs next to nothing, so that a benchmark measures the client.

Usage: python benchmarks/peers/server.py [--port 0] [--content FILE] [--delay-ms 0]      (needs httptools and uvloop)

Answers any POST /v1/chat/completions with one fixed completion, after the delay; prints `ready PORT` once it listens.
GET /v1/models lists one model; GET /counts tells how many completions were asked for and how many bodies differed.
"""

import argparse
import asyncio
import hashlib
import json
import signal
from collections import Counter
from pathlib import Path
from typing import cast

import httptools
import uvloop

_COMPLETIONS = b"/v1/chat/completions"
_TOKEN = 4  # characters of a token, about: for the usage that a completion reports


def default_content() -> str:
    """A JSON object of about 1 kB."""
    sentence = "What a passage says about a subject, told in words that are long enough to count as an answer. "
    return json.dumps({"query": sentence.strip(), "positive": sentence * 5, "negative": sentence * 4})


def completion(content: str) -> bytes:
    tokens = {"prompt_tokens": 1500 // _TOKEN, "completion_tokens": len(content) // _TOKEN}
    message = {"role": "assistant", "content": content, "refusal": None}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "fixed",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {**tokens, "total_tokens": sum(tokens.values())},
    }
    return json.dumps(body).encode()


def response(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Answers:
    """What the server answers, and what it was asked."""

    def __init__(self, content: str, delay_s: float) -> None:
        self.completion = response(completion(content))
        self.delay_s = delay_s
        self.requests_of_body: Counter[bytes] = Counter()

    def get(self, path: bytes) -> bytes:
        if path == b"/counts":
            counts = {"requests": self.requests_of_body.total(), "distinct": len(self.requests_of_body)}
            return response(json.dumps(counts).encode())
        if path == b"/v1/models":
            models = [{"id": "fixed", "object": "model", "created": 1_700_000_000, "owned_by": "benchmark"}]
            return response(json.dumps({"object": "list", "data": models}).encode())
        return response(b'{"error": {"message": "no such path"}}', "404 Not Found")


class Connection(asyncio.Protocol):
    """One keep-alive connection; httptools calls the on_* methods."""

    transport: asyncio.Transport

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.parser = httptools.HttpRequestParser(self)
        self.path, self.body = b"", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.path != _COMPLETIONS or self.parser.get_method() != b"POST":
            self.transport.write(self.answers.get(self.path))
            return
        self.answers.requests_of_body[hashlib.blake2b(self.body, digest_size=16).digest()] += 1
        if self.answers.delay_s:
            asyncio.get_running_loop().call_later(self.answers.delay_s, self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        if not self.transport.is_closing():  # as when the client was killed during the delay
            self.transport.write(self.answers.completion)


async def serve(answers: Answers, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(lambda: Connection(answers), "127.0.0.1", port, backlog=4096)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await stopped.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument(
        "--content", type=Path, help="file with the text of every answer; a JSON object of 1 kB if none"
    )
    parser.add_argument("--delay-ms", type=float, default=0.0)
    options = parser.parse_args()
    content = options.content.read_text(encoding="utf-8") if options.content else default_content()
    uvloop.run(serve(Answers(content, options.delay_ms / 1000), options.port))


if __name__ == "__main__":
    main()
