"""Scores: a teacher's similarity of every candidate to its query, stored once.

Pages by candidate id, so memory does not grow with the store, and asks only for what is missing.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from curation.embeddings import EmbeddingCache
from db.insert import insert_missing
from db.store import Store
from db.tables.examples import Candidate, Example, Score
from db.tables.texts import Passage, Query
from db.teachers import put_teacher

_PAGE = 4_096
Progress = Callable[[int, int | None], None]


@dataclass(slots=True)
class ScoreReport:
    """How many candidates there are, and how many (query, passage) pairs were scored now."""

    teacher: str
    num_candidates: int = 0
    num_new: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(store: Store, cache: EmbeddingCache, *, progress: Progress = lambda done, total: None) -> ScoreReport:
    """Score every candidate, positives too, that the cache's encoder has not scored yet."""
    encoder = cache.encoder
    report = ScoreReport(encoder.name)
    with store.write() as session:
        teacher = put_teacher(
            session, name=encoder.name, version=encoder.version, kind="bi-encoder", max_length=encoder.max_length
        )
        report.num_candidates = session.scalar(select(func.count()).select_from(Candidate)) or 0
    last = 0
    done = 0
    while True:
        with store.read() as session:
            end, num, page = _unscored_page(session, teacher, last)
        if end is None:
            progress(report.num_candidates, report.num_candidates)
            return report
        last, done = end, done + num
        rows = _score_page(page, cache, teacher)
        if rows:
            with store.write() as session:
                report.num_new += insert_missing(session, Score, rows)
        progress(done, report.num_candidates)


def _unscored_page(session: Session, teacher: int, after: int) -> tuple[int | None, int, list[Row[int, str, int, str]]]:
    """The next page of candidates: its last id (None at the end), its size, and the pairs that lack a score."""
    ids = session.scalars(select(Candidate.id).where(Candidate.id > after).order_by(Candidate.id).limit(_PAGE)).all()
    if not ids:
        return None, 0, []
    is_scored = (
        (Score.teacher_id == teacher)
        & (Score.query_id == Example.query_id)
        & (Score.passage_id == Candidate.passage_id)
    )
    pairs = session.execute(
        select(Query.id, Query.text, Passage.id, Passage.text)
        .select_from(Candidate)
        .join(Example, Candidate.example_id == Example.id)
        .join(Query, Example.query_id == Query.id)
        .join(Passage, Candidate.passage_id == Passage.id)
        .outerjoin(Score, is_scored)
        .where(Candidate.id > after, Candidate.id <= ids[-1], Score.value.is_(None))
        .order_by(Candidate.id)
    ).all()
    return ids[-1], len(ids), list(pairs)


def _score_page(pairs: list[Row[int, str, int, str]], cache: EmbeddingCache, teacher: int) -> list[dict[str, Any]]:
    if not pairs:
        return []
    queries, _ = cache.embed([query for _, query, _, _ in pairs])
    passages, num_tokens = cache.embed([passage for _, _, _, passage in pairs])
    values = np.einsum("ne,ne->n", queries, passages)
    # One row a pair: two examples of a query may share a passage.
    return list(
        {
            (query, passage): {
                "teacher_id": teacher,
                "query_id": query,
                "passage_id": passage,
                "value": round(float(value), 6),
                "num_tokens": int(tokens),
            }
            for (query, _, passage, _), value, tokens in zip(pairs, values, num_tokens, strict=True)
        }.values()
    )
