"""`gradus ablate`: every arm is measured once and compared with the others, and models along the way are too."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from app.ablating.ablation import BASE, Ablation, report_of_runs, run_ablation
from app.ablating.arms import ablation_of
from app.ablating.chart import write_ablation_chart, write_course_chart
from app.ablating.planning import Arm
from app.ablating.slotting import Slotting
from app.cli import cli
from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values
from app.evaluating.order import order_set
from app.evaluating.prompting import Prompts
from app.evaluating.retrieval import beir_set
from curation.embeddings import model_folder
from trainer.recipe import TrainRecipe
from trainer.similarity import spearman

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def release(toy_releases: Path) -> Path:
    return toy_releases / "gradus" / "releases" / "toy-1.0.0"


def _recipe(**more: object) -> TrainRecipe:
    return TrainRecipe(name="base", release="toy-1.0.0", max_steps=4, batch_size=2, max_length=8, device="cpu", **more)


def _set() -> EvaluationSet:
    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        raise AssertionError("not measured here")

    return EvaluationSet("retrieval", "d", "dev", "queries", 3, ("ndcg@10",), "0" * 64, measure)


def test_differences_are_paired_by_unit_and_average_the_statistic_over_seeds(tmp_path: Path) -> None:
    values = {
        BASE: [[0.0, 0.5, 1.0]],
        "one": [[0.5, 0.5, 1.0], [0.5, 1.0, 1.0]],
        "two": [[0.5, 0.5, 1.0], [0.5, 1.0, 1.0]],
    }
    ablation = Ablation("toy", (Arm(BASE, is_trained=False), Arm("one"), Arm("two"), Arm("not run")), "one")
    runs = {name: [{4: {"0/ndcg@10": np.array(column)}} for column in columns] for name, columns in values.items()}
    report = report_of_runs(ablation, [_set()], runs, {})
    base, one, two = report["sets"][0]["arms"]
    assert base["by_seed"] == [0.5] and set(base) == {"arm", "place", "by_seed", "mean", "by_step"}
    assert one["mean"] == pytest.approx((2 / 3 + 2.5 / 3) / 2)
    assert one[f"against {BASE}"]["difference"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert two["against one"] == {"difference": 0, "interval_95": [0, 0]} and "against one" not in one
    cosines = [[0.1, 0.4, 0.3], [0.2, 0.1, 0.9], [0.5, 0.6, 0.4]]
    gold = np.array([0.0, 1.0, 2.0])
    told = EvaluationSet(
        "similarity", "d", "dev", "pairs", 3, ("spearman",), "0" * 64, _set().measure, {"spearman": spearman(gold)}
    )
    similar = {BASE: [{0: {"0/spearman": gold}}], "one": [{4: {"0/spearman": np.array(c)}} for c in cosines]}
    _, arm = report_of_runs(ablation, [told], similar, {})["sets"][0]["arms"]
    assert arm["by_seed"] == pytest.approx([0.5, 0.5, -0.5])
    assert arm[f"against {BASE}"]["difference"] == pytest.approx(0.5 / 3 - 1)
    for name in ("arms.png", "sweep.svg"):
        for row, place in zip(report["sets"][0]["arms"], (None, 0.1, 0.2), strict=True):
            row["place"] = place if name.startswith("sweep") else None
        write_ablation_chart(tmp_path / name, report)
        assert (tmp_path / name).stat().st_size > 1_000


def _seen(prompts: list[tuple[str, Prompts]]) -> EvaluationSet:
    """A set that notes what it is asked with."""

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        prompts.append((Path(model.given).name[:4], model.prompts))
        return {"ndcg@10": np.array([0.0, 0.5, 1.0])}

    return EvaluationSet("retrieval", "beir", "dev", "queries", 3, ("ndcg@10",), "0" * 64, measure)


BEFORE = (Arm(BASE, is_trained=False),)


def test_before_training_the_model_is_asked_with_the_recipes_prompts(release: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, Prompts]] = []

    def asked(instruction: str | None = None, **prompts: str) -> Prompts:
        seen.clear()
        ablation = Ablation("toy", BEFORE, "none")
        run_ablation(ablation, _recipe(**prompts), release, [_seen(seen)], tmp_path, seeds=[0], instruction=instruction)
        return seen[0][1]

    assert asked() == Prompts()
    assert asked(query_prompt="q: ", passage_prompt="p: ") == Prompts("q: ", "p: ")
    assert asked(query_prompt="q: ").query == "q: "  # other prompts are another run, not one that is kept
    assert len(list((tmp_path / "runs").iterdir())) == 3
    assert asked("find", query_prompt="{instruction}: ") == Prompts("{instruction}: ", "", "find")
    # All examples of the release have the same instruction, an empty one.
    assert asked(query_prompt="{instruction}> ") == Prompts("{instruction}> ", "", "")


def _with_instructions(release: Path, folder: Path) -> Path:
    """A copy whose examples have two instructions."""
    shutil.copytree(release, folder)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for name in manifest["files"]:
        if name.startswith("graded/"):
            table = pq.read_table(folder / name)
            rows = [{**row, "instruction": f"of kind {place % 2}"} for place, row in enumerate(table.to_pylist())]
            pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / name)
            manifest["files"][name]["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_an_instruction_that_nobody_knows_is_asked_for_before_training(release: Path, tmp_path: Path) -> None:
    several, recipe = _with_instructions(release, tmp_path / "several"), _recipe(query_prompt="{instruction}: ")
    with pytest.raises(AppError, match=r"--instruction is missing: model base .*of beir"):
        run_ablation(Ablation("toy", BEFORE, "none"), recipe, several, [_seen([])], tmp_path / "out", seeds=[0])
    assert not (tmp_path / "out").exists()


def test_models_are_found_as_in_training(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))
    trained = tmp_path / "data" / "models" / "mine"
    shutil.copytree(model_folder("minilm"), trained)
    (trained / "training.json").write_text("{}")
    seen: list[tuple[str, Prompts]] = []
    sets = [_seen(seen)]
    run_ablation(Ablation("toy", BEFORE, "a"), _recipe(model="mine"), release, sets, tmp_path / "o", seeds=[0])
    assert [name for name, _ in seen] == ["mine"]

    plain, told = tmp_path / "plain", []
    shutil.copytree(model_folder("minilm"), plain, ignore=shutil.ignore_patterns("modules.json"))
    recipe = _recipe(model=str(plain))
    report = run_ablation(
        Ablation("toy", BEFORE, "a"), recipe, release, sets, tmp_path / "o", seeds=[0], tell=told.append
    )
    assert "plain transformer" in report["left_out"][BASE] and "left out" in told[0]
    assert report["sets"][0]["arms"] == [] and len(seen) == 1


@pytest.mark.slow
def test_arms_with_the_same_rows_are_one_point(release: Path, tmp_path: Path) -> None:
    """The toy release has no mined negatives, so R changes nothing."""
    ablation = ablation_of("ratio", _recipe(), 3)
    report = run_ablation(ablation, _recipe(), release, [_seen([])], tmp_path, seeds=[0])
    assert [row["arm"] for row in report["sets"][0]["arms"]] == [BASE, "R = 0.7"]
    assert set(report["left_out"]) == {f"R = {ratio:g}" for ratio in (0.5, 1, 1.5, 2, 2.5)}
    assert "its rows are those of 'R = 0.7'" in report["left_out"]["R = 2.5"]
    assert report["sets"][0]["arms"][1]["place"] is None  # nothing is mined: no ratio to draw
    write_ablation_chart(tmp_path / "ratio.png", report)


def test_an_arm_is_compared_with_its_twin_too() -> None:
    values = {"one": [0.0, 0.5, 1.0], "two": [0.5, 0.5, 0.5], "three": [1.0, 1.0, 0.5]}
    ablation = Ablation("toy", (Arm("one"), Arm("two"), Arm("three", twin="two")), "one")
    runs = {name: [{4: {"0/ndcg@10": np.array(column)}}] for name, column in values.items()}
    *_, row = report_of_runs(ablation, [_set()], runs, {})["sets"][0]["arms"]
    assert row["against two"]["difference"] == pytest.approx(1 / 3) == row["against one"]["difference"]


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


@pytest.mark.slow
def test_by_block_models_on_the_way_are_measured_and_the_end_is_not_measured_twice(
    release: Path, tmp_path: Path
) -> None:
    arms = (Arm(BASE, is_trained=False), Arm("up", {"schedule": "easy_to_hard"}), Arm("down", {"schedule": "reverse"}))
    recipe = _recipe(learning_rate=1e-2)
    seen: list[str] = []

    def measure(model: EvaluatedModel, progress: Progress) -> Values:
        seen.append(Path(model.given).name)
        return {"shift": np.array([model.encoder.encode(["the otter"])[0][0, 0]], np.float64)}

    sets = [EvaluationSet("retrieval", "d", "dev", "queries", 1, ("shift",), "0" * 64, measure)]

    def report(*, by_block: bool) -> dict[str, Any]:
        seen.clear()
        ablation = Ablation("toy", arms, "up", by_block=by_block)
        return run_ablation(ablation, recipe, release, sets, tmp_path, seeds=[0, 1])

    ends = report(by_block=False)
    told = report(by_block=True)
    assert seen == ["1", "2", "3"] * 4  # four steps, a block each: the ends are known
    assert report(by_block=True) == told and not seen
    assert write_course_chart(tmp_path / "course.png", told) and (tmp_path / "course.png").stat().st_size > 1_000
    base, *rows = told["sets"][0]["arms"]
    assert base["by_step"] == {"step": [0], "mean": [base["mean"]]}
    for row, end in zip(rows, ends["sets"][0]["arms"][1:], strict=True):
        way = row.pop("by_step")
        assert end.pop("by_step") == {"step": [4], "mean": [row["mean"]]} and row == end
        assert way["step"] == [1, 2, 3, 4] and way["mean"][-1] == row["mean"] and len(set(way["mean"])) == 4
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.slow
def test_each_arm_keeps_its_own_journal_and_what_it_was_trained_on(release: Path, tmp_path: Path) -> None:
    arms = (
        Arm(BASE, is_trained=False),
        Arm("one", slotting=Slotting("synthetic", 1)),
        Arm("two", slotting=Slotting("synthetic", 2)),
        Arm("mined", slotting=Slotting("mined", 2)),
    )
    told: list[str] = []
    ablation = Ablation("toy", arms, "one")
    sets = [order_set(release, "train")]
    report = run_ablation(ablation, _recipe(), release, sets, tmp_path, seeds=[0, 1], tell=told.append)
    assert len(list((tmp_path / "journals").iterdir())) == 4  # the two arms differ in the release alone
    training = report["training"]
    assert set(training) == {"one", "two"} and set(report["left_out"]) == {"mined"}
    assert "mined is left out" in told[0] and [row["arm"] for row in report["sets"][0]["arms"]] == [BASE, "one", "two"]
    rows = training["one"]["rows"]
    assert training["one"]["written"] == rows == training["two"]["rows"] and training["two"]["written"] == 2 * rows
    assert training["two"]["mined"] == 0 and training["two"]["ratio"] is None
    assert len(training["one"]["course"]["loss"]) == 4
    assert training["one"]["course"]["loss"] != training["two"]["course"]["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journals", "models", "releases", "runs"]
    with pytest.raises(AppError, match="has a negative for the mix 'mined'"):
        run_ablation(Ablation("toy", arms, "mined"), _recipe(), release, sets, tmp_path, seeds=[0])


def test_a_changed_folder_of_the_same_size_is_measured_again(tmp_path: Path) -> None:
    def run(text: str, folder: str = "one", judged: str = "d0") -> tuple[float, int]:
        data = tmp_path / folder
        (data / "qrels").mkdir(parents=True, exist_ok=True)
        rows = [{"_id": "d0", "title": "", "text": text}, {"_id": "d1", "title": "", "text": "Herons nest in trees."}]
        (data / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (data / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "what do otters eat"}) + "\n")
        (data / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\t{judged}\t1\n")
        ablation = Ablation("toy", (Arm(BASE, is_trained=False),), BASE)
        sets = [beir_set(data, "dev")]
        report = run_ablation(ablation, _recipe(), tmp_path, sets, tmp_path / "output", seeds=[0])
        return report["sets"][0]["arms"][0]["mean"], len(list((tmp_path / "output" / "runs").iterdir()))

    first, num = run("Otters eat fish.")
    assert (first, num) == (1, 1)
    assert run("Otters eat fish.", folder="elsewhere") == (1, 1)  # the same content: served
    assert run("Stocks fell again.")[1] == 2
    value, num = run("Otters eat fish.", judged="d1")
    assert value < 1 and num == 3


def test_command_lists_arms_and_refuses_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\nrelease = "none-1.0.0"\n')
    done = CliRunner().invoke(cli, ["ablate", "ratio", str(recipe), "--data", "x", "--slots", "3"])
    assert isinstance(done.exception, AppError) and "no folder, and no release in" in str(done.exception)
    (tmp_path / "releases" / "none-1.0.0").mkdir(parents=True)
    listed = CliRunner().invoke(cli, ["ablate", "ratio", str(recipe), "--data", "x", "--slots", "3", "--dry-run"])
    assert listed.exit_code == 0 and "R = 2.5" in listed.stdout and "not trained" in listed.stdout
    assert list((tmp_path / "releases" / "none-1.0.0").iterdir()) == []
