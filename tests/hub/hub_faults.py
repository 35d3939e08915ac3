"""Faults that a test switches on: what goes wrong, at which step, how many times.

Steps: create, preupload, batch, upload, commit, tag, resolve, refs. What happens:

    refuse      answer `status` with `message`
    cut         close the connection before anything was done
    cut-after   do it, then close the connection without an answer
    hold        keep the client waiting until the fault is cleared, then cut
    gather      let `times` requests arrive, then let them all go on
    move        let somebody else commit to main first
    take        let somebody else give the tag `message` to the first commit first
    corrupt     change one byte of the file on its way out
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hub_repositories import Repositories, Repository
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_STEPS = {
    "create": re.compile(r"POST /api/repos/create"),
    "preupload": re.compile(r"POST /api/(?:datasets|models)/.*/preupload/.*"),
    "batch": re.compile(r"POST /.*\.git/info/lfs/objects/batch"),
    "upload": re.compile(r"PUT /lfs/.*"),
    "commit": re.compile(r"POST /api/(?:datasets|models)/.*/commit/.*"),
    "tag": re.compile(r"POST /api/(?:datasets|models)/.*/tag/.*"),
    "resolve": re.compile(r"GET /.*/resolve/.*"),
    "refs": re.compile(r"GET /api/(?:datasets|models)/.*/refs"),
}


@dataclass(slots=True)
class Fault:
    """One fault; `waiting` counts the requests that it holds."""

    at: str
    do: str
    times: int = 1
    status: int = 403
    message: str = "refused by a fault"
    waiting: int = 0


class Faults:
    """ASGI middleware in front of the Hub; with no fault switched on it passes everything through."""

    def __init__(self, app: ASGIApp, repositories: Mapping[str, Repositories]) -> None:
        self.app, self.repositories = app, repositories
        self.active: list[Fault] = []
        self.seen: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = f"{scope.get('method')} {scope.get('path')}"
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == "/_faults":
            await self._control(scope, receive, send)
        else:
            step = next((step for step, pattern in _STEPS.items() if pattern.fullmatch(request)), None)
            self.seen.append(step or request)
            fault = next((fault for fault in self.active if fault.at == step and fault.times > 0), None)
            if fault is None:
                await self.app(scope, receive, send)
            else:
                await self._happen(fault, scope, receive, send)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET tells what is active and what was asked for; POST switches a fault on; DELETE clears them all."""
        from starlette.requests import Request

        if scope["method"] == "POST":
            self.active.append(Fault(**await Request(scope, receive).json()))
        elif scope["method"] == "DELETE":
            self.active.clear()
            self.seen.clear()
        body = {"active": [_shown(fault) for fault in self.active], "seen": self.seen}
        await JSONResponse(body)(scope, receive, send)

    async def _happen(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        if fault.do == "gather":
            await self._gather(fault)
            await self.app(scope, receive, send)
            return
        if fault.do == "hold":
            fault.waiting += 1
            while fault in self.active:
                await asyncio.sleep(0.01)
            _cut(receive)
            return
        fault.times -= 1
        if fault.do == "refuse":
            headers = {"X-Error-Message": fault.message} if fault.message.isascii() else {}
            await JSONResponse({"error": fault.message}, fault.status, headers)(scope, receive, send)
        elif fault.do == "cut":
            _cut(receive)
        elif fault.do == "cut-after":
            await self.app(scope, receive, _swallow)
            _cut(receive)
        elif fault.do == "move":
            self._move(scope["path"])
            await self.app(scope, receive, send)
        elif fault.do == "take":
            repository = self._repository(scope["path"])
            repository.tag(fault.message, list(repository.history(repository.resolve("main")))[-1]["id"])
            await self.app(scope, receive, send)
        elif fault.do == "corrupt":
            await self.app(scope, receive, _Corrupted(send))
        else:
            raise ValueError(f"fault do={fault.do!r} is none of this Hub's")

    async def _gather(self, fault: Fault) -> None:
        fault.waiting += 1
        while fault in self.active and fault.waiting < fault.times:
            await asyncio.sleep(0.01)
        if fault in self.active:
            self.active.remove(fault)

    def _repository(self, path: str) -> Repository:
        _, _, kinds, owner, name, *_ = path.split("/")
        return self.repositories[kinds.removesuffix("s")].find(owner, name)

    def _move(self, path: str) -> None:
        repository = self._repository(path)
        repository.commit("main", "somebody else", "", {"elsewhere.txt": repository.add_blob(b"elsewhere\n")}, None)


class _Corrupted:
    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.body" and (body := message.get("body")):
            message = message | {"body": bytes([body[0] ^ 1]) + body[1:]}
        await self._send(message)


async def _swallow(message: Message) -> None:
    """An answer that nobody gets."""


def _cut(receive: Receive) -> None:
    """Close the connection under the client. ASGI has no word for it; `receive` is a method of uvicorn's own cycle."""
    receive.__self__.transport.abort()  # type: ignore[attr-defined]


def _shown(fault: Fault) -> dict[str, Any]:
    return {"at": fault.at, "do": fault.do, "times": fault.times, "waiting": fault.waiting}
