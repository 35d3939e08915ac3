"""What a saved model names as its prompts is what it was trained with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.prompting import saved_prompts, shared_instruction
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample

from .conftest import toy_rows


def _examples(*instructions: str) -> list[GradedExample]:
    return [
        GradedExample(f"e{n}", f"query {n}", f"positive {n}", (), (), 0, 0, instruction=instruction)
        for n, instruction in enumerate(instructions)
    ]


@pytest.mark.parametrize(
    ("prompt", "instructions", "shared", "saved"),
    [
        ("", ["a", "a"], None, ""),
        ("query: ", ["a", "b"], None, "query: "),
        ("Do {instruction}: ", ["a", "a", "a"], "a", "Do a: "),
        ("Do {instruction}: ", ["", ""], "", "Do : "),
        ("Do {instruction}: ", ["a", "a", "b"], None, ""),
    ],
)
def test_an_instruction_is_filled_in_where_all_examples_share_it(
    prompt: str, instructions: list[str], shared: str | None, saved: str
) -> None:
    recipe, examples = (
        TrainRecipe(name="r", release="r", query_prompt=prompt, passage_prompt="p: "),
        _examples(*instructions),
    )
    assert shared_instruction(recipe, examples) == shared
    assert saved_prompts(recipe, examples) == {"query": saved, "document": "p: "}


@pytest.fixture
def prompted_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with prompts of its own, one of them always put before a text."""
    folder = tmp_path / "prompted"
    shutil.copytree(tiny_model, folder)
    config = folder / "config_sentence_transformers.json"
    own = {"prompts": {"query": "it says ", "sts": "a number "}, "default_prompt_name": "sts"}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    return folder


@pytest.mark.parametrize(
    ("prompt", "second", "saved", "instruction"),
    [
        ("", "of many", "", None),
        ("{instruction} it ", "of many", "of many it ", "of many"),
        ("{instruction} it ", "of place", "", None),
    ],
)
def test_a_trained_model_names_the_prompts_of_its_training_alone(
    prompted_model: Path,
    release_of: Callable[[list[dict[str, Any]]], Path],
    tmp_path: Path,
    prompt: str,
    second: str,
    saved: str,
    instruction: str | None,
) -> None:
    from trainer.training import train

    rows = toy_rows()
    rows[1]["instruction"] = second
    recipe = TrainRecipe(
        name="p", release="toy", query_prompt=prompt, passage_prompt="the ", pooling="own", max_steps=1, batch_size=2,
        schedule="mixture", max_length=16, device="cpu",
    )  # fmt: skip
    folder = train(recipe, release_of(rows), prompted_model, output=tmp_path / "out").folder
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert config["prompts"] == {"query": saved, "document": "the "} and config["default_prompt_name"] is None
    told = json.loads((folder / "training.json").read_text())
    assert told["instruction"] == instruction and told["recipe"]["query_prompt"] == prompt
