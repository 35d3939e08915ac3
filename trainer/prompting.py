"""The prompts of a recipe: what stands before a text in training, and what the saved model names for plain use."""

from collections.abc import Sequence

from trainer.recipe import TrainRecipe
from trainer.release import GradedExample

INSTRUCTION = "{instruction}"
"""Stands in a recipe's `query_prompt` for the instruction of each example."""


def shared_instruction(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> str | None:
    """The instruction of all examples, where the recipe's prompt has a place for one and they all have the same."""
    if INSTRUCTION not in recipe.query_prompt:
        return None
    instructions = {example.instruction for example in examples}
    return instructions.pop() if len(instructions) == 1 else None


def saved_prompts(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> dict[str, str]:
    """What a saved model names as its prompts `query` and `document`: those it was trained with, empty ones included.

    An instruction that all examples share is filled in. Where each has its own, nothing can stand for them all: the
    query's prompt is empty then, and `training.json` keeps it with its place for the instruction.
    """
    query = recipe.query_prompt
    if INSTRUCTION in query:
        shared = shared_instruction(recipe, examples)
        query = "" if shared is None else query.replace(INSTRUCTION, shared)
    return {"query": query, "document": recipe.passage_prompt}
