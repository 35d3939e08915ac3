"""`gradus evaluate`: every kind of set, told by what lies there; several models; nothing left out in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.errors import AppError
from app.evaluating.sets import opened_set

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path / "data"))


def _report(tmp_path: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(cli, ["evaluate", *arguments, "--json", str(tmp_path / "out.json")])
    if done.exception:
        raise done.exception
    return json.loads((tmp_path / "out.json").read_text()), done.stdout


def _lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def _beir(folder: Path) -> Path:
    texts = ["Otters eat fish in rivers.", "Herons nest in trees.", "The stock market fell.", "Lynx hunt hares."]
    _lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)])
    _lines(folder / "queries.jsonl", [{"_id": "q0", "text": "what do otters eat"}, {"_id": "q1", "text": "shares"}])
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\n"])
    return folder


def test_retrieval_by_a_field_of_the_queries_is_the_mean_over_its_queries(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    queries = [
        {"_id": "q0", "text": "what do otters eat", "template": "_ | _", "year": 1},
        {"_id": "q1", "text": "shares", "template": "_ not _", "year": 2},
        {"_id": "q2", "text": "falling snow", "template": "_ not _"},
        {"_id": "q3", "text": "trees", "template": "unjudged"},
    ]
    _lines(folder / "queries.jsonl", queries)
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td2\t1\nq2\td0\t1\n"])
    report, shown = _report(tmp_path, "minilm", "minilm", "--data", str(folder), "--by", "template")
    assert report["groups"] == {"_ not _": 2, "_ | _": 1}
    metrics = report["models"][0]["metrics"]
    assert metrics["ndcg@10, _ | _"] == 1 and 0 < metrics["ndcg@10, _ not _"] < 1
    assert (metrics["ndcg@10, _ | _"] + 2 * metrics["ndcg@10, _ not _"]) / 3 == pytest.approx(metrics["ndcg@10"])
    assert report["models"][1]["difference"]["ndcg@10, _ not _"] == {"difference": 0, "interval_95": [0, 0]}
    assert "_ not _: 2 queries" in shown and "_ | _: 1 query" in shown

    years, _ = _report(tmp_path, "minilm", "--data", str(folder), "--by", "year")
    assert years["groups"] == {"1": 1, "2": 1}  # a query without the field is in none, and in the whole
    assert years["num_queries"] == 3
    with pytest.raises(
        AppError, match=r"no judged query of .* has it to be sorted by; their fields are template, year"
    ):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "domain")


def test_a_field_with_a_value_for_every_query_is_refused(tmp_path: Path) -> None:
    folder = _beir(tmp_path / "beir")
    many = range(31)
    _lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"t{n}", "title": f"of {n}"} for n in many])
    _lines(folder / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\n", *(f"q{n}\td0\t1\n" for n in many)])
    with pytest.raises(AppError, match="has 31 values, more than 30: name a coarser field"):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "title")
    with pytest.raises(AppError, match="their fields are title"):
        _report(tmp_path, "minilm", "--data", str(folder), "--by", "_id")


STS = [
    {"text_a": "A man plays a flute.", "text_b": "A man plays the flute.", "score": 4.8, "split": "dev"},
    {"text_a": "A plane takes off.", "text_b": "A plane is landing.", "score": 2.5, "split": "dev"},
    {"text_a": "A cat sleeps.", "text_b": "Prices rose in March.", "score": 0.0, "split": "dev"},
    {"text_a": "A cat sleeps.", "text_b": "A cat naps.", "score": 1.0, "split": "train"},
]
EDITS = [
    {"text_a": "He rarely paid.", "text_b": "He hardly ever paid.", "label": "paraphrase", "split": "dev"},
    {"text_a": "He rarely paid.", "text_b": "He always paid.", "label": "affirmative", "split": "dev"},
    {"text_a": "It is not legal.", "text_b": "It is illegal.", "label": "paraphrase", "split": "dev"},
    {"text_a": "It is not legal.", "text_b": "It is legal now.", "label": "scope", "split": "dev"},
    {"text_a": "Alone.", "text_b": "On its own.", "label": "paraphrase", "split": "dev"},
]


def test_several_sets_and_models_are_compared_over_their_own_units(tmp_path: Path) -> None:
    sts = _lines(tmp_path / "sts" / "pairs.jsonl", STS).parent
    edits = _lines(tmp_path / "edits" / "passage_pairs.jsonl", EDITS).parent
    picture = tmp_path / "picture.png"
    sets = ("--data", str(_beir(tmp_path / "beir")), "--data", str(sts), "--data", str(edits))
    report, shown = _report(tmp_path, "minilm", "minilm", *sets, "--plot", str(picture))
    retrieval, similarity, negation = report["sets"]
    assert (retrieval["kind"], retrieval["num_queries"], retrieval["num_documents"]) == ("retrieval", 2, 4)
    assert retrieval["models"][0]["metrics"]["ndcg@10"] == 1
    assert similarity["num_pairs"] == 3 and similarity["models"][0]["metrics"] == {"spearman": pytest.approx(1)}
    assert negation["num_originals"] == 2
    assert set(negation["models"][0]["metrics"]) == {"closer than any", "closer than affirmative", "closer than scope"}
    for one in report["sets"]:
        for change in one["models"][1]["difference"].values():
            assert change == {"difference": 0, "interval_95": [0, 0]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Spearman" in shown and "Negation" in shown


def test_a_set_is_named_by_its_content(tmp_path: Path) -> None:
    def digest(data: Path, **more: Any) -> str:
        return opened_set(str(data), "dev", **more).digest

    retrieval, other = digest(_beir(tmp_path / "a")), digest(_beir(tmp_path / "b"))
    assert retrieval == other != digest(tmp_path / "b", pool=1)
    _lines(tmp_path / "b" / "qrels" / "dev.tsv", ["query-id\tcorpus-id\tscore\nq0\td0\t2\nq1\td2\t1\n"])
    assert digest(tmp_path / "b") != retrieval
    swapped = [{**STS[0], "score": 2.5}, {**STS[1], "score": 4.8}, *STS[2:]]
    sets = [STS, swapped, [STS[1], STS[0], *STS[2:]], EDITS, [{**EDITS[0], "label": "scope"}, *EDITS[1:], EDITS[0]]]
    found = {digest(_lines(tmp_path / f"{number}.jsonl", rows)) for number, rows in enumerate(sets)}
    assert len(found) == len(sets)
    assert digest(_lines(tmp_path / "again.jsonl", [*STS[:3]])) in found  # rows of other splits are no part of it


def test_graded_order_of_a_release(tmp_path: Path, toy_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(toy_releases / "gradus"))
    report, shown = _report(tmp_path, "minilm", "minilm", "--data", "toy-1.0.0", "--split", "train")
    assert report["kind"] == "order" and report["release"] == "toy-1.0.0" and report["num_examples"] > 3
    metrics = report["models"][0]["metrics"]
    assert {"order", "tau_b", "positive above N1", "N4 in order"} <= set(metrics)
    assert all(-1 <= value <= 1 for value in metrics.values())
    assert "tau-b" in shown and "(+0.000 to +0.000)" in shown


def test_one_set_is_its_own_report_and_bad_rows_are_told(tmp_path: Path) -> None:
    folder = _lines(tmp_path / "sts" / "pairs.jsonl", [*STS, "{torn\n", {"text_a": "x", "split": "dev"}]).parent
    with pytest.raises(AppError, match=r"2 bad row\(s\) .* pairs.jsonl:5: is not JSON"):
        _report(tmp_path, "minilm", "--data", str(folder))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["num_pairs"] == 3 and len(report["faults"]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([STS[3]], "has no pair of split 'dev'; it has train"),
        (EDITS[1:2], "neither numbers in 'score' nor"),
        ([STS[0]], "two pairs or more"),
    ],
)
def test_pairs_that_cannot_be_measured_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        _report(tmp_path, "minilm", "--data", str(_lines(tmp_path / "pairs" / "pairs.jsonl", rows).parent))


def test_unknown_folders_pictures_and_code_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="neither a BEIR folder"):
        _report(tmp_path, "minilm", "--data", str(tmp_path))
    with pytest.raises(AppError, match=r"must end in \.png or \.svg"):
        _report(tmp_path, "minilm", "--data", str(tmp_path), "--plot", "a.pdf")
    _lines(tmp_path / "model" / "modules.json", [{}])
    _lines(tmp_path / "model" / "modeling_ata.py", ["raise SystemExit\n"])
    with pytest.raises(AppError, match="not the one of this version"):
        _report(tmp_path, str(tmp_path / "model"), "--data", str(_beir(tmp_path / "beir")))


@pytest.mark.parametrize("name", ["nanobeir:NFCorpus", "mteb:scifact"])
def test_a_hub_out_of_reach_is_said_in_a_line(tmp_path: Path, name: str) -> None:
    import os
    import subprocess
    import sys

    quiet = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [str(Path(sys.executable).parent / "gradus"), "evaluate", "minilm", "--data", name]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the Hub did not give it" in done.stderr.splitlines()[-1]
