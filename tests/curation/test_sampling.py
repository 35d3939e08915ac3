"""Samples of surviving negatives: by definition where they are certain, by Plackett-Luce where they are drawn."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import CurationError
from curation.mining.sampling import softmax, top, top1_softmax

SCORES = [0.9, 0.6, 0.6, -0.2]
TEMPERATURE = 0.5
ROUNDS = 8_000
# Five standard deviations of a share near one half.
TOLERANCE = 5 * (0.25 / ROUNDS) ** 0.5
KEYS = [f"document {number}" for number in range(12)]
LISTS = st.lists(st.lists(st.integers(0, 11), unique=True, max_size=6), max_size=4)


def _survivors(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    indices = np.array([one + [-1] * (7 - len(one)) for one in lists], np.int64).reshape(len(lists), 7)
    return indices, np.where(indices >= 0, 1 - indices / 10, 0).astype(np.float32)


def _plackett_luce(chosen: tuple[int, ...]) -> float:
    """Chance that these are drawn first, in any order."""
    weights = np.exp(np.array(SCORES) / TEMPERATURE)
    total = 0.0
    for order in permutations(chosen):
        left, chance = float(weights.sum()), 1.0
        for place in order:
            chance *= float(weights[place]) / left
            left -= float(weights[place])
        total += chance
    return total


@pytest.mark.parametrize("k", [1, 2, 3])
def test_softmax_draws_sets_as_plackett_luce_says(k: int) -> None:
    indices = np.tile(np.arange(4), (ROUNDS, 1))
    scores = np.tile(np.array(SCORES, np.float32), (ROUNDS, 1))
    queries = list(range(ROUNDS))
    drawn, _ = softmax(indices, scores, k, temperature=TEMPERATURE, seed=3, query_keys=queries, document_keys=KEYS)
    for chosen in combinations(range(4), k):
        share = float((drawn == np.array(chosen)).all(axis=1).mean())
        assert share == pytest.approx(_plackett_luce(chosen), abs=TOLERANCE)


def test_softmax_draws_differ_from_seed_to_seed_in_the_same_shares() -> None:
    indices, scores = np.arange(4)[None], np.array([SCORES], np.float32)
    drawn = []
    for seed in range(ROUNDS):
        taken, _ = softmax(indices, scores, 1, temperature=TEMPERATURE, seed=seed, query_keys=["q"], document_keys=KEYS)
        drawn.append(int(taken[0, 0]))
    for place in range(4):
        assert drawn.count(place) / ROUNDS == pytest.approx(_plackett_luce((place,)), abs=TOLERANCE)


def test_top1_softmax_always_has_the_first_and_draws_the_rest() -> None:
    indices, scores = np.tile(np.arange(4), (ROUNDS, 1)), np.tile(np.array(SCORES, np.float32), (ROUNDS, 1))
    drawn, _ = top1_softmax(
        indices, scores, 2, temperature=TEMPERATURE, seed=3, query_keys=list(range(ROUNDS)), document_keys=KEYS
    )
    assert (drawn[:, 0] == 0).all()
    weights = np.exp(np.array(SCORES[1:]) / TEMPERATURE)
    for place, chance in zip((1, 2, 3), weights / weights.sum(), strict=True):
        assert float((drawn[:, 1] == place).mean()) == pytest.approx(float(chance), abs=TOLERANCE)


@given(LISTS, st.integers(1, 9), st.integers(0, 20))
def test_samples_are_survivors_in_the_order_given(lists: list[list[int]], k: int, seed: int) -> None:
    indices, scores = _survivors(lists)
    queries = list(range(len(lists)))
    for sample in (softmax, top1_softmax):
        drawn, of_drawn = sample(indices, scores, k, temperature=0.3, seed=seed, query_keys=queries, document_keys=KEYS)
        assert drawn.shape == of_drawn.shape == (len(lists), k)
        for row, survivors in enumerate(lists):
            taken = [document for document in drawn[row].tolist() if document >= 0]
            assert taken == [document for document in survivors if document in taken]
            assert len(taken) == min(k, len(survivors))
            assert drawn[row, len(taken) :].tolist() == [-1] * (k - len(taken))
            assert of_drawn[row, : len(taken)].tolist() == pytest.approx([1 - document / 10 for document in taken])
            assert sample is softmax or taken[:1] == survivors[:1]


@given(st.permutations(range(6)), st.permutations(range(3)))
def test_a_draw_depends_on_content_not_on_place(documents: list[int], queries: list[int]) -> None:
    base = np.tile(np.arange(6), (3, 1)), np.tile(np.linspace(1, 0, 6, dtype=np.float32), (3, 1))
    names = ["a", "b", "c"]
    expected, _ = softmax(*base, 2, temperature=0.2, seed=1, query_keys=names, document_keys=KEYS)
    # Other indices for the same documents, and the queries in another order.
    renamed = np.array(documents)[base[0]]
    keys = [KEYS[documents.index(number)] for number in range(6)]
    drawn, _ = softmax(
        renamed, base[1], 2, temperature=0.2, seed=1, query_keys=[names[q] for q in queries], document_keys=keys
    )
    assert drawn.tolist() == np.array(documents)[expected[queries]].tolist()


@given(LISTS, st.integers(1, 9))
def test_top_is_the_head_of_the_list(lists: list[list[int]], k: int) -> None:
    drawn, _ = top(*_survivors(lists), k)
    assert drawn.tolist() == [(one + [-1] * k)[:k] for one in lists]


def test_temperature_near_zero_is_the_top_and_large_is_even() -> None:
    indices, scores = np.tile(np.arange(4), (ROUNDS, 1)), np.tile(np.array([3, 2, 1, 0], np.float32), (ROUNDS, 1))
    arguments = {"seed": 5, "query_keys": list(range(ROUNDS)), "document_keys": KEYS}
    cold, _ = softmax(indices, scores, 2, temperature=1e-3, **arguments)
    hot, _ = softmax(indices, scores, 1, temperature=1e6, **arguments)
    assert (cold == [0, 1]).all()
    assert np.bincount(hot[:, 0], minlength=4) / ROUNDS == pytest.approx([0.25] * 4, abs=TOLERANCE)


@pytest.mark.parametrize(("k", "temperature", "named"), [(0, 1.0, "k = 0"), (1, 0.0, "temperature"), (1, -1.0, "-1.0")])
def test_impossible_numbers_are_refused_by_name(k: int, temperature: float, named: str) -> None:
    for sample in (softmax, top1_softmax):
        with pytest.raises(CurationError, match=named):
            sample(*_survivors([[1]]), k, temperature=temperature, seed=0, query_keys=["q"], document_keys=KEYS)
    with pytest.raises(CurationError, match="k = 0"):
        top(*_survivors([[1]]), 0)
