"""Does what a model is evaluated on stand in what it is trained on?

The evaluation side (judged relevant pairs of dev and test splits) is held in memory, as shingles with band keys; the
audited side streams past it. Queries are compared as sets of words, positives as sets of three-word shingles.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from curation.audit.duplicates import beginning, text_of
from curation.audit.scope import Scope, pages
from curation.audit.shingles import Hashes, Ints, Shingles, band_keys, jaccard, shingle
from curation.errors import CurationError
from db.tables.examples import Example
from db.tables.texts import Collection, CollectionQuery, Document, Passage, Qrel, Query

EVALUATION_SPLITS = ("dev", "test", "validation")
THRESHOLD = 0.8
_NUM_ROWS = 20
_LOOKUP = 400


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Judged relevant pairs (query id, passage id), and the texts on both sides with their digests."""

    splits: list[str]
    pairs: list[tuple[int, int]]
    queries: dict[int, tuple[str, str]]
    positives: dict[int, tuple[str, str]]


def evaluation_of(session: Session, named: Sequence[str]) -> Evaluation:
    """The pairs of these splits (`COLLECTION` or `COLLECTION:SPLIT`), or of all dev and test splits.

    Raises:
        CurationError: A name means no judged relevant pair of the store.
    """
    there = [
        (collection, name, split)
        for collection, name, split in session.execute(
            select(Collection.id, Collection.name, Qrel.split)
            .join(CollectionQuery, CollectionQuery.collection_id == Collection.id)
            .join(Qrel, Qrel.collection_query_id == CollectionQuery.id)
            .where(Qrel.relevance > 0)
            .distinct()
            .order_by(Collection.name, Qrel.split)
        )
    ]
    chosen = [one for one in there if not named and one[2] in EVALUATION_SPLITS]
    for name in named:
        found = [one for one in there if name == f"{one[1]}:{one[2]}" or (name == one[1] and _is_held_out(one[2]))]
        if not found:
            known = ", ".join(f"{one[1]}:{one[2]}" for one in there) or "none"
            raise CurationError(f"--evaluation {name!r}: no judged relevant pairs there; the store has: {known}")
        chosen += [one for one in found if one not in chosen]
    pairs: list[tuple[int, int]] = []
    queries: dict[int, tuple[str, str]] = {}
    positives: dict[int, tuple[str, str]] = {}
    for collection, _, split in chosen:
        for row in session.execute(_judged(collection, split), execution_options={"yield_per": 5_000}):
            pairs.append((row.query_id, row.passage_id))
            queries[row.query_id] = (row.query, row.query_digest)
            positives[row.passage_id] = (row.text, row.digest)
    return Evaluation([f"{name}:{split}" for _, name, split in chosen], pairs, queries, positives)


def _is_held_out(split: str) -> bool:
    return split in EVALUATION_SPLITS


def _judged(collection: int, split: str):  # type: ignore[no-untyped-def]
    return (
        select(
            Query.id.label("query_id"),
            Query.text.label("query"),
            Query.digest.label("query_digest"),
            Passage.id.label("passage_id"),
            Passage.text,
            Passage.digest,
        )
        .select_from(Qrel)
        .join(CollectionQuery, Qrel.collection_query_id == CollectionQuery.id)
        .join(Query, CollectionQuery.query_id == Query.id)
        .join(Document, Qrel.document_id == Document.id)
        .join(Passage, Document.passage_id == Passage.id)
        .where(CollectionQuery.collection_id == collection, Qrel.split == split, Qrel.relevance > 0)
        .order_by(Query.digest, Passage.digest)
    )


