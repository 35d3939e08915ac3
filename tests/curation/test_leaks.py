"""Leaks and their causes by value: weighted AUC, folds that keep groups whole, and causes that were planted."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from curation.audit.causes import find_causes
from curation.audit.leaks import area_under_curve, compare_sets, held_out_scores, leak_of, ngram_counts
from curation.errors import CurationError

WORDS = (
    "otter", "badger", "river", "den", "fish", "water", "night", "tunnel", "forest", "paw", "winter", "stream",
    "meadow", "trout",
)  # fmt: skip


def text(seed: int, *, num_words: int = 40, ending: str = "") -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + ending for _ in range(num_words))


@given(rows=st.lists(st.tuples(st.booleans(), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.integers(0, 3)), max_size=12))
def test_weighted_area_equals_repeated_rows(rows: list[tuple[bool, float, int]]) -> None:
    labels, scores, weights = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    repeated = [(label, score) for label, score, weight in rows for _ in range(weight)]
    ours = area_under_curve(labels.astype(int), scores.astype(float), weights.astype(float))
    if len({label for label, _ in repeated}) < 2:
        assert np.isnan(ours)
        return
    assert ours == pytest.approx(roc_auc_score([label for label, _ in repeated], [score for _, score in repeated]))


def test_sets_of_different_sizes_keep_each_group_on_one_side() -> None:
    first, second = [n // 3 for n in range(90)], [n % 40 for n in range(55)]
    comparison = compare_sets(first, second)
    assert comparison.labels.sum() == 90 and len(comparison.labels) == 145
    held_out = np.concatenate([test for _, test in comparison.folds])
    assert sorted(held_out.tolist()) == list(range(145))
    for train, test in comparison.folds:
        assert not set(comparison.groups[train]) & set(comparison.groups[test])


def test_a_set_of_few_groups_is_refused_however_many_texts_it_has() -> None:
    with pytest.raises(CurationError, match="at least 10"):
        compare_sets([0] * 50 + list(range(1, 9)), list(range(50)))


def test_the_interval_is_that_of_drawn_groups() -> None:
    groups = [n // 2 for n in range(60)]
    comparison = compare_sets(groups, groups)
    scores = np.random.default_rng(1).normal(size=120) + comparison.labels * 0.7
    leak = leak_of(comparison, scores, seed=3)
    aucs = []
    for drawn in np.random.default_rng(3).integers(0, 30, (200, 30)):
        rows = np.concatenate([np.flatnonzero(comparison.groups == group) for group in drawn])
        aucs.append(roc_auc_score(comparison.labels[rows], scores[rows]))
    low, high = np.quantile(aucs, [0.025, 0.975])
    assert (leak.low, leak.high) == (pytest.approx(low), pytest.approx(high))
    assert leak.auc == pytest.approx(roc_auc_score(comparison.labels, scores))


def causes_of(first: list[str], second: list[str]):  # type: ignore[no-untyped-def]
    comparison = compare_sets(range(len(first)), range(len(second)))
    texts = [*first, *second]
    return find_causes(comparison, texts, ngram_counts(texts))


def test_the_planted_cause_is_named_with_its_means_and_markers() -> None:
    plain = [text(n) for n in range(60)]
    marked = [text(n + 500, ending="ish" if n % 10 else "") for n in range(60)]
    causes = causes_of(marked, plain)
    auc = {cause.name: cause.auc for cause in causes.properties}
    assert auc["vocabulary"] > 0.9 and auc["mean word length"] > 0.9
    assert abs(auc["length in words"] - 0.5) < 0.15 and abs(auc["digit rate"] - 0.5) < 0.15
    longer = next(cause for cause in causes.properties if cause.name == "mean word length")
    assert longer.mean_first == pytest.approx(np.mean([len(t.replace(" ", "")) / 40 for t in marked]))
    assert any("ish" in marker.text for marker in causes.first_ngrams)
    assert not any("ish" in marker.text for marker in causes.second_ngrams)
    for marker in (*causes.first_ngrams, *causes.second_ngrams):
        # char_wb pads each word with one space.
        padded = [[f" {word} " for word in one.split()] for one in (*marked, *plain)]
        has = [any(marker.text in word for word in words) for words in padded]
        assert marker.share_first == pytest.approx(np.mean(has[:60]))
        assert marker.share_second == pytest.approx(np.mean(has[60:]))
    assert all(marker.weight > 0 for marker in causes.first_words)
    assert all(marker.weight < 0 for marker in causes.second_words)


def test_a_set_that_is_unusually_uniform_shows_though_its_mean_is_the_same() -> None:
    uniform = [text(n, num_words=30) for n in range(80)]
    spread = [text(n + 300, num_words=(10, 50)[n % 2]) for n in range(80)]
    auc = {cause.name: cause.auc for cause in causes_of(uniform, spread).properties}
    assert auc["length in words"] == pytest.approx(1.0)


def test_texts_without_a_word_are_told_by_what_they_have() -> None:
    causes = causes_of(["!!! ???"] * 20, ["--- ;;;"] * 20)
    assert {cause.name: cause.auc for cause in causes.properties}["vocabulary"] == pytest.approx(0.5)
    comparison = compare_sets(range(20), range(20))
    scores = held_out_scores(comparison, ngram_counts(["!!! ???"] * 20 + ["--- ;;;"] * 20))
    assert leak_of(comparison, scores).auc == 1.0
