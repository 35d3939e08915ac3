"""The Batch API against a loopback vendor: submit, collect, die in between, refuse."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import event, func, select, update

from db.store import Store
from db.tables.base import utc_now
from db.tables.ledger import Completion, Request, Run, VendorBatch
from generator.errors import EngineStopped
from generator.generation import GenerateReport, generate
from generator.holders import batch_holder, this_process
from generator.plan import Planner
from generator.recipe import GenerateRecipe


class Vendor(ThreadingHTTPServer):
    """Files and batches in memory; a batch is answered when it has been looked at `looks` times."""

    daemon_threads = True

    def __init__(self, toolbox: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.toolbox = toolbox
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks = 1
        self.first_status = "in_progress"
        self.status = "completed"
        self.fails_for: set[str] = set()
        self.loses_every = 0
        self.dies_after_create = 0
        self.is_busy = threading.Event()
        self.delay_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def lines(self) -> list[dict[str, Any]]:
        """Every request line of every batch that was created."""
        inputs = [self.files[batch["input_file_id"]] for batch in self.batches.values()]
        return [orjson.loads(line) for file in inputs for line in file.splitlines()]

    def finish(self, batch: dict[str, Any]) -> None:
        good, bad = b"", b""
        for number, line in enumerate(reversed(self.files[batch["input_file_id"]].splitlines())):
            row = orjson.loads(line)
            if self.loses_every and number % self.loses_every == 0:
                continue
            known = {"id": "x", "custom_id": row["custom_id"]}
            if row["custom_id"] in self.fails_for:
                error = {"code": "batch_expired", "message": "expired"}
                bad += orjson.dumps({**known, "response": None, "error": error}) + b"\n"
                continue
            message = {"role": "assistant", "content": self.toolbox.negatives_for(row["body"])}
            body = {
                "model": "m", "choices": [{"message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10},
            }  # fmt: skip
            good += orjson.dumps({**known, "response": {"status_code": 200, "body": body}, "error": None}) + b"\n"
        batch["status"] = self.status
        for name, data in (("output_file_id", good), ("error_file_id", bad)):
            if data:
                batch[name] = f"{name}-{batch['id']}"
                self.files[batch[name]] = data


class _Handler(BaseHTTPRequestHandler):
    server: Vendor
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/files"):
            self._take_long()
            boundary = self.headers["content-type"].partition("boundary=")[2].encode()
            parts = [part for part in raw.split(b"--" + boundary) if b"filename=" in part]
            name = f"file-{len(self.server.files)}"
            self.server.files[name] = parts[0].partition(b"\r\n\r\n")[2].rstrip(b"\r\n") + b"\n"
            self._send({"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch",
                        "status": "processed"})  # fmt: skip
            return
        wish = orjson.loads(raw)
        name = f"batch-{len(self.server.batches)}"
        self.server.batches[name] = {
            "id": name, "object": "batch", "endpoint": wish["endpoint"], "input_file_id": wish["input_file_id"],
            "completion_window": "24h", "status": self.server.first_status, "created_at": 1,
            "metadata": wish["metadata"], "looks": 0,
        }  # fmt: skip
        if self.server.dies_after_create:
            self.server.dies_after_create -= 1
            self.close_connection = True
            self.connection.close()
            return
        self._send(self.server.batches[name])

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[-1] == "content":
            self._take_long()
            self._send(self.server.files[parts[-2]])
        elif parts[-1] == "batches":
            self._send({"object": "list", "data": list(self.server.batches.values()), "has_more": False})
        else:
            batch = self.server.batches[parts[-1]]
            batch["looks"] += 1
            if batch["looks"] > self.server.looks and batch["status"] == self.server.first_status:
                self.server.finish(batch)
            self._send(batch)

    def _take_long(self) -> None:
        self.server.is_busy.set()
        time.sleep(self.server.delay_s)

    def _send(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def vendor(toolbox: Any) -> Iterator[Vendor]:
    running = Vendor(toolbox)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def recipe(toolbox: Any, vendor: Vendor, **engine: Any) -> GenerateRecipe:
    base = toolbox.recipe_for(vendor, num=60)
    settings = {"kind": "openai_batch", "base_url": vendor.url, "poll_s": 0.05, **engine}
    return GenerateRecipe.model_validate({**base.model_dump(), "model": "gpt-6-luna", "engine": settings})


def test_files_are_submitted_collected_and_priced_with_the_discount(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    report = generate(store, recipe(toolbox, vendor, max_requests=25))
    assert report.outcomes == {"accepted": 60} and len(vendor.batches) == 3
    lines = vendor.lines()
    assert len(lines) == 60 == len({line["custom_id"] for line in lines})
    assert report.spent_usd == pytest.approx(60 * (100 * 0.10 + 10 * 0.50) / 1e6 / 2)
    with store.read() as session:
        assert {batch.state for batch in session.scalars(select(VendorBatch))} == {"collected"}
        run = session.scalars(select(Run)).one()
        assert (run.reserved_tokens, run.spent_tokens) == (0, 60 * 110)
        assert set(session.scalars(select(Completion.engine))) == {"openai_batch"}
    assert generate(store, recipe(toolbox, vendor)).num_new_answers == 0 and len(vendor.batches) == 3


def test_a_file_stays_below_its_bytes(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    assert generate(store, recipe(toolbox, vendor, max_bytes=40_000)).outcomes == {"accepted": 60}
    sizes = [len(vendor.files[batch["input_file_id"]]) for batch in vendor.batches.values()]
    assert len(sizes) > 2 and max(sizes) <= 40_000 and len(vendor.lines()) == 60


def test_a_process_that_died_after_the_upload_finds_its_batch_again(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    vendor.dies_after_create = 1
    with pytest.raises(EngineStopped, match="cannot be reached"):
        generate(store, recipe(toolbox, vendor))
    with store.read() as session:
        assert [batch.state for batch in session.scalars(select(VendorBatch))] == ["submitting"]
        assert session.scalar(select(func.count()).where(Request.state == "leased")) == 60
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60}
    assert len(vendor.batches) == 1


def test_what_expired_is_asked_again_by_the_next_call(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    with store.read() as session:
        planned = list(Planner(recipe(toolbox, vendor)).first(session))
    vendor.status, vendor.fails_for = "expired", {item.custom_id for item in planned[:5]}
    report = generate(store, recipe(toolbox, vendor))
    assert (report.outcomes, report.num_failed) == ({"accepted": 55}, 5)
    vendor.fails_for = set()
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60}
    assert len(vendor.lines()) == 65


@pytest.mark.parametrize(("status", "loses_every"), [("completed", 3), ("completed", 1), ("cancelled", 1)])
def test_lost_lines_and_cancelled_batches_are_not_sent_again_by_the_same_call(
    store: Store, vendor: Vendor, toolbox: Any, status: str, loses_every: int
) -> None:
    toolbox.fill(store, 60)
    vendor.status, vendor.loses_every = status, loses_every
    asked = recipe(toolbox, vendor).model_copy(update={"max_rejected": 1.0})
    report = generate(store, asked)
    assert len(vendor.batches) == 1 and report.num_failed == 60 // loses_every
    assert any(f"is {status}, without an answer" in reason for reason in report.failures)
    vendor.status, vendor.loses_every = "completed", 0
    assert generate(store, asked).outcomes == {"accepted": 60}
    assert len(vendor.batches) == 2 and len(vendor.lines()) == 60 + 60 // loses_every


def test_a_status_that_nobody_knows_may_still_be_running(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    vendor.looks, vendor.first_status = 3, "thinking"
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60} and len(vendor.batches) == 1


def test_a_refused_batch_stops_the_run_and_its_requests_are_free_again(
    store: Store, vendor: Vendor, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    vendor.status = "failed"
    vendor.fails_for = set()
    original = vendor.finish

    def refuse(batch: dict[str, Any]) -> None:
        batch["status"] = "failed"
        batch["errors"] = {"object": "list", "data": [{"code": "token_limit", "message": "enqueued token limit"}]}

    vendor.finish = refuse  # type: ignore[method-assign]
    with pytest.raises(EngineStopped, match="enqueued token limit"):
        generate(store, recipe(toolbox, vendor))
    with store.read() as session:
        assert session.scalar(select(func.count()).where(Request.state == "pending")) == 60
    vendor.finish, vendor.status = original, "completed"  # type: ignore[method-assign]
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60}


def tokens_of(store: Store) -> tuple[int, int]:
    with store.read() as session:
        run = session.scalars(select(Run)).one()
        return run.spent_tokens, run.reserved_tokens


def leave_a_batch_behind(store: Store, vendor: Vendor, toolbox: Any, asked: GenerateRecipe | None = None) -> None:
    """A batch is with the vendor, and the process that handed it in has gone."""
    vendor.dies_after_create = 1
    with pytest.raises(EngineStopped, match="cannot be reached"):
        generate(store, asked or recipe(toolbox, vendor))
    with store.write() as session:
        session.execute(update(VendorBatch).values(state="submitted", external_id="batch-0"))


def test_a_batch_that_is_collected_late_is_not_bought_again(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    leave_a_batch_behind(store, vendor, toolbox)
    with store.write() as session:
        session.execute(update(Request).values(leased_until=utc_now() - timedelta(days=3)))
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60}
    assert len(vendor.batches) == 1 and tokens_of(store) == (60 * 110, 0)


@pytest.mark.parametrize("moment", ["upload", "download"])
def test_two_processes_neither_send_nor_book_a_batch_twice(
    store: Store, vendor: Vendor, toolbox: Any, moment: str
) -> None:
    toolbox.fill(store, 60)
    if moment == "download":
        leave_a_batch_behind(store, vendor, toolbox)
        vendor.looks = 0
    vendor.is_busy.clear()
    vendor.delay_s = 0.5
    reports: list[GenerateReport] = []
    first, second = (
        threading.Thread(target=lambda: reports.append(generate(store, recipe(toolbox, vendor)))) for _ in range(2)
    )
    first.start()
    assert vendor.is_busy.wait(30)
    second.start()
    for thread in (first, second):
        thread.join(60)
    assert [report.outcomes for report in reports] == [{"accepted": 60}] * 2
    assert len(vendor.lines()) == 60 and len(vendor.batches) == 1 and tokens_of(store) == (60 * 110, 0)
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Completion)) == 60
        assert session.scalars(select(VendorBatch.holder)).one() is None


def once(
    store: Store, is_moment: Callable[[str, str], bool], act: Callable[[], None], when: str = "before_cursor_execute"
) -> None:
    """Act once, in another transaction, before (or after) the first statement of a kind: (statement, parameters)."""
    moments: list[str] = []

    def look(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if not moments and is_moment(statement, str(parameters)):
            moments.append(statement)
            act()

    event.listen(store.engine, when, look)


def test_an_upload_that_ends_between_two_looks_is_waited_for(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    leave_a_batch_behind(store, vendor, toolbox)

    def store_state(state: str) -> None:
        with store.write() as session:
            session.execute(update(VendorBatch).values(state=state))

    store_state("submitting")
    once(
        store,
        lambda sql, given: "FROM vendor_batch" in sql and "submitting" in given and "submitted" not in given,
        lambda: store_state("submitted"),
    )
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60} and len(vendor.batches) == 1


def test_requests_that_are_handed_in_after_the_last_look_are_waited_for(
    store: Store, vendor: Vendor, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    leave_a_batch_behind(store, vendor, toolbox)
    once(store, lambda sql, given: "max(request.leased_until)" in sql, not_yet_handed_in(store))
    assert generate(store, recipe(toolbox, vendor)).outcomes == {"accepted": 60} and len(vendor.batches) == 1


def not_yet_handed_in(store: Store) -> Callable[[], None]:
    """Its requests are a living process' own as yet; what that process does next."""
    leased = update(Request).where(Request.state == "leased")
    with store.write() as session:
        batch = session.scalars(select(VendorBatch)).one()
        session.delete(batch)
        names = ("digest", "run_id", "num_requests", "external_id", "state")
        row = {name: getattr(batch, name) for name in names}
        until = utc_now() + timedelta(minutes=5)
        session.execute(leased.values(lease_holder=this_process(), leased_until=until))

    def hand_in() -> None:
        with store.write() as session:
            session.add(VendorBatch(**row))
            session.execute(leased.values(lease_holder=batch_holder(row["digest"])))

    return hand_in


