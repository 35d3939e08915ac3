"""Asking one request of a generation run once more: the same prompt under the next sample index, as another draw.

Nothing is sent here. The request goes into the ledger as a repair would, behind the plan's own rounds, and is asked by
the next `gradus generate` with the run's recipe; what came back before stays as it is.
"""

import zlib
from dataclasses import dataclass

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import AppError
from curation.reviewing.people import require
from db.digest import counter_below
from db.tables.ledger import Request, RequestBody, Run, RunRequest
from db.tables.review import Reviewer
from generator.ledger import enqueue
from generator.plan import ROUND, Planned


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """The request that now waits in the ledger."""

    request_id: int
    custom_id: str
    sample_index: int


def ask_again(session: Session, run_id: int, request_id: int, by: Reviewer) -> AskedAgain:
    """Put another draw of an answered request into the ledger, for the same place of the same run.

    Raises:
        AppError: The run is none of generation or does not want this request, or the request has no answer yet, or a
            draw of it waits already.
        CurationError: `by` is no admin: what is asked costs money.
    """
    require(session, by, "admin")
    run = session.get(Run, run_id)
    found = session.execute(
        select(RunRequest, Request, RequestBody.body)
        .join(Request, Request.id == RunRequest.request_id)
        .join(RequestBody, RequestBody.request_id == Request.id)
        .where(RunRequest.run_id == run_id, RunRequest.request_id == request_id)
    ).one_or_none()
    if run is None or found is None:
        raise AppError(f"run {run_id} wants no request {request_id}")
    link, request = found.RunRequest, found.Request
    if run.kind != "generate":
        raise AppError(f"run {run.name!r} is of kind {run.kind!r}: only requests of generation are asked again")
    if link.outcome is None:
        raise AppError(f"{link.custom_id} has no answer that was read: the next 'gradus generate' asks it anyway")
    planned = _next_draw(session, run, link, request, found.body)
    enqueue(session, run_id, [planned], request.model)
    run.state, run.finished_at = "running", None
    added = session.execute(
        select(RunRequest.request_id).where(RunRequest.run_id == run_id, RunRequest.plan_index == planned.plan_index)
    ).one_or_none()
    if added is None:
        raise AppError(f"{link.custom_id} could not be asked again: the run has asked this very draw already")
    return AskedAgain(added.request_id, planned.custom_id, planned.sample_index)


def _next_draw(session: Session, run: Run, link: RunRequest, request: Request, body: bytes) -> Planned:
    """Behind every round of this place that there is, so that it takes no repair's index."""
    place = link.plan_index % ROUND
    # A place has few rounds, and each is one look into the index on (run, plan index).
    turn = link.plan_index // ROUND + 1
    while (there := _at(session, run.id, turn * ROUND + place)) is not None:
        if there.outcome is None:
            raise AppError(f"{there.custom_id} waits to be asked already")
        turn += 1
    model_digests = select(func.max(Request.sample_index)).join(RunRequest, RunRequest.request_id == Request.id)
    rounds = [number * ROUND + place for number in range(turn)]
    newest = session.scalar(model_digests.where(RunRequest.run_id == run.id, RunRequest.plan_index.in_(rounds)))
    name = f"{link.custom_id.partition('~')[0]}~{turn}"
    wire = orjson.loads(zlib.decompress(body))
    if "seed" in wire:
        # The same bytes with the same seed would bring the same answer.
        wire = {**wire, "seed": counter_below(2**31, run.seed, "sample", name)}
    index = turn * ROUND + place
    return Planned(
        index, name, link.kind, link.attributes, link.source, wire, max(newest or 0, request.sample_index) + 1
    )


def _at(session: Session, run_id: int, plan_index: int) -> RunRequest | None:
    at = select(RunRequest).where(RunRequest.run_id == run_id, RunRequest.plan_index == plan_index)
    return session.scalars(at).one_or_none()
