"""The `vllm` engine: vLLM offline, in this process, with prefix caching and structured outputs.

Requests enter vLLM as others leave it and answers are settled as they come, so that neither a long request nor a kill
holds back or loses what the others got. A body means what it means to `vllm serve`, and `status` is what that would
have answered; a field that this engine does not know is refused, never ignored. Thoughts of reasoning models stay in
the text: switch them off with `effort = "none"`, or ask a server that parses them.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError

from db.digest import counter_below
from generator.desk import Desk
from generator.engines import orphans
from generator.engines.chat import chat_answer
from generator.errors import EngineStopped, GeneratorError
from generator.ledger import Answer, Wanted
from generator.recipe import VllmEngine

ENGINE = "vllm"
_GROUP_SIZE = 64
_GROUP_WAIT_S = 1.0
# Requests that wait inside vLLM, as a share of its batch, so that a free place there is filled without asking us. More
# would only make Ctrl-C slower: what is in vLLM is finished, what waits here is given back.
_HEADROOM = 0.25
# Under xgrammar 0.2.8 a string with maxLength may hold raw control characters, which strict JSON forbids: 13 to 20 % of
# a random model's answers, none under guidance. Without the second, a weak model writes white space to its limit.
_STRUCTURED_OUTPUTS = {"backend": "guidance", "disable_any_whitespace": True}


def run(desk: Desk, engine: VllmEngine, model: str) -> None:
    """Answer every request of the run that has no answer yet.

    Raises:
        GeneratorError: The `vllm` package is not installed.
        EngineStopped: vLLM does not start, or dies; what was answered is settled, the rest given back.
    """
    first = desk.take(engine.batch)
    # A model takes minutes to load: not for a run that has nothing to ask.
    if not first and not desk.refill():
        return
    path = engine.model_path or model
    try:
        with _stops_at_interrupt(desk):
            llm = _start(engine, path)
            try:
                asking = _Asking(desk, llm, engine, path)
                asking.waiting.extend(first)
                first = []
                with _children_end_with_us():
                    asking.run()
            finally:
                llm.llm_engine.engine_core.shutdown()
    finally:
        desk.give_back(first)


def _start(engine: VllmEngine, path: str) -> Any:
    """vLLM with its model loaded."""
    # vLLM's log belongs on stderr, its usage statistics nowhere. A forked child would hold our database connections,
    # and close them on the server's side when it ends.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise GeneratorError(
            f"engine.kind = 'vllm' needs the vllm package ({error}): install 'gradus[vllm]', or without a GPU run "
            "scripts/install_vllm.sh and use .venv-vllm"
        ) from error
    arguments = engine_arguments(engine, path, on_cpu=current_platform.is_cpu())
    try:
        with _interrupts_kept_from_children():
            return LLM(**arguments)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise EngineStopped(f"vLLM does not start with {path!r}: {_one_line(error)} (its log has more)") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{' '.join(str(part) for part in first['loc'][:1])} {first['msg']}".strip()[:500]
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


def engine_arguments(engine: VllmEngine, path: str, *, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's `LLM(...)`; the recipe's `engine_args` have the last word."""
    own = {"kind", "model_path", "batch", "engine_args"}
    arguments = {
        "model": path,
        "enable_prefix_caching": True,
        "structured_outputs_config": _STRUCTURED_OUTPUTS,
        **engine.model_dump(exclude=own, exclude_none=True),
    }
    if on_cpu:
        # On a CPU a seeded request whose prompt is taken in chunks kills vLLM 0.32: "CPU Generator does not use
        # offset". Without chunks vLLM itself raises max_num_batched_tokens to max_model_len.
        arguments["enable_chunked_prefill"] = False
    return arguments | engine.engine_args


@contextmanager
def _stops_at_interrupt(desk: Desk) -> Iterator[None]:
    """The first Ctrl-C lets what is in vLLM finish; the second raises."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        if desk.stopping.is_set():
            raise KeyboardInterrupt
        desk.stopping.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Processes started here never see Ctrl-C, which a terminal sends to all: vLLM's would abort what is in flight.

    They set handlers of their own, but inherit which signals are blocked. One that comes meanwhile reaches us after.
    """
    resource_tracker.ensure_running()  # when multiprocessing starts it later, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _children_end_with_us() -> Iterator[None]:
    """If we are killed, vLLM's engine would stay for ever, with all the memory of its card (seen with 0.32)."""
    pids = [str(child.pid) for child in multiprocessing.active_children()]
    command = [sys.executable, str(Path(orphans.__file__)), *pids]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        watch.kill()
        watch.communicate()


@dataclass(frozen=True, slots=True)
class _InFlight:
    item: Wanted
    asked_at: float