class Watch:
    """Evaluation texts that wait for audited ones like them: by id of ours, ids of theirs with similarity."""

    def __init__(self, texts: dict[int, tuple[str, str]], size: int) -> None:
        self._ids = list(texts)
        self._shingles = shingle([text for text, _ in texts.values()], size)
        keys_TB = _keys(self._shingles) if texts else np.empty((0, 0), np.uint64)
        self._orders = [np.argsort(column, kind="stable") for column in keys_TB.T]
        self._sorted = [column[order] for column, order in zip(keys_TB.T, self._orders, strict=True)]
        self.found: dict[int, dict[int, tuple[float, bool]]] = defaultdict(dict)

    def look(self, ids: Sequence[int], shingles: Shingles, keys_TB: Hashes) -> None:
        """Compare a page of audited texts; `keys_TB` as of `page_keys`."""
        pairs = self._proposed(keys_TB)
        if not len(pairs):
            return
        theirs, ours = pairs.T
        for row, place, similarity in zip(
            theirs, ours, _similarity(shingles, theirs, self._shingles, ours), strict=True
        ):
            is_exact = bool(shingles.whole[row] == self._shingles.whole[place])
            if is_exact or similarity >= THRESHOLD:
                self.found[self._ids[place]][ids[row]] = (1.0 if is_exact else float(similarity), is_exact)

    def _proposed(self, keys_TB: Hashes) -> Ints:
        """(row of the page, place of ours) that share a key, each once."""
        found: list[Ints] = []
        for order, column, keys in zip(self._orders, self._sorted, keys_TB.T, strict=False):
            low, high = np.searchsorted(column, keys, "left"), np.searchsorted(column, keys, "right")
            rows = np.flatnonzero(high > low)
            if len(rows):
                places = np.concatenate([order[low[row] : high[row]] for row in rows])
                found.append(np.stack([np.repeat(rows, (high - low)[rows]), places], axis=1))
        return np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)


def page_keys(shingles: Shingles, bands_TB: Hashes) -> Hashes:
    """The whole text's hash beside the band keys: equal texts always meet."""
    return np.column_stack([shingles.whole, bands_TB])


def _keys(shingles: Shingles) -> Hashes:
    return page_keys(shingles, band_keys(shingles))


def _similarity(one: Shingles, rows: Ints, other: Shingles, places: Ints):  # type: ignore[no-untyped-def]
    kept_one, of_one = np.unique(rows, return_inverse=True)
    kept_other, of_other = np.unique(places, return_inverse=True)
    both = one.take(kept_one).followed_by(other.take(kept_other))
    return jaccard(both, of_one, of_other + len(kept_one))


@dataclass(slots=True)
class Contamination:
    """Evaluation queries, positives and pairs that stand in the audited examples, with rows to look at."""

    splits: list[str]
    totals: dict[str, int]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        reason = None if self.splits else "the store has no judged dev or test split: nothing to compare with"
        kinds: dict[str, dict[str, Any]] = {
            kind: {"num": None, "total": 0, "rows": []}
            if reason
            else {**self.counts[kind], "total": self.totals[kind], "rows": self.rows[kind]}
            for kind in ("queries", "pairs", "positives")
        }
        return {"evaluation": self.splits, "reason": reason, **kinds}


def contamination(session: Session, scope: Scope, evaluation: Evaluation, positives: Watch) -> Contamination:
    """What of the evaluation stands in the audited examples, once `positives` has seen all audited passages."""
    found = Contamination(
        evaluation.splits,
        {
            "queries": len(evaluation.queries),
            "pairs": len(set(evaluation.pairs)),
            "positives": len(evaluation.positives),
        },
    )
    queries = Watch(evaluation.queries, 1)
    if evaluation.pairs:
        audited = select(Query.id, Query.text).where(Query.id.in_(select(Example.query_id).where(scope.examples())))
        for page in pages(session, audited.order_by(Query.id)):
            shingles = shingle([row.text for row in page], 1)
            queries.look([row.id for row in page], shingles, _keys(shingles))
    _count_queries(session, found, evaluation, queries)
    _count_positives(session, scope, found, evaluation, positives)
    _count_pairs(session, scope, found, evaluation, queries, positives)
    return found


def _count_queries(session: Session, found: Contamination, evaluation: Evaluation, queries: Watch) -> None:
    found.counts["queries"] = {"num": len(queries.found), "num_exact": _num_exact(queries)}
    rows = _nearest(queries, evaluation.queries)
    theirs = _by_id(session, Query, [theirs for *_, theirs in rows])
    found.rows["queries"] = [
        {"query": theirs[key][0], **_row(is_exact, similarity, evaluation.queries[ours], theirs[key])}
        for similarity, is_exact, ours, key in rows
    ]


