"""Putting texts into the store once, and finding their ids again."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import digest_text
from db.insert import insert_missing
from db.tables.texts import Passage, Query

_LOOKUP_SIZE = 500


def put_passages(session: Session, texts: Sequence[str]) -> list[int]:
    """Ids of the passages with these texts, in order; missing ones are added."""
    return _put(session, Passage, texts)


def put_queries(session: Session, texts: Sequence[str]) -> list[int]:
    """Ids of the queries with these texts, in order; missing ones are added."""
    return _put(session, Query, texts)


def _put(session: Session, table: type[Passage] | type[Query], texts: Sequence[str]) -> list[int]:
    digests = [digest_text(text) for text in texts]
    text_of = dict(zip(digests, texts, strict=True))
    order = list(text_of)
    if session.get_bind().dialect.name == "postgresql":
        order.sort()  # in one order, so that two processes that put the same texts never wait for each other
    insert_missing(session, table, [{"digest": digest, "text": text_of[digest]} for digest in order])
    known = _ids(session, table, list(text_of))
    return [known[digest] for digest in digests]


def _ids(session: Session, table: type[Passage] | type[Query], digests: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(digests), _LOOKUP_SIZE):
        chunk = digests[start : start + _LOOKUP_SIZE]
        rows = session.execute(select(table.digest, table.id).where(table.digest.in_(chunk)))
        found.update({digest: key for digest, key in rows})
    return found
