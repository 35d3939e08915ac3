"""Near-duplicates: texts of one example that say the same, and different texts that repeat each other elsewhere.

Exact means equal after normalisation (case, spelling of accents, punctuation, spaces); near means a Jaccard similarity
of three-word shingles of at least 0.8. A text recorded as an edit of another is meant to be near it: such pairs are
counted apart, unless they are equal.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from curation.audit.bands import BandFile, Clusters
from curation.audit.scope import Scope, pages
from curation.audit.shingles import NUM_BANDS, Hashes, Ints, Shingles, band_keys, jaccard, near_within, shingle
from db.tables.examples import Candidate, Example
from db.tables.ledger import Run
from db.tables.texts import Passage, Query

SHINGLE_WORDS = 3
THRESHOLD = 0.8
_NUM_ROWS = 20
_BEGINNING = 160
_LOOKUP = 400
Progress = Callable[[int, int | None], None]
Look = Callable[[Sequence[int], Shingles, Hashes], None]


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a pair as a person looks at it: where it stands, how it begins, its digest."""

    standing: str
    run: str | None
    beginning: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return {"standing": self.standing, "run": self.run, "text": self.beginning, "digest": self.digest}


@dataclass(slots=True)
class Found:
    """Pairs of one kind: how many texts, of how many, and the nearest pairs as rows.

    `num` counts units (examples within, texts across) that have such a pair; `num_exact` those whose pair is exact;
    `num_declared_edits` counts what is near because it was recorded as an edit, and is in neither.
    """

    total: int = 0
    num: int = 0
    num_exact: int = 0
    num_declared_edits: int = 0
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)

    def offer(self, similarity: float, *keys: Any) -> None:
        """Keep the pair if it is among the nearest; keys decide between equals, and must be the same in any store."""
        row = (similarity, *keys)
        if len(self.rows) < _NUM_ROWS:
            heapq.heappush(self.rows, row)
        elif row > self.rows[0]:
            heapq.heapreplace(self.rows, row)

    def to_dict(self) -> dict[str, Any]:
        return {
            "num": self.num,
            "share": self.num / self.total if self.total else 0.0,
            "total": self.total,
            "num_exact": self.num_exact,
            "num_declared_edits": self.num_declared_edits,
            "rows": self.shown,
        }


def duplicates_within(session: Session, scope: Scope, *, progress: Progress) -> Found:
    """Examples with two texts (the positive included) that are the same or nearly; counts examples."""
    found = Found()
    for page in _example_pages(session, scope):
        keys = list(dict.fromkeys(row.passage_id for row in page))
        texts = _texts(session, keys)
        shingles = shingle([texts[row.passage_id][0] for row in page], SHINGLE_WORDS)
        examples = np.array([row.example_id for row in page])
        concerned: dict[int, bool] = {}
        for one, other, similarity in zip(*near_within(shingles, examples, THRESHOLD), strict=True):
            first, second = page[one], page[other]
            is_exact = bool(shingles.whole[one] == shingles.whole[other])
            if not is_exact and _is_edit(first, second):
                found.num_declared_edits += 1
                continue
            example = first.example_id
            concerned[example] = concerned.get(example, False) or is_exact
            digests = sorted((texts[row.passage_id][1], row.passage_id) for row in (first, second))
            found.offer(1.0 if is_exact else float(similarity), *digests, example, is_exact)
        found.num += len(concerned)
        found.num_exact += sum(concerned.values())
        found.total += len(np.unique(examples))
        progress(found.total, None)
    _show(session, found)
    return found


def _is_edit(first: Row, second: Row) -> bool:
    return first.parent_passage_id == second.passage_id or second.parent_passage_id == first.passage_id


def _example_pages(session: Session, scope: Scope):  # type: ignore[no-untyped-def]
    """Pages of whole examples: (example, passage, parent), the positive first and once."""
    held: list[Any] = []
    for page in pages(
        session,
        select(Candidate.example_id, Candidate.passage_id, Candidate.parent_passage_id, Example.positive_id)
        .join(Example, Candidate.example_id == Example.id)
        .where(Candidate.role == "negative", scope.candidates())
        .order_by(Candidate.example_id, Candidate.passage_id),
    ):
        held += page
        last = held[-1].example_id
        whole = [row for row in held if row.example_id != last]
        if whole:
            yield _with_positives(whole)
        held = [row for row in held if row.example_id == last]
    if held:
        yield _with_positives(held)


@dataclass(frozen=True, slots=True)
class _Member:
    example_id: int
    passage_id: int
    parent_passage_id: int | None


def _with_positives(rows: Sequence[Any]) -> list[Any]:
    positives = dict.fromkeys((row.example_id, row.positive_id) for row in rows)
    standing = [_Member(row.example_id, row.passage_id, row.parent_passage_id) for row in rows]
    return [*(_Member(example, passage, None) for example, passage in positives), *standing]


def duplicates_across(
    session: Session, scope: Scope, *, look: Look = lambda ids, shingles, keys: None, progress: Progress
) -> Found:
    """Texts that repeat another text of another example, under another digest; counts texts beyond the first.

    `look` is shown every page of passages on the way: (ids, shingles, keys of the whole text and of the bands).
    """
    found = Found()
    with BandFile(1 + NUM_BANDS) as bands:
        passages, only = _write_bands(session, scope, bands, look, progress)
        found.total = len(passages)
        clusters = Clusters(len(passages))
        is_edit = np.zeros(len(passages), bool)
        for column in range(1 + NUM_BANDS):
            for pairs in bands.pairs(column):
                apart = _of_different_examples(pairs, only, clusters)
                for start in range(0, len(apart), _LOOKUP * 5):
                    _join(session, passages, apart[start : start + _LOOKUP * 5], clusters, found, is_edit)
            if column == 0:
                found.num_exact = clusters.num_joins
            progress(column, 1 + NUM_BANDS)
    found.num = clusters.num_joins
    found.num_declared_edits = int(is_edit.sum())
    _show(session, found)
    return found


