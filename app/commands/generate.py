"""`gradus generate`: graded negatives from a language model, by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, show_table, write_json

if TYPE_CHECKING:
    from generator.estimate import Estimate
    from generator.generation import GenerateReport

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
    from app.generation import generation_helpers
    from app.live import live_view
    from app.recipes import load_recipe
    from generator.estimate import estimate
    from generator.generation import generate as run
    from generator.plan import Planner
    from generator.recipe import GenerateRecipe

    resolved = load_recipe(recipe, GenerateRecipe)
    with opened_store(store) as opened, generation_helpers(opened, resolved) as helpers:
        report = None
        if not dry_run:
            with live_view(f"Generating {resolved.name}") as show:
                report = run(opened, resolved, helpers=helpers, on_progress=show, limit=pilot)
            _show_report(report)
        told = None
        if dry_run or pilot is not None:
            with opened.read() as session:
                told = estimate(session, resolved, Planner(resolved, helpers.neighbours))
            _show_estimate(resolved.name, told)
    if json is not None:
        write_json(json, {**(report.to_dict() if report else {}), **({"estimate": told.to_dict()} if told else {})})
    if report is not None:
        _end(report)


def _show_report(report: "GenerateReport") -> None:
    cost = [] if report.spent_usd is None else [("spent, US dollars", f"{report.spent_usd:.4f}")]
    rows = [
        ("requests planned", report.num_planned),
        ("answered", report.num_answered),
        ("answered by this call", report.num_new_answers),
        ("waiting for an answer", report.num_waiting),
        ("failed, asked again by the next call", report.num_failed),
        *((f"completions {outcome}", num) for outcome, num in sorted(report.outcomes.items())),
        ("texts and tasks accepted", report.num_accepted),
        ("negatives above their positive, kept", report.num_suspect),
        ("answers with repaired JSON", report.num_repaired_json),
        *((f"refused: {reason}", num) for reason, num in report.refused.items()),
        ("input tokens", report.input_tokens),
        ("of these read from a cache", report.cached_tokens),
        ("output tokens", report.output_tokens),
        *cost,
    ]
    show_table(f"Generation {escape(report.run)}", ["what", "number"], rows)
    for line in report.bad_lines[:_MAX_NAMED]:
        console.print(f"[yellow]bad line[/] {escape(line.where)}: {escape(line.detail)}")


def _show_estimate(name: str, told: "Estimate") -> None:
    cells = [(cell, num) for cell, num in told.cells.items()]
    show_table(f"Cells of {escape(name)}", ["cell", "requests"], cells[:_MAX_CELLS])
    if len(cells) > _MAX_CELLS:
        console.print(f"... and {len(cells) - _MAX_CELLS:,} more cells")
    for number, prompt in enumerate(told.first_prompts, start=1):
        console.print(f"[bold]Prompt {number}[/]\n{escape(prompt)}\n", soft_wrap=True)
    rows = [("requests", f"{told.num_requests:,}")]
    if told.num_second_stage:
        rows.append(("requests of the second stage, not priced", f"{told.num_second_stage:,}"))
    rows.append(("input tokens", _spread(told.input_tokens, 0)))
    rows.append(("output tokens", "not known" if told.output_tokens is None else _spread(told.output_tokens, 0)))
    rows.append(("price, US dollars", "not known" if told.cost_usd is None else _spread(told.cost_usd, 4)))
    if told.worst_cost_usd is not None:
        rows.append(("at the very most", f"{told.worst_cost_usd:,.4f}"))
    rows.append(("taken from", told.basis))
    show_table("Estimate", ["what", "mean (95 % interval)"], rows)


def _spread(interval: object, digits: int) -> str:
    mean, low, high = (getattr(interval, name) for name in ("mean", "low", "high"))
    return f"{mean:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _end(report: "GenerateReport") -> None:
    """Say what keeps the run from being finished, with the exit code that belongs to it."""
    if report.is_stopped:
        console.print("Stopped; all that was answered is stored. Run it again to go on.")
        raise typer.Exit(_STOPPED)
    if report.is_out_of_budget:
        raise AppError(
            f"the budget is spent: {report.num_waiting:,} request(s) were not asked; raise [budget] to go on, "
            "what was answered is not paid for again"
        )
    if report.num_failed:
        reason = next(iter(report.failures))
        raise AppError(
            f"{report.num_failed:,} request(s) failed for good, most with: {reason[:300]}; all that was answered is "
            "stored, run it again to ask these again"
        )
    if report.bad_lines:
        first = report.bad_lines[0]
        raise AppError(
            f"{len(report.bad_lines):,} line(s) of the completions file could not be used, the others are stored; "
            f"the first is {first.where}: {first.detail}"
        )
