"""How far judges agree with people: Cohen's kappa over the grades 0 to 3 and over relevant or not, with intervals.

People's decisions come from a collection's graded judgments, or from a file. The intervals are bootstrapped over
queries, because grades of one query's passages are not independent. Published judges reach 0.32 to 0.39 on such data
(RLHN, arXiv 2505.16967): a low figure is a reason to ask people, not to tune the threshold.

Legend: P people's grade, J judge's grade, Q queries, R resamples.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.orm import Session

from curation.errors import CurationError
from curation.judging.judgements import passage_ids, query_ids
from curation.judging.verdicts import last_words
from db.digest import digest_text
from db.tables.texts import Collection, CollectionQuery, Document, Qrel

_NUM_GRADES = 4
_RESAMPLES = 1_000
_PAGE = 1_000
Counts = NDArray[np.int64]
Weights = Literal["quadratic"] | None


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's grade of a query and a passage, by store id."""

    query_id: int
    passage_id: int
    relevance: int


@dataclass(frozen=True, slots=True)
class Coefficient:
    """An agreement, 1 for always and 0 for chance, with its 95 % interval; None where it is not defined."""

    value: float | None
    interval_95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge beside people. `confusion` counts pairs by [people's grade][judge's grade], where people used 0 to 3.

    `weighted` is quadratic: a 3 for a 0 counts nine times a 1 for a 0. It is None where people only said yes or no.
    """

    num_decisions: int
    num_unknown: int
    num_compared: int
    num_queries: int
    threshold: int
    people_threshold: int
    weighted: Coefficient | None
    binary: Coefficient
    share_same: float | None
    confusion: list[list[int]] | None
    confusion_binary: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(
    session: Session,
    decisions: Iterator[Decision],
    *,
    num_unknown: int = 0,
    judge: str | None = None,
    threshold: int = 2,
    people_threshold: int | None = None,
    seed: int = 0,
) -> Agreement:
    """Compare the last word of judges with people's decisions, a page at a time.

    Args:
        num_unknown: Decisions on texts that are not in the store.
        judge: Model whose judgements alone count; None for the last word of any.
        threshold: Judge's grade from which a passage is relevant.
        people_threshold: The same of people; by default `threshold`, or 1 where people only said 0 or 1.

    Raises:
        CurationError: No decision is on a pair that was judged.
    """
    num_decisions = num_unknown
    pairs: list[tuple[int, int, int]] = []
    while page := list(islice(decisions, _PAGE)):
        num_decisions += len(page)
        words = last_words(session, [(one.query_id, one.passage_id) for one in page], judge)
        for one in page:
            word = words.get((one.query_id, one.passage_id))
            if word is not None:
                pairs.append((one.query_id, one.relevance, word.relevance))
    if not pairs:
        by = "" if judge is None else f" by {judge!r}"
        raise CurationError(
            f"none of the {num_decisions:,} decisions is on a pair that was judged{by}: judge them first, with "
            "[scope] source = 'qrels' for a collection's own"
        )
    return _compare(pairs, num_decisions, num_unknown, threshold, people_threshold, seed)


def _compare(
    pairs: Sequence[tuple[int, int, int]],
    num_decisions: int,
    num_unknown: int,
    threshold: int,
    people_threshold: int | None,
    seed: int,
) -> Agreement:
    queries, people, judged = (np.array(column) for column in zip(*pairs, strict=True))
    is_graded = bool(people.max() > 1)
    people_from = people_threshold or (threshold if is_graded else 1)
    _, rows = np.unique(queries, return_inverse=True)
    binary = confusions(rows, people >= people_from, judged >= threshold, 2)
    graded = confusions(rows, people, judged, _NUM_GRADES) if is_graded and people.max() < _NUM_GRADES else None
    return Agreement(
        num_decisions=num_decisions,
        num_unknown=num_unknown,
        num_compared=len(pairs),
        num_queries=len(binary),
        threshold=threshold,
        people_threshold=people_from,
        weighted=None if graded is None else kappa_over_queries(graded, weights="quadratic", seed=seed),
        binary=kappa_over_queries(binary, weights=None, seed=seed),
        share_same=None if graded is None else float((people == judged).mean()),
        confusion=None if graded is None else graded.sum(axis=0).tolist(),
        confusion_binary=binary.sum(axis=0).tolist(),
    )


def confusions(rows: NDArray[Any], people: NDArray[Any], judged: NDArray[Any], size: int) -> Counts:
    """Counts by row (a query, or whatever was drawn) and both grades, [Q, P, J]."""
    counts_QPJ = np.zeros((int(rows.max()) + 1, size, size), np.int64)
    np.add.at(counts_QPJ, (rows, people.astype(int), judged.astype(int)), 1)
    return counts_QPJ


def kappa_over_queries(
    counts_QPJ: Counts, *, weights: Weights, seed: int = 0, num_resamples: int = _RESAMPLES
) -> Coefficient:
    """Kappa of all pairs, and its percentile interval over resampled queries; those where it is not defined are left
    out, and of a single query there is no interval."""
    value = kappa(counts_QPJ.sum(axis=0), weights=weights)
    num_queries = len(counts_QPJ)
    if value is None or num_queries < 2:
        return Coefficient(value, None)
    draws = np.random.default_rng(seed)
    flat = counts_QPJ.reshape(num_queries, -1)
    values = []
    for _ in range(num_resamples):
        times_Q = np.bincount(draws.integers(num_queries, size=num_queries), minlength=num_queries)
        resampled = kappa((times_Q @ flat).reshape(counts_QPJ.shape[1:]), weights=weights)
        if resampled is not None:
            values.append(resampled)
    return Coefficient(value, percentile_interval(values))


def percentile_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The middle 95 % of resampled values; None of none."""
    if not len(values):
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def kappa(counts_PJ: Counts, *, weights: Weights) -> float | None:
    """Cohen's kappa of a table of counts; None where both always gave one and the same grade, or there is nothing."""
    from sklearn.metrics import cohen_kappa_score

    used = counts_PJ.any(axis=1) | counts_PJ.any(axis=0)
    if used.sum() < 2:
        return None
    people, judged = np.indices(counts_PJ.shape)
    counts = counts_PJ.ravel()
    found = cohen_kappa_score(
        people.ravel(), judged.ravel(), labels=range(len(counts_PJ)), weights=weights, sample_weight=counts
    )
    return float(found)