def _write_bands(session: Session, scope: Scope, bands: BandFile, look: Look, progress: Progress) -> tuple[Ints, Ints]:
    """Passage ids by place, and the only example of each (-1: it stands in several)."""
    passages: list[Ints] = []
    only: list[Ints] = []
    for page in scope.passages(session):
        shingles = shingle([row.text for row in page], SHINGLE_WORDS)
        keys_TB = np.column_stack([shingles.whole, band_keys(shingles)])
        bands.append(keys_TB)
        look([row.id for row in page], shingles, keys_TB)
        passages.append(np.array([row.id for row in page], np.int64))
        only.append(np.array([-1 if row.only is None else row.only for row in page], np.int64))
        progress(bands.num_texts, None)
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *passages]), np.concatenate([empty, *only])


def _of_different_examples(pairs: Ints, only: Ints, clusters: Clusters) -> Ints:
    """Pairs that are not of one single example, and not joined yet."""
    first, second = only[pairs[:, 0]], only[pairs[:, 1]]
    apart = pairs[(first != second) | (first == -1)]
    return np.array([pair for pair in apart.tolist() if clusters.root(pair[0]) != clusters.root(pair[1])]).reshape(
        -1, 2
    )


def _join(
    session: Session, passages: Ints, pairs: Ints, clusters: Clusters, found: Found, is_edit: NDArray[np.bool_]
) -> None:
    """Verify pairs by exact Jaccard, join those that are near, and keep the nearest as rows."""
    places = np.unique(pairs)
    keys = passages[places].tolist()
    texts = _texts(session, keys)
    shingles = shingle([texts[key][0] for key in keys], SHINGLE_WORDS)
    first, second = np.searchsorted(places, pairs).T
    similarity = jaccard(shingles, first, second)
    parents = _parents(session, keys)
    for one, other, value in zip(first.tolist(), second.tolist(), similarity.tolist(), strict=True):
        is_exact = bool(shingles.whole[one] == shingles.whole[other])
        if value < THRESHOLD and not is_exact:
            continue
        edits = [a for a, b in ((one, other), (other, one)) if (keys[a], keys[b]) in parents]
        if edits and not is_exact:
            is_edit[places[edits]] = True
        elif clusters.join(int(places[one]), int(places[other])):
            digests = sorted((texts[key][1], key) for key in (keys[one], keys[other]))
            found.offer(1.0 if is_exact else value, *digests, None, is_exact)


def _parents(session: Session, keys: Sequence[int]) -> set[tuple[int, int]]:
    """(edit, what it was edited from) among these passages."""
    found: set[tuple[int, int]] = set()
    for start in range(0, len(keys), _LOOKUP):
        of_these = Candidate.passage_id.in_(keys[start : start + _LOOKUP])
        rows = session.execute(
            select(Candidate.passage_id, Candidate.parent_passage_id).where(
                of_these, Candidate.parent_passage_id.is_not(None)
            )
        )
        found.update((passage, parent) for passage, parent in rows if parent is not None)
    return found


def _texts(session: Session, keys: Sequence[int]) -> dict[int, tuple[str, str]]:
    """(text, digest) by passage."""
    found: dict[int, tuple[str, str]] = {}
    for start in range(0, len(keys), _LOOKUP):
        of_these = Passage.id.in_(keys[start : start + _LOOKUP])
        rows = session.execute(select(Passage.id, Passage.text, Passage.digest).where(of_these))
        found.update({key: (text, digest) for key, text, digest in rows})
    return found


def _show(session: Session, found: Found) -> None:
    """The kept pairs as rows that a person can look at, the nearest first."""
    for similarity, first, second, example, is_exact in sorted(found.rows, key=_row_order):
        sides = [text_of(session, key, example) for _, key in (first, second)]
        found.shown.append(
            {
                "kind": "exact" if is_exact else "near",
                "jaccard": round(similarity, 4),
                "query": sides[0][1],
                "texts": [text.to_dict() for text, _ in sides],
            }
        )


def _row_order(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return -row[0], row[1][0], row[2][0]


def text_of(session: Session, passage: int, example: int | None = None) -> tuple[Text, str]:
    """A text as it stands in an example (any, where none is given), and the example's query."""
    statement = (
        select(Candidate.role, Candidate.rank, Candidate.origin, Run.name, Query.text.label("query"))
        .join(Example, Candidate.example_id == Example.id)
        .join(Query, Example.query_id == Query.id)
        .join(Run, Candidate.run_id == Run.id)
        .where(Candidate.passage_id == passage, *([] if example is None else [Candidate.example_id == example]))
        .order_by(Example.digest, Run.name)
        .limit(1)
    )
    row = session.execute(statement).one_or_none()
    text, digest = session.execute(select(Passage.text, Passage.digest).where(Passage.id == passage)).one()
    if row is None:  # a positive that was given, not found by a run
        query = session.scalar(
            select(Query.text).join(Example, Example.query_id == Query.id)
            .where(Example.positive_id == passage).order_by(Example.digest).limit(1)
        )  # fmt: skip
        return Text("positive", None, beginning(text), digest), query or ""
    standing = "positive" if row.role == "positive" else f"N{row.rank}" if row.rank else row.origin
    return Text(standing, row.name, beginning(text), digest), row.query


def beginning(text: str) -> str:
    """The first 160 characters on one line."""
    line = " ".join(text.split())
    return line if len(line) <= _BEGINNING else line[: _BEGINNING - 1] + "…"
