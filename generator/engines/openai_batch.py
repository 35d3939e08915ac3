"""The `openai_batch` engine: files of requests to a Batch API, answered within a day, at a discount.

A row in the store stands before each upload and names the requests in it; their leases belong to the batch until it is
collected. A process that dies between upload and row leaves a batch that is found again by the metadata that it was
created with, so no file is sent twice, and any later process collects what is ready: before it asks for anything new.
Who uploads or collects holds the row meanwhile, so that no other does the same.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import func, or_, select, update

from db.digest import digest_of
from db.tables.base import utc_now
from db.tables.ledger import Request, VendorBatch
from generator.desk import Desk
from generator.engines.batch_file import BadLine, ingest, request_line
from generator.errors import EngineStopped
from generator.holders import batch_holder, is_dead
from generator.leases import hand_over, held_by, release_leases
from generator.ledger import Answer, Wanted
from generator.recipe import OpenAiBatchEngine

ENGINE = "openai_batch"
# Longer than any upload or download takes with its retries; on its own machine a dead holder is known at once.
_HOLD = timedelta(hours=1)
_METADATA = "gradus_batch"
# A status that we do not know may still be running: only these are the end.
_ENDED = frozenset({"completed", "expired", "cancelled", "failed"})


def run(desk: Desk, engine: OpenAiBatchEngine, key: str | None, on_bad_line: Callable[[BadLine], None]) -> None:
    """Submit what has no answer yet, wait, and settle what comes; earlier batches of the run are collected too.

    Raises:
        EngineStopped: The server cannot be reached or refuses the key, a file or a batch.
    """
    with _translated(desk, engine), openai.OpenAI(base_url=engine.base_url, api_key=key or "none") as client:
        while not desk.stopping.is_set():
            _collect_all(desk, client, on_bad_line)
            _submit_all(desk, engine, client)
            if waiting := _open_batches(desk)[0]:
                desk.progress.waiting_for = f"{waiting} batch(es) at the vendor"
                _wait(desk, engine.poll_s)
            elif not desk.refill() and not _open_batches(desk)[0]:  # handed in by another process since the last look
                return


def _wait(desk: Desk, seconds: float) -> None:
    try:
        desk.stopping.wait(seconds)
    except KeyboardInterrupt:  # the batches go on at the vendor; the next call collects them
        desk.stopping.set()


@contextmanager
def _translated(desk: Desk, engine: OpenAiBatchEngine) -> Iterator[None]:
    try:
        yield
    except openai.APIConnectionError as error:
        raise EngineStopped(f"{engine.base_url}: cannot be reached ({error.__cause__ or error}); run again") from error
    except openai.APIStatusError as error:
        told = desk.secret.out_of(str(error))[:300]
        raise EngineStopped(f"{engine.base_url} answers {error.status_code}: {told}") from None


def _open_batches(desk: Desk) -> tuple[int, int]:
    """(batches, requests) of the run that are not settled, whoever has them.

    Counted at once: looking for one state after the other misses what another process does in between.
    """
    wanted = select(func.count(), func.sum(VendorBatch.num_requests)).where(
        VendorBatch.run_id == desk.run_id, VendorBatch.state.in_(("submitting", "submitted"))
    )
    with desk.store.read() as session:
        num_batches, num_requests = session.execute(wanted).one()
    return int(num_batches), int(num_requests or 0)


def _submit_all(desk: Desk, engine: OpenAiBatchEngine, client: openai.OpenAI) -> None:
    """Finish uploads that a dead process began, then hand in what is new."""
    for batch in _batches(desk, "submitting"):
        with _held(desk, batch) as is_mine:
            if is_mine:
                _update(desk, batch, state="submitted", external_id=_found_or_uploaded(desk, client, batch))
    # A pilot and a budget count what waits at the vendor as not yet settled.
    desk.progress.num_in_flight = _open_batches(desk)[1]
    while items := desk.take(engine.max_requests):
        kept = _within(items, engine.max_bytes)
        desk.give_back(items[len(kept) :])
        if len(kept) < len(items):
            desk.look_back(kept[-1].plan_index)
        batch = _register(desk, kept)
        with _held(desk, batch):
            _update(desk, batch, state="submitted", external_id=_upload(desk, client, batch))


@contextmanager
def _held(desk: Desk, batch: VendorBatch) -> Iterator[bool]:
    """Whether this process alone has the batch, in the state that it was seen in, until the end of the block."""
    free = or_(VendorBatch.holder.is_(None), VendorBatch.holder == desk.holder, VendorBatch.held_until < utc_now())
    if batch.holder is not None and is_dead(batch.holder):
        free = or_(free, VendorBatch.holder == batch.holder)
    as_seen = (VendorBatch.id == batch.id) & (VendorBatch.state == batch.state)
    with desk.store.write() as session:
        claim = update(VendorBatch).where(as_seen, free)
        claimed = session.execute(claim.values(holder=desk.holder, held_until=utc_now() + _HOLD))
    is_mine = bool(claimed.rowcount)  # type: ignore[attr-defined]
    try:
        yield is_mine
    finally:
        if is_mine:
            _update(desk, batch, holder=None, held_until=None)


def _within(items: list[Wanted], max_bytes: int) -> list[Wanted]:
    """As many of the first requests as fit into a file; at least one."""
    total = 0
    for place, item in enumerate(items):
        total += len(request_line(item))
        if total > max_bytes and place:
            return items[:place]
    return items


def _register(desk: Desk, items: list[Wanted]) -> VendorBatch:
    """The batch's row, held by this process, and its requests leased to it, in one transaction."""
    digest = digest_of([desk.run_id, utc_now().isoformat(), *(item.request_id for item in items)])
    until = utc_now() + _HOLD
    with desk.store.write() as session:
        batch = VendorBatch(
            digest=digest, run_id=desk.run_id, num_requests=len(items), holder=desk.holder, held_until=until
        )
        session.add(batch)
        hand_over(session, items, batch_holder(digest))
    return batch


