"""Mixes and splits: counts are exact, R is met on average, and nothing leaks between sides."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from curation.release.mixing import fill_slots, share_of_synthetic
from curation.release.splits import assign_splits, components

KINDS = st.sampled_from(["hybrid", "direct", "synthetic", "mined"])
ORIGINS = {"written": ("synthetic", "edited"), "mined": ("mined", "corpus")}


@dataclass(frozen=True)
class One:
    origin: str
    grade: str | None
    number: int


def supply(kind: str, num: int) -> list[One]:
    return [One(ORIGINS[kind][n % 2], (None, "hard", "medium", "easy")[n % 4], n) for n in range(num)]


def names_of(one: One) -> tuple[str, str | None]:
    return one.origin, one.grade


def filled(kind: str, written: int, mined: int, **given: Any) -> tuple[int, int]:
    stocks = supply("written", written), supply("mined", mined)
    got = fill_slots(kind, *stocks, seed=given.pop("seed", 0), quotas={}, names_of=names_of, **given)  # type: ignore[arg-type]
    return len(got[0]), len(got[1])


@given(
    kind=KINDS, ratio=st.floats(0.05, 5), slots=st.integers(1, 9), written=st.integers(0, 12), mined=st.integers(0, 12),
    example=st.text(max_size=5),
)  # fmt: skip
def test_slots_never_exceed_supply_and_fill_up_when_they_can(
    kind: str, ratio: float, slots: int, written: int, mined: int, example: str
) -> None:
    got = filled(kind, written, mined, ratio=ratio, slots=slots, example=example)
    if kind in ("hybrid", "direct"):
        assert sum(got) == min(slots, written + mined)
    else:
        assert sum(got) == min(slots, written if kind == "synthetic" else mined)
        assert got[1 if kind == "synthetic" else 0] == 0
    if kind == "hybrid" and written:
        assert got[0] >= 1


@given(
    kind=KINDS, slots=st.integers(1, 9), written=st.integers(0, 12), mined=st.integers(0, 12),
    quotas=st.dictionaries(st.sampled_from(["hard", "medium", "easy", "edited", "mined"]), st.integers(0, 3)),
)  # fmt: skip
def test_quotas_hold_and_leave_no_slot_empty_that_something_fits(
    kind: str, slots: int, written: int, mined: int, quotas: dict[str, int]
) -> None:
    stocks = supply("written", written), supply("mined", mined)
    got = fill_slots(kind, *stocks, ratio=0.7, slots=slots, seed=0, example="e", quotas=quotas, names_of=names_of)  # type: ignore[arg-type]
    drawn = [*got[0], *got[1]]
    assert len(drawn) == len(set(map(id, drawn))) <= slots
    used = Counter(name for one in drawn for name in (one.origin, one.grade))
    assert all(used[name] <= most for name, most in quotas.items())
    if len(drawn) < slots:
        left = [
            one
            for one in [*(stocks[0] if kind != "mined" else []), *(stocks[1] if kind != "synthetic" else [])]
            if one not in drawn and all(used[name] < quotas.get(name or "", 9) for name in (one.origin, one.grade))
        ]
        assert left == []


def test_hybrid_meets_the_ratio_on_average() -> None:
    for ratio, slots in ((0.7, 3), (1.0, 5), (0.5, 8)):
        counts = [filled("hybrid", 9, 9, ratio=ratio, slots=slots, seed=1, example=f"e{n}") for n in range(4_000)]
        share = sum(written for written, _ in counts) / (slots * len(counts))
        # Five standard errors of a share drawn 4,000 times.
        assert abs(share - share_of_synthetic(ratio)) < 5 * (0.25 / 4_000) ** 0.5 / slots


def test_direct_examples_hold_one_kind_only() -> None:
    found = {filled("direct", 5, 5, ratio=0.7, slots=3, example=f"e{n}") for n in range(50)}
    assert found == {(3, 0), (0, 3)}


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
