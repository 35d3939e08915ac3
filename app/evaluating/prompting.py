"""What stands before the texts that a model is asked with: its prompts, and the instruction that one may need.

A trained model is asked with what it was trained with: the prompts that it names, or, where each training query had an
instruction of its own, the recipe's prompt with a place for it, which `training.json` keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from app.errors import AppError
from curation.embeddings import BiEncoder
from trainer.prompting import INSTRUCTION


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts before queries and documents.

    Attributes:
        query: `{instruction}` in it stands for the instruction of a query.
        instruction: Of queries that have none of their own; None where it is not known.
    """

    query: str = ""
    document: str = ""
    instruction: str | None = None

    @property
    def takes_instruction(self) -> bool:
        """Whether the query's prompt has a place for an instruction."""
        return INSTRUCTION in self.query

    def before_query(self, instruction: str | None = None) -> str:
        """The prompt of a query that has this instruction of its own, or none."""
        return self.query.replace(INSTRUCTION, (instruction or self.instruction) or "")


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True)

    query_prompt: str = ""
    passage_prompt: str = ""


class _Trained(BaseModel):
    """What of training.json decides how a model is asked."""

    model_config = ConfigDict(frozen=True)

    recipe: _Recipe = _Recipe()
    instruction: str | None = None


def prompts_of(encoder: BiEncoder, folder: Path, *, otherwise: Prompts) -> Prompts:
    """A model's own prompts; those of `otherwise` where it names none, whose instruction counts for all.

    Raises:
        AppError: The folder's training.json is not what a training writes.
    """
    trained = _trained(folder / "training.json")
    if INSTRUCTION in trained.recipe.query_prompt:
        known = trained.instruction if otherwise.instruction is None else otherwise.instruction
        return Prompts(trained.recipe.query_prompt, trained.recipe.passage_prompt, known)
    own = Prompts(encoder.own_prompt("query"), encoder.own_prompt("document"))
    if own.query or own.document:
        return replace(own, instruction=otherwise.instruction)
    return otherwise


def _trained(path: Path) -> _Trained:
    if not path.is_file():
        return _Trained()
    try:
        return _Trained.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AppError(
            f"{path}: {where + ': ' if where else ''}{first['msg']}; it is not what gradus train writes, and tells the "
            "prompts of a model: move it away if another tool wrote it"
        ) from error


def require_instructions(models: Iterable[tuple[str, Prompts]], sets: Iterable[tuple[str, bool]]) -> None:
    """Refuse, before anything is spent, queries without the instruction that a model's prompt has a place for.

    Args:
        models: Name and prompts of each.
        sets: Name of each, and whether its queries have instructions of their own.

    Raises:
        AppError: The message names the model, the set and the option.
    """
    lacking = [data for data, has_own in sets if not has_own]
    for name, prompts in models:
        if lacking and prompts.takes_instruction and prompts.instruction is None:
            raise AppError(
                f"--instruction is missing: model {name} is asked with the prompt {prompts.query!r}, and the queries "
                f"of {lacking[0]} have no instruction of their own: give one, as the model was trained with"
            )
