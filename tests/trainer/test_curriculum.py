"""The plan is a pure function, covers everything once a block, and fills slots by the block's rank."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.curriculum import Batch, negatives_of_row, plan_batches
from trainer.errors import TrainerError
from trainer.release import GradedExample, Negative


def example(ranks: list[int], *, num_mined: int, slots: tuple[int, int], name: str = "e") -> GradedExample:
    written = tuple(Negative(f"w{i}", f"written {i}", rank) for i, rank in enumerate(ranks))
    mined = tuple(Negative(f"m{i}", f"mined {i}", None) for i in range(num_mined))
    return GradedExample(name, "q", "qid", "p", "pid", written, mined, *slots)


@given(num=st.integers(1, 60), size=st.integers(2, 17), seed=st.integers(0, 5))
def test_each_block_is_one_pass_in_its_own_order(num: int, size: int, seed: int) -> None:
    batches = plan_batches("easy_to_hard", num_examples=num, batch_size=size, seed=seed)
    assert batches == plan_batches("easy_to_hard", num_examples=num, batch_size=size, seed=seed)
    assert [batch.block for batch in batches] == sorted(batch.block for batch in batches)
    for block, rank in enumerate([4, 3, 2, 1]):
        mine = [batch for batch in batches if batch.block == block]
        assert {batch.rank for batch in mine} == {rank}
        assert sorted(i for batch in mine for i in batch.examples) == list(range(num))
        assert all(len(batch.examples) >= min(2, num) for batch in mine)
        assert all(len(batch.examples) <= size + 1 for batch in mine)


def test_blocks_visit_the_examples_in_different_orders() -> None:
    batches = plan_batches("fixed:2", num_examples=40, batch_size=40, seed=0)
    assert len({batch.examples for batch in batches}) == 4
    assert {batch.rank for batch in batches} == {2}


def test_schedules() -> None:
    assert [b.rank for b in plan_batches("reverse", num_examples=2, batch_size=2, seed=0)] == [1, 2, 3, 4]
    assert {b.rank for b in plan_batches("mixture", num_examples=2, batch_size=2, seed=0)} == {None}
    with pytest.raises(TrainerError, match="easy_to_hard"):
        plan_batches("harder", num_examples=2, batch_size=2, seed=0)


def test_slots_take_the_blocks_rank_and_then_the_nearest() -> None:
    full = example([1, 2, 3, 4, 1], num_mined=5, slots=(2, 1))
    chosen = negatives_of_row(full, Batch(3, 1, (0,)), 0)
    assert [n.rank for n in chosen] == [1, 1, None]
    short = example([1, 4], num_mined=0, slots=(1, 0))
    assert [n.rank for n in negatives_of_row(short, Batch(1, 3, (0,)), 0)] == [4]
    assert [n.rank for n in negatives_of_row(short, Batch(2, 2, (0,)), 0)] == [1]


def test_mined_negatives_go_round_from_block_to_block() -> None:
    one = example([1], num_mined=3, slots=(0, 2))
    seen = [[n.id for n in negatives_of_row(one, Batch(block, 1, (0,)), 0)] for block in range(4)]
    assert seen == [["m0", "m1"], ["m2", "m0"], ["m1", "m2"], ["m0", "m1"]]


def test_random_schedule_gives_each_example_each_rank_once() -> None:
    ranks: Counter[tuple[str, int | None]] = Counter()
    for name in "abc":
        one = example([1, 2, 3, 4], num_mined=0, slots=(1, 0), name=name)
        for batch in plan_batches("random", num_examples=2, batch_size=2, seed=1):
            ranks[name, negatives_of_row(one, batch, 1)[0].rank] += 1
    assert set(ranks.values()) == {1} and len(ranks) == 12
