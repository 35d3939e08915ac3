"""`gradus ablate`: arms differ by one thing, slots are what the arm says, and what was measured is not run again."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from app.ablation import BASE, Ablation, Arm, arm_recipe, report_of_runs, run_ablation
from app.ablation_arms import ablation_of
from app.ablation_chart import write_ablation_chart, write_course_chart
from app.ablation_course import course_of, smoothed
from app.ablation_releases import Finder, Slotting, _random_negatives, _slotted, finders, slotted_release, usual_slots
from app.cli import cli
from app.errors import AppError
from app.evaluating.measuring import EvaluatedModel, EvaluationSet, Progress, Values
from app.evaluating.order import order_set
from app.evaluating.prompting import Prompts
from app.evaluating.retrieval import beir_set
from curation.embeddings import model_folder
from db.digest import digest_of
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, read_release
from trainer.similarity import spearman

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
        made = _slotted(rows, Slotting(*arguments), 0, {})
        return [(row["num_synthetic_slots"], row["num_mined_slots"]) for row in made]

    assert slots("synthetic", 2) == [(2, 0), (0, 0), (1, 0), (0, 0), (1, 0)]
    assert slots("mined", 2) == [(0, 0), (0, 2), (0, 2), (0, 0), (0, 2)]
    assert slots("hybrid", 2, 1.0) == [(2, 0), (0, 2), (1, 1), (0, 0), (1, 1)]
    assert slots("hybrid", 2, 1.0, ("edited",)) == [(1, 0), (0, 2), (0, 2), (0, 0), (1, 1)]
    assert all(pair in {(2, 0), (1, 1), (0, 2), (1, 0), (0, 0)} for pair in slots("direct", 2))


def _slotted_row(query: str, positive: str) -> dict[str, Any]:
    return {"example_id": query + positive, "query_id": query, "positive_id": positive, "positive": positive.upper()}


def test_random_negatives_are_other_queries_positives(release: Path, tmp_path: Path) -> None:
    folders = [slotted_release(release, Slotting("random", 3), tmp_path, seed) for seed in (0, 0, 1)]
    assert folders[0] == folders[1] != folders[2]
    examples = _examples(folders[0])
    positives = {example.positive for example in examples}
    for example in examples:
        drawn = [negative.text for negative in example.mined]
        assert len(set(drawn)) == 3 and set(drawn) <= positives - {example.positive} and not example.written
    assert [e.query for e in examples] == [e.query for e in _examples(release)]
    blank = [row for row in (_slotted_row("q", "p"), _slotted_row("q", "r"), _slotted_row("s", "t"))]
    assert [[n["id"] for n in drawn] for drawn in _random_negatives(blank, 3, 0)[:2]] == [["t"], ["t"]]
    assert sorted(n["id"] for n in _random_negatives(blank, 3, 0)[2]) == ["p", "r"]
    assert {e.mined[0].id for e in examples} != {e.mined[0].id for e in _examples(folders[2])} or len(examples) < 4


@pytest.fixture
def mined_release(tmp_path: Path) -> Path:
    """Queries with five mined negatives: BM25 found the first three, a dense teacher 1 to 4 from the other end."""
    from curation.release.recipe import Mix, ReleaseRecipe, Split
    from curation.release.release import create_release
    from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
    from db.insert import insert_missing
    from db.runs import start_run
    from db.store import Store
    from db.tables.examples import Score
    from db.teachers import put_teacher
    from db.texts import put_passages, put_queries

    store = Store.open(f"sqlite:///{tmp_path / 'mined.db'}")
    with store.write() as session:
        run = start_run(session, "mine", "both", {}, 0)
        bm25, dense = (put_teacher(session, name=name, version="1", kind="k") for name in ("bm25", "dense"))
        for number in range(4):
            (query,) = put_queries(session, [f"query {number}"])
            positive, *negatives = put_passages(session, [f"answer {number}", *(f"n{i} {number}" for i in range(5))])
            (example,) = put_examples(session, [(query, positive)], origin="corpus")
            rows = [NewCandidate(example, passage, "negative", "mined", run.id) for passage in negatives]
            known = put_candidates(session, [NewCandidate(example, positive, "positive", "corpus", run.id), *rows])
            ids = [known[example, passage] for passage in negatives]
            found = [NewSourcing(ids[i], run.id, None, bm25, i + 1, 9.0 - i) for i in range(3)]
            found += [NewSourcing(ids[4 - i], run.id, None, dense, i + 1, 0.9 - i / 10) for i in range(1 + number)]
            put_sourcings(session, found)
            scored = {"teacher_id": dense, "query_id": query, "num_tokens": 3}
            pairs = ((positive, 0.9), (negatives[0], 0.5))
            insert_missing(session, Score, [{**scored, "passage_id": key, "value": value} for key, value in pairs])
    recipe = ReleaseRecipe(teacher="dense", mix=Mix(kind="mined", slots=2), split=Split(dev_share=0))
    create_release(store, recipe, "mined-1.0.0", folder=tmp_path / "releases")
    store.close()
    return tmp_path / "releases" / "mined-1.0.0"


def test_mined_negatives_by_who_found_them(mined_release: Path, tmp_path: Path) -> None:
    both = finders(mined_release, "train")
    assert both == [Finder("bm25", "both"), Finder("dense", "both")]
    names = [arm.name for arm in ablation_of("negatives", _recipe(), 2, both).arms]
    assert {"mined", "mined, found by bm25", "mined, found by dense"} <= set(names)
    assert not any("found by" in arm.name for arm in ablation_of("negatives", _recipe(), 2, both[:1]).arms)
    found = {}
    for finder in both:
        slotting = Slotting("mined", 3, finder=finder)
        folder = slotted_release(mined_release, slotting, tmp_path, 0)
        assert folder == slotted_release(mined_release, slotting, tmp_path, 1)
        for one in _examples(folder):
            texts = [negative.text.split()[0] for negative in one.mined]
            found[finder.teacher, int(one.query.split()[1])] = (texts, one.num_mined_slots)
    for number in range(4):
        assert found["bm25", number] == (["n0", "n1", "n2"], 3)
        assert found["dense", number] == (["n4", "n3", "n2", "n1"][: number + 1], min(number + 1, 3))
    with pytest.raises(AppError, match="what splade found in run 'x'"):
        slotted_release(mined_release, Slotting("mined", 3, finder=Finder("splade", "x")), tmp_path, 0)


def test_two_runs_of_one_teacher_are_two_arms() -> None:
    several = [Finder("bm25", "a"), Finder("bm25", "b"), Finder("dense", "b")]
    names = [arm.name for arm in ablation_of("negatives", _recipe(), 2, several).arms if "found" in arm.name]
    assert names == ["mined, found by bm25 in a", "mined, found by bm25 in b", "mined, found by dense"]


def test_provenance_that_is_not_the_manifests_is_refused(mined_release: Path) -> None:
    (path,) = (mined_release / "provenance").iterdir()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(AppError, match="not there as its manifest says"):
        finders(mined_release, "train")


def test_a_field_that_came_later_leaves_the_digests_of_old_copies(release: Path, tmp_path: Path) -> None:
    made = slotted_release(release, Slotting("synthetic", 2), tmp_path, 0)
    of = json.loads((release / "manifest.json").read_bytes())["digest"]
    slotting = {"mix": "synthetic", "slots": 2, "ratio": 0.7, "origins": ["synthetic", "edited"]}
    assert made.name == f"synthetic-{digest_of({'of': of, 'slotting': slotting, 'draws': None})[:12]}"


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


def test_usual_slots_is_the_most_frequent_sum(release: Path) -> None:
    sums = [e.num_written_slots + e.num_mined_slots for e in _examples(release)]
    assert usual_slots(release, "train") == max(set(sums), key=sums.count) == 2


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
    runs = {name: [{"0/ndcg@10": np.array(column)} for column in columns] for name, columns in values.items()}
    report = report_of_runs(ablation, [_set()], runs, {})
    base, one, two = report["sets"][0]["arms"]
    assert base["by_seed"] == [0.5] and set(base) == {"arm", "place", "by_seed", "mean"}
    assert one["mean"] == pytest.approx((2 / 3 + 2.5 / 3) / 2)
    assert one[f"against {BASE}"]["difference"] == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert two["against one"] == {"difference": 0, "interval_95": [0, 0]} and "against one" not in one
    cosines = [[0.1, 0.4, 0.3], [0.2, 0.1, 0.9], [0.5, 0.6, 0.4]]
    gold = np.array([0.0, 1.0, 2.0])
    told = EvaluationSet(
        "similarity", "d", "dev", "pairs", 3, ("spearman",), "0" * 64, _set().measure, {"spearman": spearman(gold)}
    )
    similar = {BASE: [{"0/spearman": gold}], "one": [{"0/spearman": np.array(column)} for column in cosines]}
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


def test_arms_of_one_rank_are_compared_with_as_many_mined_negatives() -> None:
    ablation = ablation_of("negatives", _recipe(), 3)
    slots = {arm.name: arm.slotting.slots for arm in ablation.arms if arm.slotting is not None}
    assert slots.pop("mined, one a row") == 1 and set(slots.values()) == {3}
    alone = [arm for arm in ablation.arms if arm.name.endswith("alone")]
    assert len(alone) == 4 and {arm.twin for arm in alone} == {"mined, one a row"}
    assert all(arm.changes["negatives"] == {"written": 1, "mined": 0} for arm in alone)
    assert "none in 'in-batch', and one in 'N1 alone'" in ablation.notes[0]
    assert {arm.twin for arm in ablation_of("negatives", _recipe(), 1).arms} == {None, "mined"}


def test_an_arm_is_compared_with_its_twin_too() -> None:
    values = {"one": [0.0, 0.5, 1.0], "two": [0.5, 0.5, 0.5], "three": [1.0, 1.0, 0.5]}
    ablation = Ablation("toy", (Arm("one"), Arm("two"), Arm("three", twin="two")), "one")
    runs = {name: [{"0/ndcg@10": np.array(column)}] for name, column in values.items()}
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


def _journal(folder: Path, rows: list[tuple[float, float, dict[str, tuple[int, float]]]]) -> Path:
    """Steps as (loss, gradient norm, negatives and margin of each rank), two to a block."""
    lines = []
    for number, (loss, norm, ranks) in enumerate(rows):
        told = {rank: {"negatives": num, "margin": margin} for rank, (num, margin) in ranks.items()}
        lines.append({"step": number, "block": 1 + number // 2, "loss": loss, "gradient_norm": norm, "ranks": told})
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_course_is_the_mean_of_the_seeds_step_by_step(tmp_path: Path) -> None:
    one = [(1.0, 9.0, {"4": (3, 0.2), "mined": (1, 0.6)}), (0.5, 2.0, {}), (0.2, 4.0, {"1": (2, 0.1)})]
    other = [(2.0, 7.0, {"4": (1, 0.5)}), (0.5, 1.0, {}), (0.4, 1.0, {})]
    journals = [_journal(tmp_path / "0", one), _journal(tmp_path / "1", other)]
    told = course_of(journals, warmup=1 / 3)
    assert told["course"] == {
        "step": [0, 1, 2],
        "block": [1, 1, 2],
        "loss": pytest.approx([1.5, 0.5, 0.3]),
        "margin": [pytest.approx((0.3 + 0.5) / 2), None, pytest.approx(0.1)],
        "gradient_norm": pytest.approx([8.0, 1.5, 2.5]),
    }
    assert told["gradient_variance"] == pytest.approx((np.var([2.0, 4.0]) + np.var([1.0, 1.0])) / 2)
    assert course_of([*journals, tmp_path / "none"]) == {"course": None, "gradient_variance": None}
    report = {"ablation": "toy $x$", "training": {"a": told, "b": {"course": None}}}
    assert write_course_chart(tmp_path / "course.png", report)
    assert (tmp_path / "course.png").stat().st_size > 1_000
    assert not write_course_chart(tmp_path / "none.png", {"ablation": "toy", "training": {"b": {"course": None}}})


@pytest.mark.parametrize("window", [1, 2, 3, 5, 20])
def test_smoothing_is_the_mean_of_what_is_there(window: int) -> None:
    values = np.array([1.0, np.nan, -2.0, 5.0, np.nan, np.nan, np.nan, 4.0])
    half = window // 2
    around = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    expected = [np.mean(part[~np.isnan(part)]) if (~np.isnan(part)).any() else np.nan for part in around]
    np.testing.assert_allclose(smoothed(values, window), expected)


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
