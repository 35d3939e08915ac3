"""`gradus ablate`: the papers' tables again, on the data at hand."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, progress_bar, show_table, write_json


def ablate(
    kind: Annotated[
        Literal["curriculum", "pooling", "mixing", "ratio", "temperature", "negatives"],
        typer.Argument(help="What differs from arm to arm."),
    ],
    recipe: Annotated[
        Path, typer.Argument(help="The training recipe that every arm shares: TOML, or a shipped one's name.")
    ],
    data: Annotated[list[str], typer.Option("--data", help="What arms are measured on, as for `gradus evaluate`.")],
    split: Annotated[str, typer.Option("--split", help="Which judgments, pairs or examples.")] = "dev",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds 0 to N-1.")] = 3,
    slots: Annotated[
        int | None, typer.Option("--slots", min=1, help="Negatives of a row where an arm sets them; default: as usual.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder of the runs; default: ablations in the data folder.")
    ] = None,
    pool: Annotated[
        int | None,
        typer.Option("--pool", min=1, help="Rank only judged documents and each query's BM25 top N; default: all."),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="Of queries that have none of their own, for a prompt with {instruction}."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="The figure: .png or .svg; default: in --output. Beside it, NAME-course."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the arms and stop.")] = False,
    json: JsonFile = None,
) -> None:
    """Train every arm with every seed, measure each, and compare: table, figures, paired bootstrap over queries.

    Intervals are over queries; seeds are averaged, and nothing corrects for the number of arms.

    One figure shows what was measured, the other the course of the trainings: loss, margin and gradient by step. Arms
    of `curriculum` are measured after each block of the schedule too.

    Cut off, run it again: a run that was measured is not trained again, one that was in training goes on.
    """
    from app.ablating.ablation import run_ablation
    from app.ablating.arms import ablation_of
    from app.ablating.slotting import finders, usual_slots
    from app.evaluating.chart import check_chart_file
    from app.evaluating.sets import opened_set
    from app.recipes import load_recipe
    from app.settings import Settings
    from app.shipped_recipes import recipe_file
    from app.training import release_folder
    from trainer.recipe import TrainRecipe

    check_chart_file(plot)
    settings, resolved = Settings(), load_recipe(recipe_file(recipe), TrainRecipe)
    release = release_folder(resolved)
    found_by = finders(release, resolved.split) if kind == "negatives" else ()
    ablation = ablation_of(kind, resolved, slots or usual_slots(release, resolved.split), found_by)
    if dry_run:
        rows = [(arm.name, _told(arm)) for arm in ablation.arms]
        show_table(f"Arms of {kind}, {seeds} seed(s) each", ["arm", "what is changed"], rows)
        for note in ablation.notes:
            console.print(escape(note))
        return
    sets = [opened_set(one, split, pool) for one in data]
    folder = output or settings.data / "ablations"
    with progress_bar(f"Ablation: {kind}") as progress:
        report = run_ablation(
            ablation,
            resolved,
            release,
            sets,
            folder,
            seeds=range(seeds),
            tell=_say,
            instruction=instruction,
            progress=progress,
        )
    show_ablation(report)
    show_training(report)
    _draw(plot or folder / f"{kind}.png", report)
    if json is not None:
        write_json(json, report)
    for one in sets:
        if one.faults:
            raise AppError(f"{len(one.faults)} bad row(s) in {one.data} were left out; the first is {one.faults[0]}")


def _draw(picture: Path, report: dict[str, Any]) -> None:
    """What was measured, and beside it the course of the trainings where journals tell it."""
    from app.ablating.chart import write_ablation_chart, write_course_chart

    write_ablation_chart(picture, report)
    course = picture.with_stem(f"{picture.stem}-course")
    written = [picture, course] if write_course_chart(course, report) else [picture]
    console.print(f"Wrote {escape(' and '.join(str(one) for one in written))}")


def _say(line: str) -> None:
    console.print(escape(line), style="dim")


def _told(arm: Any) -> str:
    if not arm.is_trained:
        return "not trained"
    parts = [f"{name} = {value}" for name, value in arm.changes.items() if name != "negatives"]
    if counts := arm.changes.get("negatives"):
        parts.append(f"{counts['written']} written and {counts['mined']} mined negatives a row")
    if arm.slotting is not None:
        slotting = arm.slotting
        ratio = f", R = {slotting.ratio:g}" if slotting.mix in ("hybrid", "direct") else ""
        finder = f", of run {slotting.finder.run} in {slotting.finder.teacher}'s order" if slotting.finder else ""
        parts.append(f"{slotting.slots} negatives a row, {slotting.mix}{ratio}{finder}")
    return ", ".join(parts)


def show_ablation(report: dict[str, Any]) -> None:
    """The table of each set: every seed's figure, their mean, and differences with intervals."""
    for one in report["sets"]:
        keys = list(dict.fromkeys(key for row in one["arms"] for key in row if key.startswith("against ")))
        rows = []
        for row in one["arms"]:
            by_seed = "  ".join(f"{value:.3f}" for value in row["by_seed"])
            rows.append((row["arm"], row["mean"], by_seed, *(_change(row.get(key)) for key in keys)))
        title = f"{Path(one['data']).name}, {one['split']}: {one['metric']}, {one['num_units']:,} {one['unit']}"
        show_table(escape(title), ["arm", "mean", "by seed", *(f"{key}, 95 %" for key in keys)], rows)


def show_training(report: dict[str, Any]) -> None:
    """What each arm was trained with, as it came out: counts of the first seed, V over all of them; what was not."""
    names = ("rows", "written", "of_another_rank", "mined", "ratio", "gradient_variance")
    rows = [(arm, *(one[name] for name in names)) for arm, one in report["training"].items()]
    columns = ["arm", "rows", "written negatives", "of another rank", "mined", "written to mined", "gradient variance"]
    show_table("What was trained on", columns, rows)
    for line in (*report["notes"], *(f"{arm} is left out: {why}" for arm, why in report["left_out"].items())):
        console.print(escape(line))


def _change(change: dict[str, Any] | None) -> str:
    if change is None:
        return ""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(change["difference"], *change["interval_95"])
