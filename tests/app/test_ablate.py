"""`gradus ablate`: arms differ by one thing, slots are what the arm says, and what was measured is not run again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from app.ablation import BASE, Ablation, Arm, ablation_of, arm_recipe, report_of_runs, run_ablation
from app.ablation_chart import write_ablation_chart
from app.ablation_releases import Slotting, _slotted, slotted_release, usual_slots
from app.cli import cli
from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values
from app.evaluating.order import order_set
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, read_release

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = ("curriculum", "pooling", "mixing", "ratio", "temperature", "negatives")


@pytest.fixture
def release(toy_releases: Path) -> Path:
    return toy_releases / "gradus" / "releases" / "toy-1.0.0"


def _recipe(**more: object) -> TrainRecipe:
    return TrainRecipe(name="base", release="toy-1.0.0", max_steps=4, batch_size=2, max_length=8, device="cpu", **more)


def _examples(folder: Path) -> Sequence[GradedExample]:
    return read_release(folder, "train").examples


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_is_a_valid_recipe_of_its_own(kind: str) -> None:
    ablation = ablation_of(kind, _recipe(), 3)
    trained = [arm for arm in ablation.arms if arm.is_trained]
    recipes = {arm_recipe(arm, _recipe(), 1).model_dump_json() + str(arm.slotting) for arm in trained}
    assert len(recipes) == len(trained) >= 4
    assert ablation.arms[0].name == BASE and ablation.reference == trained[0].name
    assert all(arm_recipe(arm, _recipe(), 5).seed == 5 for arm in trained)


def test_slots_are_what_the_mix_says(release: Path, tmp_path: Path) -> None:
    def slots(mix: str, ratio: float = 1.0) -> list[tuple[int, int]]:
        folder = slotted_release(release, Slotting(mix, 2, ratio), tmp_path, 0)
        return [(e.num_written_slots, e.num_mined_slots) for e in _examples(folder)]

    assert set(slots("synthetic")) == {(2, 0)}
    # The toy release has no mined negatives: written ones fill in.
    assert set(slots("hybrid")) == set(slots("direct")) == {(2, 0)}
    with pytest.raises(AppError, match="has a negative for the mix 'synthetic'"):
        slotted_release(release, Slotting("synthetic", 2, origins=("edited",)), tmp_path, 0)


def test_slots_of_uneven_supplies_by_hand() -> None:
    supplies = ["sse", "mm", "smmm", "", "emm"]  # synthetic, edited, mined
    origins = {"s": "synthetic", "e": "edited", "m": "mined"}
    rows = [
        {"example_id": f"{n}", "negatives": [{"origin": origins[kind]} for kind in kinds]}
        for n, kinds in enumerate(supplies)
    ]

    def slots(*arguments: Any) -> list[tuple[int, int]]:
        made = _slotted(rows, Slotting(*arguments), 0)
        return [(row["num_synthetic_slots"], row["num_mined_slots"]) for row in made]

    assert slots("synthetic", 2) == [(2, 0), (0, 0), (1, 0), (0, 0), (1, 0)]
    assert slots("mined", 2) == [(0, 0), (0, 2), (0, 2), (0, 0), (0, 2)]
    assert slots("hybrid", 2, 1.0) == [(2, 0), (0, 2), (1, 1), (0, 0), (1, 1)]
    assert slots("hybrid", 2, 1.0, ("edited",)) == [(1, 0), (0, 2), (0, 2), (0, 0), (1, 1)]
    assert all(pair in {(2, 0), (1, 1), (0, 2), (1, 0), (0, 0)} for pair in slots("direct", 2))


def test_random_negatives_are_other_queries_positives(release: Path, tmp_path: Path) -> None:
    folders = [slotted_release(release, Slotting("random", 3), tmp_path, seed) for seed in (0, 0, 1)]
    assert folders[0] == folders[1] != folders[2]
    examples = _examples(folders[0])
    positives = {example.positive_id for example in examples}
    for example in examples:
        drawn = [negative.id for negative in example.mined]
        assert len(set(drawn)) == 3 and set(drawn) <= positives - {example.positive_id} and not example.written
    assert [e.query for e in examples] == [e.query for e in _examples(release)]
    assert {e.mined[0].id for e in examples} != {e.mined[0].id for e in _examples(folders[2])} or len(examples) < 4


def test_usual_slots_is_the_most_frequent_sum(release: Path) -> None:
    sums = [e.num_written_slots + e.num_mined_slots for e in _examples(release)]
    assert usual_slots(release, "train") == max(set(sums), key=sums.count) == 2


def _set() -> EvaluationSet:
    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        raise AssertionError("not measured here")

    return EvaluationSet("retrieval", "d", "dev", "queries", 3, ("ndcg@10",), measure)


def test_differences_average_seeds_before_they_are_paired(tmp_path: Path) -> None:
    values = {
        BASE: [[0.0, 0.5, 1.0]],
        "one": [[0.5, 0.5, 1.0], [0.5, 1.0, 1.0]],
        "two": [[0.5, 0.5, 1.0], [0.5, 1.0, 1.0]],
    }
    ablation = Ablation("toy", (Arm(BASE, is_trained=False), Arm("one"), Arm("two"), Arm("not run")), "one")
    runs = {name: [{"0/ndcg@10": np.array(column)} for column in columns] for name, columns in values.items()}
    report = report_of_runs(ablation, [_set()], runs, {})
    base, one, two = report["sets"][0]["arms"]
    assert base["by_seed"] == [0.5] and set(base) == {"arm", "place", "by_seed", "mean"}
    assert one["mean"] == pytest.approx((2 / 3 + 2.5 / 3) / 2)
    assert one[f"against {BASE}"]["difference"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert two["against one"] == {"difference": 0, "interval_95": [0, 0]} and "against one" not in one
    for name in ("arms.png", "sweep.svg"):
        for row, place in zip(report["sets"][0]["arms"], (None, 0.1, 0.2), strict=True):
            row["place"] = place if name.startswith("sweep") else None
        write_ablation_chart(tmp_path / name, report)
        assert (tmp_path / name).stat().st_size > 1_000


@pytest.mark.slow
def test_what_was_measured_is_not_run_again(release: Path, tmp_path: Path) -> None:
    arms = (Arm(BASE, is_trained=False), Arm("a", {"temperature": 0.1}), Arm("b", {"schedule": "mixture"}))
    sets, told = [order_set(release, "train")], []

    def report(seeds: int) -> dict:
        told.clear()
        ablation = Ablation("toy", arms, "a")
        return run_ablation(ablation, _recipe(), release, sets, tmp_path, seeds=range(seeds), progress=_count)

    def _count(done: int, total: int | None) -> None:
        told.append(done)

    first = report(1)
    assert len(list((tmp_path / "runs").iterdir())) == 3 and list((tmp_path / "models").iterdir()) == []
    assert len(list((tmp_path / "journals").glob("*/metrics.jsonl"))) == 2
    again = report(1)
    assert again == first and not told
    one = next(path for path in (tmp_path / "runs").iterdir() if json.loads(path.read_bytes())["arm"] == "b")
    kept = one.read_bytes()
    one.unlink()
    assert report(1) == first and told and one.read_bytes() == kept


def test_command_lists_arms_and_refuses_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\nrelease = "none-1.0.0"\n')
    done = CliRunner().invoke(cli, ["ablate", "ratio", str(recipe), "--data", "x", "--slots", "3"])
    assert isinstance(done.exception, AppError) and "neither a release in" in str(done.exception)
    (tmp_path / "releases" / "none-1.0.0").mkdir(parents=True)
    listed = CliRunner().invoke(cli, ["ablate", "ratio", str(recipe), "--data", "x", "--slots", "3", "--dry-run"])
    assert listed.exit_code == 0 and "R = 2.5" in listed.stdout and "not trained" in listed.stdout
    assert list((tmp_path / "releases" / "none-1.0.0").iterdir()) == []
