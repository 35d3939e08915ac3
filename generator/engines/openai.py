"""The `openai` engine: Chat Completions at one base URL or several, live.

A pull-based window of requests is in flight at each endpoint; its size is halved on overload and grows on success.
Retries wait beside the window, not in it. One thread works at the desk, so that answers are committed in groups while
others travel. aiohttp carries the wire: bodies and answers are plain JSON here, and the openai package would build and
validate models for each of them.
"""

import asyncio
import heapq
import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from db.digest import counter_uniform
from generator.desk import Desk
from generator.engines.chat import chat_answer
from generator.engines.endpoint import Endpoint, Window
from generator.engines.replies import Retry, refused
from generator.errors import EngineStopped
from generator.ledger import Answer, Wanted
from generator.recipe import OpenAiEngine

ENGINE = "openai"
_GROUP_SIZE = 256
_GROUP_WAIT_S = 0.02
_MAX_BACKOFF_S = 60.0
# A server's wish to wait is honoured up to the first, and costs no attempt until a request has waited for the second.
_LONGEST_WISH_S = 600.0
_PATIENCE_S = 3_600.0
# How long answers may still arrive after the engine had to stop.
_LANDING_S = 5.0


@dataclass(frozen=True, slots=True)
class _Try:
    """A request on its way: how often it failed, and how long it has waited as servers wished."""

    item: Wanted
    attempts: int = 0
    waited_s: float = 0.0


