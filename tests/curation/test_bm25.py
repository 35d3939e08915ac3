"""BM25 by value, and what it says where nothing matches."""

from math import log

import pytest

from curation.mining.bm25 import PARAMETERS, top_documents

PASSAGES = ["zebra lion lion", "lion tiger", "tiger", "zebra zebra zebra lion tiger tiger"]


def _lucene_bm25(query: list[str], passages: list[list[str]]) -> list[float]:
    k1, b = float(PARAMETERS["k1"]), float(PARAMETERS["b"])
    mean = sum(map(len, passages)) / len(passages)
    scores = []
    for words in passages:
        score = 0.0
        for word in query:
            containing = sum(word in other for other in passages)
            idf = log(1 + (len(passages) - containing + 0.5) / (containing + 0.5))
            count = words.count(word)
            score += idf * count / (count + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["lion", "zebra tiger", "lion zebra"])
def test_scores_are_lucene_bm25(query: str) -> None:
    expected = _lucene_bm25(query.split(), [passage.split() for passage in PASSAGES])
    (indices,), (scores,) = top_documents([query], PASSAGES, 4)
    order = sorted((i for i in range(4) if expected[i] > 0), key=lambda i: -expected[i])
    assert indices.tolist() == order + [-1] * (4 - len(order))
    assert scores.tolist()[: len(order)] == pytest.approx([expected[i] for i in order], rel=1e-5)


def test_words_match_by_their_stem_and_stop_words_do_not_count() -> None:
    indices, _ = top_documents(["running the races"], ["he runs a race", "the the the"], 2)
    assert indices.tolist() == [[0, -1]]


def test_equal_scores_stand_by_lower_index() -> None:
    indices, _ = top_documents(["cat"], ["a dog", "cat one", "cat two", "cat one"], 3)
    assert indices.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("query", ["", "the", "unheard"])
def test_query_without_a_known_word_finds_nothing(query: str) -> None:
    indices, scores = top_documents([query], ["cat", "dog"], 2)
    assert indices.tolist() == [[-1, -1]]
    assert scores.tolist() == [[0, 0]]


def test_passages_without_words_are_never_found() -> None:
    indices, _ = top_documents(["cat"], ["the", ""], 2)
    assert indices.tolist() == [[-1, -1]]