def test_a_budget_that_a_batch_has_reserved_is_not_spent(store: Store, vendor: Vendor, toolbox: Any) -> None:
    """The other process hands in after we counted open batches, and before we ask for room."""
    toolbox.fill(store, 60)
    fields = {**recipe(toolbox, vendor).model_dump(), "max_output_tokens": 100, "budget": {"tokens": 20_000}}
    asked = GenerateRecipe.model_validate(fields)
    leave_a_batch_behind(store, vendor, toolbox, asked)
    assert 0 < len(vendor.lines()) < 60
    hand_in = not_yet_handed_in(store)
    once(store, lambda sql, given: "count(" in sql and "vendor_batch" in sql, hand_in, "after_cursor_execute")
    report = generate(store, asked)
    assert report.outcomes == {"accepted": 60} and not report.is_out_of_budget


def test_requests_that_the_vendor_lost_are_never_free_before_they_are_failed(
    store: Store, vendor: Vendor, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    vendor.loses_every = 3
    free: list[int | None] = []

    def look() -> None:
        with store.read() as session:
            free.append(session.scalar(select(func.count()).where(Request.state == "pending")))

    once(store, lambda sql, given: sql.startswith("INSERT INTO completion") and "without an answer" in given, look)
    assert generate(store, recipe(toolbox, vendor)).num_failed == 20
    assert free == [0]


def test_an_upload_is_taken_over_from_a_dead_process_and_not_from_a_living_one(
    store: Store, vendor: Vendor, toolbox: Any
) -> None:
    toolbox.fill(store, 60)
    vendor.dies_after_create = 1
    with pytest.raises(EngineStopped):
        generate(store, recipe(toolbox, vendor))
    ended = subprocess.run(
        [sys.executable, "-c", "from generator.holders import batch_holder, this_process; print(this_process())"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    ).stdout.strip()  # fmt: skip

    def hold(holder: str) -> None:
        with store.write() as session:
            session.execute(update(VendorBatch).values(holder=holder, held_until=utc_now() + timedelta(hours=1)))

    hold(this_process())  # another desk of a process that lives
    asked: list[Any] = []
    thread = threading.Thread(target=lambda: asked.append(generate(store, recipe(toolbox, vendor))))
    thread.start()
    thread.join(0.5)
    with store.read() as session:
        assert session.scalars(select(VendorBatch.state)).one() == "submitting"
    hold(ended)
    thread.join(60)
    assert asked[0].outcomes == {"accepted": 60} and len(vendor.batches) == 1


def test_a_pilot_hands_in_so_many_and_no_more(store: Store, vendor: Vendor, toolbox: Any) -> None:
    toolbox.fill(store, 60)
    report = generate(store, recipe(toolbox, vendor), limit=5)
    assert (report.num_new_answers, len(vendor.lines())) == (5, 5)


def test_a_budget_goes_as_far_as_the_answers_leave_room(store: Store, vendor: Vendor, toolbox: Any) -> None:
    """The worst case of each is 1,500 tokens and more, its answer costs 110: batch by batch all of them fit."""
    toolbox.fill(store, 60)
    fields = {**recipe(toolbox, vendor).model_dump(), "max_output_tokens": 100, "budget": {"tokens": 20_000}}
    report = generate(store, GenerateRecipe.model_validate(fields))
    assert (report.is_out_of_budget, report.outcomes) == (False, {"accepted": 60})
    assert len(vendor.batches) > 2 and len(vendor.lines()) == 60 and tokens_of(store) == (60 * 110, 0)
