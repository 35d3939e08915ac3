"""`gradus train`: a model from a release, by a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, progress_bar, show_table, write_json


def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe (TOML).")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the curriculum and stop.")] = False,
    json: JsonFile = None,
) -> None:
    """Train with ATA pooling from easy to hard. Cut off, run it again: it ends with the same weights."""
    from app.recipes import load_recipe
    from app.settings import Settings
    from trainer.recipe import TrainRecipe

    settings = Settings()
    resolved = load_recipe(recipe, TrainRecipe)
    release = settings.releases / resolved.release
    if not release.is_dir():
        release = Path(resolved.release)
    if not release.is_dir():
        raise AppError(f"release = {resolved.release!r}: neither a release in {settings.releases} nor a folder")
    from trainer.training import plan_training
    from trainer.training import train as run

    if dry_run:
        plan = plan_training(resolved, release)
        show_table("Curriculum", list(plan[0]), [list(row.values()) for row in plan])
        if json is not None:
            write_json(json, {"plan": plan})
        return
    from curation.embeddings import model_folder

    with progress_bar(f"Training {resolved.name}") as progress:
        result = run(
            resolved, release, model_folder(resolved.model), output=settings.models / resolved.name, progress=progress
        )
    blocks = result.summary["blocks"]
    show_table(f"Training {escape(resolved.name)}, per block", list(blocks[0]), [list(row.values()) for row in blocks])
    console.print(f"{'saved' if result.is_new else 'unchanged'}: {escape(str(result.folder))}")
    if json is not None:
        write_json(json, result.summary)