def _count_positives(
    session: Session, scope: Scope, found: Contamination, evaluation: Evaluation, positives: Watch
) -> None:
    matched = sorted({key for of_one in positives.found.values() for key in of_one})
    as_positive = {row.positive_id for row in _examples(session, scope, Example.positive_id, matched)}
    is_in = {ours: any(key in as_positive for key in theirs) for ours, theirs in positives.found.items()}
    found.counts["positives"] = {
        "num": sum(is_in.values()),
        "num_exact": sum(
            any(is_exact and key in as_positive for key, (_, is_exact) in theirs.items())
            for theirs in positives.found.values()
        ),
        "num_as_negative_only": len(is_in) - sum(is_in.values()),
    }
    rows = _nearest(positives, evaluation.positives)
    theirs = _by_id(session, Passage, [key for *_, key in rows])
    found.rows["positives"] = [
        {
            "query": text_of(session, key)[1],
            **_row(is_exact, similarity, evaluation.positives[ours], theirs[key]),
            "stands_as": "positive" if key in as_positive else "negative",
        }
        for similarity, is_exact, ours, key in rows
    ]


def _count_pairs(
    session: Session, scope: Scope, found: Contamination, evaluation: Evaluation, queries: Watch, positives: Watch
) -> None:
    matched = sorted({key for of_one in queries.found.values() for key in of_one})
    positives_of: dict[int, set[int]] = defaultdict(set)
    for example in _examples(session, scope, Example.query_id, matched):
        positives_of[example.query_id].add(example.positive_id)
    rows: list[dict[str, Any]] = []
    num_exact = 0
    for query, positive in sorted(set(evaluation.pairs)):
        standing = [
            (min(near, of_text), is_same and text_is_same)
            for key, (near, is_same) in queries.found.get(query, {}).items()
            for other, (of_text, text_is_same) in positives.found.get(positive, {}).items()
            if other in positives_of[key]
        ]
        if standing:
            similarity, is_exact = max(standing)
            num_exact += is_exact
            text, digest = evaluation.positives[positive]
            row = {"kind": "exact" if is_exact else "near", "jaccard": round(similarity, 4)}
            rows.append(row | {"query": evaluation.queries[query][0], "text": beginning(text), "digest": digest})
    found.counts["pairs"] = {"num": len(rows), "num_exact": num_exact}
    found.rows["pairs"] = sorted(rows, key=lambda row: (-row["jaccard"], row["query"], row["digest"]))[:_NUM_ROWS]


def _num_exact(watch: Watch) -> int:
    return sum(any(is_exact for _, is_exact in theirs.values()) for theirs in watch.found.values())


def _nearest(watch: Watch, ours: dict[int, tuple[str, str]]) -> list[tuple[float, bool, int, int]]:
    """(similarity, is exact, ours, theirs): the nearest of each of ours, the nearest of all first."""
    best = [(*max((value, key) for key, value in theirs.items()), one) for one, theirs in watch.found.items()]
    rows = [(similarity, is_exact, one, key) for (similarity, is_exact), key, one in best]
    return sorted(rows, key=lambda row: (-row[0], ours[row[2]][1]))[:_NUM_ROWS]


def _row(is_exact: bool, similarity: float, ours: tuple[str, str], theirs: tuple[str, str]) -> dict[str, Any]:
    return {
        "kind": "exact" if is_exact else "near",
        "jaccard": round(similarity, 4),
        "text": beginning(ours[0]),
        "digest": ours[1],
        "audited_text": beginning(theirs[0]),
        "audited_digest": theirs[1],
    }


def _by_id(session: Session, table: type[Query] | type[Passage], keys: Sequence[int]) -> dict[int, tuple[str, str]]:
    rows = session.execute(select(table.id, table.text, table.digest).where(table.id.in_(keys)))
    return {key: (text, digest) for key, text, digest in rows}


def _examples(session: Session, scope: Scope, column: Any, keys: Sequence[int]) -> list[Row]:
    found: list[Row] = []
    for start in range(0, len(keys), _LOOKUP):
        of_these = column.in_(keys[start : start + _LOOKUP])
        found += session.execute(select(Example.query_id, Example.positive_id).where(of_these, scope.examples()))
    return found
