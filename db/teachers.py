"""Teachers, versioned: the same name with other weights, prompt or length is another teacher."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.insert import insert_missing
from db.tables.examples import Teacher


def put_teacher(
    session: Session, *, name: str, version: str, kind: str, max_length: int | None = None, prompt: str = ""
) -> int:
    """Id of the teacher with exactly this version (a digest of weights, or of BM25's parameters), prompt and length."""
    row = {"name": name, "version": version, "kind": kind, "max_length": max_length, "prompt": prompt}
    digest = digest_of(row)
    known = session.scalar(select(Teacher.id).where(Teacher.digest == digest))
    if known is None:
        insert_missing(session, Teacher, [{"digest": digest, **row}])
        known = session.scalars(select(Teacher.id).where(Teacher.digest == digest)).one()
    return known
