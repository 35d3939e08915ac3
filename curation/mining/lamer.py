"""LameR: BM25 shows an LLM what it found, the LLM writes what would answer, and BM25 searches again with both.

The candidates show the corpus' own words, and most of them are wrong; the answers bring the words of a right one. As a
miner its list is closer to the truth than BM25's, so false negatives are more frequent: a ceiling and a judge belong
behind it. Its scores are not comparable between queries. Who asks the LLM is handed in; nothing here knows how.

Source: LameR, arXiv 2304.14233: M = 10 candidates, N = 5 answers, the query before each answer (equations 3 to 5).

Legend: Q queries, K places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curation.mining import bm25
from curation.mining.bm25 import Bm25
from db.digest import digest_of

_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"


@dataclass(frozen=True, slots=True)
class Wording:
    """What a prompt calls the passages of a collection: several of them, and one."""

    several: str
    one: str


@dataclass(frozen=True, slots=True)
class Question:
    """What the LLM is asked: a query, and the passages that BM25 found for it, best first, cut."""

    query: str
    candidates: tuple[str, ...]
    wording: Wording


# One list of answers for each question; fewer than asked where the LLM gave fewer.
Answers = Callable[[Sequence[Question]], Sequence[Sequence[str]]]

_ANSWERING = Wording("answering passages", "answering passage")
_SCIENTIFIC = Wording("scientific paper passages", "scientific paper passage")
_COUNTER = Wording("counter-argument passages", "counter-argument passage")
# As two public reimplementations word it by data set; names as collections are usually called.
WORDINGS = {
    "msmarco": _ANSWERING,
    "trec-dl": _ANSWERING,
    "dbpedia": _ANSWERING,
    "scifact": _SCIENTIFIC,
    "trec-covid": _SCIENTIFIC,
    "nfcorpus": _SCIENTIFIC,
    "climate-fever": _SCIENTIFIC,
    "arguana": _COUNTER,
    "touche": _COUNTER,
    "webis-touche": _COUNTER,
    "fiqa": Wording("answering financial article passages", "answering financial article passage"),
    "trec-news": Wording("relevant passages", "relevant passage"),
    "scidocs": Wording("passages it may cite", "citation passage"),
    "quora": Wording("synonymous questions", "synonymous question"),
}


def wording_of(collection: str) -> Wording:
    """What a prompt calls this collection's passages: by the longest data set's name that it begins with."""
    name = collection.lower()
    known = [data_set for data_set in WORDINGS if name.startswith(data_set)]
    return WORDINGS[max(known, key=len)] if known else _ANSWERING


class Lamer:
    """LameR over passages, as a teacher that proposes.

    Args:
        passages: The collection's passages, in the order in which `index` has them.
        answers: Asks the LLM.
        answerer: What identifies the LLM, its prompt and how it is sampled; it is part of the version.
        num_candidates: M, how many of BM25's first passages the LLM sees.
        max_characters: Where each of them is cut; 512 is about 128 tokens.
    """

    name = "lamer"
    kind = "lamer"
    prompt = ""
    max_length = None

    def __init__(
        self,
        index: Bm25,
        passages: Sequence[str],
        answers: Answers,
        *,
        answerer: str,
        wording: Wording = _ANSWERING,
        num_candidates: int = 10,
        max_characters: int = 512,
    ) -> None:
        self._index, self._passages, self._answers, self._wording = index, passages, answers, wording
        self._num_candidates, self._max_characters = num_candidates, max_characters
        self.version = digest_of(
            {
                "bm25": bm25.version(),
                "answerer": answerer,
                "wording": [wording.several, wording.one],
                "num_candidates": num_candidates,
                "max_characters": max_characters,
            }
        )

    def prepare(self, queries: Sequence[str]) -> None:
        """Have all queries of a run answered at once, as an engine that answers in batches needs it."""
        self.widened(queries)

    def top(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The k best passages of each widened query, highest first: places [Q, K] and BM25 scores [Q, K].

        Places without a passage have index -1 and score 0; K is less than k where there are fewer passages.
        """
        return self._index.top(self.widened(queries), k)

    def widened(self, queries: Sequence[str]) -> list[str]:
        """Each query with its answers; a query for which the LLM wrote nothing stays as it is."""
        answered = self._answers(self.questions(queries))
        return [widen(query, answers) for query, answers in zip(queries, answered, strict=True)]

    def questions(self, queries: Sequence[str]) -> list[Question]:
        """What the LLM is asked for these queries."""
        found_QK, _ = self._index.top(queries, self._num_candidates)
        return [
            Question(
                query,
                tuple(cut(self._passages[place], self._max_characters) for place in row if place >= 0),
                self._wording,
            )
            for query, row in zip(queries, found_QK.tolist(), strict=True)
        ]


def widen(query: str, answers: Sequence[str]) -> str:
    """`q a1 q a2 ...`: BM25 counts a repeated word again, so the query keeps its weight beside long answers."""
    told = [" ".join(answer.strip().strip(_QUOTES).split()) for answer in answers]
    parts = [f"{query} {answer}" for answer in told if answer]
    return " ".join(parts) if parts else query


def cut(text: str, max_characters: int) -> str:
    """The text's beginning, up to the last whole word."""
    if len(text) <= max_characters:
        return text
    beginning = text[: max_characters + 1]
    whole, _, rest = beginning.rpartition(" ")
    return whole if whole and rest else text[:max_characters]
