"""Ceilings and what stays below them: the same as reading the definitions aloud, on uneven lists."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.mining.positive_aware import Method, ceilings, keep_below

# Few distinct scores, negative ones too: ties are everywhere.
SCORES = st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0])
METHODS: list[Method] = ["naive", "shifted", "absolute", "margin", "percentage"]


@st.composite
def a_search(draw: st.DrawFn) -> tuple[list[dict[int, float]], list[list[int]]]:
    """Candidates of each query by document, and its positives: none, one or several, found or not."""
    queries, positives = [], []
    for _ in range(draw(st.integers(0, 4))):
        queries.append(draw(st.dictionaries(st.integers(0, 12), SCORES, max_size=9)))
        positives.append(draw(st.lists(st.integers(0, 14), max_size=3)))
    return queries, positives


def _arrays(queries: list[dict[int, float]], reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    depth = max(map(len, queries), default=0) + 1
    indices, scores = np.full((len(queries), depth), -1, np.int64), np.zeros((len(queries), depth), np.float32)
    for row, found in enumerate(queries):
        for place, document in enumerate(sorted(found, reverse=reverse)):
            indices[row, place], scores[row, place] = document, found[document]
    return indices, scores


def _ceiling(method: Method, positive: float, value: float) -> float:
    if method in ("naive", "shifted"):
        return math.inf
    if method == "absolute":
        return value
    if method == "margin":
        return positive - value
    return positive * value if positive >= 0 else positive * (2 - value)


@given(a_search(), st.sampled_from(METHODS), SCORES, st.integers(1, 11), st.integers(0, 4), st.booleans())
def test_kept_negatives_equal_the_definition(
    search: tuple[list[dict[int, float]], list[list[int]]],
    method: Method,
    positive: float,
    k: int,
    shift: int,
    reverse: bool,
) -> None:
    queries, positives = search
    shift = shift if method == "shifted" else 0
    # A lowest positive per query; the first query's is the drawn one, and duplicates of it under another id tie it.
    lowest = [positive if row == 0 else -positive for row in range(len(queries))]
    limits = ceilings(method, np.array(lowest, np.float32), value=0.5)
    indices, scores = keep_below(*_arrays(queries, reverse), limits, k, shift=shift, excluded=positives)
    assert indices.shape == scores.shape == (len(queries), k)
    for row, found in enumerate(queries):
        ranking = sorted((d for d in found if d not in positives[row]), key=lambda d: (-found[d], d))
        kept = [d for d in ranking[shift:] if found[d] < _ceiling(method, lowest[row], 0.5)][:k]
        assert indices[row].tolist() == kept + [-1] * (k - len(kept))
        assert scores[row].tolist() == [found[d] for d in kept] + [0.0] * (k - len(kept))


@given(st.floats(-1, 1, width=32), st.floats(0, 1))
def test_no_share_up_to_one_puts_the_ceiling_above_the_positive(positive: float, share: float) -> None:
    (ceiling,) = ceilings("percentage", np.array([positive], np.float32), value=share).tolist()
    assert ceiling <= positive


def test_percentage_of_a_negative_positive_is_below_it() -> None:
    found = ceilings("percentage", np.array([0.8, -0.5, 0.0], np.float32), value=0.75)
    assert found.tolist() == pytest.approx([0.6, -0.625, 0.0])
    assert found.dtype == np.float32


@pytest.mark.parametrize("method", ["absolute", "margin", "percentage"])
def test_score_equal_to_its_ceiling_is_refused(method: Method) -> None:
    limits = ceilings(method, np.array([1.0], np.float32), value=0.5)
    indices, _ = keep_below(np.array([[4, 5]]), np.array([[0.5, 0.25]], np.float32), limits, 2)
    assert indices.tolist() == [[5, -1]]


def test_shift_skips_ranks_after_the_known_positives_are_out() -> None:
    scores = np.array([[5, 4, 3, 2, 1]], np.float32)
    limits = ceilings("shifted", np.array([5], np.float32))
    indices, _ = keep_below(np.array([[9, 8, 7, 6, 5]]), scores, limits, 2, shift=1, excluded=[{9, 7}])
    assert indices.tolist() == [[6, 5]]


@pytest.mark.parametrize("method", ["margin", "percentage"])
def test_duplicate_of_the_positive_under_another_id_is_refused(method: Method) -> None:
    limits = ceilings(method, np.array([0.7, -0.7], np.float32), value={"margin": 0.0, "percentage": 1.0}[method])
    scores = np.array([[0.7, 0.6], [-0.7, -0.8]], np.float32)
    indices, _ = keep_below(np.array([[3, 4], [3, 4]]), scores, limits, 2)
    assert indices.tolist() == [[4, -1], [4, -1]]


def test_positive_without_a_score_leaves_nothing_where_the_method_needs_it() -> None:
    positive = np.array([np.nan], np.float32)
    kept = {
        method: keep_below(np.array([[1]]), np.zeros((1, 1), np.float32), ceilings(method, positive, value=0.5), 1)[0]
        for method in METHODS
    }
    assert {method: one.tolist() for method, one in kept.items()} == {
        "naive": [[1]],
        "shifted": [[1]],
        "absolute": [[1]],
        "margin": [[-1]],
        "percentage": [[-1]],
    }


def test_impossible_numbers_are_refused_by_name() -> None:
    nothing = np.zeros((1, 0), np.int64), np.zeros((1, 0), np.float32), np.zeros(1, np.float32)
    with pytest.raises(CurationError, match="k = 0"):
        keep_below(*nothing, 0)
    with pytest.raises(CurationError, match="shift = -1"):
        keep_below(*nothing, 1, shift=-1)
    with pytest.raises(CurationError, match="one per query"):
        keep_below(*nothing, 1, excluded=[{1}, {2}])
