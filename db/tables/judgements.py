"""What LLM judges say of the relevance of a passage to a query, each grade with the words of the passage that decide.

A judge is a model under one prompt. The same pair may be judged by several judges, and by one judge in several
requests; who screens and who confirms stands on the judgement, because a confirming one overrides a screening one.
"""

from sqlalchemy import CheckConstraint, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest


class Judge(Base):
    """A model under one prompt; `entry` names the prompt, `prompt_digest` is of its bytes."""

    __tablename__ = "judge"
    __table_args__ = (UniqueConstraint("digest"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    model: Mapped[str] = mapped_column(String(300))
    entry: Mapped[str] = mapped_column(String(200))
    prompt_digest: Mapped[str] = mapped_column(Digest)


class Judgement(Base):
    """Relevance 0 (not related) to 3 (satisfies the query completely). `evidence` stands in the passage, white space
    aside, and is empty only where nothing in it satisfies the query."""

    __tablename__ = "judgement"
    __table_args__ = (
        UniqueConstraint("query_id", "passage_id", "judge_id", "request_id"),
        CheckConstraint("stage in ('screen', 'confirm')", "stage"),
        CheckConstraint("relevance between 0 and 3", "relevance"),
        CheckConstraint("relevance < 2 or evidence <> ''", "relevant_has_evidence"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    query_id: Mapped[int] = mapped_column(ForeignKey("query.id"))
    passage_id: Mapped[int] = mapped_column(ForeignKey("passage.id"), index=True)
    judge_id: Mapped[int] = mapped_column(ForeignKey("judge.id"))
    request_id: Mapped[int] = mapped_column(ForeignKey("request.id"), index=True)
    stage: Mapped[str] = mapped_column(String(10))
    relevance: Mapped[int]
    evidence: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)


IDENTITY = {
    "judge": ("digest",),
    "judgement": ("query_id", "passage_id", "judge_id", "request_id"),
}
