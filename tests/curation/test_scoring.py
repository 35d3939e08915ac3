"""Scores by value, only where they are missing, page after page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import delete, func, select

from curation.embeddings import EmbeddingCache
from curation.scoring import score
from db.examples import NewCandidate, put_candidates, put_examples
from db.runs import start_run
from db.store import Store
from db.tables.examples import Candidate, Score, Teacher
from db.tables.texts import Passage, Query
from db.texts import put_passages, put_queries


class LetterEncoder:
    """A text's direction is how often it has each of three letters, signed; tokens are its letters."""

    dimension = 3
    max_length = 4

    def __init__(self, name: str = "letters") -> None:
        self.name = name
        self.version = name * 8
        self.num_encoded = 0

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        self.num_encoded += len(texts)
        counts = np.array([[text.count(letter) - 1 for letter in "abc"] for text in texts], np.float32)
        norms = np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)
        return counts / norms, np.array([len(text) for text in texts], np.int64)


def _letter_cosine(one: str, other: str) -> float:
    x, y = (np.array([text.count(letter) - 1.0 for letter in "abc"]) for text in (one, other))
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12))


def _put(store: Store, examples: dict[tuple[str, str], Sequence[str]]) -> None:
    with store.write() as session:
        run = start_run(session, "import", "t", {}, 0)
        for (query, positive), negatives in examples.items():
            (query_id,), (positive_id, *others) = (
                put_queries(session, [query]),
                put_passages(session, [positive, *negatives]),
            )
            (example,) = put_examples(session, [(query_id, positive_id)], origin="corpus")
            put_candidates(
                session,
                [
                    NewCandidate(example, positive_id, "positive", "corpus", run.id),
                    *(NewCandidate(example, other, "negative", "mined", run.id) for other in others),
                ],
            )


def _scores(store: Store, teacher: str = "letters") -> dict[tuple[str, str], tuple[float, int | None]]:
    with store.read() as session:
        rows = session.execute(
            select(Query.text, Passage.text, Score.value, Score.num_tokens)
            .select_from(Score)
            .join(Query, Score.query_id == Query.id)
            .join(Passage, Score.passage_id == Passage.id)
            .join(Teacher, Score.teacher_id == Teacher.id)
            .where(Teacher.name == teacher)
        )
        return {(query, passage): (value, num_tokens) for query, passage, value, num_tokens in rows}


EXAMPLES: dict[tuple[str, str], Sequence[str]] = {
    ("aab", "aaab"): ["bbb", "ccc", "c"],
    ("aab", "ab"): ["bbb"],
    ("cca", "caca"): [],
    ("b", "bbb"): ["aaab", "aacc"],
}


def test_every_candidate_is_scored_by_value_positives_too(store: Store, tmp_path: Path) -> None:
    _put(store, EXAMPLES)
    report = score(store, EmbeddingCache(tmp_path / "cache", LetterEncoder()))
    wanted = {(query, text) for (query, positive), others in EXAMPLES.items() for text in (positive, *others)}
    scores = _scores(store)
    assert scores.keys() == wanted
    for (query, passage), (value, num_tokens) in scores.items():
        assert value == pytest.approx(_letter_cosine(query, passage), abs=1e-3)
        assert num_tokens == len(passage)
    # The query "aab" has "bbb" in two examples: two candidates, one score.
    assert (report.num_candidates, report.num_new) == (10, 9)


def test_second_scoring_computes_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    _put(store, EXAMPLES)
    score(store, EmbeddingCache(tmp_path / "cache", LetterEncoder()))
    before = _scores(store)
    encoder = LetterEncoder()
    report = score(store, EmbeddingCache(tmp_path / "empty cache", encoder))
    assert (report.num_new, encoder.num_encoded, _scores(store)) == (0, 0, before)


def test_only_missing_scores_are_computed(store: Store, tmp_path: Path) -> None:
    _put(store, EXAMPLES)
    cache = EmbeddingCache(tmp_path / "cache", LetterEncoder())
    score(store, cache)
    before = _scores(store)
    with store.write() as session:
        lost = session.scalars(select(Passage.id).where(Passage.text == "aaab")).one()
        session.execute(delete(Score).where(Score.passage_id == lost))
    assert score(store, cache).num_new == 2
    assert _scores(store) == before


def test_another_teacher_scores_beside_the_first(store: Store, tmp_path: Path) -> None:
    _put(store, EXAMPLES)
    for name in ("letters", "second"):
        assert score(store, EmbeddingCache(tmp_path / "cache", LetterEncoder(name))).num_new == 9
    assert _scores(store, "second") == _scores(store)


def test_scoring_goes_over_pages_and_reports_how_far(store: Store, tmp_path: Path) -> None:
    _put(store, {("abc" * 3, "ab"): [f"a{number}" for number in range(4_200)]})
    seen: list[tuple[int, int | None]] = []
    cache = EmbeddingCache(tmp_path / "cache", LetterEncoder())
    report = score(store, cache, progress=lambda *at: seen.append(at))
    assert (report.num_candidates, report.num_new) == (4_201, 4_201)
    assert seen == [(4_096, 4_201), (4_201, 4_201), (4_201, 4_201)]
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Score)) == 4_201
        assert session.scalar(select(func.count()).select_from(Candidate)) == 4_201


def test_empty_store_has_nothing_to_score(store: Store, tmp_path: Path) -> None:
    report = score(store, EmbeddingCache(tmp_path / "cache", LetterEncoder()))
    assert (report.num_candidates, report.num_new) == (0, 0)
