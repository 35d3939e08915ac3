"""Shipped recipes are valid and say what their papers do; wrong ones are refused with field, value and remedy."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import trainer
from app.errors import RecipeError
from app.recipes import load_recipe
from trainer.curriculum import plan_steps
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, Negative

RECIPES = Path(str(trainer.__file__)).parent / "recipes"


def shipped(name: str) -> TrainRecipe:
    return load_recipe(RECIPES / f"{name}.toml", TrainRecipe)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load_recipe(path, TrainRecipe)
    assert path.read_text().startswith("# ")
    assert (recipe.lora is None) == ("istral" not in recipe.model and "stage" not in recipe.model)


def test_mgh_trains_four_blocks_of_400_steps_of_512_rows() -> None:
    recipe = shipped("mgh_mistral")
    negatives = tuple(Negative(str(rank), str(rank), rank) for rank in (1, 2, 3, 4))
    examples = [GradedExample(str(i), "q", "p", negatives, (), 4, 0) for i in range(700)]
    steps = plan_steps(recipe, examples)
    assert Counter(step.rank for step in steps) == {4: 400, 3: 400, 2: 400, 1: 400}
    assert {len(step.batches) for step in steps} == {8} and max(step.num_rows for step in steps) == 512
    assert round(recipe.warmup * len(steps)) == 300
    assert len(plan_steps(shipped("mgh_mistral_retrieval"), examples)) == 1_000


def test_syneg_and_nv_retriever_have_their_papers_numbers() -> None:
    bge, e5 = shipped("bge_one_gpu"), shipped("e5_one_gpu")
    assert (bge.temperature, e5.temperature) == (0.017, 0.01)
    assert bge.negatives is not None and bge.negatives.ratio == 0.7
    first, second = shipped("nv_retriever_stage1"), shipped("nv_retriever_stage2")
    assert first.negatives is not None and second.negatives is not None
    assert (first.negatives.mined, second.negatives.mined) == (1, 5)
    assert second.model == first.name and first.passes * 4 == second.passes * 4 == 12
    # 12 epochs of 2,844 and of 829 steps, each with 100 steps of warm-up.
    assert 728_160 // (first.batch_size * first.accumulate) == 2_844
    assert [round(r.warmup * 12 * steps) for r, steps in ((first, 2_844), (second, 829))] == [100, 100]
    assert (first.max_query_length, first.max_length, first.include_prompt) == (192, 512, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat = 1", "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("temperature = 0", "temperature = 0: should be greater than or equal to 0.001"),
        (
            "schedule = 'harder'",
            "schedule = 'harder': give easy_to_hard, reverse, random, mixture, or fixed:K with a rank K",
        ),
        ("schedule = 'fixed:5'", "schedule = 'fixed:5'"),
        ("shares = [0.7, 0.1, 0.1, 0.1]", "shares divide max_steps"),
        ("max_steps = 9\nshares = [0.7, 0.1, 0.1, 0.2]", "add up to 1"),
        ("max_steps = 9\npasses = 2", "not both"),
        ("include_prompt = false\npooling = 'own'", "include_prompt = false: pooling = 'own' keeps the model's"),
        ("negatives = { written = 0, mined = 2 }", "negatives.written = 0 leaves none"),
        ("schedule = 'fixed:2'\nnegatives = { total = 3, ratio = 0 }", "negatives.ratio = 0 leaves none"),
        ("dtype = 'bfloat16'", "dtype = 'bfloat16' is for weights that stay as they are: give lora"),
        ("negatives = { total = 3 }", "either 'written' and 'mined', or 'total' and 'ratio'"),
        ("negatives = { written = 3, mined = 1, ratio = 1 }", "either 'written' and 'mined'"),
        (
            "grades.harder.weight = 2",
            "unknown key 'grades.harder'; choose 'hard', 'medium', 'easy', 'mined' or 'in_batch'",
        ),
        ("grades.hard = 2", "grades.hard = 2: give a table, hard = { ... }, of the keys weight, margin, temperature"),
        ("lora = true", "lora = true: give a table, lora = { ... }, of the keys rank, alpha, dropout"),
        ("lora = { r = 16 }", "unknown key 'lora.r'; did you mean 'rank'?"),
        ("shares = [0.5, 0.5]", "shares = [0.5, 0.5]: needs more values, it has 2"),
        ("shares = [0.2, 0.2, 0.2, 0.2, 0.2]", "should have at most 4 items, not 5"),
        ("split = 'no-such'", "split = 'no-such': give letters, digits and '_'"),
        ("bidirectional = 'maybe'", "bidirectional = 'maybe': should be true or false"),
        ("model = ''", "model = '': give a value"),
        ("matryoshka = { dimensions = [8, 8] }", "has one twice"),
        ("matryoshka = { dimensions = [8, 4], weights = [1] }", "one number for each"),
        ("distillation = { kind = 'kl' }", "the key 'distillation.teacher' is missing"),
    ],
)
def test_wrong_recipes_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'name = "t"\nrelease = "r"\n{line}\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, TrainRecipe)
    assert message in str(caught.value)


def test_a_recipe_is_frozen() -> None:
    recipe: Any = shipped("minilm_cpu")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
