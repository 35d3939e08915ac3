"""Putting judges and their judgements into the store, and finding texts by what names them in every store."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.judging.answers import Graded
from db.digest import digest_of
from db.insert import insert_missing
from db.tables.judgements import Judge, Judgement
from db.tables.texts import Passage, Query

_LOOKUP = 500


@dataclass(frozen=True, slots=True)
class NewJudgement:
    """A grade of one pair, to be put; `request_id` is the request that it answers."""

    query_id: int
    passage_id: int
    request_id: int
    graded: Graded


def put_judge(session: Session, *, model: str, entry: str, prompt_digest: str) -> int:
    """Id of this model under this prompt; another byte in the prompt makes another judge."""
    row = {"model": model, "entry": entry, "prompt_digest": prompt_digest}
    digest = digest_of(row)
    insert_missing(session, Judge, [{"digest": digest, **row}])
    return session.scalars(select(Judge.id).where(Judge.digest == digest)).one()


def put_judgements(session: Session, judge_id: int, stage: str, rows: Sequence[NewJudgement]) -> int:
    """Store judgements; one that is there stays. Returns how many were new."""
    return insert_missing(
        session,
        Judgement,
        [
            {
                "query_id": row.query_id,
                "passage_id": row.passage_id,
                "judge_id": judge_id,
                "request_id": row.request_id,
                "stage": stage,
                "relevance": row.graded.relevance,
                "evidence": row.graded.evidence,
                "reason": row.graded.reason,
            }
            for row in rows
        ],
    )


def query_ids(session: Session, digests: Sequence[str]) -> dict[str, int]:
    """Ids of queries by digest."""
    return _ids(session, Query, digests)


def passage_ids(session: Session, digests: Sequence[str]) -> dict[str, int]:
    """Ids of passages by digest."""
    return _ids(session, Passage, digests)


def _ids(session: Session, table: type[Query] | type[Passage], digests: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(digests), _LOOKUP):
        some = table.digest.in_(digests[start : start + _LOOKUP])
        found.update({digest: key for digest, key in session.execute(select(table.digest, table.id).where(some))})
    return found


def passages_of(session: Session, digests: Sequence[str]) -> dict[str, tuple[int, str]]:
    """(Id, text) of passages by digest."""
    found: dict[str, tuple[int, str]] = {}
    for start in range(0, len(digests), _LOOKUP):
        some = Passage.digest.in_(digests[start : start + _LOOKUP])
        rows = session.execute(select(Passage.digest, Passage.id, Passage.text).where(some))
        found.update({digest: (key, text) for digest, key, text in rows})
    return found