def qrels_decisions(session: Session, collection: str, split: str) -> Iterator[Decision]:
    """What a collection's people said, in the order of ids.

    Raises:
        CurationError: The store has no such judgments.
    """
    statement = (
        select(Qrel.id, CollectionQuery.query_id, Document.passage_id, Qrel.relevance)
        .select_from(Qrel)
        .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        .join(Document, Qrel.document_id == Document.id)
        .join(Collection, CollectionQuery.collection_id == Collection.id)
        .where(Collection.name == collection, Qrel.split == split)
        .order_by(Qrel.id)
        .limit(_PAGE)
    )
    last = 0
    while page := session.execute(statement.where(Qrel.id > last)).all():
        last = page[-1][0]
        yield from (Decision(query, passage, relevance) for _, query, passage, relevance in page)
    if last == 0:
        raise CurationError(
            f"--agreement {collection}:{split}: the store has no such judgments, and there is no such file; "
            "give COLLECTION:SPLIT or a JSONL or CSV file"
        )


def file_decisions(session: Session, path: Path) -> tuple[list[Decision], int]:
    """(Decisions, how many are on texts that the store does not have) of a JSONL or CSV file.

    Each row has `query` and `passage`, a text or its SHA-256 (64 hex digits), and `relevance`, a whole number from 0.

    Raises:
        CurationError: The file cannot be read, or a row lacks a field; the line is named.
    """
    rows = list(_rows_of(path))
    queries = query_ids(session, sorted({query for query, _, _ in rows}))
    passages = passage_ids(session, sorted({passage for _, passage, _ in rows}))
    known = [
        Decision(queries[query], passages[passage], relevance)
        for query, passage, relevance in rows
        if query in queries and passage in passages
    ]
    return known, len(rows) - len(known)


def _rows_of(path: Path) -> Iterator[tuple[str, str, int]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    yield _row(row, f"{path}:{reader.line_num}")
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _row(orjson.loads(line), f"{path}:{number}")
    except orjson.JSONDecodeError as error:
        raise CurationError(f"{path}: a line is not JSON ({error}); give JSONL, or a file that ends in .csv") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CurationError(f"{path}: cannot be read: {error}") from error


def _row(row: Any, where: str) -> tuple[str, str, int]:
    if not isinstance(row, dict):
        raise CurationError(f"{where}: not an object with query, passage and relevance")
    texts = []
    for name in ("query", "passage"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise CurationError(f"{where}: field {name!r} is missing; give the text or its SHA-256")
        texts.append(_digest(row[name]))
    try:
        relevance = int(str(row.get("relevance")))
    except ValueError:
        relevance = -1
    if relevance < 0:
        raise CurationError(f"{where}: relevance = {row.get('relevance')!r} is not a whole number from 0")
    return texts[0], texts[1], relevance


def _digest(text: str) -> str:
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text if is_digest else digest_text(text)
