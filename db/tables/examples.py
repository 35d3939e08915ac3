"""Examples and their graded candidates, how each was found, and what the teachers say of it.

An example is a query with one positive: the unit of generation, review, audit and curriculum. Its candidates are the
positive itself and the negatives; a text stands once per example, however many runs and teachers found it.
"""

from sqlalchemy import CheckConstraint, Float, ForeignKey, Index, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest


class Task(Base):
    """A brainstormed or given retrieval task, with its type and instruction."""

    __tablename__ = "task"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    task_type: Mapped[str] = mapped_column(String(30))
    instruction: Mapped[str] = mapped_column(Text)


class Example(Base):
    __tablename__ = "example"
    __table_args__ = (
        UniqueConstraint("digest"),
        UniqueConstraint("query_id", "positive_id"),
        CheckConstraint("origin in ('corpus', 'synthetic')", "origin"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    query_id: Mapped[int] = mapped_column(ForeignKey("query.id"))
    positive_id: Mapped[int] = mapped_column(ForeignKey("passage.id"), index=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    collection_id: Mapped[int | None] = mapped_column(ForeignKey("collection.id"))
    origin: Mapped[str] = mapped_column(String(10))
    language: Mapped[str | None] = mapped_column(String(30))


class Candidate(Base):
    """A passage in an example. Rank 1 is the hardest negative; mined and imported ones may carry no grade."""

    __tablename__ = "candidate"
    __table_args__ = (
        UniqueConstraint("example_id", "passage_id"),
        CheckConstraint("role in ('positive', 'negative')", "role"),
        CheckConstraint("grade in ('hard', 'medium', 'easy')", "grade"),
        CheckConstraint("rank >= 1", "rank_from_1"),
        CheckConstraint("role = 'negative' or (grade is null and rank is null)", "positive_has_no_grade"),
        CheckConstraint("origin in ('corpus', 'synthetic', 'mined', 'edited')", "origin"),
        CheckConstraint("parent_passage_id <> passage_id", "not_its_own_parent"),
        CheckConstraint("origin <> 'edited' or parent_passage_id is not null", "edited_has_a_parent"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    example_id: Mapped[int] = mapped_column(ForeignKey("example.id"))
    passage_id: Mapped[int] = mapped_column(ForeignKey("passage.id"), index=True)
    role: Mapped[str] = mapped_column(String(10))
    grade: Mapped[str | None] = mapped_column(String(10))
    rank: Mapped[int | None]
    origin: Mapped[str] = mapped_column(String(10))
    violated_requirement: Mapped[str | None] = mapped_column(Text)
    parent_passage_id: Mapped[int | None] = mapped_column(ForeignKey("passage.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)


class Teacher(Base):
    """A frozen model or BM25, versioned by its weights, prompt and length."""

    __tablename__ = "teacher"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(30))
    max_length: Mapped[int | None]
    prompt: Mapped[str] = mapped_column(Text, default="")


class Sourcing(Base):
    """How a run found a candidate: by a request, by a teacher at a retrieval rank, or by an import (neither)."""

    __tablename__ = "sourcing"
    __table_args__ = (
        CheckConstraint("request_id is null or teacher_id is null", "one_way_of_finding"),
        Index("uq_sourcing_teacher", "candidate_id", "run_id", "teacher_id", unique=True,
              sqlite_where=text("teacher_id is not null"), postgresql_where=text("teacher_id is not null")),
        Index("uq_sourcing_request", "candidate_id", "run_id", "request_id", unique=True,
              sqlite_where=text("request_id is not null"), postgresql_where=text("request_id is not null")),
        Index("uq_sourcing_import", "candidate_id", "run_id", unique=True,
              sqlite_where=text("teacher_id is null and request_id is null"),
              postgresql_where=text("teacher_id is null and request_id is null")),
    )  # fmt: skip

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    candidate_id: Mapped[int] = mapped_column(ForeignKey("candidate.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("run.id"), index=True)
    request_id: Mapped[int | None] = mapped_column(ForeignKey("request.id"))
    teacher_id: Mapped[int | None] = mapped_column(ForeignKey("teacher.id"))
    retrieval_rank: Mapped[int | None]
    score: Mapped[float | None] = mapped_column(Float(53))
    threshold: Mapped[float | None] = mapped_column(Float(53))


class Score(Base):
    """A teacher's similarity of a query and a passage; `num_tokens` of the passage before truncation."""

    __tablename__ = "score"

    teacher_id: Mapped[int] = mapped_column(ForeignKey("teacher.id"), primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("query.id"), primary_key=True)
    passage_id: Mapped[int] = mapped_column(ForeignKey("passage.id"), primary_key=True)
    value: Mapped[float] = mapped_column(Float(53))
    num_tokens: Mapped[int | None]


IDENTITY = {
    "task": ("digest",),
    "example": ("digest",),
    "candidate": ("example_id", "passage_id"),
    "teacher": ("digest",),
    "sourcing": ("candidate_id", "run_id", "request_id", "teacher_id"),
    "score": ("teacher_id", "query_id", "passage_id"),
}
