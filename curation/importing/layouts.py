"""What the columns of a published training set mean, by the conventions of sentence-transformers.

`mine_hard_negatives` writes triplets, n-tuples (`negative_1`..), labelled pairs and labelled lists, each with scores or
without. Other sets call the query `anchor`, `question` or `sentence1`, and keep lists of texts in `pos` and `neg`.
Columns are told by their names; where the first two have none that is known, they are query and positive, as the
losses take them. A column that cannot be told is asked for, never guessed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from curation.errors import CurationError
from curation.importing.beir import Fault
from curation.importing.pairs import PairRow, pair_row

_LABELS = ("label", "labels", "score", "scores")  # in the order in which sentence-transformers looks for them
_QUERIES = ("anchor", "query", "question", "sentence1", "sentence_A", "title")
_POSITIVES = ("positive", "pos", "positives", "answer", "answers", "passage", "document", "docs", "documents",
              "sentence2", "sentence_B", "positive_passages")  # fmt: skip
_NEGATIVES = ("negative", "neg", "hard_neg")
_IDS = ("_id", "_ids", "_idx")
Kind = Literal["tuple", "labelled-pair", "labelled-list"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns by meaning; `label` holds labels or scores."""

    kind: Kind
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    label: str | None = None

    @property
    def columns(self) -> list[str]:
        return [self.query, *self.positives, *self.negatives, *([self.label] if self.label else [])]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row of texts, and (text, score) of those that have one."""

    pair: PairRow
    scores: tuple[tuple[str, float], ...] = ()


def tell_layout(
    columns: Sequence[str],
    first: Mapping[str, Any],
    *,
    query: str | None,
    positives: Sequence[str],
    negatives: Sequence[str],
) -> Layout:
    """The layout of a file with these columns, whose first row may tell lists from texts.

    Args:
        columns: Names, in the file's order.
        first: The first good row.
        query: Column of the query, where a person named it.
        positives: Columns of positives, named.
        negatives: Columns of negatives, named.

    Raises:
        CurationError: A column's meaning cannot be told; names it and the options.
    """
    for name in (*([query] if query else []), *positives, *negatives):
        if name not in columns:
            raise CurationError(f"no column {name!r}; there are {', '.join(map(repr, columns))}")
    label = next((name for name in _LABELS if name in columns), None)
    texts = [name for name in columns if name not in _LABELS and name != "id" and not name.endswith(_IDS)]
    asked = query or next((name for name in _QUERIES if name in texts), texts[0] if texts else None)
    rest = [name for name in texts if name != asked]
    found = list(negatives) or [name for name in rest if name.lower().startswith(_NEGATIVES) and name not in positives]
    others = [name for name in rest if name not in found]
    given = list(positives) or [name for name in others if name in _POSITIVES][:1] or others[:1]
    if asked is None or not given:
        raise CurationError(
            f"the columns {', '.join(map(repr, columns))} name no query and positive: say --query and --positive"
        )
    unknown = [] if positives else [name for name in others if name not in given]
    if unknown:
        raise CurationError(
            f"what is column {unknown[0]!r}? Beside it, {asked!r} is the query and {given[0]!r} the positive: say "
            "--query, --positive and --negative for the columns to take"
        )
    kind: Kind = "tuple"
    if label is not None and not found:
        kind = "labelled-list" if isinstance(first.get(given[0]), list) else "labelled-pair"
    elif label in ("label", "labels"):
        label = None  # beside negatives of their own, a label says nothing about texts
    return Layout(kind, asked, tuple(given), tuple(found), label)


def scored_rows(
    rows: Iterable[tuple[str, dict[str, Any] | Fault]], layout: Layout, positive_from: float | None
) -> Iterator[ScoredRow | Fault]:
    """Rows of (query, positives, negatives) from rows of any layout.

    Args:
        rows: (where, row or fault).
        layout: What the columns mean.
        positive_from: Least label or score of a positive; without it 1 for labels, and with scores the first passage of
            a query is its positive, as `mine_hard_negatives` writes them.
    """
    if layout.kind == "labelled-pair":
        yield from _labelled_pairs(rows, layout, positive_from)
        return
    for where, row in rows:
        if isinstance(row, Fault):
            yield Fault(where, row.reason, row.detail)
        elif layout.kind == "labelled-list":
            yield _labelled(where, row, layout, positive_from)
        else:
            yield _tuple(where, row, layout)


def _tuple(where: str, row: Mapping[str, Any], layout: Layout) -> ScoredRow | Fault:
    pair = pair_row(dict(row), where, layout.query, layout.positives, layout.negatives)
    scores = row.get(layout.label) if layout.label else None
    if isinstance(pair, Fault) or scores is None:
        return pair if isinstance(pair, Fault) else ScoredRow(pair)
    texts = [row.get(name) for name in (*layout.positives, *layout.negatives)]
    if not isinstance(scores, list) or len(scores) != len(texts) or not all(map(_is_number, scores)):
        return Fault(where, "wrong_type", f"column {layout.label!r} = {scores!r:.60} is not a score for each text")
    return ScoredRow(pair, tuple((text, float(one)) for text, one in zip(texts, scores, strict=True) if text))


def _labelled(where: str, row: Mapping[str, Any], layout: Layout, positive_from: float | None) -> ScoredRow | Fault:
    texts, labels = row.get(layout.positives[0]), row.get(str(layout.label))
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        return Fault(where, "wrong_type", f"{layout.positives[0]!r} and {layout.label!r} are not lists of one length")
    if not all(map(_is_number, labels)):
        return Fault(where, "wrong_type", f"column {layout.label!r} = {labels!r:.60} is not numbers")
    return _split(where, row.get(layout.query), texts, labels, layout, positive_from)


def _labelled_pairs(
    rows: Iterable[tuple[str, dict[str, Any] | Fault]], layout: Layout, positive_from: float | None
) -> Iterator[ScoredRow | Fault]:
    """Rows of a query stand together, so a run of them is one example."""
    for query, several in groupby(
        rows, key=lambda one: None if isinstance(one[1], Fault) else str(one[1].get(layout.query))
    ):
        good = []
        for where, row in several:
            if isinstance(row, Fault):
                yield Fault(where, row.reason, row.detail)
            elif not _is_number(row.get(str(layout.label))):
                yield Fault(
                    where, "wrong_type", f"column {layout.label!r} = {row.get(str(layout.label))!r:.60} is no number"
                )
            elif not isinstance(row.get(layout.positives[0]), str):
                yield Fault(where, "missing_field", f"column {layout.positives[0]!r} has no text")
            else:
                good.append((where, row))
        if query is not None and good:
            texts = [row[layout.positives[0]] for _, row in good]
            labels = [row[str(layout.label)] for _, row in good]
            where, first = good[0]
            yield _split(where, first.get(layout.query), texts, labels, layout, positive_from)


def _split(
    where: str, query: Any, texts: list[Any], labels: list[Any], layout: Layout, positive_from: float | None
) -> ScoredRow | Fault:
    has_scores = layout.label in ("score", "scores")
    if positive_from is None and has_scores:
        is_positive = [place == 0 for place in range(len(texts))]
    else:
        least = 1 if positive_from is None else positive_from
        is_positive = [label >= least for label in labels]
    sides: dict[str, Any] = {
        "query": query,
        "positive": [text for text, yes in zip(texts, is_positive, strict=True) if yes],
        "negative": [text for text, yes in zip(texts, is_positive, strict=True) if not yes],
    }
    pair = pair_row(sides, where, "query", ["positive"], ["negative"])
    if isinstance(pair, Fault) or not has_scores:
        return pair if isinstance(pair, Fault) else ScoredRow(pair)
    return ScoredRow(pair, tuple((text, float(one)) for text, one in zip(texts, labels, strict=True) if text))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
