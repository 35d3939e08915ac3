"""The consensus ceiling against the formula in plain Python, with teachers that listed little, nothing or one score."""

import math
from itertools import product
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.mining.consensus import consensus, keep_below_consensus, standardised, teacher_weights

# Few distinct scores on different scales; None: the teacher did not list the candidate.
SCORES = st.sampled_from([None, -40.0, -1.0, 0.0, 0.5, 0.75, 12.0])
TABLES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(*(_table(shape[0], shape[1], last) for last in (shape[2], 1)))
)
Table = list[list[list[float | None]]]


def _table(num_teachers: int, num_queries: int, depth: int) -> st.SearchStrategy[Table]:
    row = st.lists(SCORES, min_size=depth, max_size=depth)
    of_teacher = st.lists(row, min_size=num_queries, max_size=num_queries)
    return st.lists(of_teacher, min_size=num_teachers, max_size=num_teachers)


def _array(table: Table) -> np.ndarray:
    return np.array(table, np.float64).astype(np.float32)


def _standardised(of_teacher: list[list[float | None]], query: int, score: float | None) -> float:
    """One score of a teacher's, between what its list says and what all its lists say."""
    everything = [one for row in of_teacher for one in row if one is not None]
    listed = [one for one in of_teacher[query] if one is not None]
    if not everything or pstdev(everything) == 0 or not listed:
        return 0.0 if score is None or not everything or pstdev(everything) == 0 else _of_unlisted(everything, score)
    centre = (fmean(listed) + fmean(everything)) / 2
    scale = (pstdev(listed) + pstdev(everything)) / 2
    return ((min(listed) if score is None else score) - centre) / scale


def _of_unlisted(everything: list[float], score: float) -> float:
    """A positive's score where the teacher listed nothing for its query."""
    return (score - fmean(everything)) / (pstdev(everything) / 2)


@given(TABLES)
def test_every_teacher_speaks_on_its_own_scale(tables: tuple[Table, Table]) -> None:
    table, of_positive = tables
    candidates, positives = standardised(_array(table), _array(of_positive)[:, :, 0])
    for teacher, query in product(range(len(table)), range(len(table[0]))):
        for place, score in enumerate(table[teacher][query]):
            expected = _standardised(table[teacher], query, score)
            assert candidates[teacher, query, place] == pytest.approx(expected, abs=1e-6)
        expected = _standardised(table[teacher], query, of_positive[teacher][query][0])
        assert positives[teacher, query] == pytest.approx(expected, abs=1e-6)


@given(TABLES)
def test_consensus_is_the_weighted_mean(tables: tuple[Table, Table]) -> None:
    scores, positive_scores = _array(tables[0]), _array(tables[1])[:, :, 0]
    each, of_positive = standardised(scores, positive_scores)
    weights = teacher_weights(each, of_positive, np.isfinite(scores).any(axis=0))
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    candidates, positives = consensus(scores, positive_scores)
    assert candidates == pytest.approx(sum(w * one for w, one in zip(weights, each, strict=True)), abs=1e-4)
    assert positives == pytest.approx(sum(w * one for w, one in zip(weights, of_positive, strict=True)), abs=1e-4)


def test_weights_are_fishers_discriminant_worked_by_hand() -> None:
    # Two teachers of variance 1 and covariance 0.6, halved to 0.3; positives stand 2 and 1 above the mean of 0.
    first = np.array([1.0, 1, 1, 1, -1, -1, -1, -1, 1, -1])
    second = np.array([1.0, 1, 1, 1, -1, -1, -1, -1, -1, 1])
    is_candidate = np.array([[True] * 10 + [False]])
    candidates = np.array([[[*first, 99]], [[*second, -99]]])
    weights = teacher_weights(candidates, np.array([[2.0], [1.0]]), is_candidate)
    # [[1, 0.3], [0.3, 1]]^-1 (2, 1) ~ (2 - 0.3, 1 - 0.6)
    assert weights.tolist() == pytest.approx([1.7 / 2.1, 0.4 / 2.1])
    against = teacher_weights(candidates, np.array([[2.0], [-1.0]]), is_candidate)
    assert against.tolist() == pytest.approx([1.0, 0.0])
    none = teacher_weights(candidates, np.array([[-2.0], [-2.0]]), is_candidate)
    assert none.tolist() == [0.5, 0.5]


@given(TABLES, st.integers(1, 7), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([-0.53, 0.0, 0.61]))
def test_kept_negatives_equal_the_definition(tables: tuple[Table, Table], k: int, weight: float, offset: float) -> None:
    table, of_positive = tables
    scores, positive_scores = _array(table), _array(of_positive)[:, :, 0]
    num_queries, depth = scores.shape[1:]
    # Documents in falling order, so that ties by the lower document are not ties by place.
    indices = np.tile(np.arange(depth)[::-1] + 5, (num_queries, 1))
    excluded = [[5 + query] for query in range(num_queries)]
    kept, of_kept = keep_below_consensus(
        indices, scores, positive_scores, k, order_by=0, weight=weight, offset=offset, excluded=excluded
    )
    candidates, positives = consensus(scores, positive_scores)
    limits = [np.float32(weight * float(positive) + offset) for positive in positives]
    for query in range(num_queries):
        allowed = [
            (-float(scores[0, query, place]), int(indices[query, place]))
            for place in range(depth)
            if not math.isnan(scores[0, query, place])
            and candidates[query, place] < limits[query]
            and indices[query, place] not in excluded[query]
        ]
        expected = sorted(allowed)[:k]
        assert kept[query].tolist() == [document for _, document in expected] + [-1] * (k - len(expected))
        assert of_kept[query, : len(expected)].tolist() == [-score for score, _ in expected]


def test_one_teachers_scale_does_not_matter() -> None:
    draws = np.random.default_rng(0)
    scores, of_positive = draws.normal(size=(3, 4, 9)), draws.normal(size=(3, 4))
    factors, shifts = np.array([1, 1000, 0.01]), np.array([0, -7, 90])
    expected = consensus(scores, of_positive)
    found = consensus(
        scores * factors[:, None, None] + shifts[:, None, None], of_positive * factors[:, None] + shifts[:, None]
    )
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def test_duplicate_of_the_positive_is_refused_where_the_positive_stands_above_the_bulk() -> None:
    scores = np.array([[[0.9, 0.9, 0.2, 0.1]], [[30, 30, 10, np.nan]]], np.float32)
    kept, _ = keep_below_consensus(
        np.array([[7, 3, 1, 2]]), scores, scores[:, :, 0], 3, order_by=0, weight=1.0, excluded=[[7]]
    )
    assert kept.tolist() == [[1, 2, -1]]


def test_teacher_alone_is_overruled_by_the_others() -> None:
    # The first teacher puts document 0 far above the positive (1) and 2 far below; the other two say the opposite.
    scores = np.array([[[9, 5, 3, 1]], [[1, 6, 9, 1]], [[2, 6, 8, 2]]], np.float32)
    kept, _ = keep_below_consensus(np.array([[0, 1, 2, 3]]), scores, scores[:, :, 1], 3, order_by=0, excluded=[[1]])
    assert kept.tolist() == [[0, 3, -1]]


def test_unknown_teacher_is_refused_by_name() -> None:
    scores = np.zeros((2, 1, 1), np.float32)
    with pytest.raises(CurationError, match="order_by = 2"):
        keep_below_consensus(np.zeros((1, 1), np.int64), scores, scores[:, :, 0], 1, order_by=2)
