"""The live engine against a real server on loopback: overload, garbage, wrong keys, lost answers, and a SIGKILL."""

import email.utils
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from db.store import Store
from db.tables.examples import Candidate
from db.tables.ledger import Completion, Request, Run
from generator.engines.endpoint import Window
from generator.engines.replies import retry_after
from generator.errors import EngineStopped, GeneratorError
from generator.generation import generate

ROOT = Path(__file__).parents[2]
NUM = 60


def failing_first(toolbox: Any, replies: list[Any]) -> Callable[[dict[str, Any], int], Any]:
    """These replies to the first that come, good ones to the rest."""
    lock = threading.Lock()

    def script(body: dict[str, Any], turn: int) -> Any:
        with lock:
            if replies:
                return replies.pop(0)
        return toolbox.Reply(toolbox.negatives_for(body))

    return script


def status(toolbox: Any, number: int, **headers: str) -> Any:
    return toolbox.Reply(status=number, body={"error": {"message": f"scripted {number}"}}, headers=headers)


def spent(store: Store) -> tuple[int, int]:
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        return run.spent_tokens, run.reserved_tokens


def test_every_request_is_asked_once_through_overload(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    model_server.script = failing_first(toolbox, [status(toolbox, number) for number in (429, 500, 503, 408, 425, 502)])
    recipe = toolbox.recipe_for(model_server)
    report = generate(store, recipe)
    assert (report.num_waiting, report.outcomes) == (0, {"accepted": NUM})
    assert set(model_server.answered.values()) == {1} and len(model_server.answered) == NUM
    generate(store, recipe)
    assert sum(model_server.came.values()) == NUM + 6
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Candidate)) == 5 * NUM
        tokens = select(func.sum(Completion.input_tokens), func.sum(Completion.cached_tokens))
        assert tuple(session.execute(tokens).one()) == (10 * NUM, 4 * NUM)


