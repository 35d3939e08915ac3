"""A release that matches its manifest and still cannot be trained on: one line with file, row and field."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from trainer.admission import admitted
from trainer.curriculum import plan_steps
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import read_release

from .conftest import toy_rows, write_release

ReleaseOf = Callable[[list[dict[str, Any]]], Path]


def recipe(**fields: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({"name": "t", "release": "r", "batch_size": 4, **fields})


def notes_of(asked: TrainRecipe, folder: Path) -> list[str]:
    examples = read_release(folder).examples
    return admitted(asked, examples, plan_steps(asked, examples))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("example_id",), None, "example_id is null"),
        (("query",), "", "query is empty"),
        (("num_synthetic_slots",), None, "num_synthetic_slots = None: a number of negatives"),
        (("num_mined_slots",), -1, "num_mined_slots = -1: a number of negatives"),
        (("negatives", 1, "text"), None, "negatives[1].text is null"),
        (("negatives", 1, "text"), "  ", "negatives[1].text = '  '"),
        (("negatives", 0, "origin"), None, "negatives[0].origin is null"),
        (("negatives", 0, "rank"), 0, "negatives[0].rank = 0: a rank from 1"),
        (("negatives", 2, "grade"), "hardest", "negatives[2].grade = 'hardest': hard, medium, easy or null"),
        (("negatives", 0, "scores"), [{"teacher": "judge", "value": math.nan}], "negatives[0].scores[0].value = nan"),
        (("positive_scores",), [{"teacher": "judge", "value": -math.inf}], "positive_scores[0].value = -inf"),
        (("negatives", 1), None, "negatives[1] is null"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_told(
    path: tuple[str | int, ...], value: Any, told: str, release_of: ReleaseOf
) -> None:
    rows = toy_rows()
    *inner, last = path
    place: Any = rows[3]
    for step in inner:
        place = place[step]
    place[last] = value
    with pytest.raises(TrainerError) as caught:
        read_release(release_of(rows))
    line = str(caught.value)
    name = "None" if path == ("example_id",) else "'e3'"
    assert f"train-00000-of-00001.parquet, row 4 (example {name}): {told}" in line and "\n" not in line


def test_columns_and_bytes_that_are_no_releases_are_told(tmp_path: Path) -> None:
    whole = write_release(tmp_path / "a", toy_rows())
    manifest = orjson.loads((whole / "manifest.json").read_bytes())
    for files in ({name: {} for name in manifest["files"]}, dict.fromkeys(manifest["files"], "x")):
        (whole / "manifest.json").write_bytes(orjson.dumps({**manifest, "files": files}))
        with pytest.raises(TrainerError, match=r"manifest\.json has no sha256 of 'graded/train"):
            read_release(whole)
    for broken in ([1], {**manifest, "files": [1]}):
        (whole / "manifest.json").write_bytes(orjson.dumps(broken))
        with pytest.raises(TrainerError, match="not a release's manifest"):
            read_release(whole)
    numbers = write_release(tmp_path / "b", [{**row, "query": place} for place, row in enumerate(toy_rows())])
    with pytest.raises(TrainerError, match="column 'query' holds int64, not text"):
        read_release(numbers)


def test_null_scores_are_none_and_a_teacher_without_a_pair_is_refused(release_of: ReleaseOf, tmp_path: Path) -> None:
    asked = recipe(distillation={"teacher": "judge"}, schedule="mixture")
    rows = toy_rows()
    for row in rows[:3]:
        row["positive_scores"] = [{"teacher": "judge", "value": None}]
    (note,) = notes_of(asked, release_of(rows))
    assert note.startswith("distillation.teacher = 'judge': 3 of 8 examples have no score")
    for row in rows:
        for negative in row["negatives"]:
            negative["scores"] = [{"teacher": "judge", "value": None}]
    folder = tmp_path / "none"
    with pytest.raises(TrainerError, match="has scores of it, but of no positive together with a negative"):
        notes_of(asked, write_release(folder, rows))


def test_a_prompt_for_an_instruction_asks_for_one(release: Path, release_of: ReleaseOf, tmp_path: Path) -> None:
    asked = recipe(query_prompt="{instruction}: ")
    assert notes_of(asked, release) == []
    rows = [{**row, "instruction": None if place < 3 else "find"} for place, row in enumerate(toy_rows())]
    (note,) = notes_of(asked, release_of(rows))
    assert "3 of 8 examples have no instruction, and are asked with ': '" in note
    none = write_release(tmp_path / "none", [{**row, "instruction": " "} for row in toy_rows()])
    with pytest.raises(TrainerError, match="no example of the release has an instruction; write it into the prompt"):
        notes_of(asked, none)
    assert notes_of(recipe(), none) == []


def test_ranks_without_a_step_and_batches_above_the_release_are_noted(release: Path) -> None:
    shares = [0.7, 0.1, 0.1, 0.1]
    (note,) = notes_of(recipe(max_steps=4, shares=shares), release)
    assert note == (
        "max_steps = 4 with shares = [0.7, 0.1, 0.1, 0.1]: no step is left to train on N3, N1; "
        "give more steps or even shares"
    )
    assert notes_of(recipe(max_steps=4), release) == []
    assert notes_of(recipe(max_steps=1, schedule="random"), release) == []
    (note,) = notes_of(recipe(batch_size=9), release)
    assert note.startswith("batch_size = 9: more than the 8 examples")


def test_a_broken_parquet_file_is_told(tmp_path: Path) -> None:
    folder = write_release(tmp_path / "a", toy_rows())
    (file,) = (folder / "graded").iterdir()
    file.write_bytes(b"not parquet")
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    manifest["files"][f"graded/{file.name}"]["sha256"] = hashlib.sha256(b"not parquet").hexdigest()
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(TrainerError, match="is no Parquet file"):
        read_release(folder)
