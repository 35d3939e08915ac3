"""`gradus train`: a model from a release, by a recipe."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from app.options import JsonFile
from app.terminal import console, escape, progress_bar, show_table, write_json


def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe (TOML).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the curriculum and stop.")] = False,
    json: JsonFile = None,
) -> None:
    """Train with ATA pooling from easy to hard. Cut off, run it again: it ends with the same weights.

    Several GPUs or processes: torchrun --nproc-per-node 2 --no-python gradus train RECIPE.
    """
    from app.recipes import load_recipe
    from app.settings import Settings
    from app.training import release_folder
    from trainer.recipe import TrainRecipe

    settings = Settings()
    resolved = load_recipe(recipe, TrainRecipe)
    release = release_folder(resolved)
    from trainer.training import plan_training
    from trainer.training import train as run

    if dry_run:
        plan = plan_training(resolved, release)
        show_table("Curriculum", list(plan[0]), [list(row.values()) for row in plan])
        if json is not None:
            write_json(json, {"plan": plan})
        return
    from curation.embeddings import any_model_folder

    trained = settings.models / resolved.model
    start = trained if (trained / "training.json").is_file() else any_model_folder(resolved.model)
    is_main = os.environ.get("RANK", "0") == "0"
    with progress_bar(f"Training {resolved.name}") if is_main else nullcontext(_silent) as progress:
        result = run(resolved, release, start, output=settings.models / resolved.name, progress=progress)
    if is_main:
        _show(result.summary, result.folder, result.is_new, json)


def _silent(done: int, total: int | None) -> None:
    """No progress: another process tells it."""


def _show(summary: dict[str, Any], folder: Path, is_new: bool, json: Path | None) -> None:
    for what in ("block", "rank"):
        rows = summary[f"{what}s"]
        title = f"Training {escape(summary['recipe']['name'])}, per {what}"
        show_table(title, list(rows[0]), [list(row.values()) for row in rows])
    if summary["num_texts_cut"]:
        console.print(
            f"cut: {summary['num_texts_cut']:,} of {summary['num_texts']:,} texts are longer than the recipe takes "
            f"(max_length = {summary['recipe']['max_length']} tokens)"
        )
    console.print(f"{'saved' if is_new else 'unchanged'}: {escape(str(folder))}")
    if json is not None:
        write_json(json, summary)
