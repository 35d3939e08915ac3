"""Exact search: the same as sorting everything, ties included, across the borders of tiles and blocks."""

import numpy as np
import pytest

from curation.mining.search import best_places, top_k


def _brute_force(scores: list[float], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]


@pytest.mark.parametrize("k", [1, 3, 7, 8, 20])
def test_best_places_sorts_and_breaks_ties_by_lower_index(k: int) -> None:
    scores = np.array([0.5, -1.0, 0.5, 2.0, 0.5, 0.5, -1.0, 0.0], np.float32)
    assert best_places(scores, k).tolist() == _brute_force(scores.tolist(), k)


def test_top_k_equals_sorting_all_products_across_tiles_and_blocks() -> None:
    draws = np.random.default_rng(0)
    # Small whole numbers: products are exact, and ties are everywhere.
    queries = draws.integers(-2, 3, (259, 3)).astype(np.float32)
    documents = draws.integers(-2, 3, (8_192 + 37, 3)).astype(np.float32)
    indices, scores = top_k(queries, documents, 6)
    for row in (0, 1, 255, 256, 258):
        products = documents @ queries[row]
        assert indices[row].tolist() == _brute_force(products.tolist(), 6)
        assert scores[row].tolist() == sorted(products.tolist(), reverse=True)[:6]


def test_top_k_finds_what_stands_in_the_last_tile() -> None:
    documents = np.zeros((8_192 * 2 + 1, 2), np.float32)
    documents[-1] = documents[8_192] = [1, 0]
    indices, _ = top_k(np.array([[1, 0]], np.float32), documents, 3)
    assert indices.tolist() == [[8_192, 8_192 * 2, 0]]


def test_top_k_of_fewer_documents_than_k_gives_them_all() -> None:
    indices, scores = top_k(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), 5)
    assert indices.tolist() == [[0, 1], [1, 0]]
    assert scores.tolist() == [[1, 0], [1, 0]]


def test_top_k_without_queries_is_empty() -> None:
    indices, scores = top_k(np.zeros((0, 2), np.float32), np.eye(2, dtype=np.float32), 2)
    assert indices.shape == scores.shape == (0, 2)
