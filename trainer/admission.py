"""Whether a recipe and a release go together: asked before anything is spent.

What cannot be meant is refused; what may be meant, but would otherwise happen without a word, is a note for the person.
"""

from collections.abc import Sequence

from trainer.curriculum import Step, ranks_of_blocks
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample


def admitted(recipe: TrainRecipe, examples: Sequence[GradedExample], steps: Sequence[Step]) -> list[str]:
    """Notes on what the recipe will not do on this release, one line each.

    Raises:
        TrainerError: It asks for a teacher's scores or for instructions that the release lacks.
    """
    notes = [_of_teacher(recipe, examples), _of_instructions(recipe, examples), _of_blocks(recipe, steps)]
    if recipe.batch_size > len(examples):
        notes.append(
            f"batch_size = {recipe.batch_size:,}: more than the {len(examples):,} examples, so each pass over them is "
            "one batch"
        )
    return [note for note in notes if note]


def _of_teacher(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> str:
    """The teacher is learned from where it scored a row's positive and one of its negatives."""
    if recipe.distillation is None:
        return ""
    teacher = recipe.distillation.teacher
    num = sum(
        teacher in example.positive_scores and any(teacher in n.scores for n in (*example.written, *example.mined))
        for example in examples
    )
    if num == 0:
        found = sorted({name for example in examples for name in example.positive_scores})
        have = f"it has those of {', '.join(found)}" if found else "it has none: run 'gradus score' before it"
        told = (
            "has scores of it, but of no positive together with a negative" if teacher in found else "lacks its scores"
        )
        raise TrainerError(f"distillation.teacher = {teacher!r}: the release {told}; {have}")
    if num == len(examples):
        return ""
    return (
        f"distillation.teacher = {teacher!r}: {len(examples) - num:,} of {len(examples):,} examples have no score of "
        "it for the positive and a negative, and learn nothing from it"
    )


def _of_instructions(recipe: TrainRecipe, examples: Sequence[GradedExample]) -> str:
    if "{instruction}" not in recipe.query_prompt:
        return ""
    num = sum(not example.instruction.strip() for example in examples)
    if num == len(examples):
        raise TrainerError(
            f"query_prompt = {recipe.query_prompt!r}: no example of the release has an instruction; write it into the "
            "prompt, or leave {instruction} out"
        )
    if num == 0:
        return ""
    return (
        f"query_prompt = {recipe.query_prompt!r}: {num:,} of {len(examples):,} examples have no instruction, and are "
        f"asked with {recipe.query_prompt.replace('{instruction}', '')!r}"
    )


def _of_blocks(recipe: TrainRecipe, steps: Sequence[Step]) -> str:
    """Few steps or small shares leave blocks of a curriculum without a step, and their ranks out of the training."""
    ranks = ranks_of_blocks(recipe.schedule)
    never = set(ranks) - {step.rank for step in steps}
    if not never:
        return ""
    told = ", ".join(f"N{rank}" for rank in ranks if rank in never)
    return (
        f"max_steps = {recipe.max_steps} with shares = {list(recipe.shares)}: no step is left to train on {told}; "
        "give more steps or even shares"
    )
