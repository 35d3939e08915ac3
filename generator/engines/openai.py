"""The `openai` engine: Chat Completions at any base URL, live.

A pull-based window of requests is in flight; its size backs off on 429 and 5xx and grows on success. Answers are
committed in groups by one writer. aiohttp carries the wire: bodies and answers are plain JSON here, and the openai
package would build and validate models for each of them.
"""

import asyncio
import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from db.digest import canonical_json, counter_uniform
from db.store import Store
from generator.engines.batch_file import BadLine, chat_answer
from generator.errors import EngineStopped
from generator.ledger import Answer, Wanted, lease, record, release_leases
from generator.recipe import OpenAiEngine

ENGINE = "openai"
_GROUP_SIZE = 64
_GROUP_WAIT_S = 0.05
_MAX_BACKOFF_S = 60.0
# The world is wrong, not the request: a wrong key, address or model would fail the next thousand in the same way.
_FATAL = {401: "the key was refused", 403: "access was refused", 404: "no such address or model"}


class Window:
    """How many requests may be in flight: halved on overload, one more after a window's worth of successes."""

    def __init__(self, largest: int) -> None:
        self.largest, self.size, self._successes = largest, float(largest), 0

    def shrink(self) -> None:
        self.size, self._successes = max(1.0, self.size / 2), 0

    def grow(self) -> None:
        self._successes += 1
        if self._successes >= self.size:
            self.size, self._successes = min(self.largest, self.size + 1), 0


@dataclass(frozen=True, slots=True)
class _Retry:
    """The server could not answer now; `after_s` is its own wish, or None."""

    reason: str
    status: int | None
    after_s: float | None


def ask_all(store: Store, run_id: int, engine: OpenAiEngine, key: str | None, progress: Callable[[int], None]) -> None:
    """Ask every request of the run that has no answer, and record each answer. `progress` gets the number answered.

    Raises:
        EngineStopped: The server is unreachable, or refuses the key, the address or the model.
    """
    asyncio.run(_Asking(store, run_id, engine, key, progress).run())


