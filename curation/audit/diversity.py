"""Diversity per attribute cell: do prompts that ask for different things get different texts?

A cell is one value of one attribute, as the plan drew it (run_request.attributes, by the sourcing of each candidate).
Distinct n-grams depend on how much text there is, so every cell is measured on the same number of texts at most, the
first by digest.

Sources: Li et al. 2016 (distinct-1, distinct-2); Zhu et al. 2018 for measuring a set against itself, here by the share
of a text's word four-grams that another text of the cell has (no BLEU).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from heapq import heappush, heapreplace
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.audit.scope import Scope, pages
from curation.audit.shingles import shingle, words_of
from db.tables.examples import Candidate, Example, Sourcing
from db.tables.ledger import RunRequest
from db.tables.texts import Passage, Query

MAX_TEXTS = 200
_MAX_VALUES = 40
_MAX_CHOICES = 500
_MAX_VALUE_LENGTH = 120
_SELF_NGRAM = 4
_LOOKUP = 400


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of one attribute in one run; figures of its first texts, None where there is one text or query."""

    run: str
    attribute: str
    value: str
    num_texts: int
    num_measured: int
    distinct_1: float
    distinct_2: float
    self_overlap: float | None
    query_similarity: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Drawn:
    """How many texts, and the first of them by digest with their queries (a heap, the last on top)."""

    num: int = 0
    first: list[tuple[int, int, int]] | None = None

    def offer(self, digest: str, passage: int, query: int) -> None:
        self.num += 1
        self.first = self.first or []
        entry = (-int(digest[:16], 16), passage, query)
        if len(self.first) < MAX_TEXTS:
            heappush(self.first, entry)
        elif entry > self.first[0]:
            heapreplace(self.first, entry)


def diversity(session: Session, scope: Scope) -> list[Cell]:
    """Cells of every run that was planned by attributes; values beyond the 40 most frequent are left out."""
    cells: list[Cell] = []
    for run in scope.runs.values():
        for attribute, values in sorted(_drawn(session, run.id).items()):
            most_frequent = sorted(values, key=lambda value: (-values[value].num, value))[:_MAX_VALUES]
            cells += [_measure(session, run.name, (attribute, value), values[value]) for value in most_frequent]
    return cells


def _drawn(session: Session, run: int) -> dict[str, dict[str, _Drawn]]:
    """The first texts of each value of each attribute; an attribute of more than 500 values is text, not a choice."""
    drawn: dict[str, dict[str, _Drawn]] = defaultdict(lambda: defaultdict(_Drawn))
    is_text: set[str] = set()
    for page in pages(session, _written(run)):
        for row in page:
            for attribute, value in row.attributes.items():
                if attribute in is_text or not isinstance(value, str | int | float | bool):
                    continue
                drawn[attribute][str(value)[:_MAX_VALUE_LENGTH]].offer(row.digest, row.passage_id, row.query_id)
                if len(drawn[attribute]) > _MAX_CHOICES:
                    is_text.add(attribute)
                    del drawn[attribute]
    return drawn


def _written(run: int):  # type: ignore[no-untyped-def]
    return (
        select(RunRequest.attributes, Passage.digest, Candidate.passage_id, Example.query_id)
        .select_from(Sourcing)
        .join(RunRequest, (RunRequest.request_id == Sourcing.request_id) & (RunRequest.run_id == Sourcing.run_id))
        .join(Candidate, Candidate.id == Sourcing.candidate_id)
        .join(Example, Example.id == Candidate.example_id)
        .join(Passage, Passage.id == Candidate.passage_id)
        .where(Sourcing.run_id == run)
    )


def _measure(session: Session, run: str, key: tuple[str, str], drawn: _Drawn) -> Cell:
    entries = sorted(drawn.first or [], reverse=True)
    texts = _texts(session, Passage, list(dict.fromkeys(passage for _, passage, _ in entries)))
    queries = _texts(session, Query, list(dict.fromkeys(query for *_, query in entries)))
    words = [words_of(text) for text in texts]
    return Cell(
        run,
        *key,
        drawn.num,
        len(texts),
        distinct_share(words, 1),
        distinct_share(words, 2),
        self_overlap(texts),
        mean_similarity(queries),
    )


def distinct_share(words: Sequence[Sequence[str]], size: int) -> float:
    """Different n-grams of a set of texts, over all its n-grams (distinct-n); 0 where there is none."""
    ngrams = Counter(tuple(of_one[place : place + size]) for of_one in words for place in range(len(of_one) - size + 1))
    return len(ngrams) / ngrams.total() if ngrams else 0.0


def self_overlap(texts: Sequence[str]) -> float | None:
    """Mean share of a text's different word four-grams that stand in another of the texts; None for one text."""
    if len(texts) < 2:
        return None
    shingles = shingle(texts, _SELF_NGRAM)
    _, column, num = np.unique(shingles.hashes, return_inverse=True, return_counts=True)
    is_shared = (num[column] > 1).astype(np.float64)
    return float((np.add.reduceat(is_shared, shingles.starts[:-1]) / shingles.sizes).mean())


def mean_similarity(texts: Sequence[str]) -> float | None:
    """Mean cosine over all pairs, of character n-gram counts; None for fewer than two texts.

    Over unit vectors, the square of their sum's length is the number of texts plus twice the pairs' cosines.
    """
    from curation.audit.leaks import ngram_counts

    if len(texts) < 2:
        return None
    counts = ngram_counts(texts)
    norms = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    total = np.asarray(counts.T @ (1 / np.maximum(norms, 1e-12))).ravel()
    num = len(texts)
    return float((total @ total - np.count_nonzero(norms)) / (num * (num - 1)))


def _texts(session: Session, table: type[Passage] | type[Query], keys: Sequence[int]) -> list[str]:
    found: dict[int, str] = {}
    for start in range(0, len(keys), _LOOKUP):
        rows = session.execute(select(table.id, table.text).where(table.id.in_(keys[start : start + _LOOKUP])))
        found.update({key: text for key, text in rows})
    return [found[key] for key in keys]
