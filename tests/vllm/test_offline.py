"""The offline engine on real vLLM, on the CPU with a tiny model."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select

from db.digest import canonical_json
from db.store import Store
from db.tables.ledger import Completion, CompletionBody, Request
from generator.engines import vllm
from generator.errors import EngineStopped
from generator.ledger import Answer, Wanted, decompressed
from generator.recipe import GenerateRecipe, VllmEngine

# vLLM and torch warn of themselves; that is theirs to mend.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 60}, "level": {"enum": ["hard", "easy"]}},
    "required": ["text", "level"],
    "additionalProperties": False,
}


class ListDesk:
    """A desk over a list: what is asked, what came of it, what was given back."""

    def __init__(self, bodies: dict[str, dict[str, Any]]) -> None:
        self.left = [Wanted(n, name, n, canonical_json(body)) for n, (name, body) in enumerate(bodies.items())]
        self.names = list(bodies)
        self.answers: dict[str, Answer] = {}
        self.given_back: list[Wanted] = []
        self.stopping = threading.Event()
        self.has_new = False

    def take(self, limit: int) -> list[Wanted]:
        taken, self.left = self.left[:limit], self.left[limit:]
        return taken

    def refill(self) -> bool:
        return False

    def settle(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            assert self.names[answer.request_id] not in self.answers, "answered twice"
            self.answers[self.names[answer.request_id]] = answer

    def give_back(self, items: Sequence[Wanted]) -> None:
        self.given_back += items


def ask(content: str, **fields: Any) -> dict[str, Any]:
    response_format = {"type": "json_schema", "json_schema": {"name": "pair", "strict": True, "schema": SCHEMA}}
    messages = [{"role": "user", "content": content}]
    return {"model": "tiny", "messages": messages, "response_format": response_format, "max_tokens": 300} | fields


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}


ASKED = {
    # More at once than one step has room for: chunked prefill would cut some. First: nothing is cached.
    **{f"long-{n}": ask(f"{n} " + "context words " * 200, seed=n) for n in range(4)},
    **{f"good-{n}": ask("context words " * 20 * n + str(n)) for n in range(8)},
    "again-1": ask("one", seed=7), "again-2": ask("one", seed=7), "other": ask("one", seed=8),
    "unseeded-1": ask("one"), "unseeded-2": ask("one"),
    "object": ask("an object", response_format={"type": "json_object"}, max_tokens=20),
    "blocks": ask("") | {"messages": [{"role": "user", "content": [{"type": "text", "text": "in a block"}]}]},
    "free": ask("no format", response_format=None, max_completion_tokens=5, reasoning_effort="none"),
    "greedy": ask("greedy", temperature=0, top_p=0.9, stop=["no such text"]),
    "too-long": ask("word " * 2_000),
    "bad-schema": ask("x", response_format=schema({"type": "no such type"})),
    "bad-reference": ask("x", response_format=schema({"$ref": "#/$defs/nowhere"})),
    "no-schema": ask("x", response_format={"type": "json_schema"}),
    "bad-temperature": ask("x", temperature=-1),
    "bad-type": ask("x", temperature="warm"),
    "bad-messages": ask("x", messages=[{"content": "nobody says this"}]),
    "no-messages": ask("x", messages=[]),
    "unknown-field": ask("x", logit_bias={"5": 1}),
}  # fmt: skip
REFUSED = {
    "too-long": "1024", "bad-schema": "no such type", "bad-reference": "nowhere", "no-schema": "response_format",
    "bad-temperature": "temperature", "bad-type": "wrong type", "bad-messages": "role", "no-messages": "messages",
    "unknown-field": "logit_bias",
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(model: Path) -> Iterator[ListDesk]:
    """All of the above, asked once of one engine."""
    asked = ListDesk(ASKED)
    engine = VllmEngine(
        kind="vllm", model_path=str(model), dtype="bfloat16", max_model_len=1_024, max_num_seqs=4, batch=5,
        engine_args={"enforce_eager": True, "max_num_batched_tokens": 1_024},
    )  # fmt: skip
    vllm.run(asked, engine, "tiny")  # type: ignore[arg-type]
    yield asked


def test_every_request_has_one_answer_and_none_is_given_back(desk: ListDesk) -> None:
    assert set(desk.answers) == set(ASKED) and desk.given_back == []


def test_a_refused_request_is_an_answer_that_says_why(desk: ListDesk) -> None:
    refused = {name: answer for name, answer in desk.answers.items() if answer.error is not None}
    assert set(refused) == set(REFUSED), {name: answer.error for name, answer in refused.items()}
    for name, told in REFUSED.items():
        assert told in str(refused[name].error) and refused[name].status == 400, refused[name]


def test_answers_keep_to_their_schema_in_strict_json(desk: ListDesk) -> None:
    plain = set(ASKED) - set(REFUSED) - {"object", "free"}
    for answer in (desk.answers[name] for name in plain):
        value = orjson.loads(answer.text or "")
        assert set(value) == {"text", "level"} and len(value["text"]) <= 60 and value["level"] in ("hard", "easy")
        assert answer.finish_reason == "stop" and answer.status == 200 and answer.latency_s is not None


def test_other_formats_and_the_limit(desk: ListDesk) -> None:
    for name, limit in (("object", 20), ("free", 5)):
        answer = desk.answers[name]
        assert answer.finish_reason in ("length", "stop") and answer.usage is not None
        assert 0 < answer.usage["completion_tokens"] <= limit
    assert (desk.answers["object"].text or "").startswith("{")


def test_seeds_decide_and_a_request_without_one_has_its_own(desk: ListDesk) -> None:
    text = {name: answer.text for name, answer in desk.answers.items()}
    assert text["again-1"] == text["again-2"] != text["other"]
    assert text["unseeded-1"] != text["unseeded-2"]


def test_usage_counts_what_the_prefix_cache_gave(desk: ListDesk) -> None:
    usages = [answer.usage for answer in desk.answers.values() if answer.usage is not None]
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert max(cached) > 0 and all(num < usage["prompt_tokens"] for num, usage in zip(cached, usages, strict=True))


def test_a_model_that_is_not_there_is_one_line_and_all_is_given_back(tmp_path: Path) -> None:
    asked = ListDesk({"one": ask("one")})
    engine = VllmEngine(kind="vllm", model_path=str(tmp_path / "nowhere"))
    with pytest.raises(EngineStopped, match="nowhere") as told:
        vllm.run(asked, engine, "tiny")  # type: ignore[arg-type]
    assert "\n" not in str(told.value) and [item.custom_id for item in asked.given_back] == ["one"]


def counts(store: Store) -> dict[str, int]:
    with store.read() as session:
        return {
            state: num for state, num in session.execute(select(Request.state, func.count()).group_by(Request.state))
        }


def started(url: str, recipe: GenerateRecipe) -> "subprocess.Popen[str]":
    """A generation in a process and session of its own: a terminal sends Ctrl-C to vLLM's processes too."""
    code = (
        "import sys; from db.store import Store; from generator.generation import generate\n"
        "from generator.recipe import GenerateRecipe\n"
        "report = generate(Store.open(sys.argv[1]), GenerateRecipe.model_validate_json(sys.argv[2]))\n"
        "print(report.is_stopped, report.num_new_answers)"
    )
    command = [sys.executable, "-c", code, url, recipe.model_dump_json()]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(num: int, store: Store, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while counts(store).get("done", 0) < num:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def living(session_id: int) -> list[str]:
    """Names of the processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if rest.split()[3] == str(session_id) and rest.split()[0] != "Z":
                found.append(name)
    return found


def end(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_ctrl_c_and_a_kill_lose_no_answer_and_leave_no_process(
    store: Store,
    store_url: str,
    fill: Callable[..., None],
    make_recipe: Callable[..., GenerateRecipe],
    offline: dict[str, Any],
) -> None:
    num = 300
    fill(num)
    recipe = make_recipe(offline, num)
    process = started(store_url, recipe)
    try:
        wait_for(4, store, process)
        os.killpg(process.pid, signal.SIGINT)
        told, _ = process.communicate(timeout=60)
    finally:
        end(process)
    states = counts(store)
    assert process.returncode == 0 and told == f"True {states['done']}\n"  # vLLM's own log is not on stdout
    assert set(states) == {"done", "pending"} and 4 <= states["done"] < num

    process = started(store_url, recipe)
    try:
        wait_for(states["done"] + 4, store, process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while living(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert living(process.pid) == []
    finally:
        end(process)

    with store.read() as session:
        texts = [decompressed(body) for body in session.scalars(select(CompletionBody.body))]
        errors = list(session.scalars(select(Completion.error).where(Completion.error.is_not(None))))
    assert len(texts) == counts(store)["done"] >= states["done"] + 4
    assert all(orjson.loads(text)["negatives"] for text in texts) and errors == []