def _batches(desk: Desk, state: str) -> list[VendorBatch]:
    with desk.store.read() as session:
        rows = select(VendorBatch).where(VendorBatch.run_id == desk.run_id, VendorBatch.state == state)
        return list(session.scalars(rows.order_by(VendorBatch.id)))


def _found_or_uploaded(desk: Desk, client: openai.OpenAI, batch: VendorBatch) -> str:
    return _find(client, batch.digest) or _upload(desk, client, batch)


def _find(client: openai.OpenAI, digest: str) -> str | None:
    """The vendor's id of a batch that was created by a process that died before it could store it."""
    for found in client.batches.list(limit=100):
        if (found.metadata or {}).get(_METADATA) == digest:
            return found.id
    return None


def _upload(desk: Desk, client: openai.OpenAI, batch: VendorBatch) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"
        with desk.store.read() as session, path.open("wb") as file:
            for item in held_by(session, desk.run_id, batch_holder(batch.digest)):
                file.write(request_line(item))
        with path.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
    # Without retries: one whose answer was lost may have created the batch, and a second would be paid for too.
    created = client.with_options(max_retries=0).batches.create(
        input_file_id=uploaded.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={_METADATA: batch.digest},
    )
    return created.id


def _collect_all(desk: Desk, client: openai.OpenAI, on_bad_line: Callable[[BadLine], None]) -> None:
    """Settle every batch that has ended and that no other process collects."""
    for batch in _batches(desk, "submitted"):
        found = client.batches.retrieve(str(batch.external_id))
        if found.status not in _ENDED:
            continue
        with _held(desk, batch) as is_mine:
            if not is_mine:
                continue
            for file_id in (found.output_file_id, found.error_file_id):
                if file_id:
                    _ingest(desk, client, file_id, on_bad_line)
            _end(desk, batch, found)


def _ingest(desk: Desk, client: openai.OpenAI, file_id: str, on_bad_line: Callable[[BadLine], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{Path(file_id).name}.jsonl"
        client.files.content(file_id).write_to_file(path)
        ingest(desk, path, on_bad_line, engine=ENGINE)


def _end(desk: Desk, batch: VendorBatch, found: Any) -> None:
    """Requests without an answer have failed: the next call asks them again, this one does not, however often a vendor
    loses lines or a person cancels. A batch that the vendor refused stops the run."""
    held = select(Request.id).where(Request.lease_holder == batch_holder(batch.digest), Request.state == "leased")
    with desk.store.read() as session:
        left = list(session.scalars(held))
    # They stay the batch's until their failure is recorded: free in between, another process would ask them again.
    if found.status != "failed":
        why = f"batch {batch.external_id} is {found.status}, without an answer to this request"
        desk.settle([Answer(key, ENGINE, None, error=why) for key in left])
        _update(desk, batch, state="collected")
        return
    with desk.store.write() as session:
        for start in range(0, len(left), 500):
            release_leases(session, desk.run_id, left[start : start + 500])
    told = "; ".join(str(error.message) for error in (found.errors.data if found.errors else None) or [])
    told = desk.secret.out_of(told)
    _update(desk, batch, state="failed", error=told)
    raise EngineStopped(
        f"the vendor refused batch {batch.external_id}: {told or 'no reason given'}; run again to resend"
    )


def _update(desk: Desk, batch: VendorBatch, **values: Any) -> None:
    with desk.store.write() as session:
        session.execute(update(VendorBatch).where(VendorBatch.id == batch.id).values(**values))
