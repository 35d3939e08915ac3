"""What a training will be, told without training: its curriculum, its learning rate, what it cuts, and what it refuses.

The model's files are asked, its weights are not loaded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.admission import admitted
from trainer.backbones import longest_of
from trainer.curriculum import Step, describe_plan, plan_steps
from trainer.errors import TrainerError
from trainer.recipe import TrainRecipe
from trainer.release import GradedExample, read_release
from trainer.tokens import Texts

_MOST_TEXTS = 50_000
_GROUP = 1_000


@dataclass(frozen=True, slots=True)
class Outlook:
    """A row of the plan for each block, what the training does in words, and notes on what it will not do."""

    plan: list[dict[str, Any]]
    facts: list[str]
    notes: list[str]


def outlook(recipe: TrainRecipe, release_folder: Path, model_folder: Path) -> Outlook:
    """What `trainer.training.train` would do with the same arguments.

    Raises:
        TrainerError: What it would refuse before its first step, as far as the model's weights have no say in it.
    """
    release = read_release(release_folder, recipe.split)
    steps = plan_steps(recipe, release.examples)
    notes = admitted(recipe, release.examples, steps)
    transformer = _transformer_folder(model_folder)
    check_model(recipe, model_folder)
    return Outlook(
        describe_plan(steps, release.examples, recipe),
        [_of_steps(recipe, steps), *([_of_texts(recipe, release.examples, transformer)] if transformer else [])],
        notes,
    )


def check_model(recipe: TrainRecipe, folder: Path) -> None:
    """Ask a model's configuration whether it takes the recipe's lengths.

    Raises:
        TrainerError: It does not, or there is no model that can be read.
    """
    transformer = _transformer_folder(folder)
    if transformer is None:  # adapters alone, whose base is known once they are loaded
        return
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(str(transformer), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(f"model = {recipe.model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    longest = longest_of(config)
    for name in ("max_length", "max_query_length"):
        asked_for = getattr(recipe, name)
        if longest is not None and asked_for is not None and asked_for > longest:
            raise TrainerError(f"{name} = {asked_for}: model {recipe.model!r} takes at most {longest} tokens")
    size = _size(folder, config)
    too_long = [one for one in recipe.matryoshka.dimensions if one > size] if recipe.matryoshka and size else []
    if too_long:
        raise TrainerError(f"matryoshka.dimensions = {too_long[0]}: the model's embeddings have {size}")


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{"path": str(one["path"]), "type": str(one["type"])} for one in found]
    except (ValueError, TypeError, KeyError) as error:
        raise TrainerError(f"model = {str(folder)!r}: modules.json is not a list of modules: {error}") from error


def _transformer_folder(folder: Path) -> Path | None:
    modules = _modules(folder)
    transformer = folder / modules[0]["path"] if modules else folder
    return transformer if (transformer / "config.json").is_file() else None


def _size(folder: Path, config: Any) -> int | None:
    """Numbers of an embedding, as far as the files tell."""
    for module in reversed(_modules(folder)):
        path = folder / module["path"] / "config.json"
        if module["type"].endswith(".Dense") and path.is_file():
            size = json.loads(path.read_text(encoding="utf-8")).get("out_features")
            return size if isinstance(size, int) else None
    size = getattr(config, "hidden_size", None)
    return size if isinstance(size, int) else None


def _of_steps(recipe: TrainRecipe, steps: Sequence[Step]) -> str:
    warm = max(1, round(recipe.warmup * len(steps)))
    rows = sum(step.num_rows for step in steps)
    return (
        f"{len(steps):,} steps over {rows:,} rows; the learning rate climbs to {recipe.learning_rate:g} in the first "
        f"{warm:,} and falls to 0 until the last"
    )


def _of_texts(recipe: TrainRecipe, examples: Sequence[GradedExample], transformer: Path) -> str:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(transformer), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(
            f"model = {recipe.model!r}: its tokenizer cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    texts = Texts(examples, recipe)
    limits = [recipe.max_query_length or recipe.max_length] * len(texts.queries)
    pairs, num_cut, num = islice(texts.with_prompts(), _MOST_TEXTS), 0, 0
    while group := [text for text, _ in islice(pairs, _GROUP)]:
        for place, ids in enumerate(tokenizer(group, verbose=False)["input_ids"], start=num):
            num_cut += len(ids) > (limits[place] if place < len(limits) else recipe.max_length)
        num += len(group)
    of = f"{len(texts):,} texts" if num == len(texts) else f"the first {num:,} of {len(texts):,} texts"
    return f"{num_cut:,} of {of} are longer than max_length = {recipe.max_length} tokens takes, and are cut"
