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
    text_of = {digest_text(text): text for text in texts}
    known = _ids(session, table, list(text_of))
    missing = [{"digest": digest, "text": text} for digest, text in text_of.items() if digest not in known]
    if missing:
        insert_missing(session, table, missing)
        known |= _ids(session, table, [row["digest"] for row in missing])
    return [known[digest_text(text)] for text in texts]


def _ids(session: Session, table: type[Passage] | type[Query], digests: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(digests), _LOOKUP_SIZE):
        chunk = digests[start : start + _LOOKUP_SIZE]
        rows = session.execute(select(table.digest, table.id).where(table.digest.in_(chunk)))
        found.update({digest: key for digest, key in rows})
    return found
