"""`gradus release`: freeze a selection under a name."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

_NUM_ROWS = 5
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
    from curation.release.gates import GateError
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release

    resolved = load_recipe(recipe, ReleaseRecipe) if recipe else ReleaseRecipe()
    try:
        with opened_store(store) as opened, progress_bar(f"Releasing {name}") as progress:
            released = create_release(opened, resolved, name, folder=folder or Settings().releases, progress=progress)
    except GateError as error:
        _show_gates([gate.to_dict() for gate in error.results])
        if json is not None:
            write_json(json, {"refused": str(error), "gates": [gate.to_dict() for gate in error.results]})
        raise
    _show_gates(released.manifest["gates"])
    rows = [
        (config, split, num) for config, splits in released.manifest["rows"].items() for split, num in splits.items()
    ]
    show_table(f"Release {escape(name)}", ["configuration", "split", "rows"], rows)
    state = "frozen" if released.is_new else "unchanged"
    console.print(f"{state}: {escape(str(released.folder))}, digest {released.digest[:16]}")
    if json is not None:
        write_json(json, released.manifest)


def _show_gates(gates: list[dict[str, Any]]) -> None:
    """Every gate, and the rows behind those that failed."""
    verdicts = [
        (
            gate["gate"],
            f"{gate['sense']} {gate['limit']:g}",
            "not measured" if gate["figure"] is None else gate["figure"],
            gate["note"],
            "met" if gate["is_met"] else f"let through by {gate['overridden_by']}" if gate["overridden_by"] else "shut",
        )
        for gate in gates
    ]
    if verdicts:
        show_table("Gates", ["gate", "limit", "figure", "of", "verdict"], verdicts)
    for gate in gates:
        if not gate["is_met"] and gate["rows"]:
            columns = list(gate["rows"][0])
            rows = [tuple(_short(row.get(column)) for column in columns) for row in gate["rows"][:_NUM_ROWS]]
            show_table(f"{gate['gate']}: rows to look at", columns, rows)


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float) else str(value)[:60]
