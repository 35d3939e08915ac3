"""Runs and the ledger of requests: what was asked of a model, what came back, what it cost.

A request's identity is the SHA-256 of (model identity, canonical wire body, sample index): nothing committed is ever
sent again, whichever run asks. Which run wants it, at which plan index and with which attributes, is a link row.
Completions are attempts and are never overwritten. Failures are rows with a reason.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest, Json, UtcTime, utc_now


class Run(Base):
    """One execution of a recipe; the same kind and recipe is the same run, resumed.

    `spent` is what its own requests cost; `reserved` is the worst case of those in flight, so that a budget holds
    across processes. A reservation whose process died counts as spent: the answer may have been paid for.
    """

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("kind", "recipe_digest"),
        CheckConstraint("state in ('running', 'finished', 'failed')", "state"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    kind: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(String(200))
    recipe: Mapped[dict[str, Any]] = mapped_column(Json)
    recipe_digest: Mapped[str] = mapped_column(Digest)
    code_version: Mapped[str] = mapped_column(String(50))
    seed: Mapped[int] = mapped_column(BigId)
    state: Mapped[str] = mapped_column(String(10), default="running")
    started_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)
    finished_at: Mapped[datetime | None] = mapped_column(UtcTime)
    totals: Mapped[dict[str, Any] | None] = mapped_column(Json)
    spent_usd: Mapped[float] = mapped_column(Float(53), default=0.0, server_default="0")
    spent_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    reserved_usd: Mapped[float] = mapped_column(Float(53), default=0.0, server_default="0")
    reserved_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class Rejection(Base):
    """A row, completion or candidate that was refused, and why. `subject` names it, `position` is its part."""

    __tablename__ = "rejection"
    __table_args__ = (UniqueConstraint("run_id", "subject", "position", "reason"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    subject: Mapped[str] = mapped_column(String(600))
    position: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str] = mapped_column(String(100))
    detail: Mapped[str] = mapped_column(Text, default="")


class Request(Base):
    """What was asked. While it is leased, `lease_holder` names the process or vendor batch that will bring the answer,
    and the reservation is its worst case of cost, booked on the run `reserved_by`."""

    __tablename__ = "request"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("state in ('pending', 'leased', 'done', 'failed')", "state"),
        CheckConstraint("(state = 'leased') = (leased_until is not null)", "lease_has_a_clock"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    model: Mapped[str] = mapped_column(String(300))
    sample_index: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(10), default="pending", index=True)
    leased_until: Mapped[datetime | None] = mapped_column(UtcTime)
    lease_holder: Mapped[str | None] = mapped_column(String(200), index=True)
    reserved_usd: Mapped[float | None] = mapped_column(Float(53))
    reserved_tokens: Mapped[int | None] = mapped_column(BigInteger)
    reserved_by: Mapped[int | None] = mapped_column(ForeignKey("run.id"))
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class RequestBody(Base):
    """The canonical wire body, zlib-compressed; apart, so that scans of the ledger stay small."""

    __tablename__ = "request_body"

    request_id: Mapped[int] = mapped_column(ForeignKey("request.id"), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class RunRequest(Base):
    """That a run wants a request, where in its plan, with which attributes, and what became of it.

    `notes` holds what was mended or measured on the way: repaired JSON, similarities, what is suspect.
    """

    __tablename__ = "run_request"
    __table_args__ = (
        UniqueConstraint("run_id", "plan_index"),
        UniqueConstraint("run_id", "request_id"),
        Index("uq_run_request_run_id_custom_id", "run_id", "custom_id", unique=True),
        CheckConstraint("outcome in ('accepted', 'partial', 'rejected')", "outcome"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"))
    request_id: Mapped[int] = mapped_column(ForeignKey("request.id"), index=True)
    plan_index: Mapped[int] = mapped_column(BigId)
    custom_id: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(50))
    attributes: Mapped[dict[str, Any]] = mapped_column(Json)
    source: Mapped[dict[str, Any]] = mapped_column(Json)
    example_id: Mapped[int | None] = mapped_column(ForeignKey("example.id"))
    outcome: Mapped[str | None] = mapped_column(String(10))
    num_accepted: Mapped[int] = mapped_column(default=0)
    notes: Mapped[dict[str, Any] | None] = mapped_column(Json)


class Completion(Base):
    """One attempt at a request: an answer, or an error with its reason. Token counts as the engine reported them."""

    __tablename__ = "completion"
    __table_args__ = (UniqueConstraint("request_id", "attempt"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    request_id: Mapped[int] = mapped_column(ForeignKey("request.id"))
    attempt: Mapped[int]
    engine: Mapped[str] = mapped_column(String(50))
    model_reported: Mapped[str | None] = mapped_column(String(300))
    status: Mapped[int | None]
    finish_reason: Mapped[str | None] = mapped_column(String(50))
    error: Mapped[str | None] = mapped_column(Text)
    input_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    cache_write_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    reasoning_tokens: Mapped[int | None]
    cost_usd: Mapped[float | None] = mapped_column(Float(53))
    latency_s: Mapped[float | None] = mapped_column(Float(53))
    received_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


class CompletionBody(Base):
    """The raw text of a completion, zlib-compressed."""

    __tablename__ = "completion_body"

    completion_id: Mapped[int] = mapped_column(ForeignKey("completion.id"), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class VendorBatch(Base):
    """A file of requests handed to a Batch API. The row stands before the upload, so that none is sent twice.

    `holder` is the process that uploads or collects it, until `held_until`; no other touches it meanwhile.
    """

    __tablename__ = "vendor_batch"
    __table_args__ = (
        UniqueConstraint("digest"),
        CheckConstraint("state in ('submitting', 'submitted', 'collected', 'failed')", "state"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    external_id: Mapped[str | None] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(10), default="submitting")
    num_requests: Mapped[int]
    error: Mapped[str | None] = mapped_column(Text)
    holder: Mapped[str | None] = mapped_column(String(200))
    held_until: Mapped[datetime | None] = mapped_column(UtcTime)
    created_at: Mapped[datetime] = mapped_column(UtcTime, default=utc_now)


IDENTITY = {
    "vendor_batch": ("digest",),
    "run": ("kind", "recipe_digest"),
    "rejection": ("run_id", "subject", "position", "reason"),
    "request": ("digest",),
    "request_body": ("request_id",),
    "run_request": ("run_id", "plan_index"),
    "completion": ("request_id", "attempt"),
    "completion_body": ("completion_id",),
}
