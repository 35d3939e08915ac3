"""Shingles, Jaccard and MinHash against brute force, on uneven texts."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.audit.bands import BandFile, Clusters
from curation.audit.shingles import NUM_BANDS, Ints, band_keys, jaccard, near_within, shingle, words_of

TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "B", "c,", "ü", "ｄ", "..."]), max_size=9).map(" ".join), min_size=1, max_size=7
)


def sets_of(texts: list[str], size: int) -> list[set[tuple[str, ...]]]:
    words = [words_of(text) for text in texts]
    return [
        {tuple(one[at : at + size]) for at in range(len(one) - size + 1)} if len(one) >= size else {tuple(one)}
        for one in words
    ]


def similarity(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


@given(texts=TEXTS, size=st.integers(1, 4))
def test_jaccard_equals_that_of_sets(texts: list[str], size: int) -> None:
    shingles, sets = shingle(texts, size), sets_of(texts, size)
    assert shingles.sizes.tolist() == [len(one) for one in sets]
    pairs = np.array([(i, j) for i in range(len(texts)) for j in range(len(texts))])
    ours = jaccard(shingles, pairs[:, 0], pairs[:, 1])
    assert ours.tolist() == pytest.approx([similarity(sets[i], sets[j]) for i, j in pairs])
    taken = shingles.take(pairs[:, 1]).followed_by(shingles)
    assert jaccard(taken, np.arange(len(pairs)), pairs[:, 0] + len(pairs)).tolist() == pytest.approx(ours.tolist())


@given(texts=TEXTS, threshold=st.sampled_from([0.2, 0.5, 1.0]), seed=st.integers(0, 9))
def test_near_within_groups_equals_brute_force(texts: list[str], threshold: float, seed: int) -> None:
    groups = [random.Random(seed + n).randrange(3) for n in range(len(texts))]
    sets = sets_of(texts, 2)
    wanted = {
        (i, j): similarity(sets[i], sets[j])
        for i, j in combinations(range(len(texts)), 2)
        if groups[i] == groups[j] and similarity(sets[i], sets[j]) >= threshold
    }
    first, second, values = near_within(shingle(texts, 2), np.array(groups), threshold)
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), values.tolist(), strict=True))
    assert found == pytest.approx(wanted)


def test_words_have_no_case_no_punctuation_and_unspaced_scripts_are_cut() -> None:
    assert words_of("The  ＣＡＴ's--hat!") == ["the", "cat", "s", "hat"]
    assert words_of("检索 abc模型") == ["检", "索", "abc", "模", "型"]
    assert words_of("...") == ["..."]
    same = shingle(["A b, c", "a B c!", "a c b"], 3).whole
    assert same[0] == same[1] != same[2]


def near_texts(num: int, seed: int) -> list[str]:
    """Texts of 30 words; every third is the one before it with up to three words changed."""
    draw = random.Random(seed)
    texts: list[str] = []
    for place in range(num):
        words = [f"w{draw.randrange(300)}" for _ in range(30)]
        if place % 3 == 2:
            words = texts[-1].split()
            for _ in range(draw.randrange(4)):
                words[draw.randrange(30)] = "other"
        texts.append(" ".join(words))
    return texts


def pairs_found(texts: list[str]) -> set[tuple[int, int]]:
    shingles = shingle(texts, 3)
    with BandFile(1 + NUM_BANDS) as bands:
        for start in range(0, len(texts), 7):
            page = shingles.take(np.arange(start, min(start + 7, len(texts))))
            bands.append(np.column_stack([page.whole, band_keys(page)]))
        proposed = [pairs for column in range(1 + NUM_BANDS) for pairs in bands.pairs(column, num_pairs=5)]
    pairs: Ints = np.unique(np.sort(np.concatenate([np.empty((0, 2), int), *proposed]), axis=1), axis=0)
    return {(int(i), int(j)) for (i, j), s in zip(pairs, jaccard(shingles, *pairs.T), strict=True) if s >= 0.8}


@pytest.mark.parametrize("seed", range(4))
def test_bands_find_the_pairs_of_brute_force(seed: int) -> None:
    texts = near_texts(200, seed)
    sets = sets_of(texts, 3)
    wanted = {(i, j) for i, j in combinations(range(200), 2) if similarity(sets[i], sets[j]) >= 0.8}
    assert len(wanted) > 20
    # 2 pairs in 10,000 are missed at 0.8, fewer above: none of these.
    assert pairs_found(texts) == wanted


def test_a_bucket_of_more_texts_than_are_compared_one_by_one_still_joins_them_all() -> None:
    texts = ["the same sentence again and again", *near_texts(3, 1)] + ["The same sentence, again and again"] * 90
    clusters = Clusters(len(texts))
    for one, other in pairs_found(texts):
        clusters.join(one, other)
    assert clusters.num_joins >= 90
    assert len({clusters.root(place) for place in (0, *range(4, 94))}) == 1


def test_recall_at_the_threshold_is_what_the_bands_promise() -> None:
    # Pairs of sets of 90 shingles that share 80: Jaccard 0.8, found with probability 1 - (1 - 0.8^4)^16 = 0.9998.
    draw = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        words = [f"w{n}" for n in draw.integers(0, 10**9, 100)]
        keys = band_keys(shingle([" ".join(words[:90]), " ".join(words[10:])], 1))
        found += bool((keys[0] == keys[1]).any())
    assert found >= 298


def test_clusters_count_joins_and_find_first_members() -> None:
    clusters = Clusters(6)
    assert [clusters.join(*pair) for pair in ((4, 2), (2, 1), (1, 4), (5, 3))] == [True, True, False, True]
    assert clusters.num_joins == 3
    assert clusters.roots().tolist() == [0, 1, 1, 3, 1, 3]
