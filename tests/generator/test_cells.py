"""Cells are balanced, and the n-th request of a cell is the same however it is reached."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.cells import Cells, check_plan_files
from generator.errors import GeneratorError
from generator.plan import Tally, _at_ranks, _wanted_places
from generator.recipe import PairPlan

ATTRIBUTES = {"b": ["x", "y", "z"], "a": ["p", "q"]}


@given(seed=st.integers(0, 2**31), num=st.integers(0, 60))
def test_any_first_n_places_are_balanced_over_the_cells(seed: int, num: int) -> None:
    cells = Cells(ATTRIBUTES, seed, "t")
    asked = Counter(cells.place(number).cell for number in range(num))
    assert max(asked.values(), default=0) - min((asked[cell] for cell in range(6)), default=0) <= 1


@given(seed=st.integers(0, 2**31), number=st.integers(0, 10_000))
def test_a_place_is_found_again_from_its_cell_and_turn(seed: int, number: int) -> None:
    cells = Cells(ATTRIBUTES, seed, "t")
    place = cells.place(number)
    assert cells.number(place.cell, place.turn) == number


def test_seeds_and_rounds_differ_and_values_are_of_the_sorted_names() -> None:
    orders = {tuple(Cells(ATTRIBUTES, seed, "t").place(n).cell for n in range(6)) for seed in range(20)}
    rounds = {tuple(Cells(ATTRIBUTES, 0, "t").place(6 * turn + n).cell for n in range(6)) for turn in range(20)}
    assert len(orders) > 10 and len(rounds) > 10
    assert Cells(ATTRIBUTES, 0, "t").values(4) == {"a": "q", "b": "y"}
    assert len(Cells({}, 0, "t")) == 1 and Cells({}, 0, "t").values(0) == {}


def test_refills_ask_what_is_lacking_after_what_is_pending() -> None:
    plan = PairPlan.model_validate(
        {"source": "pairs", "collection": "c", "split": "s", "task_instruction": "t", "accepted_per_cell": 5,
         "max_per_cell": 8}
    )  # fmt: skip
    cells = Cells({"a": ["p", "q"]}, 0, "t")
    tally = Tally(asked={0: 5, 1: 7}, pending={0: 1}, accepted={0: {1: 4, 2: 2}, 1: {1: 5, 2: 2}})
    wanted = Counter(place.cell for place in _wanted_places(plan, cells, tally, 2, {}))
    # Cell 0 lacks three of rank 2, one of which may still come; cell 1 lacks three and has one attempt left.
    assert wanted == {0: 2, 1: 1}


def test_neighbours_stand_at_their_ranks_or_where_the_list_ends() -> None:
    assert _at_ranks(list(range(100, 130)), (1, 2, 20)) == [100, 101, 119]
    assert _at_ranks([100, 101, 102], (1, 2, 20)) == [100, 101, 102]
    assert _at_ranks([100], (1, 2, 20)) == [100]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{half", "not JSON"),
        ('{"kind": "x"}', "custom_id"),
        ('{"custom_id": "", "kind": "x"}', "custom_id"),
        ('{"custom_id": "a~1", "kind": "x"}', "custom_id"),
        ('{"custom_id": "a", "kind": "x"}\n{"custom_id": "a", "kind": "x"}', "stands twice"),
    ],
)
def test_a_bad_line_of_a_plan_file_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "plan.jsonl").write_text(line)
    with pytest.raises(GeneratorError, match=rf"plan.jsonl:\d: .*{told}"):
        check_plan_files([tmp_path / "plan.jsonl"])


def test_a_plan_file_that_is_empty_or_corrupt_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(GeneratorError, match="no lines"):
        check_plan_files([tmp_path / "empty.jsonl"])
    whole = gzip.compress(b'{"custom_id": "a", "kind": "x"}\n' * 50)
    broken = bytearray(whole)
    broken[25] ^= 255
    for name, data in (("cut", whole[:-12]), ("none", b"not gzip"), ("flipped", bytes(broken))):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(data)
        with pytest.raises(GeneratorError, match=rf"{name}.jsonl.gz"):
            check_plan_files([tmp_path / f"{name}.jsonl.gz"])
