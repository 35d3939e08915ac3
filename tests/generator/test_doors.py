"""What a person hands to generation: a bad recipe, pack or key is one line that names the field and the remedy."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from db.store import Store
from generator.engines.running import key_of
from generator.errors import GeneratorError
from generator.generation import generate
from generator.prompt_pack import PromptPack
from generator.recipe import GenerateRecipe, OpenAiEngine

NOWHERE = SimpleNamespace(url="http://127.0.0.1:9/v1")
FACTS = 'title = "t"\nsubject = "pair"\nresponse_format = "json_object"\n[[slots]]\ngrade = "hard"\n'
SCHEMA = {"type": "object", "properties": {"negatives": {"type": "array", "items": {"type": "object"}}}}
BAD_REGEX = orjson.dumps({"properties": {"negatives": {"items": {"properties": {"text": {"pattern": "("}}}}}})
PROMPT = "Write. <query>{{ query | data }}</query>"


def write_pack(folder: Path, **files: str | bytes) -> PromptPack:
    entry = folder / "mine" / "own"
    entry.mkdir(parents=True, exist_ok=True)
    for name, data in {"entry.toml": FACTS, "schema.json": orjson.dumps(SCHEMA), "prompt.j2": PROMPT, **files}.items():
        (entry / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return PromptPack.load(str(folder / "mine"))


LATIN = "Käse".encode("latin-1")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"entry.toml": LATIN}, "entry.toml: not UTF-8"),
        ({"prompt.j2": LATIN}, "prompt.j2: not UTF-8"),
        ({"schema.json": LATIN}, "schema.json"),
        ({"prompt.j2": ""}, "prompt.j2: the file is empty"),
        ({"prompt.j2": "{% if %}"}, "prompt.j2: Expected an expression"),
        ({"schema.json": '{"properties": {"negatives": true}}'}, "properties.negatives.items is missing"),
        ({"schema.json": '{"properties": 5}'}, "schema.json"),
        ({"schema.json": "[]"}, "schema.json"),
        ({"schema.json": "true"}, "schema.json: not a JSON schema of an object"),
        ({"schema.json": BAD_REGEX}, "schema.json: not a JSON schema: "),
        ({"entry.toml": FACTS + 'source = "neighbour_1"\n'}, "source = 'neighbour_1': a pair has no such text to edit"),
        ({"entry.toml": FACTS.replace('"pair"', '"task"') + 'source = "positive"\n'}, "it has none"),
        ({"entry.toml": FACTS + "[checks]\nlength_ratio = [2.0, 0.5]\n"}, "length_ratio = [2, 0.5]: give [shortest"),
    ],
)  # fmt: skip
def test_a_bad_file_of_an_entry_is_told_when_it_is_loaded(tmp_path: Path, files: dict[str, Any], told: str) -> None:
    pack = write_pack(tmp_path, **files)
    with pytest.raises(GeneratorError) as caught:
        pack.entry("own")
    assert told in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_prompt_is_told_when_the_entry_is_loaded(tmp_path: Path) -> None:
    pack = write_pack(tmp_path)
    (tmp_path / "mine" / "own" / "prompt.j2").unlink()
    with pytest.raises(GeneratorError, match=r"own/prompt\.j2: there is no template"):
        pack.entry("own")


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("{{ query + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 2.0 ** 100000 }}", "OverflowError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "range"),
        ("{{ ''.__class__ }}", "unsafe|undefined"),
        ("{{ mood }}", "plan.attributes"),
    ],
)
def test_a_template_that_fails_is_one_line_with_its_path(tmp_path: Path, prompt: str, told: str) -> None:
    entry = write_pack(tmp_path, **{"prompt.j2": prompt}).entry("own")
    with pytest.raises(GeneratorError, match=told) as caught:
        entry.render({"query": "q"})
    assert "own/prompt.j2" in str(caught.value)


def test_a_neighbour_may_be_edited_where_one_is_asked_for(tmp_path: Path) -> None:
    facts = FACTS.replace("[[slots]]", "neighbours = [1]\n[[slots]]")
    for name in ("positive", "neighbour", "neighbour_1"):
        assert write_pack(tmp_path, **{"entry.toml": facts + f'source = "{name}"\n'}).entry("own").facts.slots


@pytest.mark.parametrize(
    "url",
    ["http://", "https:// x", "http://a b/v1", "http://a/v1?key=1", "http://a/v1#x", "http://me:word@a/v1", "ftp://a",
     "http://me@a", "http://a:port/v1", "", "http://a\n/v1", "//a/v1"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["openai", "openai_batch"])
def test_an_address_that_is_no_base_url_is_refused(toolbox: Any, url: str, kind: str) -> None:
    engine = {"kind": kind, "base_url": url}
    fields = toolbox.recipe_for(NOWHERE).model_dump() | {"engine": engine}
    with pytest.raises(ValidationError, match="base_url"):
        GenerateRecipe.model_validate(fields)
    GenerateRecipe.model_validate(fields | {"engine": {**engine, "base_url": "http://[::1]:8000/v1"}})


def change(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("name", "a\x1b[31m"), ("name", "a\n"), ("name", "x" * 201), ("seed", 2**63), ("seed", -(2**63) - 1),
     ("seed", "1"), ("temperature", "0.5"), ("max_repairs", 1.0), ("model_seed", "yes"), ("temperature", float("nan"))],
)  # fmt: skip
def test_a_value_that_cannot_be_stored_or_meant_is_refused(toolbox: Any, name: str, value: Any) -> None:
    fields = toolbox.recipe_for(NOWHERE).model_dump()
    change(name, value)(fields)
    with pytest.raises(ValidationError, match=name):
        GenerateRecipe.model_validate(fields)


@pytest.mark.parametrize("value", ["sk-\x1b[31m", "sk-käse", "sk abc", "sk-abc\n"])
def test_a_key_that_no_header_carries_is_refused_without_its_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(GeneratorError, match="MY_KEY") as caught:
        key_of(OpenAiEngine(kind="openai", base_url="http://a", api_key_env="MY_KEY"))
    assert "sk" not in str(caught.value) and value.strip() not in str(caught.value)


def test_a_seed_of_64_bits_runs(store: Store, toolbox: Any, model_server: Any) -> None:
    toolbox.fill(store, 2)
    recipe = toolbox.recipe_for(model_server, num=2, seed=2**63 - 1)
    assert generate(store, recipe).num_answered == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"collection": "tox"}, "no such collection in the store; did you mean 'toy'?"),
        ({"collection": "something"}, "it has 'toy'"),
        ({"split": "trian"}, "has no such split; did you mean 'train'?"),
        ({"attributes": {"domain": ["a"]}}, "'education_level' is undefined: entry 'graded_negatives' needs it"),
        ({"attributes": {"mood": ["a"]}}, "does not use 'mood'; it uses domain"),
    ],
)
def test_a_slip_in_a_plan_is_told_with_the_nearest_name(
    store: Store, toolbox: Any, model_server: Any, fields: dict[str, Any], told: str
) -> None:
    toolbox.fill(store, 2)
    pairs = {"source": "pairs", "entry": "graded_negatives", "collection": "toy", "split": "train", "num": 2,
             "task_instruction": "t", "attributes": "scifact", **fields}  # fmt: skip
    with pytest.raises(GeneratorError) as caught:
        generate(store, toolbox.recipe_for(model_server, pairs))
    assert told in str(caught.value) and "plan." in str(caught.value)
