"""The arms of each kind of ablation: valid recipes that differ by one thing."""

import pytest

from app.ablating.ablation import BASE
from app.ablating.arms import ablation_of
from app.ablating.planning import arm_recipe
from app.ablating.slotting import Finder
from app.errors import AppError
from trainer.recipe import TrainRecipe

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = ("curriculum", "pooling", "mixing", "ratio", "temperature", "negatives")


def _recipe(**more: object) -> TrainRecipe:
    return TrainRecipe(name="base", release="toy-1.0.0", max_steps=4, batch_size=2, max_length=8, device="cpu", **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_is_a_valid_recipe_of_its_own(kind: str) -> None:
    ablation = ablation_of(kind, _recipe(), 3)
    trained = [arm for arm in ablation.arms if arm.is_trained]
    recipes = {arm_recipe(arm, _recipe(), 1).model_dump_json() + str(arm.slotting) for arm in trained}
    assert len(recipes) == len(trained) >= 4
    assert ablation.arms[0].name == BASE and ablation.reference == trained[0].name
    assert all(arm_recipe(arm, _recipe(), 5).seed == 5 for arm in trained)


def test_two_runs_of_one_teacher_are_two_arms() -> None:
    several = [Finder("bm25", "a"), Finder("bm25", "b"), Finder("dense", "b")]
    names = [arm.name for arm in ablation_of("negatives", _recipe(), 2, several).arms if "found" in arm.name]
    assert names == ["mined, found by bm25 in a", "mined, found by bm25 in b", "mined, found by dense"]


def test_ratios_that_rows_cannot_meet_are_left_out_and_told() -> None:
    def ratios(slots: int) -> list[float | None]:
        return [arm.place for arm in ablation_of("ratio", _recipe(), slots).arms[1:]]

    assert ratios(2) == [1.0, 1.5, 2.0, 2.5]
    assert ratios(3) == [0.7, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert ratios(6) == [0.7, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert "R is 0.5 or more" in ablation_of("ratio", _recipe(), 3).notes[0]
    assert not ablation_of("ratio", _recipe(), 6).notes
    with pytest.raises(AppError, match="no room for both kinds"):
        ablation_of("ratio", _recipe(), 1)


def test_arms_of_one_rank_are_compared_with_as_many_mined_negatives() -> None:
    ablation = ablation_of("negatives", _recipe(), 3)
    slots = {arm.name: arm.slotting.slots for arm in ablation.arms if arm.slotting is not None}
    assert slots.pop("mined, one a row") == 1 and set(slots.values()) == {3}
    alone = [arm for arm in ablation.arms if arm.name.endswith("alone")]
    assert len(alone) == 4 and {arm.twin for arm in alone} == {"mined, one a row"}
    assert all(arm.changes["negatives"] == {"written": 1, "mined": 0} for arm in alone)
    assert "none in 'in-batch', and one in 'N1 alone'" in ablation.notes[0]
    assert {arm.twin for arm in ablation_of("negatives", _recipe(), 1).arms} == {None, "mined"}
