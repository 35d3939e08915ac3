"""`gradus release`: freeze a selection under a name."""

from pathlib import Path
from typing import Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

commands = typer.Typer(help="Frozen releases of the store.", no_args_is_help=True)


@commands.callback()
def releases() -> None:
    """Frozen releases of the store."""


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="Name with a version, such as scifact-1.0.0. A name is a promise.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A release recipe (TOML); default: all runs, hybrid mix.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where releases lie; default: releases in the data folder.")
    ] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Write a release: Parquet in the published configurations, manifest and dataset card."""
    from app.recipes import load_recipe
    from app.settings import Settings
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release

    resolved = load_recipe(recipe, ReleaseRecipe) if recipe else ReleaseRecipe()
    with opened_store(store) as opened, progress_bar(f"Releasing {name}") as progress:
        released = create_release(opened, resolved, name, folder=folder or Settings().releases, progress=progress)
    rows = [
        (config, split, num) for config, splits in released.manifest["rows"].items() for split, num in splits.items()
    ]
    show_table(f"Release {escape(name)}", ["configuration", "split", "rows"], rows)
    state = "frozen" if released.is_new else "unchanged"
    console.print(f"{state}: {escape(str(released.folder))}, digest {released.digest[:16]}")
    if json is not None:
        write_json(json, released.manifest)
