"""Ensembles against queues of plain lists, with empty, short and overlapping teachers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.mining.ensembles import Ensemble, cross_sample, intra_sample

# Per teacher and query a short list of distinct documents, often empty.
KEPT = st.integers(1, 3).flatmap(
    lambda num_queries: st.lists(
        st.lists(
            st.lists(st.integers(0, 6), unique=True, max_size=4),
            min_size=num_queries,
            max_size=num_queries,
        ),
        min_size=1,
        max_size=4,
    )
)
Kept = list[list[list[int]]]


def _array(kept: Kept) -> np.ndarray:
    return np.array([[one + [-1] * (5 - len(one)) for one in of_teacher] for of_teacher in kept], np.int64)


def _rows(ensemble: Ensemble) -> list[list[tuple[int, int, int]]]:
    fields = (ensemble.indices, ensemble.teachers, ensemble.ranks)
    return [list(zip(*row, strict=True)) for row in zip(*(field.tolist() for field in fields), strict=True)]


def _padded(chosen: list[tuple[int, int, int]], k: int) -> list[tuple[int, int, int]]:
    return (chosen + [(-1, -1, -1)] * k)[:k]


def _in_turns(queues: list[list[int]], deduplicate: bool) -> list[tuple[int, int, int]]:
    """Everyone in turn hands out the front of a queue; a repeated one is thrown away when duplicates are unwanted."""
    left = [list(enumerate(queue, start=1)) for queue in queues]
    chosen: list[tuple[int, int, int]] = []
    while any(left):
        for teacher, queue in enumerate(left):
            while deduplicate and queue and queue[0][1] in [document for document, _, _ in chosen]:
                queue.pop(0)
            if queue:
                rank, document = queue.pop(0)
                chosen.append((document, teacher, rank))
    return chosen


@given(KEPT, st.integers(1, 9), st.booleans())
def test_intra_sample_equals_queues_that_take_turns(kept: Kept, k: int, deduplicate: bool) -> None:
    found = _rows(intra_sample(_array(kept), k, deduplicate=deduplicate))
    for query, row in enumerate(found):
        assert row == _padded(_in_turns([of_teacher[query] for of_teacher in kept], deduplicate), k)


@given(KEPT, st.integers(1, 9), st.integers(0, 50))
def test_cross_sample_is_one_teachers_list_per_query(kept: Kept, k: int, seed: int) -> None:
    keys = [f"query {number}" for number in range(len(kept[0]))]
    found = _rows(cross_sample(_array(kept), k, seed=seed, query_keys=keys))
    for query, row in enumerate(found):
        lists = [
            [(document, teacher, rank) for rank, document in enumerate(of_teacher[query], start=1)]
            for teacher, of_teacher in enumerate(kept)
        ]
        assert row in [_padded(one, k) for one in lists]


def test_cross_sample_draws_by_key_and_evenly() -> None:
    kept = np.arange(3)[:, None, None] * np.ones((3, 3_000, 1), np.int64)
    keys = [f"query {number}" for number in range(3_000)]
    drawn = cross_sample(kept, 1, seed=7, query_keys=keys).teachers[:, 0]
    backwards = cross_sample(kept, 1, seed=7, query_keys=keys[::-1]).teachers[:, 0]
    assert drawn.tolist() == backwards[::-1].tolist()
    # Standard deviation of each count is 26: five of them.
    assert all(abs(count - 1_000) < 130 for count in Counter(drawn.tolist()).values())


def test_duplicates_stay_once_per_teacher_or_are_replaced_by_the_next() -> None:
    kept = np.array([[[1, 2, 3]], [[1, 4, 5]]])
    with_duplicates = intra_sample(kept, 4, deduplicate=False)
    without = intra_sample(kept, 4, deduplicate=True)
    assert _rows(with_duplicates) == [[(1, 0, 1), (1, 1, 1), (2, 0, 2), (4, 1, 2)]]
    assert _rows(without) == [[(1, 0, 1), (4, 1, 2), (2, 0, 2), (5, 1, 3)]]


def test_fewer_than_one_negative_is_refused() -> None:
    kept = np.zeros((1, 1, 1), np.int64)
    with pytest.raises(CurationError, match="k = 0"):
        intra_sample(kept, 0, deduplicate=True)
    with pytest.raises(CurationError, match="k = 0"):
        cross_sample(kept, 0, seed=0, query_keys=["a"])
