"""Exact search equals sorting everything in double precision: ties, ceilings, exclusions, formats, devices, borders."""

from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation.errors import CurationError
from curation.mining import scanning
from curation.mining.search import Floats, best_places, top_k

# cpu:0 is the same processor by the road that a GPU takes.
WAYS = [("float32", "cpu"), ("half", "cpu"), ("float32", "cpu:0"), ("half", "cpu:0")]


def _brute_force(
    queries_QE: Floats,
    documents_DE: NDArray[np.floating],
    k: int,
    ceilings_Q: Sequence[float] | None = None,
    excluded: Sequence[Collection[int]] = (),
) -> list[list[int]]:
    scores = np.einsum("qe,de->qd", queries_QE.astype(np.float64), documents_DE.astype(np.float64))
    rows = []
    for query, of_query in enumerate(scores.tolist()):
        ceiling = np.inf if ceilings_Q is None else ceilings_Q[query]
        left_out = excluded[query] if excluded else ()
        kept = [d for d, score in enumerate(of_query) if score < ceiling and d not in left_out]
        best = sorted(kept, key=lambda d: (-of_query[d], d))[:k]
        rows.append(best + [-1] * (k - len(best)))
    return rows


def _unit(draws: np.random.Generator, num: int, dimension: int) -> Floats:
    vectors = draws.standard_normal((num, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 3, 7, 8, 20])
def test_best_places_sorts_and_breaks_ties_by_lower_index(k: int) -> None:
    scores = np.array([0.5, -1.0, 0.5, 2.0, 0.5, 0.5, -1.0, 0.0], np.float32)
    assert best_places(scores, k).tolist() == sorted(range(8), key=lambda place: (-scores[place], place))[:k]


@pytest.mark.parametrize(("precision", "device"), WAYS)
@pytest.mark.parametrize("k", [1, 5, 100])
def test_best_equal_brute_force_across_borders_of_tiles_and_blocks(k: int, precision: str, device: str) -> None:
    draws = np.random.default_rng(k)
    queries, documents = _unit(draws, 2_051, 7), _unit(draws, 4_700, 7)
    documents[4_600:] = documents[100:200]  # duplicates, in other tiles: scores tie
    queries[0] = documents[7]
    indices, scores = top_k(queries, documents, k, precision=precision, device=device)  # type: ignore[arg-type]
    assert indices[::41].tolist() == _brute_force(queries[::41], documents, k)
    assert np.abs(scores - np.einsum("qe,qke->qk", queries, documents[indices])).max() < 1e-6


@pytest.mark.parametrize(("precision", "device"), WAYS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_queries=st.integers(0, 9),
    num_documents=st.integers(0, 90),
    k=st.integers(1, 40),
    num_values=st.integers(1, 4),
    has_ceilings=st.booleans(),
    has_excluded=st.booleans(),
)
def test_ties_ceilings_and_exclusions_equal_brute_force(
    precision: str,
    device: str,
    seed: int,
    num_queries: int,
    num_documents: int,
    k: int,
    num_values: int,
    has_ceilings: bool,
    has_excluded: bool,
) -> None:
    """Few values make many exact ties, and scores exactly at a ceiling; half of the scores are negative."""
    draws = np.random.default_rng(seed)
    queries = draws.integers(-num_values, num_values + 1, (num_queries, 3)).astype(np.float32)
    documents = draws.integers(-num_values, num_values + 1, (num_documents, 3)).astype(np.float16)
    ceilings = draws.integers(-5, 6, num_queries).astype(float) if has_ceilings else None
    excluded = [set(draws.integers(0, num_documents + 3, 4).tolist()) for _ in queries] if has_excluded else []
    found, scores = top_k(
        queries, documents, k, ceilings_Q=ceilings, excluded=excluded,
        precision=precision, device=device,  # type: ignore[arg-type]
    )  # fmt: skip
    of = None if ceilings is None else ceilings.tolist()
    assert found.tolist() == _brute_force(queries, documents, k, of, excluded)
    assert (scores[found < 0] == 0).all()


@pytest.mark.parametrize(("precision", "device"), WAYS)
def test_ceiling_is_strict_to_the_last_bit(precision: str, device: str) -> None:
    draws = np.random.default_rng(5)
    queries, documents = _unit(draws, 3, 48), _unit(draws, 5_000, 48)
    exact = np.einsum("qe,de->qd", queries.astype(np.float64), documents.astype(np.float64))
    third = np.sort(exact, axis=1)[:, -3]
    order = np.argsort(-exact, axis=1)
    below, _ = top_k(queries, documents, 4, ceilings_Q=third, precision=precision, device=device)  # type: ignore[arg-type]
    assert below.tolist() == order[:, 3:7].tolist()
    just_above = np.nextafter(third, 1)
    above, _ = top_k(queries, documents, 4, ceilings_Q=just_above, precision=precision, device=device)  # type: ignore[arg-type]
    assert above.tolist() == order[:, 2:6].tolist()


def test_query_without_a_ceiling_number_finds_nothing() -> None:
    indices, scores = top_k(
        np.ones((2, 2), np.float32), np.ones((3, 2), np.float32), 2, ceilings_Q=np.array([np.nan, 9])
    )
    assert indices.tolist() == [[-1, -1], [0, 1]]
    assert scores.tolist() == [[0, 0], [2, 2]]


def test_documents_that_improve_all_the_way_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "_DOCUMENTS", 64)
    documents = np.linspace(-1, 1, 1_000, dtype=np.float32)[:, None]
    indices, _ = top_k(np.array([[1], [-1]], np.float32), documents, 70)
    assert indices.tolist() == [list(range(999, 929, -1)), list(range(70))]


def test_memory_map_in_half_precision_is_read_in_tiles() -> None:
    class Counted:
        """Vectors that note the largest part asked for."""

        def __init__(self, vectors: NDArray[np.float16]) -> None:
            self._vectors, self.largest = vectors, 0
            self.shape = vectors.shape

        def __getitem__(self, rows: "slice | NDArray[np.int64]") -> NDArray[np.floating]:
            part = self._vectors[rows]
            self.largest = max(self.largest, len(part))
            return part

    draws = np.random.default_rng(2)
    queries, documents = _unit(draws, 5, 6), Counted(_unit(draws, 9_000, 6).astype(np.float16))
    indices, _ = top_k(queries, documents, 4)
    assert indices.tolist() == _brute_force(queries, documents[:], 4)
    documents.largest = 0
    top_k(queries, documents, 4)
    assert documents.largest <= 2_048


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k = 0"),
        ({"documents_DE": np.ones((4, 5), np.float32)}, "queries have 3 dimensions and documents 5"),
        ({"excluded": [{1}]}, "1 collections for 2 queries"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    usual = {"queries_QE": np.ones((2, 3), np.float32), "documents_DE": np.ones((4, 3), np.float32), "k": 2}
    with pytest.raises(CurationError, match=message):
        top_k(**{**usual, **arguments})  # type: ignore[arg-type]