def test_attributes_are_balanced_over_their_combinations(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    generate(store, toolbox.recipe_for(model_server))
    prompts = [toolbox.prompt_of(body) for body in model_server.bodies]
    cells = Counter((p.partition("expert in ")[2][0], p.partition("education level: ")[2][0]) for p in prompts)
    assert len(cells) == 6 and set(cells.values()) == {NUM // 6}


def test_garbage_is_a_row_with_a_reason(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    model_server.script = failing_first(toolbox, [toolbox.Reply("no json")] * 2)
    report = generate(store, toolbox.recipe_for(model_server))
    assert report.outcomes == {"accepted": NUM - 2, "rejected": 2} and report.refused == {"not_json": 2}


def test_too_much_garbage_stops_the_run_early_and_says_why(store: Store, model_server: Any, toolbox: Any) -> None:
    num = 400
    toolbox.fill(store, num)
    model_server.script = lambda body, turn: toolbox.Reply("no json", delay_s=0.005)
    recipe = toolbox.recipe_for(model_server, num=num, max_rejected=0.2)
    with pytest.raises(GeneratorError, match=r"100% of the completions .* 20% \(most: not_json, as in .* not asked"):
        generate(store, recipe)
    # About fifty answers tell, and what is in flight or about to be committed by then lands.
    assert sum(model_server.came.values()) < num // 2
    with store.read() as session:
        states = {state: n for state, n in session.execute(select(Request.state, func.count()).group_by(Request.state))}
        assert session.scalars(select(Run.state)).one() == "failed"
    assert states["done"] == sum(model_server.came.values()) and sum(states.values()) == num


def test_a_few_rejected_answers_stop_nothing(store: Store, model_server: Any, toolbox: Any) -> None:
    """The first ten are garbage: far more than the limit of those read so far, too few to tell."""
    toolbox.fill(store, NUM)
    model_server.script = failing_first(toolbox, [toolbox.Reply("no json")] * 10)
    report = generate(store, toolbox.recipe_for(model_server, max_rejected=0.2, engine={"concurrency": 1}))
    assert report.outcomes == {"accepted": NUM - 10, "rejected": 10}


def test_failures_count_as_what_the_run_may_not_have(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    model_server.script = lambda body, turn: status(toolbox, 400)
    with pytest.raises(GeneratorError, match=r"100% .* \(most: failed, status 400: scripted 400\)"):
        generate(store, toolbox.recipe_for(model_server))


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [(401, "invalid_api_key", "key"), (404, "no_model", "model"), (402, "balance", "out of credit"),
     (429, "insufficient_quota", "out of credit")],
)  # fmt: skip
def test_what_would_fail_every_request_stops_the_run_at_once_and_it_resumes(
    store: Store, model_server: Any, toolbox: Any, number: int, code: str, told: str
) -> None:
    toolbox.fill(store, NUM)
    error = {"error": {"message": "You exceeded your current quota", "type": code, "code": code}}
    model_server.script = lambda body, turn: toolbox.Reply(status=number, body=error)
    recipe = toolbox.recipe_for(model_server)
    with pytest.raises(EngineStopped, match=told) as stopped:
        generate(store, recipe)
    assert len(str(stopped.value).splitlines()) == 1
    assert sum(model_server.came.values()) <= 8  # one window
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body))
    assert generate(store, recipe).outcomes == {"accepted": NUM}
    assert set(model_server.answered.values()) == {1}


def test_an_unreachable_server_is_one_clear_error(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    engine = {"base_url": "http://127.0.0.1:9/v1", "max_attempts": 1}
    with pytest.raises(EngineStopped, match="start the server"):
        generate(store, toolbox.recipe_for(model_server, engine=engine))


def test_a_bad_request_is_given_up_alone(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, NUM)
    model_server.script = failing_first(toolbox, [status(toolbox, 400)])
    recipe = toolbox.recipe_for(model_server)
    report = generate(store, recipe)
    assert report.num_failed == 1 and report.outcomes == {"accepted": NUM - 1}
    assert report.failures == {"status 400: scripted 400": 1}
    again = generate(store, recipe)
    assert (again.num_waiting, again.num_failed, again.failures) == (0, 0, {})


def test_what_failed_is_left_to_the_next_call(store: Store, model_server: Any, toolbox: Any) -> None:
    """Refills plan more within the call; what failed in it is not asked again by the way."""
    toolbox.fill(store, 40)
    asked: Counter[str] = Counter()

    def script(body: dict[str, Any], turn: int) -> Any:
        query = toolbox.between(toolbox.prompt_of(body), "query")
        if int(query.split()[1][:-1]) % 4 == 0:
            asked[query] += 1
            return status(toolbox, 400)
        return toolbox.Reply(toolbox.negatives_for(body, 3 if turn == 0 else 4))

    model_server.script = script
    plan = {
        "source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train",
        "task_instruction": "Match.", "accepted_per_cell": 6, "max_per_cell": 18,
        "attributes": {"domain": ["a"], "education_level": ["x"], "length": ["l"], "language": ["English"]},
    }  # fmt: skip
    report = generate(store, toolbox.recipe_for(model_server, plan, max_rejected=1))
    assert report.num_failed == len(asked) > 1 and set(asked.values()) == {1}


LOST = {
    "cut off": lambda toolbox: toolbox.Reply(raw=b'{"choices": [{"mess'),
    "broken": lambda toolbox: toolbox.Reply(raw=b"", headers={"content-length": "99", "connection": "close"}),
    "silent": lambda toolbox: toolbox.Reply(hangs=True),
}


@pytest.mark.parametrize("name", list(LOST))
def test_each_answer_that_was_lost_on_the_way_is_booked_as_spent(
    store: Store, model_server: Any, toolbox: Any, name: str
) -> None:
    toolbox.fill(store, 4)
    model_server.script = lambda body, turn: (
        LOST[name](toolbox) if turn == 0 else toolbox.Reply(toolbox.negatives_for(body))
    )
    engine = {"timeout_s": 4.0, "max_attempts": 3}
    recipe = toolbox.recipe_for(model_server, num=4, max_output_tokens=100, engine=engine, budget={"tokens": 10**6})
    assert generate(store, recipe).outcomes == {"accepted": 4}
    worst = [len(raw) + 100 for raw in model_server.came]
    assert spent(store) == (sum(worst) + 4 * 15, 0)


def test_what_was_lost_to_the_last_attempt_is_booked_as_often_as_it_left(
    store: Store, model_server: Any, toolbox: Any
) -> None:
    toolbox.fill(store, 2)
    model_server.script = lambda body, turn: LOST["cut off"](toolbox)
    recipe = toolbox.recipe_for(
        model_server, num=2, max_output_tokens=100, engine={"max_attempts": 2}, max_rejected=1, budget={"tokens": 10**6}
    )
    assert generate(store, recipe).num_failed == 2
    assert set(model_server.came.values()) == {2}
    assert spent(store) == (2 * sum(len(raw) + 100 for raw in model_server.came), 0)


@pytest.mark.parametrize("name", ["cut off", "no usage"])
def test_a_budget_holds_against_a_server_that_accounts_for_nothing(
    store: Store, model_server: Any, toolbox: Any, name: str
) -> None:
    toolbox.fill(store, NUM)
    model_server.usage = None
    if name == "cut off":
        model_server.script = lambda body, turn: LOST["cut off"](toolbox)
    recipe = toolbox.recipe_for(
        model_server, max_output_tokens=100, engine={"max_attempts": 20}, budget={"tokens": 9_000}, max_rejected=1
    )
    report = generate(store, recipe)
    left = sum(num * (len(raw) + 100) for raw, num in model_server.came.items())
    assert report.is_out_of_budget and spent(store) == (left, 0) and 5_000 < left <= 9_000


def test_a_wish_to_wait_is_honoured_and_costs_no_attempt(store: Store, model_server: Any, toolbox: Any) -> None:
    """Our own first pause is at most 0.75 s: a gap of more is the server's wish."""
    toolbox.fill(store, 1)
    came: list[float] = []

    def script(body: dict[str, Any], turn: int) -> Any:
        came.append(time.monotonic())
        headers = ({"retry-after": "1"}, {"retry-after-ms": "900"}, {})[min(turn, 2)]
        return status(toolbox, 429, **headers) if turn < 2 else toolbox.Reply(toolbox.negatives_for(body))

    model_server.script = script
    report = generate(store, toolbox.recipe_for(model_server, num=1, engine={"max_attempts": 1}))
    assert report.outcomes == {"accepted": 1}
    assert came[1] - came[0] >= 1.0 and came[2] - came[1] >= 0.9


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "300"}, 300, 300),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5, 1.5),
        ({"retry-after": email.utils.format_datetime(datetime(2099, 1, 1, tzinfo=UTC), usegmt=True)}, 10**8, 10**10),
        ({"retry-after": email.utils.format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)}, 0, 0),
    ],
)
def test_wishes_are_numbers_or_dates(headers: dict[str, str], low: float, high: float) -> None:
    assert low <= (retry_after(headers) or 0) <= high


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "inf", "", "Mon, 99 Nov 2026"])
def test_a_wish_that_cannot_be_read_is_none(value: str) -> None:
    assert retry_after({"retry-after": value}) is None and retry_after({}) is None


