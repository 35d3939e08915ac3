"""BM25 over passages: bm25s with the English stemmer and stop words, Lucene's variant."""

from collections.abc import Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from curation.mining.search import best_places
from db.digest import digest_of

PARAMETERS = {"method": "lucene", "k1": 1.2, "b": 0.75, "stemmer": "english", "stopwords": "en"}


def version() -> str:
    """Digest of everything that decides a ranking."""
    return digest_of({**PARAMETERS, "bm25s": bm25s.__version__})


class Bm25:
    """An index over passages; 5,000 abstracts take under two seconds, so it is built where it is needed."""

    def __init__(self, passages: Sequence[str]) -> None:
        self._num_passages = len(passages)
        self._index = bm25s.BM25(method=PARAMETERS["method"], k1=PARAMETERS["k1"], b=PARAMETERS["b"])
        words = _words(passages)
        self._has_words = any(words)
        if self._has_words:
            self._index.index(words, show_progress=False)

    def top(self, queries: Sequence[str], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Best k passages of each query: indices [queries, k] and scores [queries, k]; ties by the lower index.

        A place without any matching passage has index -1 and score 0.
        """
        k = min(k, self._num_passages)
        indices = np.full((len(queries), k), -1, np.int64)
        scores = np.zeros((len(queries), k), np.float32)
        for row, words in enumerate(_words(queries)):
            if not words or not self._has_words:
                continue
            of_all = self._index.get_scores(words)
            best = best_places(of_all, k)
            found = best[of_all[best] > 0]
            indices[row, : len(found)], scores[row, : len(found)] = found, of_all[found]
        return indices, scores

    def scores(self, query: str) -> NDArray[np.float32]:
        """The query's score with every passage, [passages]; 0 without a common word."""
        (words,) = _words([query])
        if not words or not self._has_words:
            return np.zeros(self._num_passages, np.float32)
        return np.asarray(self._index.get_scores(words), np.float32)


def top_documents(
    queries: Sequence[str], passages: Sequence[str], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Best k passages of each query, as `Bm25.top`, for one use of the index."""
    return Bm25(passages).top(queries, k)


def _words(texts: Sequence[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