class _Asking:
    """Feeds one engine from the desk, until the desk has nothing left."""

    def __init__(self, desk: Desk, llm: Any, engine: VllmEngine, path: str) -> None:
        self.desk, self.llm, self.engine, self.path = desk, llm, engine, path
        max_num_seqs = llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        self.largest = max_num_seqs + max(1, int(max_num_seqs * _HEADROOM))
        # What the model's makers recommend (generation_config.json), as `vllm serve` does.
        self.defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self.waiting: deque[Wanted] = deque()
        self.flying: dict[str, _InFlight] = {}
        self.answers: list[Answer] = []
        self.settled_at = time.monotonic()
        self.has_more = True

    def run(self) -> None:
        from vllm.exceptions import VLLMServerError

        try:
            while self._supply() or self.flying:
                self._add()
                if self.flying:
                    self._step()
                if self._is_settling_due():
                    self._settle()
        except VLLMServerError as error:
            raise EngineStopped("vLLM's engine died: its log above has the cause; run again to go on") from error
        finally:
            try:
                self._settle()
            finally:
                self.desk.give_back([*(flight.item for flight in self.flying.values()), *self.waiting])

    def _supply(self) -> bool:
        """Whether something waits to be added."""
        if self.desk.stopping.is_set():
            self.desk.give_back(list(self.waiting))
            self.waiting.clear()
            return False
        while not self.waiting:
            if self.has_more:
                self.waiting.extend(self.desk.take(self.engine.batch))
                self.has_more = bool(self.waiting)
            elif self.flying or not self.desk.refill():
                return False
            else:
                self.has_more = True
        return True

    def _add(self) -> None:
        from vllm.exceptions import VLLMClientError

        while self.waiting and len(self.flying) < self.largest:
            item = self.waiting[0]
            try:
                key = self._enqueue(item)
            except (VLLMClientError, ValueError, TemplateError) as error:
                told = str(error).strip() or type(error).__name__
                self.answers.append(Answer(item.request_id, ENGINE, None, error=told[:2_000], status=400))
            else:
                self.flying[key] = _InFlight(item, time.monotonic())
            self.waiting.popleft()

    def _enqueue(self, item: Wanted) -> str:
        """Hand one request to vLLM; returns the id that its output will bear."""
        body = item.body
        # A request without a seed gets one of its own, the same in whatever batch it lands.
        seed = counter_below(2**31, self.engine.seed, item.custom_id, item.plan_index)
        sampling = sampling_params(body, defaults=self.defaults, seed=seed)
        (internal,) = self.llm.enqueue_chat(
            _messages(body), sampling, use_tqdm=False, chat_template_kwargs=_template_arguments(body)
        )
        # vLLM numbers requests and adds a random tail; outputs bear the number alone.
        return str(internal).partition("-")[0]

    def _step(self) -> None:
        for output in self.llm.llm_engine.step():
            if output.finished:
                self.answers.append(self._answer(self.flying.pop(output.request_id), output))

    def _answer(self, flight: _InFlight, output: Any) -> Answer:
        (completion,) = output.outputs
        key, latency_s = flight.item.request_id, time.monotonic() - flight.asked_at
        if completion.finish_reason in ("abort", "error"):
            error = f"vLLM ended the request with {completion.finish_reason!r}"
            return Answer(key, ENGINE, None, error=error, status=500, latency_s=latency_s)
        num_input, num_output = len(output.prompt_token_ids), len(completion.token_ids)
        body = {
            "model": self.path,
            "choices": [{"message": {"content": completion.text}, "finish_reason": completion.finish_reason}],
            "usage": {
                "prompt_tokens": num_input,
                "completion_tokens": num_output,
                "total_tokens": num_input + num_output,
                "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens or 0},
            },
        }
        return chat_answer(key, ENGINE, body, status=200, latency_s=latency_s)

    def _is_settling_due(self) -> bool:
        is_late = time.monotonic() - self.settled_at > _GROUP_WAIT_S
        return len(self.answers) >= _GROUP_SIZE or is_late or not self.flying

    def _settle(self) -> None:
        if self.answers:
            answers, self.answers = self.answers, []  # the desk keeps what it cannot commit
            self.desk.settle(answers)
            self.has_more = self.has_more or self.desk.has_new
        self.settled_at = time.monotonic()


_SAME_NAME = {
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "stop",
    "seed",
}  # fmt: skip
_KNOWN = {
    "model", "messages", "response_format", "max_tokens", "max_completion_tokens", "reasoning_effort",
    "chat_template_kwargs", *_SAME_NAME,
}  # fmt: skip


def sampling_params(body: dict[str, Any], *, defaults: dict[str, Any], seed: int) -> Any:
    """vLLM's sampling parameters of a Chat Completions body; what it leaves out is taken from `defaults` and `seed`.

    Raises:
        ValueError: The body has a field that this engine does not know, or a value that vLLM does not take.
    """
    from vllm import SamplingParams

    if unknown := sorted(set(body) - _KNOWN):
        raise ValueError(f"field {unknown[0]!r} is not known to the vllm engine")
    given = {name: body[name] for name in _SAME_NAME if body.get(name) is not None}
    # None: as much as the model's length leaves.
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or defaults.get("max_tokens")
    structured = _structured_outputs(body.get("response_format") or {"type": "text"})
    try:
        return SamplingParams(**{"seed": seed, **defaults, **given, "max_tokens": limit}, structured_outputs=structured)
    except TypeError as error:
        raise ValueError(f"a sampling parameter has the wrong type: {error}") from error


def _structured_outputs(wish: dict[str, Any]) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    match wish:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return StructuredOutputsParams(json_object=True)
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return StructuredOutputsParams(json=schema)
    raise ValueError("field 'response_format' is none of text, json_object, json_schema with a schema")


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages, if they are what we take vLLM to understand: its own complaint would be a KeyError."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("field 'messages' is missing or empty")
    for number, message in enumerate(messages):
        match message:
            case {"role": str(), "content": str()}:
                continue
            case {"role": str(), "content": [*blocks]} if all(_is_text(block) for block in blocks):
                continue
        raise ValueError(f"field 'messages[{number}]' lacks a role, or a content of text")
    return messages


def _is_text(block: Any) -> bool:
    match block:
        case {"type": "text", "text": str()}:
            return True
    return False


def _template_arguments(body: dict[str, Any]) -> dict[str, Any]:
    """What the chat template gets; an effort means to it what `vllm serve` makes of it."""
    effort = body.get("reasoning_effort")
    thinking = {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    return thinking | (body.get("chat_template_kwargs") or {})
