"""Curves of a training by value, what is missing tolerated, and no way out of the models' folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.errors import AppError
from app.viewing.training_curves import evaluation_rows, model_marks, trained_model, trained_models


def write_model(folder: Path, name: str, steps: list[dict[str, Any]], summary: Any = None, margins: Any = None) -> Path:
    model = folder / name
    model.mkdir(parents=True)
    (model / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in steps))
    if summary is not None:
        (model / "training.json").write_bytes(orjson.dumps(summary))
    if margins is not None:
        pq.write_table(pa.Table.from_pylist(margins), model / "margins.parquet")
    return model


def step(number: int, rank: int | None, **values: Any) -> dict[str, Any]:
    return {"step": number, "block": number // 3 + 1, "rank": rank, "loss": 1.0 / (number + 1), **values}


def test_points_are_means_of_neighbouring_steps_of_one_rank(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random(700).tolist()
    steps = [{"step": n, "rank": 4 if n < 351 else 1, "loss": loss} for n, loss in enumerate(losses)]
    write_model(tmp_path, "long", steps)
    points = trained_model(tmp_path, "long").steps
    assert 200 < len(points) <= 241 and {point["measure"] for point in points} == {"loss"}
    by_start = {(point["step"], point["rank"]): point["value"] for point in points}
    assert by_start[0, "N4"] == pytest.approx(np.mean(losses[:3]), abs=1e-6)
    # The bin of steps 351 to 353 begins with the new rank; that of 348 to 350 is the old one's alone.
    assert by_start[348, "N4"] == pytest.approx(np.mean(losses[348:351]), abs=1e-6)
    assert by_start[351, "N1"] == pytest.approx(np.mean(losses[351:354]), abs=1e-6)


def test_blocks_come_from_the_summary_or_else_from_the_steps(tmp_path: Path) -> None:
    steps = [step(n, 4 - n // 3, gradient_norm=float(n * n), mined=None) for n in range(7)]
    write_model(tmp_path, "bare", steps)
    blocks = trained_model(tmp_path, "bare").blocks
    assert [(one["block"], one["rank"]) for one in blocks] == [("1", "N4"), ("2", "N3"), ("3", "N2")]
    assert blocks[0]["gradient_variance"] == pytest.approx(np.var([0.0, 1.0, 4.0]))
    assert blocks[1]["loss"] == pytest.approx(np.mean([1 / 4, 1 / 5, 1 / 6])) and blocks[1]["mined"] is None
    told = {"blocks": [{"block": 1, "rank": None, "gradient_variance": 2.5}, "no block"], "recipe": {}}
    write_model(tmp_path, "told", steps, told)
    (block,) = trained_model(tmp_path, "told").blocks
    assert (block["rank"], block["gradient_variance"], block["loss"]) == ("all", 2.5, None)


def test_margins_by_rank_before_and_after(tmp_path: Path) -> None:
    rows = [{"step": n, "rank": rank, "margin": m} for n, rank, m in (
        (0, 4, 0.5), (1, 4, -0.1), (4, 4, 0.3), (4, 4, 0.7), (2, None, 0.2), (3, 1, float("nan")),
    )]  # fmt: skip
    write_model(tmp_path, "margins", [step(0, 4)], margins=rows)
    model = trained_model(tmp_path, "margins")
    assert [(row["step"], row["rank"], row["margin"]) for row in model.margins] == [
        (0, "N4", 0.5), (1, "N4", -0.1), (4, "N4", 0.5), (2, "mined", 0.2),
    ]  # fmt: skip
    of_rank = {row["rank"]: row for row in model.before_after}
    assert "N1" not in of_rank and of_rank["N4"]["num"] == 4
    assert of_rank["N4"]["before"] == pytest.approx(np.mean([0.5, -0.1])) and of_rank["N4"]["above_before"] == 0.5
    assert of_rank["N4"]["after"] == pytest.approx(0.5) and of_rank["N4"]["above_after"] == 0.0


def test_what_another_trainer_left_out_is_missing_and_no_error(tmp_path: Path) -> None:
    model = write_model(tmp_path, "odd", [{"loss": float("inf")}, {"step": "x", "rank": "y", "loss": True}])
    with (model / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "loss": 0.')  # still being written
    found = trained_model(tmp_path, "odd")
    assert (found.steps, found.margins, found.summary) == ([], [], {})
    assert found.missing == ["training.json", "margins.parquet"]
    (model / "metrics.jsonl").write_bytes(b"{broken\n{}\n")
    with pytest.raises(AppError, match="line 1"):
        trained_model(tmp_path, "odd")
    assert trained_models(tmp_path / "none") == []


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = write_model(tmp_path / "outside", "secret", [step(0, 1)], {"recipe": {"name": "secret"}})
    models = tmp_path / "models"
    inside = write_model(models, "inside", [step(0, 1)], {})
    (models / "link").symlink_to(outside)
    (models / "empty").mkdir()
    assert trained_models(models) == ["inside"]
    for name in ("link", "../outside/secret", str(outside), "..", "", "empty"):
        with pytest.raises(AppError, match="no trained model"):
            trained_model(models, name)
        with pytest.raises(AppError, match="no trained model"):
            model_marks(models, name)
    (inside / "training.json").unlink()
    (inside / "training.json").symlink_to(outside / "training.json")
    assert trained_model(models, "inside").summary == {}


def test_marks_change_with_the_files(tmp_path: Path) -> None:
    model = write_model(tmp_path, "one", [step(0, 1)], {})
    before = model_marks(tmp_path, "one")
    os.utime(model / "training.json", (1, 1))
    assert model_marks(tmp_path, "one") != before


def test_evaluation_tells_names_and_no_paths(tmp_path: Path) -> None:
    report = {
        "data": "/home/someone/data/scifact", "split": "dev", "num_queries": 1_150, "pool": 50,
        "models": [
            {"model": "minilm", "metrics": {"ndcg@10": 0.6, "odd": "x"}},
            {"model": "/home/someone/mine/", "metrics": {}, "difference": {"ndcg@10": {"interval_95": [0, 1]}}},
        ],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_bytes(orjson.dumps(report))
    told, rows = evaluation_rows(tmp_path / "evaluation.json")
    assert told == "scifact, dev, 1,150 queries, a pool of 50 a query"
    assert rows[0] == {"model": "minilm", "ndcg@10": 0.6, "odd": None, "difference": None}
    assert rows[1] == {"model": "mine", "difference": {"interval_95": [0, 1]}}
    assert evaluation_rows(tmp_path / "none.json") == ("", [])
