"""`gradus mine`: hard negatives from the corpus, by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from app.mining import MiningRecipe

_FATES = {"keep": "kept short", "drop": "dropped", "deeper": "after searching deeper"}


def mine(
    recipe: Annotated[Path, typer.Argument(help="A mining recipe (TOML).")],
    store: StoreUrl = None,
    json: JsonFile = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Mine nothing: show what each threshold of the method keeps and catches.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="With --sweep: draw it (PNG).")] = None,
) -> None:
    """Mine negatives: teachers propose, a ceiling below the positive keeps suspected positives out."""
    from app.mining import MiningRecipe, teacher_builder
    from app.recipes import load_recipe
    from curation.mining.mining import mine as run

    if plot is not None and not sweep:
        raise typer.BadParameter("--plot draws a sweep: add --sweep")
    resolved = load_recipe(recipe, MiningRecipe)
    if sweep:
        _sweep(resolved, store, json, plot)
        return
    with opened_store(store) as opened, progress_bar(f"Mining {resolved.name}") as progress:
        report = run(opened, resolved, teacher_builder(opened, resolved), progress=progress)
    found = report.to_dict()
    columns = ["teacher", "proposed", "known positives", f"refused by {resolved.method}", "survivors", "survival"]
    rows = [
        (of["teacher"], of["num_proposed"], of["num_known_positives"], of["num_over_ceiling"], of["num_survivors"],
         of["survival_rate"])
        for of in [*found["teachers"], found | {"teacher": "all"}]
    ]  # fmt: skip
    show_table(f"Mining {escape(resolved.name)}: what was proposed", columns, rows)
    counts = [
        ("examples", report.num_examples),
        ("negatives kept", report.num_candidates),
        (f"examples with fewer than asked ({_FATES[resolved.too_few]})", report.num_short_of_negatives),
        ("findings new to the store", report.num_new),
    ]
    if resolved.too_few == "deeper":
        counts.insert(2, ("queries searched deeper", report.num_searched_deeper))
    show_table("What was kept", ["what", "number"], counts)
    if json is not None:
        write_json(json, found)


def _sweep(recipe: "MiningRecipe", store: str | None, json: Path | None, plot: Path | None) -> None:
    from app.mining import teacher_builder
    from curation.mining.sweep import draw_sweep
    from curation.mining.sweep import sweep as run

    with opened_store(store) as opened, progress_bar(f"Sweeping {recipe.name}") as progress:
        found = run(opened, recipe, teacher_builder(opened, recipe), progress=progress)
    columns = ["teacher", recipe.method, "survivors", "false among them", "taken", "false among them", "short"]
    rows = [
        (point.teacher, point.value, point.num_survivors, point.num_false_survivors, point.num_taken,
         point.num_false_taken, point.num_short)
        for point in found.points
    ]  # fmt: skip
    show_table(f"Sweep of {escape(recipe.name)}: {found.num_examples:,} examples", columns, rows)
    for teacher, number in found.num_false.items():
        console.print(
            f"{escape(teacher)} proposed {number:,} false negatives; judged by a model: "
            f"{found.num_judged[teacher]:,} of its candidates"
        )
    if json is not None:
        write_json(json, found.to_dict())
    if plot is not None:
        draw_sweep(found, plot)
        console.print(f"Drew {escape(str(plot))}")
