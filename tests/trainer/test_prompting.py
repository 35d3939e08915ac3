"""What a saved model names as its prompts is what it was trained with."""

import pytest

from trainer.prompting import saved_prompts, shared_instruction
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample


def _examples(*instructions: str) -> list[GradedExample]:
    return [
        GradedExample(f"e{n}", f"query {n}", "", f"positive {n}", "", (), (), 0, 0, instruction=instruction)
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
