"""Mixes and splits: counts are exact, R is met on average, and nothing leaks between sides."""

import random

from hypothesis import given
from hypothesis import strategies as st

from curation.release.mixing import fill_slots, share_of_synthetic
from curation.release.splits import assign_splits, components

KINDS = st.sampled_from(["hybrid", "direct", "synthetic", "mined"])


@given(
    kind=KINDS, ratio=st.floats(0.05, 5), slots=st.integers(1, 9), written=st.integers(0, 12), mined=st.integers(0, 12),
    example=st.text(max_size=5),
)  # fmt: skip
def test_slots_never_exceed_supply_and_fill_up_when_they_can(
    kind: str, ratio: float, slots: int, written: int, mined: int, example: str
) -> None:
    got = fill_slots(
        kind,
        ratio=ratio,
        slots=slots,
        num_synthetic=written,
        num_mined=mined,
        seed=0,
        example=example,  # type: ignore[arg-type]
    )
    assert 0 <= got[0] <= written and 0 <= got[1] <= mined
    if kind in ("hybrid", "direct"):
        assert sum(got) == min(slots, written + mined)
    else:
        assert sum(got) == min(slots, written if kind == "synthetic" else mined)
        assert got[1 if kind == "synthetic" else 0] == 0
    if kind == "hybrid" and written:
        assert got[0] >= 1


def test_hybrid_meets_the_ratio_on_average() -> None:
    for ratio, slots in ((0.7, 3), (1.0, 5), (0.5, 8)):
        filled = [
            fill_slots("hybrid", ratio=ratio, slots=slots, num_synthetic=9, num_mined=9, seed=1, example=f"e{n}")
            for n in range(4_000)
        ]
        share = sum(written for written, _ in filled) / (slots * len(filled))
        # Five standard errors of a share drawn 4,000 times.
        assert abs(share - share_of_synthetic(ratio)) < 5 * (0.25 / 4_000) ** 0.5 / slots


def test_direct_examples_hold_one_kind_only() -> None:
    filled = {
        fill_slots("direct", ratio=0.7, slots=3, num_synthetic=5, num_mined=5, seed=0, example=f"e{n}")
        for n in range(50)
    }
    assert filled == {(3, 0), (0, 3)}


def test_components_follow_chains_of_queries_and_positives() -> None:
    queries, positives = [1, 1, 2, 3, 4, 5], [10, 11, 11, 12, 13, 12]
    assert components(queries, positives).tolist() == [0, 0, 0, 3, 4, 3]


@given(pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30), share=st.floats(0, 0.9))
def test_no_query_and_no_positive_is_on_two_sides_whatever_the_order(
    pairs: list[tuple[int, int]], share: float
) -> None:
    rows = sorted(set(pairs))
    splits = dict(zip(rows, _split(rows, share), strict=True))
    for side in range(2):
        of_key: dict[int, set[str]] = {}
        for row, split in splits.items():
            of_key.setdefault(row[side], set()).add(split)
        assert all(len(found) == 1 for found in of_key.values())
    shuffled = random.Random(0).sample(rows, len(rows))
    assert dict(zip(shuffled, _split(shuffled, share), strict=True)) == splits


def _split(rows: list[tuple[int, int]], share: float) -> list[str]:
    digests = [f"{query:03}{positive:03}" for query, positive in rows]
    return assign_splits(digests, [q for q, _ in rows], [p for _, p in rows], dev_share=share, seed=0)


def test_share_of_dev_is_met_on_average() -> None:
    rows = [(n, n) for n in range(3_000)]
    share = _split(rows, 0.2).count("dev") / len(rows)
    assert abs(share - 0.2) < 0.04