def run(desk: Desk, engine: OpenAiEngine, key: str | None) -> None:
    """Ask every request of the run that has no answer, and settle each answer.

    Raises:
        EngineStopped: No endpoint is left: unreachable, or it refuses the key, the address or the model.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_Asking(desk, engine, key).run())


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # not made for Windows
        return None
    return uvloop.new_event_loop


class _Asking:
    def __init__(self, desk: Desk, engine: OpenAiEngine, key: str | None) -> None:
        self.desk, self.engine = desk, engine
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.endpoints = [
            Endpoint(f"{url.rstrip('/')}/chat/completions", Window(engine.concurrency)) for url in engine.base_urls
        ]
        self.waiting: deque[_Try] = deque()
        self.retries: list[tuple[float, int, _Try]] = []
        self.lost: list[tuple[float, _Try]] = []
        self.looked_at = 0.0
        self.answers: list[Answer] = []
        self.num_flying = 0
        self.has_more, self.is_done = True, False
        self.first_answer_at = 0.0
        self._order = itertools.count()
        self._turn = itertools.count()
        self.desk_work = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self.failure: BaseException | None = None

    async def run(self) -> None:
        self.changed, self.loop = asyncio.Event(), asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        timeout = aiohttp.ClientTimeout(total=self.engine.timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        cookies = aiohttp.DummyCookieJar()
        with self._stops_at_interrupt():
            async with aiohttp.ClientSession(
                timeout=timeout, connector=connector, headers=self.headers, cookie_jar=cookies
            ) as self.session:
                try:
                    await self._drain()
                finally:
                    await self._wind_up()

    async def _drain(self) -> None:
        """Send, settle and lease until nothing is left, each as soon as it can be done."""
        desk_job: asyncio.Future[None] | None = None
        while True:
            self._send()
            if desk_job is None:
                desk_job = self._desk_job()
                if desk_job is None and self._is_over():
                    return
            if desk_job is not None and desk_job.done():
                desk_job.result()
                desk_job = None
                continue
            if self.failure is not None:
                raise self.failure
            await self._something_changes(desk_job)

    def _is_over(self) -> bool:
        """At a stop only what is in flight is waited for; the rest is given back."""
        left = self.num_flying + len(self.answers)
        return left == 0 and (self.desk.stopping.is_set() or not (self.retries or self.waiting or self.lost))

    def _desk_job(self) -> "asyncio.Future[None] | None":
        """What the desk's thread does next: book what was lost, commit a group of answers, or lease more; None when
        there is nothing."""
        if self.lost and not self.desk.stopping.is_set():
            lost, self.lost = self.lost, []
            return self._at_desk(lambda: self._book_lost(lost))
        if len(self.answers) >= _GROUP_SIZE or (self.answers and not self._can_wait()):
            group, self.answers = self.answers, []
            return self._at_desk(lambda: self._settle(group))
        room = sum(int(e.window.size) for e in self.endpoints if e.lost is None)
        if self.has_more and len(self.waiting) < room:
            return self._at_desk(lambda: self._take(2 * room))
        is_idle = not (self.num_flying or self.retries or self.waiting or self.answers or self.lost)
        if is_idle and not self.has_more and not self.is_done and not self.desk.stopping.is_set():
            return self._at_desk(self._refill)
        return None

    def _can_wait(self) -> bool:
        """Whether a small group of answers may wait for more: only while others are about to come."""
        return self.num_flying > 0 and time.monotonic() < self.first_answer_at + _GROUP_WAIT_S

    def _settle(self, group: list[Answer]) -> None:
        self.desk.settle(group)
        self.has_more = self.has_more or self.desk.has_new

    def _book_lost(self, lost: list[tuple[float, _Try]]) -> None:
        """Each attempt that was lost is booked before the next one leaves, if the budget lets it leave."""
        kept = {item.request_id for item in self.desk.lose([attempt.item for _, attempt in lost])}
        again = [(due, attempt) for due, attempt in lost if attempt.item.request_id in kept]
        for due, attempt in again:
            self.loop.call_soon_threadsafe(self._retry_at, due, attempt)
        self.has_more = self.has_more or self.desk.has_new

    def _refill(self) -> None:
        self.has_more = self.desk.refill()
        self.is_done = not self.has_more

    def _take(self, limit: int) -> None:
        taken = self.desk.take(limit)
        self.waiting.extend(_Try(item) for item in taken)
        self.has_more = bool(taken)

    def _at_desk(self, work: Any) -> "asyncio.Future[None]":
        job = asyncio.get_running_loop().run_in_executor(self.desk_work, work)
        job.add_done_callback(lambda _: self.changed.set())
        return job

    async def _something_changes(self, desk_job: "asyncio.Future[None] | None") -> None:
        now = time.monotonic()
        # One that is due already waits for a place in a window, which wakes us by itself.
        times = [self.retries[0][0]] if self.retries and self.retries[0][0] > self.looked_at else []
        times += [e.paused_until for e in self.endpoints if e.lost is None and e.paused_until > self.looked_at]
        if self.answers and desk_job is None:
            times.append(self.first_answer_at + _GROUP_WAIT_S)
        wait_s = min(max(0.001, min(times, default=now + 0.5) - now), 0.5)
        handle = asyncio.get_running_loop().call_later(wait_s, self.changed.set)
        await self.changed.wait()
        self.changed.clear()
        handle.cancel()

    def _send(self) -> None:
        """Put as much in flight as the endpoints have room for; a retry that is due goes before new work."""
        self.looked_at = now = time.monotonic()
        while True:
            is_retry = bool(self.retries) and self.retries[0][0] <= now
            if self.desk.stopping.is_set() or not (is_retry or self.waiting):
                return
            endpoint = self._endpoint(now)
            if endpoint is None:
                return
            self.num_flying += 1
            endpoint.in_flight += 1
            task = asyncio.get_running_loop().create_task(self._carry(endpoint, self._next(now)))
            self.tasks.add(task)
            task.add_done_callback(self._landed)

    def _next(self, now: float) -> _Try:
        if self.retries and self.retries[0][0] <= now:
            return heapq.heappop(self.retries)[2]
        return self.waiting.popleft()

    def _retry_at(self, due: float, attempt: _Try) -> None:
        heapq.heappush(self.retries, (due, next(self._order), attempt))

    async def _carry(self, endpoint: Endpoint, attempt: _Try) -> None:
        """One request after the other at this endpoint, as long as there is work and room: a task for each would cost
        as much as the rest of the bookkeeping."""
        try:
            while True:
                await self._ask(endpoint, attempt)
                if len(self.answers) >= _GROUP_SIZE:
                    self.changed.set()
                now = time.monotonic()
                is_due = bool(self.retries) and self.retries[0][0] <= now
                if not (is_due or self.waiting) or self.desk.stopping.is_set() or not endpoint.keeps_room(now):
                    return
                attempt = self._next(now)
        finally:
            self.num_flying -= 1
            endpoint.in_flight -= 1

    def _endpoint(self, now: float) -> Endpoint | None:
        start = next(self._turn)
        around = (self.endpoints[(start + i) % len(self.endpoints)] for i in range(len(self.endpoints)))
        return next((endpoint for endpoint in around if endpoint.has_room(now)), None)

    def _landed(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()
        self.changed.set()

    async def _ask(self, endpoint: Endpoint, attempt: _Try) -> None:
        sent_at = time.monotonic()
        outcome = await self._attempt(endpoint, attempt.item)
        if isinstance(outcome, Answer):
            endpoint.unreachable_in_a_row = 0
            if outcome.text is not None:
                endpoint.window.grow()
            self._answered(outcome)
            return
        self._failed(endpoint, attempt, outcome, sent_at)

    def _answered(self, answer: Answer) -> None:
        if not self.answers:
            self.first_answer_at = time.monotonic()
            self.changed.set()  # whoever waits for more has to hear that the group's time runs
        self.answers.append(answer)

    def _failed(self, endpoint: Endpoint, attempt: _Try, retry: Retry, sent_at: float) -> None:
        now = time.monotonic()
        if retry.is_fatal:
            self._lose(endpoint, retry.reason)
            self._retry_at(now, attempt)
            return
        is_first = endpoint.window.shrink(sent_at=sent_at, now=now)
        if is_first:
            endpoint.unreachable_in_a_row = endpoint.unreachable_in_a_row + 1 if retry.is_unreachable else 0
        if endpoint.unreachable_in_a_row >= self.engine.max_attempts:
            self._lose(endpoint, f"{retry.reason}; start the server or mend base_url, then run again")
        if retry.after_s is not None:
            endpoint.paused_until = max(endpoint.paused_until, now + min(retry.after_s, _LONGEST_WISH_S))
        again = _after(attempt, retry)
        if again.attempts < self.engine.max_attempts or retry.is_unreachable:
            due = now + _pause(retry, again)
            if retry.may_be_paid:
                self.lost.append((due, again))
            else:
                self._retry_at(due, again)
            return
        error = f"{retry.reason} ({again.attempts} attempts)"
        request, may_be_paid = attempt.item.request_id, retry.may_be_paid
        self._answered(Answer(request, ENGINE, None, error=error, may_be_paid=may_be_paid, status=retry.status))

    def _lose(self, endpoint: Endpoint, reason: str) -> None:
        endpoint.lost = reason
        if all(e.lost is not None for e in self.endpoints):
            self.failure = EngineStopped(self.desk.secret.out_of(f"{endpoint.url}: {reason}"))

    async def _attempt(self, endpoint: Endpoint, item: Wanted) -> Answer | Retry:
        start = time.monotonic()
        try:
            async with self.session.post(endpoint.url, data=item.wire) as response:
                status = response.status
                raw = self.desk.secret.out_of_bytes(await response.read())
        except aiohttp.ClientConnectorError as error:
            return Retry(f"cannot be reached: {error}", None, is_unreachable=True)
        except TimeoutError:
            return Retry(f"no answer within {self.engine.timeout_s:g} s", None, may_be_paid=True)
        except aiohttp.ClientError as error:
            return Retry(f"the connection broke: {error or type(error).__name__}", None, may_be_paid=True)
        try:
            body: Any = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            body = None
            if status == 200:
                return Retry(f"the body is not JSON: {error}", None, may_be_paid=True)
        if status == 200:
            return chat_answer(item.request_id, ENGINE, body, status=status, latency_s=time.monotonic() - start)
        return refused(item.request_id, ENGINE, status, body, raw, response.headers)

    async def _wind_up(self) -> None:
        """Whatever happened: commit what came, give back what did not leave. A lost attempt that is not booked yet is
        left to its lease: whoever takes it over books it."""
        if self.tasks and not isinstance(self.failure, KeyboardInterrupt):
            await asyncio.wait(self.tasks, timeout=_LANDING_S)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        left = [attempt.item for attempt in (*self.waiting, *(attempt for _, _, attempt in self.retries))]
        await asyncio.get_running_loop().run_in_executor(self.desk_work, self.desk.settle, self.answers)
        await asyncio.get_running_loop().run_in_executor(self.desk_work, self.desk.give_back, left)
        self.desk_work.shutdown()

    @contextmanager
    def _stops_at_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C lets what is in flight land; the second stops at once, with all that came kept."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            if self.desk.stopping.is_set():
                self.failure = KeyboardInterrupt()
            self.desk.stopping.set()
            self.changed.set()

        try:
            loop.add_signal_handler(signal.SIGINT, interrupt)
        except NotImplementedError:  # Windows: Ctrl-C raises where it strikes
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)


def _after(attempt: _Try, retry: Retry) -> _Try:
    """The same request after another failure; to wait as the server wished costs no attempt, within patience."""
    if retry.after_s and attempt.waited_s < _PATIENCE_S:
        return replace(attempt, waited_s=attempt.waited_s + max(1.0, min(retry.after_s, _LONGEST_WISH_S)))
    return replace(attempt, attempts=attempt.attempts + 1)


def _pause(retry: Retry, again: _Try) -> float:
    """Seconds until the next attempt: doubling, spread by a draw; none after a wish, for which the endpoint waits."""
    if retry.after_s:
        return 0.0
    spread = 0.5 + counter_uniform(0, again.item.request_id, again.attempts)
    return float(min(0.5 * 2 ** (again.attempts - 1), _MAX_BACKOFF_S) * spread)
