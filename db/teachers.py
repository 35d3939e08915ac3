"""Teachers, versioned: the same name with other weights, prompt or length is another teacher.

Margins of training are kept as scores of teachers too, but they are no likeness: a positive has 0. Lists that a person
or a recipe picks a teacher from leave them out (`scores_likeness`); who asks for one by name gets it.
"""

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from db.digest import digest_of
from db.insert import insert_missing
from db.tables.examples import Teacher

MARGIN = "margin"


def scores_likeness() -> ColumnElement[bool]:
    """The teacher's scores say how near a text is to the query, and are no margins of training."""
    return Teacher.kind != MARGIN


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
