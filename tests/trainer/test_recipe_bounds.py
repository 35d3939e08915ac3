"""Whatever number a recipe holds: it is refused by name, or a step with it leaves finite weights and figures."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from app.errors import RecipeError
from app.recipes import checked
from trainer.recipe import TrainRecipe
from trainer.training import train

GIVEN = {
    "name": "toy", "release": "toy", "batch_size": 4, "max_length": 16, "max_steps": 1, "schedule": "mixture",
    "device": "cpu",
}  # fmt: skip
JUDGE = {"teacher": "judge"}
FLOATS: dict[str, dict[str, Any]] = {
    "temperature": {}, "mask_margin": {}, "learning_rate": {}, "weight_decay": {}, "warmup": {}, "clip": {},
    "dropout": {},
    "grades.hard.weight": {}, "grades.hard.margin": {}, "grades.hard.temperature": {}, "grades.in_batch.weight": {},
    "ordering.weight": {}, "ordering.temperature": {},
    "distillation.weight": JUDGE, "distillation.temperature": JUDGE, "distillation.teacher_temperature": JUDGE,
    "negatives.ratio": {"total": 3}, "lora.dropout": {"rank": 2},
}  # fmt: skip
COUNTS: dict[str, dict[str, Any]] = {
    "seed": {}, "batch_size": {}, "chunk_tokens": {}, "kept_tokens": {}, "checkpoint_every": {},
    "negatives.written": {"mined": 1}, "negatives.mined": {"written": 1}, "negatives.total": {"ratio": 0.7},
    "lora.alpha": {"rank": 2},
}  # fmt: skip
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e300, -1e300, 5e-324, -0.0, 1e-9, 0.001, 1_000.0, 1.0, 2.0)
ODD_COUNTS = (-1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30)


def with_value(path: str, value: float, beside: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields with a number at a dotted path, `beside` in the same table."""
    fields: dict[str, Any] = dict(GIVEN)
    *tables, name = path.split(".")
    inner = fields
    for table in tables:
        inner[table] = {}
        inner = inner[table]
    inner.update(beside)
    inner[name] = value
    return fields


def refused_or_trained(path: str, value: float, beside: dict[str, Any], places: tuple[Path, Path, Path]) -> None:
    release, model, folder = places
    try:
        recipe = checked(with_value(path, value, beside), TrainRecipe)
    except RecipeError as error:
        assert path in str(error) and "\n" not in str(error)
        return
    output = folder / str(len(list(folder.iterdir())))
    train(recipe, release, model, output=output)
    (line,) = (output / "metrics.jsonl").read_bytes().splitlines()
    told = orjson.loads(line)
    for figure in ("loss", "gradient_norm", "learning_rate", "query_gradient_variance"):
        assert np.isfinite(told[figure]), (path, value, figure)
    assert all(np.isfinite(weight).all() for weight in load_file(output / "model.safetensors").values())


@pytest.fixture(scope="module")
def places(release: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return release, tiny_model, tmp_path_factory.mktemp("models")


FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(path=st.sampled_from(sorted(FLOATS)), value=st.sampled_from(ODD_FLOATS) | st.floats())
@FEW
def test_any_float_is_refused_by_name_or_trained_with(path: str, value: float, places: tuple[Path, Path, Path]) -> None:
    refused_or_trained(path, value, FLOATS[path], places)


@given(path=st.sampled_from(sorted(COUNTS)), value=st.sampled_from(ODD_COUNTS) | st.integers())
@FEW
def test_any_count_is_refused_by_name_or_trained_with(path: str, value: int, places: tuple[Path, Path, Path]) -> None:
    refused_or_trained(path, value, COUNTS[path], places)


@pytest.mark.parametrize("path", sorted(FLOATS))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_numbers_without_end_are_refused_by_name(path: str, value: float) -> None:
    with pytest.raises(RecipeError, match=path.replace(".", r"\.")):
        checked(with_value(path, value, FLOATS[path]), TrainRecipe)


@pytest.mark.parametrize("path", ["passes", "max_steps", "accumulate", "max_length", "max_query_length", *COUNTS])
@pytest.mark.parametrize("value", [-1, 2**63, 10**30])
def test_counts_without_end_are_refused_by_name(path: str, value: int) -> None:
    with pytest.raises(RecipeError, match=path.replace(".", r"\.")):
        checked(with_value(path, value, COUNTS.get(path, {})), TrainRecipe)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ({"query_prompt": "{foo}: "}, "query_prompt = '{foo}: ': {instruction}"),
        ({"query_prompt": "{instruction"}, "query_prompt = '{instruction': {instruction}"),
        ({"query_prompt": "{instruction}} "}, "without braces"),
        ({"passage_prompt": "{instruction}: "}, "passage_prompt = '{instruction}: ': passages have no instruction"),
    ],
)
def test_braces_stand_for_the_instruction_of_a_query_or_are_refused(prompts: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        checked({**GIVEN, **prompts}, TrainRecipe)
    assert told in str(caught.value)
    assert checked({**GIVEN, "query_prompt": "{instruction}: "}, TrainRecipe).query_prompt == "{instruction}: "
