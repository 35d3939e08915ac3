"""BM25 over passages: bm25s with the English stemmer and stop words, Lucene's variant."""

from collections.abc import Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from db.digest import digest_of

PARAMETERS = {"method": "lucene", "k1": 1.2, "b": 0.75, "stemmer": "english", "stopwords": "en"}


def version() -> str:
    """Digest of everything that decides a ranking."""
    return digest_of({**PARAMETERS, "bm25s": bm25s.__version__})


def top_documents(
    queries: Sequence[str], passages: Sequence[str], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Best k passages of each query: indices [queries, k] and scores [queries, k]; ties by the lower index.

    A place without any matching passage has index -1 and score 0.
    """
    k = min(k, len(passages))
    index = bm25s.BM25(method=PARAMETERS["method"], k1=PARAMETERS["k1"], b=PARAMETERS["b"])
    index.index(_tokens(passages), show_progress=False)
    indices = np.full((len(queries), k), -1, np.int64)
    scores = np.zeros((len(queries), k))
    for row, words in enumerate(_tokens(queries)):
        of_all = index.get_scores(words) if words else np.zeros(len(passages), np.float32)
        best = np.argsort(-of_all, kind="stable")[:k]
        found = best[of_all[best] > 0]
        indices[row, : len(found)], scores[row, : len(found)] = found, of_all[found]
    return indices, scores


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
