"""`gradus mine` end to end on a small import: mining, a sweep with its plot, and errors that say what to do."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli

RECIPE = """
name = "small"
collection = "set"
combine = "intra_sample_unique"
num_negatives = 2
method = "absolute"
value = 99

[[teachers]]
kind = "bm25"

[[teachers]]
kind = "bi_encoder"
model = "minilm"
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    texts = ["zinc helps a cold", "zinc is a metal", "a cold is a virus", "the market fell", "zinc and the common cold"]
    corpus = [json.dumps({"_id": f"d{place}", "text": text}) for place, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "does zinc help a cold"}))
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\nq\td4\t1\n")
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    assert CliRunner().invoke(cli, ["import", "beir", str(folder)]).exit_code == 0
    return path


def test_mining_and_sweep_report_each_teacher(recipe: Path) -> None:
    folder = recipe.parent
    done = CliRunner().invoke(cli, ["mine", str(recipe), "--json", str(folder / "mine.json")])
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "mine.json").read_text())
    assert [teacher["teacher"] for teacher in report["teachers"]] == ["bm25", "minilm"]
    assert (report["num_candidates"], report["num_known_positives"]) == (4, 2)
    arguments = ["--sweep", "--json", str(folder / "sweep.json"), "--plot", str(folder / "sweep.png")]
    done = CliRunner().invoke(cli, ["mine", str(recipe), *arguments])
    assert done.exit_code == 0, done.output
    sweep = json.loads((folder / "sweep.json").read_text())
    assert sweep["num_false"] == {"bm25": 2, "minilm": 2}  # each positive once the other's false negative
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_plot_without_sweep_is_a_usage_error(recipe: Path) -> None:
    done = CliRunner().invoke(cli, ["mine", str(recipe), "--plot", "x.png"])
    assert done.exit_code == 2 and "--sweep" in done.output


def test_contradiction_is_named_in_one_line(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("intra_sample_unique", "union"))
    done = CliRunner().invoke(cli, ["mine", str(recipe)])
    assert str(done.exception).startswith(f"recipe {recipe}: combine = 'union' of several teachers needs a [judge]")
