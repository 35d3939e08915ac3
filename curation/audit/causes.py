"""Why two sets of texts can be told apart: what one property alone tells, and the n-grams and words behind it.

A property is turned into the log-odds of its decile, learned on the training folds: a set that is unusually uniform
shows as well as one that is longer. The folds are those of the leak itself, so the figures stand beside it.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.audit.leaks import (
    NGRAMS,
    NUM_HASHED,
    Comparison,
    Floats,
    Ints,
    held_out_scores,
    leak_of,
    trained_classifier,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_NUM_BINS = 10
_NUM_STRONGEST = 10
_NUM_TEXTS_READ = 8
OPENING_WORDS = 3
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_DIGIT = re.compile(r"\d")
_PUNCTUATION = re.compile(r"[^\w\s]")


def _share(count: int, text: str) -> float:
    return count / len(text) if text else 0.0


PROPERTIES: dict[str, Callable[[str], float]] = {
    "length in characters": len,
    "length in words": lambda text: len(text.split()),
    "mean word length": lambda text: len("".join(text.split())) / max(1, len(text.split())),
    "words a sentence": lambda text: len(text.split()) / max(1, len(_SENTENCE_END.findall(text))),
    "punctuation rate": lambda text: _share(len(_PUNCTUATION.findall(text)), text),
    "parentheses rate": lambda text: _share(text.count("(") + text.count(")"), text),
    "digit rate": lambda text: _share(len(_DIGIT.findall(text)), text),
    "uppercase rate": lambda text: _share(sum(map(str.isupper, text)), text),
    "non-ASCII rate": lambda text: _share(len(text) - len(text.encode("ascii", "ignore")), text),
}


@dataclass(frozen=True, slots=True)
class Cause:
    """What one property alone tells, and its mean in both sets (None where it has none)."""

    name: str
    auc: float
    low: float
    high: float
    mean_first: float | None
    mean_second: float | None


@dataclass(frozen=True, slots=True)
class Marker:
    """An n-gram or word that speaks for a set: its weight, and the share of each set's texts that have it."""

    text: str
    weight: float
    share_first: float
    share_second: float


@dataclass(frozen=True, slots=True)
class Causes:
    """Properties, the strongest first, and the markers of both sets."""

    properties: list[Cause]
    first_ngrams: list[Marker]
    second_ngrams: list[Marker]
    first_words: list[Marker]
    second_words: list[Marker]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_causes(comparison: Comparison, texts: Sequence[str], counts_TF: "csr_matrix", *, seed: int = 0) -> Causes:
    """What tells the two sets apart. `counts_TF` are the hashed n-gram counts of the texts."""
    words_TF, names = _word_counts(texts)
    ngrams = _markers(counts_TF, comparison.labels, lambda columns: _ngrams_behind(columns, counts_TF, texts))
    words = _markers(words_TF, comparison.labels, lambda columns: [names[column] for column in columns])
    return Causes(property_aucs(comparison, texts, seed=seed), *ngrams, *words)


def property_aucs(comparison: Comparison, texts: Sequence[str], *, seed: int = 0) -> list[Cause]:
    """What each property alone tells, the strongest first; the words and the openings are classifiers over words."""
    labels_T = comparison.labels
    found = []
    for name, measure in PROPERTIES.items():
        values_T = np.array([measure(text) for text in texts], np.float64)
        leak = leak_of(comparison, _log_odds(comparison, values_T), seed=seed)
        means = (float(values_T[labels_T == 1].mean()), float(values_T[labels_T == 0].mean()))
        found.append(Cause(name, leak.auc, leak.low, leak.high, *means))
    words_TF, _ = _word_counts(texts)
    openings_TF, _ = _word_counts([" ".join(text.split()[:OPENING_WORDS]) for text in texts])
    for name, counts in (("vocabulary", words_TF), (f"first {OPENING_WORDS} words", openings_TF)):
        leak = leak_of(comparison, held_out_scores(comparison, counts), seed=seed)
        found.append(Cause(name, leak.auc, leak.low, leak.high, None, None))
    return sorted(found, key=lambda cause: -cause.auc)


def _log_odds(comparison: Comparison, values_T: Floats) -> Floats:
    """Held-out log-odds of the first set in the value's bin; bins are deciles of the training fold."""
    scores_T = np.zeros(len(values_T))
    for train, test in comparison.folds:
        edges = np.unique(np.quantile(values_T[train], np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
        bins, labels = np.searchsorted(edges, values_T, side="right"), comparison.labels
        sizes = (np.bincount(bins[train], labels[train] == side, len(edges) + 1) + 1 for side in (1, 0))
        of_first, of_second = (size / size.sum() for size in sizes)
        scores_T[test] = np.log(of_first / of_second)[bins[test]]
    return scores_T


def _word_counts(texts: Sequence[str]) -> "tuple[csr_matrix, list[str]]":
    """Counts of words, and the words."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=r"\b\w+\b", max_features=50_000)
    try:
        counts = counter.fit_transform(texts)
    except ValueError:  # not a word in any text
        counts = counter.fit_transform([f"{text} x" for text in texts])
    return counts, counter.get_feature_names_out().tolist()


def _markers(
    counts_TF: "csr_matrix", labels_T: Ints, name: Callable[[list[int]], list[str]]
) -> tuple[list[Marker], list[Marker]]:
    """The strongest features for each set: weight x difference of the sets' mean values, so that rare ones are last."""
    weighting, model = trained_classifier(counts_TF, labels_T)
    weighted_TF = weighting.transform(counts_TF)
    first, second = labels_T == 1, labels_T == 0
    difference = np.asarray(weighted_TF[first].mean(axis=0) - weighted_TF[second].mean(axis=0)).ravel()
    weights = model.coef_[0]
    # What both weight and presence say; where they disagree, another feature did the work.
    contribution = np.where(weights * difference > 0, weights * difference, 0.0)
    sides = []
    for sign in (1, -1):
        order = np.argsort(-contribution * (np.sign(weights) == sign), kind="stable")[:_NUM_STRONGEST].tolist()
        columns = [column for column in order if contribution[column] > 0 and weights[column] * sign > 0]
        share_first, share_second = (_share_with(counts_TF[rows], columns) for rows in (first, second))
        rows = zip(name(columns), weights[columns], share_first, share_second, strict=True)
        sides.append([Marker(text, float(weight), float(one), float(other)) for text, weight, one, other in rows])
    return sides[0], sides[1]


def _share_with(counts_TF: "csr_matrix", columns: list[int]) -> Floats:
    return np.asarray((counts_TF[:, columns] > 0).mean(axis=0)).ravel()


def _ngrams_behind(columns: list[int], counts_TF: "csr_matrix", texts: Sequence[str]) -> list[str]:
    """The n-gram that hashed to each column most often, read back from a few texts that have it."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.utils import murmurhash3_32

    analyse = CountVectorizer(analyzer="char_wb", ngram_range=NGRAMS).build_analyzer()
    of_column: dict[int, Counter[str]] = {column: Counter() for column in columns}
    by_column = counts_TF[:, columns].tocsc()
    rows = {int(row) for place in range(len(columns)) for row in by_column[:, place].indices[:_NUM_TEXTS_READ]}
    column_of: dict[str, int] = {}
    for row in sorted(rows):
        for ngram in analyse(texts[row]):
            if ngram not in column_of:
                column_of[ngram] = abs(int(murmurhash3_32(ngram, seed=0))) % NUM_HASHED
            if column_of[ngram] in of_column:
                of_column[column_of[ngram]][ngram] += 1
    return [of_column[column].most_common(1)[0][0] if of_column[column] else "?" for column in columns]
