"""`benchmarks/quality.py`: what it says of its own figures, and what it refuses."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality


def _change(difference: float) -> dict[str, Any]:
    return {"difference": difference, "interval_95": [difference - 0.01, difference + 0.01]}


def test_the_table_has_a_column_against_the_mean_twin_and_says_what_intervals_are(tmp_path: Path) -> None:
    rows = [
        {"arm": "mined", "by_seed": [0.5, 0.75], "mean": 0.625, "against before training": _change(0.1)},
        {
            "arm": "free, ATA", "by_seed": [0.75], "mean": 0.75, "against before training": _change(0.2),
            "against mined": _change(0.125), "against its mean twin": _change(-0.05),
        },
    ]  # fmt: skip
    one = {"data": "x/scifact", "num_units": 3, "metric": "ndcg@10", "arms": rows}
    shared = {"dev_positives": 7, "shared": 2, "dev_queries": 5, "queries_with_one": 3}
    options = argparse.Namespace(threads=1, steps=52, seeds=2)
    table = quality.as_markdown({"sets": [one], "shared_positives": shared}, options)
    head, rule, mined, ata = (line for line in table.splitlines() if line.startswith("|"))
    assert head.endswith("| against its mean twin, 95 % |")
    assert ata.endswith("| +0.125 (+0.115 to +0.135) | -0.050 (-0.060 to -0.040) |")
    assert {line.count("|") for line in (head, rule, mined, ata)} == {7}
    assert "2 of 7 dev positives are positives in training too (3 of 5 dev queries have one)" in table
    assert "Intervals are over queries" in table and "Nothing corrects" in table


def test_dev_positives_of_training_are_counted(toy_releases: Path, tmp_path: Path) -> None:
    from trainer.release import read_release

    release = toy_releases / "gradus" / "releases" / "toy-1.0.0"
    example = read_release(release, "train").examples[0]
    texts = {"a": example.positive, "b": "another text", "c": example.query}
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": key, "title": "", "text": text} for key, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judged = "q0\ta\t1\nq0\tb\t1\nq1\ta\t2\nq2\ta\t0\nq2\tc\t1\n"
    (tmp_path / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    assert quality.shared_positives(release, tmp_path) == {
        "dev_positives": 3, "shared": 1, "dev_queries": 3, "queries_with_one": 2,
    }  # fmt: skip


@pytest.mark.parametrize("arms", [["ata"], ["ata", "base"]])
def test_ata_alone_is_refused(
    arms: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["quality.py", "--arms", *arms])
    with pytest.raises(SystemExit) as refused:
        quality.main()
    assert refused.value.code == 2 and "name one of these beside it" in capsys.readouterr().err
