"""`gradus train`: a model from a release, by a recipe."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from app.closed_loop import TrainingReport
    from trainer.outlook import Outlook
    from trainer.training import TrainResult


def train(
    recipe: Annotated[Path, typer.Argument(help="A training recipe (TOML), or the name of one in `gradus recipes`.")],
    release: Annotated[
        str | None, typer.Option("--release", metavar="NAME", help="Train on this release, not on the recipe's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the curriculum and stop.")] = False,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Train with ATA pooling from easy to hard. Cut off, run it again: it ends with the same weights.

    Then metrics and margins go into the store, where there is one; elsewhere: gradus import training MODEL.
    Several GPUs or processes: torchrun --nproc-per-node 2 --no-python gradus train RECIPE.
    """
    from app.recipes import checked, load_recipe
    from app.settings import Settings
    from app.shipped_recipes import recipe_file
    from app.training import release_folder, start_folder, store_to_tell, tell_store
    from trainer.recipe import TrainRecipe

    settings = Settings()
    resolved = load_recipe(recipe_file(recipe), TrainRecipe)
    if release is not None:
        resolved = checked({**resolved.model_dump(), "release": release}, TrainRecipe, "--release: ")
    folder, start = release_folder(resolved, store), start_folder(resolved)
    is_main = os.environ.get("RANK", "0") == "0"
    told = store_to_tell(store) if is_main and not dry_run else None
    if dry_run:
        from trainer.outlook import outlook

        _show_outlook(outlook(resolved, folder, start), json)
        return
    from trainer.training import train as run

    with progress_bar(f"Training {resolved.name}") if is_main else nullcontext(_silent) as progress:
        result = run(
            resolved,
            folder,
            start,
            output=settings.models / resolved.name,
            progress=progress,
            tell=_note if is_main else _unheard,
        )
    if is_main:
        _show(result)
        imported = tell_store(told, result.folder) if told is not None else None
        _show_imported(imported, result.folder)
        if json is not None:
            write_json(json, {**result.summary, "imported": imported.to_dict() if imported else None})


def _silent(done: int, total: int | None) -> None:
    """No progress: another process tells it."""


def _note(note: str) -> None:
    console.print(f"note: {escape(note)}", soft_wrap=True)


def _unheard(note: str) -> None:
    """Another process tells it."""


def _show_outlook(told: "Outlook", json: Path | None) -> None:
    show_table("Curriculum", list(told.plan[0]), [list(row.values()) for row in told.plan])
    if any(row["of another rank"] for row in told.plan):
        console.print(
            "of another rank: written negatives of the nearest rank, where an example has none of the block's"
        )
    for fact in told.facts:
        console.print(escape(fact), soft_wrap=True)
    for note in told.notes:
        _note(note)
    if json is not None:
        write_json(json, {"plan": told.plan, "facts": told.facts, "notes": told.notes})


# Headings that fit 80 columns and tell apart the variance of steps' norms and that of what negatives are pushed with.
_HEADINGS = {
    "block": {"gradient_variance": "variance of norm"},
    "rank": {"above_positive": "above", "gradient": "push", "gradient_variance": "its variance", "negatives": "num"},
}
_LEGENDS = {
    "block": "variance of norm: of the gradient's norm over the block's steps",
    "rank": (
        "margin: positive's cosine less the negative's; above: share above the positive; push: mean |dL/dcosine| of a "
        "negative, beside its variance"
    ),
}


def _show(result: "TrainResult") -> None:
    summary: dict[str, Any] = result.summary
    for what in ("block", "rank"):
        rows = summary[f"{what}s"]
        if not rows:  # of ranks, where rows have no negatives of their own
            continue
        title = f"Training {escape(summary['recipe']['name'])}, per {what}"
        names = [_HEADINGS[what].get(name, name) for name in rows[0]]
        show_table(title, names, [[_rank(n, value) for n, value in row.items()] for row in rows])
        console.print(_LEGENDS[what], style="dim")
    if summary["num_texts_cut"]:
        console.print(
            f"cut: {summary['num_texts_cut']:,} of {summary['num_texts']:,} texts are longer than the recipe takes "
            f"(max_length = {summary['recipe']['max_length']} tokens)"
        )
    console.print(f"{'saved' if result.is_new else 'unchanged'}: {escape(str(result.folder))}")


def _rank(name: str, value: Any) -> Any:
    """A rank as the plan tells it: drawn for each row, or any."""
    return {0: "random", None: "any"}.get(value, value) if name == "rank" else value


def _show_imported(report: "TrainingReport | None", folder: Path) -> None:
    if report is not None:
        console.print(escape(report.in_words()), soft_wrap=True)
        return
    console.print(
        f"not imported, as there is no store here; where it is: gradus import training {escape(str(folder))}",
        soft_wrap=True,
    )
