"""Shipped recipes are listed, read, copied and run by name; what is missing is told with what is there."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from app.errors import AppError, RecipeError
from app.recipes import load_recipe
from app.shipped_recipes import about, recipe_file, shipped_recipes
from app.training import release_folder, start_folder
from trainer.recipe import TrainRecipe


def gradus(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "gradus"), *options]
    env = {**os.environ, "GRADUS_DATA": str(folder / "data"), "COLUMNS": "80"}
    return subprocess.run(command, check=False, env=env, cwd=folder, capture_output=True, text=True, timeout=600)


def recipe(**fields: object) -> TrainRecipe:
    return TrainRecipe.model_validate({"name": "t", "release": "r", **fields})


def test_every_shipped_recipe_is_listed_with_what_it_is(tmp_path: Path) -> None:
    done = gradus(tmp_path, "recipes", "--json", "-")
    told = orjson.loads(done.stdout)["recipes"]
    assert done.returncode == 0 and list(told) == list(shipped_recipes()) and "minilm_cpu" in told
    assert told["minilm_cpu"] == "MiniLM on a CPU: full fine-tuning, ATA pooling, from easy to hard, four passes"
    assert all(20 < len(about(path)) < 300 for path in shipped_recipes().values())


def test_a_recipe_is_shown_and_copied_as_it_is_and_never_over_a_file(tmp_path: Path) -> None:
    content = shipped_recipes()["mgh_mistral"].read_text()
    assert gradus(tmp_path, "recipes", "show", "mgh_mistral").stdout == content
    assert gradus(tmp_path, "recipes", "copy", "mgh_mistral", "my.toml").returncode == 0
    assert (tmp_path / "my.toml").read_text() == content
    again = gradus(tmp_path, "recipes", "copy", "bge_one_gpu", "my.toml")
    assert again.returncode == 1 and again.stderr == "gradus: my.toml is there already: give another name\n"
    assert (tmp_path / "my.toml").read_text() == content
    none = gradus(tmp_path, "recipes", "show", "mistral")
    assert none.returncode == 1 and "mgh_mistral" in none.stderr and len(none.stderr.splitlines()) == 1


def test_a_name_is_taken_where_a_path_is_and_a_file_comes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe_file(Path("minilm_cpu")), TrainRecipe).name == "minilm-graded"
    with pytest.raises(RecipeError, match=r"recipe minilm: no file here, and none of this name.*minilm_cpu"):
        recipe_file(Path("minilm"))
    for path in ("none.toml", "folder/minilm_cpu", "./x/none"):
        assert recipe_file(Path(path)) == Path(path)
    Path("minilm_cpu").write_text('name = "mine"\nrelease = "r"\n')
    assert load_recipe(recipe_file(Path("minilm_cpu")), TrainRecipe).name == "mine"


def test_a_release_that_is_not_there_names_those_that_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    with pytest.raises(AppError, match=r"release = 'r': .*there is none yet: make one with 'gradus release create'"):
        release_folder(recipe())
    for name in ("toy-1.0.0", "toy-1.1.0"):
        (tmp_path / "releases" / name).mkdir(parents=True)
        (tmp_path / "releases" / name / "manifest.json").touch()
    with pytest.raises(AppError, match=r"release = 'r': .*: toy-1\.0\.0, toy-1\.1\.0$"):
        release_folder(recipe())
    done = gradus(tmp_path, "train", "minilm_cpu", "--release", "none", "--dry-run")
    assert done.returncode == 1 and "release = 'none'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_no_training_takes_the_place_of_a_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_DATA", str(tmp_path))
    for name in ("minilm", "MiniLM"):
        with pytest.raises(AppError, match=f"name = '{name}': a model that comes with Gradus"):
            start_folder(recipe(name=name))
    bundled = start_folder(recipe())
    for name in ("minilm", "own"):
        (tmp_path / "models" / name).mkdir(parents=True)
        for file in ("training.json", "modules.json"):
            (tmp_path / "models" / name / file).touch()
    assert start_folder(recipe()) == bundled  # one that an earlier version let in is passed over
    assert start_folder(recipe(model="own")) == tmp_path / "models" / "own"
