"""The `batch_file` engine: requests out, completions in, as JSONL in the OpenAI Batch format.

What answers stands outside: the Batch API, `vllm run-batch`, another vendor, or an air-gapped machine. Requests are
leased to the file that they are written into, with their worst case of cost reserved, so that no other file gets them
and a budget or a pilot holds; a file that is deleted frees them. Completions are joined by `custom_id`; a bad line is
named with file, line and field and never stops the good ones.
"""

import gzip
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.tables.ledger import Request, Run, RunRequest
from generator.desk import Desk
from generator.engines.chat import chat_answer, error_message
from generator.errors import GeneratorError
from generator.holders import FILE, file_holder
from generator.leases import hand_over, held_by
from generator.ledger import Answer, Wanted
from generator.recipe import BatchFileEngine

ENGINE = "batch_file"
_CHUNK = 200
_TAKEN_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of the completions file that could not be used."""

    where: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a completions file that has the right shape: whose answer, and the row."""

    where: str
    custom_id: str
    row: dict[str, Any]


def run(desk: Desk, engine: BatchFileEngine, on_bad_line: Callable[[BadLine], None]) -> None:
    """Read the completions that are there, and write the requests that still wait."""
    if engine.completions.is_file() or engine.requests is None:
        ingest(desk, engine.completions, on_bad_line)
    if engine.requests is not None:
        desk.plan_more()
        holder = file_holder(engine.requests)
        _take_all(desk, holder)
        # In one transaction that holds the run: of two processes with one file, the second sees what the first took.
        with desk.store.write() as session:
            session.get_one(Run, desk.run_id, with_for_update={"key_share": True})
            write_requests(engine.requests, held_by(session, desk.run_id, holder))


def _take_all(desk: Desk, holder: str) -> None:
    """Everything that may be asked now, and what failed before, for this file."""
    desk.free_what_the_dead_hold()
    with desk.store.read() as session:
        in_files = select(func.count()).where(
            RunRequest.run_id == desk.run_id,
            RunRequest.request_id == Request.id,
            Request.lease_holder.startswith(FILE),
        )
        desk.progress.num_in_flight = session.scalar(in_files) or 0
    desk.begin_again()
    while items := desk.take(_TAKEN_AT_ONCE):
        with desk.store.write() as session:
            hand_over(session, items, holder)


def ingest(desk: Desk, path: Path, on_bad_line: Callable[[BadLine], None], *, engine: str = ENGINE) -> None:
    """Settle the answers of a completions file, a chunk at a time; the first good answer to a request counts.

    Raises:
        GeneratorError: The file is missing or cannot be read to its end.
    """
    for chunk in _chunks(read_lines(path, desk.secret.out_of_bytes)):
        lines = {line.custom_id: line for line in chunk if isinstance(line, Line)}
        with desk.store.read() as session:
            requests = _requests(session, desk.run_id, list(lines))
        answers = []
        for line in chunk:
            bad = line if isinstance(line, BadLine) else None
            if isinstance(line, Line) and line.custom_id not in requests:
                bad = BadLine(line.where, "unknown_request", f"custom_id {line.custom_id!r} is no request of this run")
            if bad is not None:
                desk.reject(bad.where, bad.reason, bad.detail)
                on_bad_line(bad)
                continue
            assert isinstance(line, Line)
            request, state = requests[line.custom_id]
            answer = answer_of(line.row, request, engine)
            # A failure that is recorded is not recorded again each time the same file is read.
            if state != "done" and (answer.text is not None or state != "failed"):
                answers.append(answer)
                requests[line.custom_id] = (request, "failed" if answer.text is None else "done")
        desk.settle(_best(answers))


def _best(answers: Iterable[Answer]) -> list[Answer]:
    """One answer a request: a duplicate line must not be a second attempt in the same chunk."""
    best: dict[int, Answer] = {}
    for answer in answers:
        known = best.get(answer.request_id)
        if known is None or (known.text is None and answer.text is not None):
            best[answer.request_id] = answer
    return list(best.values())


def _requests(session: Session, run_id: int, custom_ids: list[str]) -> dict[str, tuple[int, str]]:
    """(request, its state) by custom id; ids that this run does not have are left out."""
    rows = session.execute(
        select(RunRequest.custom_id, RunRequest.request_id, Request.state)
        .join(Request, Request.id == RunRequest.request_id)
        .where(RunRequest.run_id == run_id, RunRequest.custom_id.in_(custom_ids))
    )
    return {custom_id: (request, state) for custom_id, request, state in rows}


def _chunks(lines: Iterator[Line | BadLine]) -> Iterator[list[Line | BadLine]]:
    while chunk := list(islice(lines, _CHUNK)):
        yield chunk


def write_requests(path: Path, items: Iterator[Wanted]) -> int:
    """Write the requests that wait for an answer; returns how many. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    num = 0
    with gzip.open(partial, "wb") if path.suffix == ".gz" else partial.open("wb") as file:
        for item in items:
            num += 1
            file.write(request_line(item))
    if num:
        partial.rename(path)
    else:
        partial.unlink()
        path.unlink(missing_ok=True)
    return num


def request_line(item: Wanted) -> bytes:
    """One line of a requests file."""
    line = {"custom_id": item.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": item.body}
    return orjson.dumps(line) + b"\n"


def read_lines(path: Path, clean: Callable[[bytes], bytes] = bytes) -> Iterator[Line | BadLine]:
    """The lines of a completions file that name a request; everything else is a bad line. `clean` sees the bytes first.

    Raises:
        GeneratorError: The file is missing or cannot be read to its end.
    """
    if not path.is_file():
        raise GeneratorError(f"engine.completions = {path}: no such file; have the requests answered first")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield _line(clean(raw), f"{path.name}:{number}")
    except (OSError, EOFError) as error:
        raise GeneratorError(f"{path}: cannot be read to its end: {error}") from error


def _line(raw: bytes, where: str) -> Line | BadLine:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return BadLine(where, "malformed_line", f"not JSON: {error}")
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        return BadLine(where, "malformed_line", "field 'custom_id' is missing or not a string")
    return Line(where, row["custom_id"], row)


def answer_of(row: dict[str, Any], request_id: int, engine: str) -> Answer:
    """The answer in a row of the Batch format; an error object, or a status that is not 200, is an error."""
    response = row.get("response")
    failure = error_message(row.get("error")) or _response_error(response)
    status = response.get("status_code") if isinstance(response, dict) else None
    status = status if isinstance(status, int) else None
    if failure is not None:
        return Answer(request_id, engine, None, error=failure, status=status)
    assert isinstance(response, dict)
    return chat_answer(request_id, engine, response["body"], status=status)


def _response_error(response: Any) -> str | None:
    if not isinstance(response, dict):
        return "field 'response' is missing"
    status, body = response.get("status_code"), response.get("body")
    if status != 200 or not isinstance(body, dict):
        return error_message(body) or f"status {status}"
    return None