class _Asking:
    def __init__(
        self, store: Store, run_id: int, engine: OpenAiEngine, key: str | None, progress: Callable[[int], None]
    ) -> None:
        self.store, self.run_id, self.engine, self.progress = store, run_id, engine, progress
        self.url = engine.base_url.rstrip("/") + "/chat/completions"
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.window = Window(engine.concurrency)
        self.answers: asyncio.Queue[Answer | None] = asyncio.Queue()
        self.num_answered = 0
        self.given_up: set[int] = set()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.engine.timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self.headers) as session:
            writer = asyncio.create_task(self._write())
            flying: dict[asyncio.Task[None], Wanted] = {}
            try:
                await self._keep_flying(session, flying)
            finally:
                for task in flying:
                    task.cancel()
                await asyncio.gather(*flying, return_exceptions=True)
                await self.answers.put(None)
                await writer
                await asyncio.to_thread(self._give_back, [item.request_id for item in flying.values()])

    async def _keep_flying(self, session: aiohttp.ClientSession, flying: dict[asyncio.Task[None], Wanted]) -> None:
        waiting: list[Wanted] = []
        try:
            while True:
                room = max(1, int(self.window.size)) - len(flying)
                if room > 0 and not waiting:
                    waiting = await asyncio.to_thread(self._lease, max(room, _GROUP_SIZE))
                for item in waiting[:room] if room > 0 else []:
                    flying[asyncio.create_task(self._ask(session, item))] = item
                waiting = waiting[max(0, room) :]
                if not flying:
                    return
                done, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # one that raises stays among the flying, so that its lease is given back
                    flying.pop(task)
        finally:
            await asyncio.to_thread(self._give_back, [item.request_id for item in waiting])

    def _lease(self, limit: int) -> list[Wanted]:
        # An attempt may take its whole timeout, and each retry waits at most the longest back-off.
        lease_s = (self.engine.timeout_s + _MAX_BACKOFF_S) * self.engine.max_attempts
        with self.store.write() as session:
            return lease(session, self.run_id, limit=limit, lease_s=lease_s, skip=self.given_up)

    def _give_back(self, request_ids: list[int]) -> None:
        if request_ids:
            with self.store.write() as session:
                release_leases(session, request_ids)

    async def _ask(self, session: aiohttp.ClientSession, item: Wanted) -> None:
        outcome = await self._attempt(session, item)
        for attempt in range(1, self.engine.max_attempts):
            if isinstance(outcome, Answer):
                break
            self.window.shrink()
            await asyncio.sleep(_pause(outcome, item.request_id, attempt))
            outcome = await self._attempt(session, item)
        if isinstance(outcome, Answer):
            if outcome.text is not None:
                self.window.grow()
            else:
                self.given_up.add(item.request_id)
            await self.answers.put(outcome)
            return
        if outcome.status is None:
            raise EngineStopped(f"{self.url}: {outcome.reason}; start the server or mend base_url, then run again")
        self.given_up.add(item.request_id)
        error = f"{outcome.reason} ({self.engine.max_attempts} attempts)"
        await self.answers.put(Answer(item.request_id, ENGINE, None, error=error, status=outcome.status))

    async def _attempt(self, session: aiohttp.ClientSession, item: Wanted) -> Answer | _Retry:
        start = time.monotonic()
        try:
            async with session.post(self.url, data=canonical_json(item.body)) as response:
                if response.status in _FATAL:
                    told = (await response.text())[:200]
                    raise EngineStopped(f"{self.url} answers {response.status}: {_FATAL[response.status]}: {told}")
                if response.status == 429 or response.status >= 500:
                    return _Retry(f"status {response.status}", response.status, _retry_after(response.headers))
                body: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Retry(f"no answer: {error or type(error).__name__}", None, None)
        except ValueError as error:
            return _Retry(f"the body is not JSON: {error}", 200, None)
        return _answer(item, response.status, body, time.monotonic() - start)

    async def _write(self) -> None:
        """Commit answers in groups until the end mark comes."""
        at_end = False
        while not at_end:
            group = [await self.answers.get()]
            deadline = time.monotonic() + _GROUP_WAIT_S
            while group[-1] is not None and len(group) < _GROUP_SIZE:
                try:
                    group.append(await asyncio.wait_for(self.answers.get(), max(0.0, deadline - time.monotonic())))
                except TimeoutError:
                    break
            at_end = group[-1] is None
            answers = [answer for answer in group if answer is not None]
            if answers:
                await asyncio.to_thread(self._commit, answers)
                self.num_answered += len(answers)
                self.progress(self.num_answered)

    def _commit(self, answers: list[Answer]) -> None:
        with self.store.write() as session:
            record(session, answers)


def _answer(item: Wanted, status: int, body: Any, latency_s: float) -> Answer:
    if status != 200 or not isinstance(body, dict):
        told = body.get("error", body) if isinstance(body, dict) else body
        return Answer(item.request_id, ENGINE, None, error=f"status {status}: {str(told)[:500]}", status=status)
    answer = chat_answer(item.request_id, ENGINE, body, status=status, where=item.custom_id, latency_s=latency_s)
    if isinstance(answer, BadLine):
        return Answer(item.request_id, ENGINE, None, error=answer.detail, status=status)
    return answer


def _pause(retry: _Retry, request_id: int, attempt: int) -> float:
    """Seconds until the next attempt: the server's wish, else doubling, spread by a draw."""
    if retry.after_s is not None:
        return min(retry.after_s, _MAX_BACKOFF_S)
    return float(min(0.5 * 2 ** (attempt - 1), _MAX_BACKOFF_S) * (0.5 + counter_uniform(0, request_id, attempt)))


def _retry_after(headers: Any) -> float | None:
    """Retry-After in seconds, from a number or a date; None when it says nothing usable."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
