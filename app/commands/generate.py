"""`gradus generate`: graded negatives from a language model, by a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

_MAX_NAMED = 10


def generate(
    recipe: Annotated[Path, typer.Argument(help="A generation recipe (TOML).")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Ask for graded negatives, read the answers, check them, and store what is good and why the rest is not.

    What was answered is never asked again: run it again to go on after a stop.
    """
    from app.recipes import load_recipe
    from generator.generation import generate as run
    from generator.recipe import GenerateRecipe

    resolved = load_recipe(recipe, GenerateRecipe)
    with opened_store(store) as opened, progress_bar(f"Generating {resolved.name}") as progress:
        report = run(opened, resolved, on_progress=lambda p: progress(p.num_answered, p.num_planned))
    rows = [
        ("requests planned", report.num_planned),
        ("answered", report.num_answered),
        ("answered by this call", report.num_new_answers),
        ("waiting for an answer", report.num_waiting),
        *((f"completions {outcome}", num) for outcome, num in sorted(report.outcomes.items())),
        ("texts and tasks accepted", report.num_accepted),
        *((f"refused: {reason}", num) for reason, num in report.refused.items()),
        ("input tokens", report.input_tokens),
        ("output tokens", report.output_tokens),
    ]
    show_table(f"Generation {escape(resolved.name)}", ["what", "number"], rows)
    if json is not None:
        write_json(json, report.to_dict())
    for line in report.bad_lines[:_MAX_NAMED]:
        console.print(f"[yellow]bad line[/] {escape(line.where)}: {escape(line.detail)}")
    if report.bad_lines:
        first = report.bad_lines[0]
        raise AppError(
            f"{len(report.bad_lines):,} line(s) of the completions file could not be used, the others are stored; "
            f"the first is {first.where}: {first.detail}"
        )
