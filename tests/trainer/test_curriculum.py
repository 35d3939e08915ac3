"""The plan is a pure function, covers everything in turn, and fills slots by the block's rank."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.curriculum import Step, describe_plan, negatives_of_row, plan_steps
from trainer.errors import TrainerError
from trainer.recipe import Slots, TrainRecipe
from trainer.release import GradedExample, Negative


def example(
    ranks: list[int], *, num_mined: int = 0, slots: tuple[int, int] = (1, 0), name: str = "e", source: str = ""
) -> GradedExample:
    written = tuple(Negative(f"w{i}", f"written {i}", rank) for i, rank in enumerate(ranks))
    mined = tuple(Negative(f"m{i}", f"mined {i}", None, is_written=False) for i in range(num_mined))
    return GradedExample(name, "q", "p", written, mined, *slots, source=source)


def recipe(**fields: object) -> TrainRecipe:
    return TrainRecipe.model_validate({"name": "t", "release": "r", **fields})


def visited(steps: list[Step]) -> list[int]:
    return [place for step in steps for batch in step.batches for place in batch.examples]


@given(
    num=st.integers(2, 60),
    size=st.integers(2, 17),
    accumulate=st.integers(1, 3),
    passes=st.integers(1, 2),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_each_block_is_whole_passes_in_their_own_order(
    num: int, size: int, accumulate: int, passes: int, seed: int
) -> None:
    asked = recipe(batch_size=size, accumulate=accumulate, passes=passes, seed=seed)
    examples = [example([1])] * num
    steps = plan_steps(asked, examples)
    assert steps == plan_steps(asked, examples)
    assert [step.block for step in steps] == sorted(step.block for step in steps)
    for block, rank in enumerate([4, 3, 2, 1]):
        mine = [step for step in steps if step.block == block]
        assert {step.rank for step in mine} == {rank}
        assert sorted(visited(mine)) == sorted(list(range(num)) * passes)
        batches = [batch for step in mine for batch in step.batches]
        assert all(min(2, num) <= len(batch.examples) <= size + 1 for batch in batches)
        assert {batch.turn for batch in batches} == set(range(block * passes, (block + 1) * passes))
        assert all(len(step.batches) == accumulate for step in mine[:-1])
        assert 1 <= len(mine[-1].batches) <= accumulate


def test_blocks_visit_the_examples_in_different_orders() -> None:
    steps = plan_steps(recipe(schedule="fixed:2", batch_size=40), [example([1])] * 40)
    assert len({step.batches[0].examples for step in steps}) == 4
    assert {step.rank for step in steps} == {2}
    other = plan_steps(recipe(schedule="fixed:2", batch_size=40, seed=1), [example([1])] * 40)
    assert not {step.batches[0].examples for step in steps} & {step.batches[0].examples for step in other}


def test_schedules_and_their_ranks() -> None:
    two = [example([1])] * 2
    assert [step.rank for step in plan_steps(recipe(schedule="reverse"), two)] == [1, 2, 3, 4]
    assert {step.rank for step in plan_steps(recipe(schedule="mixture"), two)} == {None}
    with pytest.raises(ValueError, match="schedule"):
        recipe(schedule="harder")


def test_four_blocks_of_four_hundred_steps_and_other_shares() -> None:
    many = [example([1, 2, 3, 4])] * 10
    steps = plan_steps(recipe(max_steps=1_600, batch_size=2, accumulate=4), many)
    assert Counter((step.block, step.rank) for step in steps) == {(0, 4): 400, (1, 3): 400, (2, 2): 400, (3, 1): 400}
    # Passes run on across steps and blocks: nothing is seen a second time before all was seen once.
    counts = Counter(visited(steps))
    assert set(counts.values()) == {1_600 * 8 // 10}
    uneven = plan_steps(recipe(max_steps=7, shares=(0.1, 0.2, 0.3, 0.4), batch_size=5), many)
    assert Counter(step.block for step in uneven) == {0: 1, 1: 1, 2: 2, 3: 3}


@given(num_steps=st.integers(1, 200), cut=st.integers(1, 98))
@settings(deadline=None)
def test_blocks_add_up_and_are_right_to_a_step(num_steps: int, cut: int) -> None:
    first, rest = cut / 100, (100 - cut) / 300
    steps = plan_steps(recipe(max_steps=num_steps, shares=(first, rest, rest, rest)), [example([1])] * 4)
    sizes = Counter(step.block for step in steps)
    assert len(steps) == num_steps
    for block, share in enumerate((first, rest, rest, rest)):
        assert abs(sizes[block] - share * num_steps) <= 1


def test_rows_of_a_batch_share_their_source() -> None:
    examples = [example([1], source="ab"[place % 3 == 0]) for place in range(17)]
    steps = plan_steps(recipe(one_source=True, batch_size=4), examples)
    mine = [step for step in steps if step.block == 0]
    assert sorted(visited(mine)) == list(range(17))
    assert all(len({examples[place].source for place in visited([step])}) == 1 for step in mine)
    # Sources take turns, in another order in each block: they do not come one after the other.
    orders = ["".join(examples[visited([s])[0]].source for s in steps if s.block == block) for block in range(4)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders) and len(set(orders)) > 1
    assert any("ab" in order and "ba" in order for order in orders)
    assert any(len({examples[i].source for i in visited([s])}) > 1 for s in plan_steps(recipe(batch_size=4), examples))


def test_slots_take_the_blocks_rank_and_then_the_nearest() -> None:
    full = example([1, 2, 3, 4, 1], num_mined=5, slots=(2, 1))
    assert [n.rank for n in negatives_of_row(full, 3, 1, 0)] == [1, 1, None]
    short = example([1, 4], slots=(1, 0))
    assert [n.rank for n in negatives_of_row(short, 1, 3, 0)] == [4]
    assert [n.rank for n in negatives_of_row(short, 2, 2, 0)] == [1]


def test_mined_negatives_go_round_from_turn_to_turn() -> None:
    one = example([1], num_mined=3, slots=(0, 2))
    seen = [[n.id for n in negatives_of_row(one, turn, 1, 0)] for turn in range(4)]
    assert seen == [["m0", "m1"], ["m2", "m0"], ["m1", "m2"], ["m0", "m1"]]
    assert [n.id for n in negatives_of_row(one, 1, 1, 0, Slots(written=0, mined=5))] == ["m2", "m0", "m1"]


def test_random_schedule_draws_an_order_of_ranks_for_each_example_and_four_turns() -> None:
    orders: Counter[tuple[int | None, ...]] = Counter()
    for name in range(3_000):
        one = example([1, 2, 3, 4], name=f"e{name}")
        ranks = [negatives_of_row(one, turn, 0, 0)[0].rank for turn in range(8)]
        assert sorted(rank or 0 for rank in ranks[:4]) == sorted(rank or 0 for rank in ranks[4:]) == [1, 2, 3, 4]
        orders.update([tuple(ranks[:4]), tuple(ranks[4:])])
    assert len(orders) == 24 and all(abs(count - 6_000 / 24) < 80 for count in orders.values())
    one = example([1, 2, 3, 4])
    fours = {tuple(negatives_of_row(one, 4 * k + turn, 0, 0)[0].rank for turn in range(4)) for k in range(9)}
    seeds = {tuple(negatives_of_row(one, turn, 0, seed)[0].rank for turn in range(4)) for seed in range(9)}
    assert len(fours) > 1 and len(seeds) > 1


def test_random_schedule_gives_each_example_each_rank_once() -> None:
    asked = recipe(schedule="random", batch_size=3, seed=1)
    examples = [example([1, 2, 3, 4], name=name) for name in "abc"]
    ranks: Counter[tuple[str, int | None]] = Counter()
    for step in plan_steps(asked, examples):
        for batch in step.batches:
            for place in batch.examples:
                ranks[examples[place].id, negatives_of_row(examples[place], batch.turn, step.rank, 1)[0].rank] += 1
    assert set(ranks.values()) == {1} and len(ranks) == 12


def test_mixture_takes_ranks_as_they_are_drawn() -> None:
    one = example([1, 2, 3, 4])
    ranks = Counter(negatives_of_row(one, turn, None, 0)[0].rank for turn in range(400))
    assert set(ranks) == {1, 2, 3, 4} and min(ranks.values()) > 60


@pytest.mark.parametrize("ratio", [0.2, 0.7, 2.0])
def test_slots_by_ratio_meet_it_on_average_with_one_written_at_least(ratio: float) -> None:
    slots = Slots(total=5, ratio=ratio)
    many = [example([1, 2, 3, 4, 1], num_mined=5, name=f"e{i}") for i in range(2_000)]
    kinds: Counter[bool] = Counter()
    for one in many:
        row = negatives_of_row(one, 0, 1, 0, slots)
        assert len(row) == 5 and row[0].is_written
        kinds.update(n.is_written for n in row)
    wanted = max(5 * ratio / (1 + ratio), 1.0)
    assert abs(kinds[True] / 2_000 - wanted) < 0.05


def test_one_side_fills_in_where_the_other_is_short() -> None:
    slots = Slots(total=4, ratio=0.7)
    assert [n.is_written for n in negatives_of_row(example([1, 2, 3], num_mined=1), 0, 1, 0, slots)].count(True) == 3
    assert [n.is_written for n in negatives_of_row(example([], num_mined=9), 0, 1, 0, slots)] == [False] * 4
    assert len(negatives_of_row(example([1], num_mined=1), 0, 1, 0, slots)) == 2


def test_a_release_without_grades_is_told_before_training() -> None:
    plain = [example([], num_mined=2, slots=(0, 1))] * 3
    with pytest.raises(TrainerError, match=r"no graded negatives.*mixture"):
        plan_steps(recipe(), plain)
    assert plan_steps(recipe(schedule="mixture"), plain)
    with pytest.raises(TrainerError, match=r"ordering: the release has no graded negatives"):
        plan_steps(recipe(schedule="mixture", ordering={}), plain)
    with pytest.raises(TrainerError, match=r"grades\.easy: .*grade 'easy'"):
        plan_steps(
            recipe(schedule="mixture", grades={"hard": {"weight": 2}, "easy": {"weight": 2}}), [example([1])] * 3
        )
    with pytest.raises(TrainerError, match="two or more"):
        plan_steps(recipe(), [example([1])])


def test_the_printed_plan_counts_what_is_trained_on() -> None:
    examples = [example([1, 2, 3, 4], num_mined=2, slots=(1, 1)), example([1], num_mined=2, slots=(2, 1))] * 2
    asked = recipe(batch_size=2)
    table = describe_plan(plan_steps(asked, examples), examples, asked)
    assert [row["rank"] for row in table] == [4, 3, 2, 1]
    assert [(row["from step"], row["to step"]) for row in table] == [(1, 2), (3, 4), (5, 6), (7, 8)]
    assert [row["of another rank"] for row in table] == [2, 2, 2, 0]
    assert {(row["rows"], row["written"], row["mined"]) for row in table} == {(4, 4, 4)}
