"""Texts and the collections they came from.

Passages and queries are immutable and unique by digest: a text is stored once however many roles it plays. A
collection keeps what was imported, as it was: documents and queries under their external ids, and judgments.
"""

from sqlalchemy import CheckConstraint, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, BigId, Digest


class Passage(Base):
    __tablename__ = "passage"
    __table_args__ = (UniqueConstraint("digest"), CheckConstraint("length(text) > 0", "text_not_empty"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    text: Mapped[str] = mapped_column(Text)


class Query(Base):
    __tablename__ = "query"
    __table_args__ = (UniqueConstraint("digest"), CheckConstraint("length(text) > 0", "text_not_empty"))

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    digest: Mapped[str] = mapped_column(Digest)
    text: Mapped[str] = mapped_column(Text)


class Collection(Base):
    __tablename__ = "collection"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(20))
    licence: Mapped[str | None] = mapped_column(String(200))
    attribution: Mapped[str | None] = mapped_column(Text)


class Document(Base):
    __tablename__ = "document"
    __table_args__ = (UniqueConstraint("collection_id", "external_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id"))
    external_id: Mapped[str] = mapped_column(String(500))
    passage_id: Mapped[int] = mapped_column(ForeignKey("passage.id"), index=True)
    title: Mapped[str] = mapped_column(Text, default="")
    licence: Mapped[str | None] = mapped_column(String(200))


class CollectionQuery(Base):
    """A query under the id that its collection gave it."""

    __tablename__ = "collection_query"
    __table_args__ = (UniqueConstraint("collection_id", "external_id"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    collection_id: Mapped[int] = mapped_column(ForeignKey("collection.id"))
    external_id: Mapped[str] = mapped_column(String(500))
    query_id: Mapped[int] = mapped_column(ForeignKey("query.id"), index=True)


class Qrel(Base):
    """A judgment of the collection: 0 means judged and not relevant."""

    __tablename__ = "qrel"
    __table_args__ = (
        UniqueConstraint("collection_query_id", "document_id", "split"),
        CheckConstraint("relevance >= 0", "relevance_not_negative"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    collection_query_id: Mapped[int] = mapped_column(ForeignKey("collection_query.id"))
    document_id: Mapped[int] = mapped_column(ForeignKey("document.id"), index=True)
    split: Mapped[str] = mapped_column(String(50))
    relevance: Mapped[int]


IDENTITY = {
    "passage": ("digest",),
    "query": ("digest",),
    "collection": ("name",),
    "document": ("collection_id", "external_id"),
    "collection_query": ("collection_id", "external_id"),
    "qrel": ("collection_query_id", "document_id", "split"),
}
