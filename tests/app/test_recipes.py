"""Recipes are validated whole, and their errors tell a person what to do next."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from app.errors import RecipeError
from app.recipes import load_recipe


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEngine(Strict):
    kind: Literal["file"]
    completions: Path


class LiveEngine(Strict):
    kind: Literal["live"]
    base_url: str


class ToyRecipe(Strict):
    name: str
    temperature: float = Field(default=1.0, ge=0)
    engine: FileEngine | LiveEngine = Field(discriminator="kind")


GOOD = 'name = "a"\n[engine]\nkind = "file"\ncompletions = "in/c.jsonl"\n'


def load(tmp_path: Path, text: str | bytes) -> ToyRecipe:
    path = tmp_path / "toy.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, ToyRecipe)


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert isinstance(recipe.engine, FileEngine)
    assert recipe.engine.completions == tmp_path / "in" / "c.jsonl"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('nane = "x"\n' + GOOD, "unknown key 'nane'; did you mean 'name'"),
        (GOOD + "completion = 1\n", "did you mean 'completions'"),
        ('zzz = 1\n' + GOOD, "valid keys: engine, name, temperature"),
        ('temperature = -1\n' + GOOD, "temperature = -1"),
        (GOOD.replace('name = "a"', ""), "the key 'name' is missing"),
        (GOOD.replace('"file"', '"fiel"'), "engine"),
        ("name = ", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)  # fmt: skip
def test_error_names_field_value_and_remedy(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(RecipeError, match=r"toy\.toml") as caught:
        load(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.toml", ToyRecipe)


LIVE = GOOD.replace('"file"', '"live"').replace('completions = "in/c.jsonl"', "base_url = 5")


def test_a_password_in_a_value_and_a_long_value_are_not_repeated(tmp_path: Path) -> None:
    text = LIVE.replace("5", '["https://me:hunter2@host/v1", "' + "x" * 5_000 + '"]')
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text)
    assert "hunter2" not in str(caught.value) and "[hidden]@host" in str(caught.value) and len(str(caught.value)) < 500


def test_packs_and_models_are_bundled_names_or_folders_beside_the_recipe(tmp_path: Path) -> None:
    from generator.recipe import GenerateRecipe, VllmEngine

    def load_with(pack: str, model_path: str) -> GenerateRecipe:
        (tmp_path / "r.toml").write_text(
            f'name = "a"\npack = "{pack}"\nmodel = "m"\n[plan]\nsource = "tasks"\nnum = 1\n'
            f'[engine]\nkind = "vllm"\nmodel_path = "{model_path}"\n'
        )
        return load_recipe(tmp_path / "r.toml", GenerateRecipe)

    (tmp_path / "v1").mkdir()
    (tmp_path / "tiny").mkdir()
    for pack, model_path, at in (
        ("v1", "tiny", ("v1", str(tmp_path / "tiny"))),
        ("own", "org/name", (str(tmp_path / "own"), "org/name")),
        ("./v1", "./none", (str(tmp_path / "v1"), str(tmp_path / "none"))),
        ("/x/own", "/x/m", ("/x/own", "/x/m")),
    ):
        recipe = load_with(pack, model_path)
        assert isinstance(recipe.engine, VllmEngine)
        assert (recipe.pack, recipe.engine.model_path) == at
        # Where the pack lies is not what the run is.
        assert recipe.identity()["pack"] == Path(pack).name


def test_judges_and_lamer_take_their_packs_from_the_recipes_folder_too(tmp_path: Path) -> None:
    from app.judging import JudgeRecipe
    from app.mining import LamerSpec, MiningRecipe

    engine = 'engine = { kind = "openai", base_url = "http://h/v1" }'
    judging, mining = tmp_path / "judge.toml", tmp_path / "mine.toml"
    for pack, at in (("mine", str(tmp_path / "mine")), ("curation_v1", "curation_v1")):
        judging.write_text(f'name = "a"\npack = "{pack}"\n[screen]\nmodel = "m"\n{engine}\n')
        assert load_recipe(judging, JudgeRecipe).pack == at
        mining.write_text(
            'name = "a"\ncollection = "c"\nmethod = "naive"\njudge = { kind = "bi_encoder", model = "minilm" }\n'
            f'[[teachers]]\nkind = "lamer"\npack = "{pack}"\nmodel = "m"\n{engine}\n'
        )
        (lamer,) = load_recipe(mining, MiningRecipe).teachers
        assert isinstance(lamer, LamerSpec) and lamer.pack == at
        # Where the pack lies is not what the run is.
        assert lamer.identity()["pack"] == pack
