"""The `vllm` engine: vLLM offline, in this process, with prefix caching and structured outputs.

Requests enter the engine as others leave it, so that there is no barrier, and what has come out is settled in groups.
A request that vLLM refuses is an answer with its error and never stops the others.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from generator.desk import Desk
from generator.errors import EngineStopped, GeneratorError
from generator.ledger import Answer, Wanted
from generator.recipe import VllmEngine

ENGINE = "vllm"
_GROUP_SIZE = 64


def run(desk: Desk, engine: VllmEngine, model: str) -> None:
    """Answer every request of the run that has no answer yet.

    Raises:
        GeneratorError: The `vllm` package is not installed.
        EngineStopped: The engine does not start, or died.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise GeneratorError(
            f"engine.kind = 'vllm' needs the vllm package ({error}): install 'gradus[vllm]'"
        ) from error
    path = engine.model_path or model
    try:
        llm = LLM(
            model=path,
            dtype=engine.dtype,
            max_model_len=engine.max_model_len,
            max_num_seqs=engine.max_num_seqs,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            tensor_parallel_size=engine.tensor_parallel_size,
            seed=engine.seed,
            **{"enable_prefix_caching": True, **engine.engine_args},
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise EngineStopped(f"vLLM does not start with {path!r}: {str(error).strip().splitlines()[-1]}") from error
    with _stops_at_interrupt(desk):
        _Offline(desk, llm, engine.batch, path).run()


@contextmanager
def _stops_at_interrupt(desk: Desk) -> Iterator[None]:
    """The first Ctrl-C lets what is in the engine finish; the second raises."""
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


class _Offline:
    """Feeds one engine from the desk."""

    def __init__(self, desk: Desk, llm: Any, batch: int, model: str) -> None:
        self._desk, self._engine, self._batch, self._model = desk, llm.llm_engine, batch, model
        self._tokenizer = llm.get_tokenizer()
        self._flying: dict[str, tuple[Wanted, float]] = {}
        self._answers: list[Answer] = []
        self._refusals = _refusals()

    def run(self) -> None:
        try:
            while True:
                self._fill()
                if not self._flying:
                    self._settle()
                    if self._desk.stopping.is_set() or not self._desk.refill():
                        return
                    continue
                for output in self._engine.step():
                    if output.finished:
                        self._answers.append(self._answer(output))
                if len(self._answers) >= _GROUP_SIZE:
                    self._settle()
        finally:
            self._settle()
            self._desk.give_back([item for item, _ in self._flying.values()])

    def _fill(self) -> None:
        if len(self._flying) > self._batch // 2:
            return
        for item in self._desk.take(self._batch - len(self._flying)):
            try:
                self._add(item)
            except self._refusals as error:
                told = str(error).strip().splitlines()
                self._answers.append(Answer(item.request_id, ENGINE, None, error=(told or ["refused"])[0][:2_000]))
            else:
                self._flying[str(item.request_id)] = (item, time.monotonic())

    def _settle(self) -> None:
        answers, self._answers = self._answers, []
        self._desk.settle(answers)

    def _add(self, item: Wanted) -> None:
        body = item.body
        prompt = self._tokenizer.apply_chat_template(
            _plain(body["messages"]), tokenize=True, add_generation_prompt=True, return_dict=False
        )
        self._engine.add_request(str(item.request_id), {"prompt_token_ids": list(prompt)}, sampling_params(body))

    def _answer(self, output: Any) -> Answer:
        item, began = self._flying.pop(output.request_id)
        (choice,) = output.outputs
        usage = {
            "prompt_tokens": len(output.prompt_token_ids or ()),
            "completion_tokens": len(choice.token_ids),
            "prompt_tokens_details": {"cached_tokens": output.num_cached_tokens or 0},
        }
        known: dict[str, Any] = {
            "finish_reason": choice.finish_reason,
            "model_reported": self._model[:300],
            "usage": usage,
            "latency_s": time.monotonic() - began,
        }
        if not choice.text.strip():
            return Answer(item.request_id, ENGINE, None, error="the text is empty", is_refusal=True, **known)
        return Answer(item.request_id, ENGINE, choice.text, **known)


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it will not take; its own errors came after version 0.30."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:
        return ValueError, TypeError, KeyError
    return VLLMClientError, ValueError, TypeError, KeyError


def sampling_params(body: dict[str, Any]) -> Any:
    """vLLM's sampling parameters of a Chat Completions body, by today's names."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    wish = body.get("response_format") or {}
    structured = None
    if wish.get("type") == "json_schema":
        structured = StructuredOutputsParams(json=wish["json_schema"]["schema"])
    elif wish.get("type") == "json_object":
        structured = StructuredOutputsParams(json_object=True)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return SamplingParams(
        temperature=body.get("temperature", 1.0),
        max_tokens=limit,
        seed=body.get("seed"),
        structured_outputs=structured,
    )


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their content as one string, which every chat template takes."""
    return [
        {**message, "content": message["content"] if isinstance(message["content"], str) else
         "".join(block["text"] for block in message["content"])}
        for message in messages
    ]  # fmt: skip
