"""Curves of a training by value, from its folder or the store; what is missing tolerated; no way out of the folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from app.closed_loop import import_training
from app.errors import AppError
from app.viewing.training_curves import (
    evaluation_rows,
    listed_models,
    model_marks,
    stored_model,
    trained_model,
    trained_models,
)
from db.store import Store


def write_model(folder: Path, name: str, steps: list[dict[str, Any]], summary: Any = None, exist: bool = False) -> Path:
    model = folder / name
    model.mkdir(parents=True, exist_ok=exist)
    (model / "metrics.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in steps))
    if summary is not None:
        (model / "training.json").write_bytes(orjson.dumps(summary))
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


def of_rank(num: int, margin: float | None, above: float = 0.0) -> dict[str, Any]:
    return {"negatives": num, "margin": margin, "above_positive": above}


def test_margins_by_rank_before_and_after(tmp_path: Path) -> None:
    steps = [
        step(0, 4, ranks={"4": of_rank(3, 0.5, 1 / 3), "mined": of_rank(1, 0.2)}),
        step(1, 4, ranks={"4": of_rank(1, -0.1, 1.0)}),
        step(2, 4, ranks={"1": of_rank(2, None), "3": of_rank(1, 0.6, 1.0)}),
        step(3, 4, ranks={"4": of_rank(5, 0.9)}),
        step(4, 4, ranks={"4": of_rank(2, 0.3, 0.5), "mined": "odd"}),
        step(5, 4, ranks={"mined": of_rank(2, 0.4)}),
    ]
    write_model(tmp_path, "margins", steps)
    model = trained_model(tmp_path, "margins")
    assert [(row["step"], row["rank"], row["margin"]) for row in model.margins] == [
        (2, "N3", 0.6), (0, "N4", 0.5), (1, "N4", -0.1), (3, "N4", 0.9), (4, "N4", 0.3),
        (0, "mined", 0.2), (5, "mined", 0.4),
    ]  # fmt: skip
    change = {row["rank"]: row for row in model.before_after}
    assert change.keys() == {"N3", "N4", "mined"} and change["N4"]["num"] == 11
    # Steps 0 and 1 are the first quarter, 3 and 4 the last; each counts by its number of negatives.
    assert change["N4"]["before"] == pytest.approx((3 * 0.5 - 0.1) / 4)
    assert change["N4"]["above_before"] == pytest.approx((1 + 1) / 4)
    assert change["N4"]["after"] == pytest.approx((5 * 0.9 + 2 * 0.3) / 7)
    assert change["N4"]["above_after"] == pytest.approx(1 / 7)
    assert (change["N3"]["before"], change["N3"]["above_before"], change["N3"]["after"]) == (0.6, 1.0, None)
    assert (change["mined"]["before"], change["mined"]["after"]) == (0.2, 0.4)


def test_long_margin_curves_are_means_over_the_negatives_of_neighbouring_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    nums, margins = rng.integers(1, 9, 700).tolist(), rng.normal(size=700).tolist()
    steps = [step(n, 2, ranks={"2": of_rank(nums[n], margins[n])}) for n in range(700)]
    write_model(tmp_path, "long", steps)
    points = trained_model(tmp_path, "long").margins
    assert [row["step"] for row in points] == list(range(0, 700, 3))
    for row in points:
        part = slice(row["step"], row["step"] + 3)
        assert row["margin"] == pytest.approx(np.average(margins[part], weights=nums[part]), abs=2e-6)


def summary_of(name: str, steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "recipe": {"name": name, "model": "minilm", "schedule": "easy_to_hard", "pooling": "log1p", "seed": 0},
        "release": "toy-1.0.0", "release_digest": "d" * 64, "num_examples": 2, "num_steps": len(steps), **more,
    }  # fmt: skip


def test_the_store_tells_what_the_folder_does_and_comes_before_it(store: Store, tmp_path: Path) -> None:
    ranks = {"4": {**of_rank(3, 0.5, 1 / 3), "loss": 0.1, "similarity": 0.2, "gradient": 1.0, "gradient_variance": 2.0}}
    steps = [step(n, 4 - n // 3, gradient_norm=n / 7, positive=0.5, ranks=ranks) for n in range(7)]
    for name, machine in (("both", "here"), ("alone", "here"), ("twin", "one"), ("far", "two")):
        told = summary_of("twin" if name == "far" else name, steps, machine=machine)
        write_model(tmp_path / ("elsewhere" if name == "far" else "models"), name, steps, told)
    models = tmp_path / "models"
    write_model(models, ".going.partial", steps[:2])
    for folder in (models / "both", models / "twin", tmp_path / "elsewhere" / "far"):
        import_training(store, folder)
    with store.read() as session:
        listed = listed_models(session, models)
        assert len(listed) == 5 and set(list(listed)[:2]) == {".going.partial", "alone"}
        assert list(listed)[2].startswith("twin (") and list(listed)[3].startswith("twin (")
        assert list(listed)[4] == "both" and isinstance(listed["both"], int)
        stored = stored_model(session, listed["both"], "both")
        with pytest.raises(AppError, match="no training 999"):
            stored_model(session, 999, "x")
    assert stored == trained_model(models, "both") and stored.margins and stored.before_after
    (models / "alone" / "training.json").write_bytes(b"{broken")
    write_model(models, "both-again", steps, summary_of("both", steps, machine="here"))
    write_model(models, "twin", steps, summary_of("twin", steps, machine="three"), exist=True)
    with store.read() as session:
        listed = listed_models(session, models)
    assert listed["alone"] == "alone" and listed["twin (not in the store)"] == "twin" and "both-again" not in listed


def test_what_another_trainer_left_out_is_missing_and_no_error(tmp_path: Path) -> None:
    model = write_model(tmp_path, "odd", [{"loss": float("inf")}, {"step": "x", "rank": "y", "loss": True}])
    with (model / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "loss": 0.')  # still being written
    found = trained_model(tmp_path, "odd")
    assert (found.steps, found.margins, found.summary) == ([], [], {})
    assert found.missing == ["training.json", "figures per rank"]
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
