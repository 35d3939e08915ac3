"""`gradus recipes`: the training recipes that come with Gradus, to be run by name, read, or copied and changed."""

from pathlib import Path
from typing import Annotated

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, write_json

commands = typer.Typer(help="Training recipes that come with Gradus: list, show, copy.", invoke_without_command=True)
Name = Annotated[str, typer.Argument(help="As listed.")]


@commands.callback()
def list_recipes(context: typer.Context, json: JsonFile = None) -> None:
    """List them; `gradus train NAME --release RELEASE` runs one."""
    if context.invoked_subcommand is not None:
        return
    from app.shipped_recipes import about, shipped_recipes

    told = {name: about(path) for name, path in shipped_recipes().items()}
    for name, line in told.items():
        console.print(f"[bold]{escape(name)}[/]\n  {escape(line)}")
    console.print(
        "\nRun one: gradus train NAME --release RELEASE. Change one: gradus recipes copy NAME my.toml", soft_wrap=True
    )
    if json is not None:
        write_json(json, {"recipes": told})


@commands.command()
def show(name: Name) -> None:
    """Print a recipe."""
    from app.shipped_recipes import shipped_recipe

    console.print(escape(shipped_recipe(name).read_text(encoding="utf-8")), soft_wrap=True, end="")


@commands.command()
def copy(name: Name, file: Annotated[Path, typer.Argument(help="A new file.")]) -> None:
    """Copy a recipe to a file of your own; a file that is there is never overwritten."""
    from app.shipped_recipes import shipped_recipe

    content = shipped_recipe(name).read_bytes()
    try:
        with file.open("xb") as target:
            target.write(content)
    except FileExistsError as error:
        raise AppError(f"{file} is there already: give another name") from error
    except OSError as error:
        raise AppError(f"cannot write {file}: {error.strerror}") from error
    console.print(f"Wrote {escape(str(file))}; then: gradus train {escape(str(file))} --dry-run", soft_wrap=True)