def test_killed_in_the_middle_it_pays_at_most_the_window_twice(tmp_path: Path, model_server: Any, toolbox: Any) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    toolbox.fill(store, NUM)
    concurrency = 4
    model_server.script = lambda body, turn: toolbox.Reply(toolbox.negatives_for(body), delay_s=0.25)
    recipe = toolbox.recipe_for(model_server, engine={"concurrency": concurrency})
    code = (
        "import sys; from db.store import Store; from generator.generation import generate\n"
        "from generator.recipe import GenerateRecipe\n"
        "generate(Store.open(sys.argv[1]), GenerateRecipe.model_validate_json(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, url, recipe.model_dump_json()], cwd=ROOT)
    deadline = time.monotonic() + 60
    while sum(model_server.came.values()) < NUM // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with store.read() as session:
        done = session.scalar(select(func.count()).where(Request.state == "done")) or 0
    lost = sum(model_server.came.values()) - done
    report = generate(store, recipe)
    store.close()
    assert report.num_waiting == 0
    # In flight, or answered within the group that was about to be committed.
    assert sum(model_server.came.values()) - NUM == lost <= 2 * concurrency
    assert max(model_server.came.values()) <= 2
    with Store.open(url).read() as session:
        assert session.scalar(select(func.count()).select_from(Completion)) == NUM


@pytest.mark.parametrize("is_seeded", [True, False])
def test_another_sample_is_another_request_with_another_seed(
    store: Store, model_server: Any, toolbox: Any, is_seeded: bool
) -> None:
    toolbox.fill(store, 4)
    model_server.script = lambda body, turn: toolbox.Reply("no JSON")
    recipe = toolbox.recipe_for(model_server, num=4, max_repairs=2, max_rejected=1, model_seed=is_seeded)
    assert generate(store, recipe).outcomes == {"rejected": 12}
    seeds = {body.pop("seed", None) for body in model_server.bodies}
    assert len(seeds) == (12 if is_seeded else 1) and len({str(body) for body in model_server.bodies}) == 4
    before = sum(model_server.came.values())
    assert generate(store, recipe).num_new_answers == 0 and sum(model_server.came.values()) == before


def test_a_refusal_is_not_asked_again(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 4)
    refusal = {"choices": [{"message": {"content": None, "refusal": "I will not"}, "finish_reason": "stop"}]}
    model_server.script = lambda body, turn: toolbox.Reply(body=refusal)
    report = generate(store, toolbox.recipe_for(model_server, num=4, max_repairs=2, max_rejected=1))
    assert report.outcomes == {"rejected": 4} and report.refused == {"refused": 4}
    assert sum(model_server.came.values()) == 4


def test_to_a_model_that_was_switched_off_nothing_is_sent(store: Store, model_server: Any, toolbox: Any) -> None:
    toolbox.fill(store, 4)
    recipe = toolbox.recipe_for(model_server, num=4, model="gpt-4o-2024-08-06")
    with pytest.raises(GeneratorError, match="switched off on 2027-01-14"):
        generate(store, recipe, today=date(2027, 1, 14))
    assert not model_server.came
    assert generate(store, recipe, today=date(2027, 1, 13)).outcomes == {"accepted": 4}
    assert sum(model_server.came.values()) == 4


def test_window_halves_on_overload_and_grows_one_by_one() -> None:
    window = Window(8)
    assert window.shrink(sent_at=1, now=2) and not window.shrink(sent_at=1.5, now=3)
    assert window.size == 4  # what was in flight together tells of one overload
    for _ in range(4):
        window.grow()
    assert window.size == 5
    for _ in range(100):
        window.grow()
    assert window.size == 8
    for moment in range(3, 13):
        window.shrink(sent_at=moment, now=moment)
    assert window.size == 1
