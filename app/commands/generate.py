"""`gradus generate`: graded negatives from a language model, by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, shortened, show_table, write_json

if TYPE_CHECKING:
    from db.store import Store
    from generator.errors import TooManyRefused
    from generator.estimate import Estimate
    from generator.generation import GenerateReport
    from generator.recipe import GenerateRecipe

_MAX_NAMED = 10
_MAX_CELLS = 40
_STOPPED = 130


def generate(
    recipe: Annotated[Path, typer.Argument(help="A generation recipe (TOML).")],
    store: StoreUrl = None,
    json: JsonFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show cells, first prompts, tokens and price; send nothing.")
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option("--pilot", min=1, metavar="N", help="Ask N requests only, then show what the rest will cost."),
    ] = None,
) -> None:
    """Ask for graded negatives, read the answers, check them, and store what is good and why the rest is not.

    What was answered is never asked again: run it again to go on after a stop. The first Ctrl-C lets what is in flight
    land, the second stops at once.
    """
    from app.recipes import load_recipe
    from generator.recipe import GenerateRecipe

    if dry_run and pilot is not None:
        raise typer.BadParameter("--dry-run sends nothing and --pilot sends some: give one of them")
    resolved = load_recipe(recipe, GenerateRecipe)
    with opened_store(store) as opened:
        try:
            report, refused, told = _run(opened, resolved, is_dry=dry_run, pilot=pilot)
        except KeyboardInterrupt:
            console.print(_kept(opened, resolved.name))
            raise typer.Exit(_STOPPED) from None
    if json is not None:
        write_json(json, {**(report.to_dict() if report else {}), **({"estimate": told.to_dict()} if told else {})})
    if refused is not None:
        raise refused
    if report is not None:
        _end(report)


def _run(
    store: "Store", recipe: "GenerateRecipe", *, is_dry: bool, pilot: int | None
) -> "tuple[GenerateReport | None, TooManyRefused | None, Estimate | None]":
    """Ask or estimate, or both, and show what came of it. Too many refusals are a report like any other, and are raised
    when it has been written."""
    from app.generation import generation_seams
    from app.live import live_view
    from generator.errors import TooManyRefused
    from generator.estimate import estimate
    from generator.generation import generate as run
    from generator.plan import Planner

    report, refused, told = None, None, None
    with generation_seams(store, recipe) as seams:
        planner = Planner(recipe, seams.neighbours)
        if not is_dry:
            with live_view(f"Generating {recipe.name}", cells=planner.cell_names) as show:
                try:
                    report = run(store, recipe, seams=seams, on_progress=show, limit=pilot)
                except TooManyRefused as error:
                    report, refused = error.report, error
            _show_report(report)
        if is_dry or pilot is not None:
            with store.read() as session:
                told = estimate(session, recipe, planner)
            _show_estimate(recipe.name, told)
    return report, refused, told


def _kept(store: "Store", name: str) -> str:
    """What an interrupted run has, as it was cut off before it could report."""
    from generator.progress import newest_run

    with store.read() as session:
        found = newest_run(session, name)
    kept = (
        "nothing was asked yet" if found is None else f"{found[0]:,} of {found[1]:,} requests have answers in the store"
    )
    return f"Stopped; {kept}. Run it again to go on: what was answered is not asked again."


def _show_report(report: "GenerateReport") -> None:
    cost = [] if report.spent_usd is None else [("spent, US dollars", f"{report.spent_usd:.4f}")]
    rows = [
        ("requests planned", report.num_planned),
        ("answered", report.num_answered),
        ("answered by this call", report.num_new_answers),
        ("waiting for an answer", report.num_waiting),
        *((f"of these in {place}", num) for place, num in sorted(report.waiting_in.items())),
        ("failed, asked again by the next call", report.num_failed),
        *((f"completions {outcome}", num) for outcome, num in sorted(report.outcomes.items())),
        ("texts and tasks accepted", report.num_accepted),
        ("negatives above their positive, kept", report.num_suspect),
        ("answers with repaired JSON", report.num_repaired_json),
        *((f"refused: {reason}", num) for reason, num in report.refused.items()),
        *((f"failed: {shortened(reason)}", num) for reason, num in report.failures.items()),
        ("input tokens", report.input_tokens),
        ("of these read from a cache", report.cached_tokens),
        ("output tokens", report.output_tokens),
        ("tokens that this run paid for", report.spent_tokens),
        *cost,
    ]
    show_table(f"Generation {escape(report.run)}", ["what", "number"], rows)
    for line in report.bad_lines[:_MAX_NAMED]:
        console.print(f"[yellow]bad line[/] {escape(line.where)}: {escape(line.detail)}")


def _show_estimate(name: str, told: "Estimate") -> None:
    cells = [(cell, num) for cell, num in told.cells.items()]
    cells += [(f"second stage, {cell}", num) for cell, num in told.second_stage_cells.items()]
    show_table(f"Cells of {escape(name)}", ["cell", "requests"], cells[:_MAX_CELLS])
    if len(cells) > _MAX_CELLS:
        console.print(f"... and {len(cells) - _MAX_CELLS:,} more cells")
    for number, prompt in enumerate(told.first_prompts, start=1):
        is_second = told.num_second_stage and number == len(told.first_prompts)
        title = "A prompt of the second stage; its task stands in" if is_second else f"Prompt {number}"
        console.print(f"[bold]{title}[/]\n{escape(prompt)}\n", soft_wrap=True)
    rows = [("requests", f"{told.num_requests:,}")]
    if told.num_second_stage:
        rows.append(("requests of the second stage, at the cells' mean", f"{told.num_second_stage:,}"))
    rows.append(("input tokens", _spread(told.input_tokens, 0)))
    rows.append(("output tokens", "not known" if told.output_tokens is None else _spread(told.output_tokens, 0)))
    rows.append(("price, US dollars", "not known" if told.cost_usd is None else _spread(told.cost_usd, 4)))
    if told.second_stage_cost_usd is not None:
        rows.append(("of this the second stage", _spread(told.second_stage_cost_usd, 4)))
    rows.append(("requests at the very most, with repairs and refills", f"{told.most_requests:,}"))
    if told.worst_tokens is not None:
        rows.append(("tokens at the very most", f"{told.worst_tokens:,}"))
    if told.worst_cost_usd is not None:
        rows.append(("US dollars at the very most", f"{told.worst_cost_usd:,.4f}"))
    rows.append(("taken from", told.basis))
    show_table("Estimate", ["what", "mean (95 % interval)"], rows)


def _spread(interval: object, digits: int) -> str:
    mean, low, high = (getattr(interval, name) for name in ("mean", "low", "high"))
    return f"{mean:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _end(report: "GenerateReport") -> None:
    """Say what keeps the run from being finished, with the exit code that belongs to it."""
    if report.is_stopped:
        console.print(
            f"Stopped; {report.num_answered:,} of {report.num_planned:,} requests have answers in the store. "
            "Run it again to go on: what was answered is not asked again."
        )
        raise typer.Exit(_STOPPED)
    if report.is_out_of_budget:
        raise AppError(
            f"the budget is spent: {report.num_waiting:,} request(s) were not asked; raise [budget] to go on, "
            "what was answered is not paid for again"
        )
    if report.bad_lines:
        first = report.bad_lines[0]
        raise AppError(
            f"{len(report.bad_lines):,} line(s) of the completions file could not be used, the others are stored; "
            f"the first is {first.where}: {first.detail}"
        )
    if report.num_failed:
        reason, _ = next(iter(report.failures.items()))
        raise AppError(
            f"{report.num_failed:,} of {report.num_planned:,} requests failed, most often: {shortened(reason)}; "
            "run it again to ask them again"
        )
