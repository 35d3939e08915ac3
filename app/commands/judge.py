"""`gradus judge`: LLM relevance with quoted evidence, and how far judges agree with people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, shortened, show_table, write_json

if TYPE_CHECKING:
    from app.judging import StageReport
    from curation.judging.agreement import Coefficient
    from curation.judging.exempt import Exempted
    from db.store import Store
    from generator.estimate import Estimate

_MAX_NAMED = 10
_STOPPED = 130
_GRADES = {3: "3: satisfies it completely", 2: "2: in part, or indirectly", 1: "1: same topic", 0: "0: not related"}


def judge(
    recipe: Annotated[Path | None, typer.Argument(help="A judging recipe (TOML).")] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show a prompt, tokens and price of what is still unasked; send nothing.")
    ] = False,
    pilot: Annotated[
        int | None, typer.Option("--pilot", min=1, metavar="N", help="Have each judge asked about N pairs only.")
    ] = None,
    agreement: Annotated[
        str | None,
        typer.Option(
            "--agreement",
            metavar="PEOPLE",
            help="Compare with people: COLLECTION:SPLIT, or a JSONL or CSV file of query, passage and relevance.",
        ),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option("--judge", metavar="MODEL", help="Compare this judge alone; default: the last word.")
    ] = None,
) -> None:
    """Judge the relevance of negatives, 0 to 3, each grade with a quote that stands in the passage.

    A cheap judge screens, a strong one confirms. What was answered is never asked again: run it again to go on.
    """
    if recipe is None and agreement is None:
        raise typer.BadParameter("give a RECIPE, --agreement, or both", param_hint="RECIPE")
    told: dict[str, Any] = {}
    reports: list[StageReport] = []
    with opened_store(store) as opened:
        if recipe is not None:
            reports = _run(opened, recipe, told, dry_run=dry_run, pilot=pilot)
        if agreement is not None and not dry_run:
            told["agreement"] = _compare(opened, agreement, judge_model)
    if json is not None:
        write_json(json, told)
    for report in reports:
        _end(report)


def _run(
    store: "Store", recipe: Path, told: dict[str, Any], *, dry_run: bool, pilot: int | None
) -> "list[StageReport]":
    from app.judging import JudgeRecipe, estimate_judging, exempted
    from app.judging import judge as run
    from app.live import live_view
    from app.recipes import load_recipe

    resolved = load_recipe(recipe, JudgeRecipe)
    reports: list[StageReport] = []
    if not dry_run:
        with live_view(f"Judging {resolved.name}") as show:
            reports = run(store, resolved, on_progress=show, limit=pilot)
        told["stages"] = [report.to_dict() for report in reports]
        for report in reports:
            _show_report(report)
        told["exempted"] = _show_exempted(exempted(store, resolved), resolved.ceiling.teacher)
    if dry_run or pilot is not None:
        estimates = estimate_judging(store, resolved)
        told["estimate"] = {stage: estimate.to_dict() for stage, estimate in estimates.items()}
        for stage, estimate in estimates.items():
            _show_estimate(stage, estimate)
        if resolved.confirm is not None:
            console.print("The confirming judge is estimated on the pairs that are known to come to it; more may come.")
    return reports


def _show_report(report: "StageReport") -> None:
    cost = [] if report.spent_usd is None else [("spent, US dollars", f"{report.spent_usd:.4f}")]
    rows = [
        ("pairs", report.num_pairs),
        ("judged", report.num_judged),
        *((f"relevance {_GRADES[grade]}", report.grades.get(grade, 0)) for grade in _GRADES),
        ("asked again", report.num_asked_again),
        *((f"refused: {reason}", num) for reason, num in report.refused.items()),
        ("answered by this call", report.num_new_answers),
        ("waiting for an answer", report.num_waiting),
        ("failed, asked again by the next call", report.num_failed),
        *((f"failed: {shortened(reason)}", num) for reason, num in report.failures.items()),
        ("input tokens", report.input_tokens),
        ("output tokens", report.output_tokens),
        *cost,
    ]
    show_table(f"{escape(report.run)} by {escape(report.model)}", ["what", "number"], rows)
    for line in report.bad_lines[:_MAX_NAMED]:
        console.print(f"[yellow]bad line[/] {escape(line.where)}: {escape(line.detail)}")


def _show_exempted(counts: "Exempted | None", teacher: str) -> dict[str, Any] | None:
    """What a positive-aware ceiling would have removed; returns it for the report."""
    if counts is None:
        console.print(f"{escape(teacher)} has no scores of these pairs: what a ceiling would remove is not counted.")
        return None
    rows = [
        ("machine-written negatives in scope", counts.num_written),
        ("scored, and their positive too", counts.num_scored),
        ("would have been removed", counts.num_over),
        ("of these judged", counts.num_over_judged),
        ("of these relevant (2 or 3): false negatives", counts.num_over_relevant),
        ("would have stayed, judged", counts.num_under_judged),
        ("of these relevant (2 or 3): false negatives", counts.num_under_relevant),
    ]
    title = f"A ceiling at {counts.percentage:.0%} of the positive by {escape(counts.teacher)}, not applied"
    show_table(title, ["what", "number"], rows)
    return counts.to_dict()


def _show_estimate(stage: str, told: "Estimate") -> None:
    for prompt in told.first_prompts[:1]:
        console.print(f"[bold]A prompt[/]\n{escape(prompt)}\n", soft_wrap=True)
    price = None if told.cost_usd is None else f"{told.cost_usd.mean:,.4f}"
    worst = None if told.worst_cost_usd is None else f"{told.worst_cost_usd:,.4f}"
    rows = [
        ("requests that no run has an answer to", f"{told.num_requests:,}"),
        ("input tokens", f"{told.input_tokens.mean:,.0f}"),
        ("output tokens", "not known" if told.output_tokens is None else f"{told.output_tokens.mean:,.0f}"),
        ("price, US dollars", price or "not known"),
        ("at the very most", worst or "not known"),
        ("taken from", told.basis),
    ]
    show_table(f"Estimate: {stage}", ["what", "mean"], rows)


def _compare(store: "Store", people: str, model: str | None) -> dict[str, Any]:
    from curation.judging.agreement import agreement, file_decisions, qrels_decisions

    with store.read() as session:
        if Path(people).is_file():
            decisions, num_unknown = file_decisions(session, Path(people))
            found = agreement(session, iter(decisions), num_unknown=num_unknown, judge=model)
        else:
            collection, mark, split = people.rpartition(":")
            if not mark:
                raise AppError(f"--agreement {people}: no such file; give COLLECTION:SPLIT or a JSONL or CSV file")
            found = agreement(session, qrels_decisions(session, collection, split), judge=model)
    rows: list[tuple[str, Any]] = [
        ("decisions of people", found.num_decisions),
        ("of these judged too", found.num_compared),
        ("queries", found.num_queries),
        (f"kappa: relevant (people {found.people_threshold}+, judge {found.threshold}+) or not", _kappa(found.binary)),
    ]
    if found.weighted is not None:
        rows += [
            ("kappa: 0 to 3, quadratic weights", _kappa(found.weighted)),
            ("same grade", f"{found.share_same:.1%}"),
        ]
    if found.num_unknown:
        rows.append(("on texts that are not in the store", found.num_unknown))
    show_table(f"Agreement of {escape(model or 'the last word')} with people", ["what", "number"], rows)
    if found.confusion is not None:
        grades = ["0", "1", "2", "3"]
        table = [(f"people {grade}", *row) for grade, row in zip(grades, found.confusion, strict=True)]
        show_table("Pairs by grade", ["", *(f"judge {grade}" for grade in grades)], table)
    return found.to_dict()


def _kappa(found: "Coefficient") -> str:
    if found.value is None:
        return "not defined: both always gave the same grade"
    if found.interval_95 is None:
        return f"{found.value:.3f}"
    low, high = found.interval_95
    return f"{found.value:.3f} ({low:.3f} to {high:.3f})"


def _end(report: "StageReport") -> None:
    """Say what keeps the run from being finished, with the exit code that belongs to it."""
    if report.is_stopped:
        console.print("Stopped; all that was answered is stored. Run it again to go on.")
        raise typer.Exit(_STOPPED)
    if report.is_out_of_budget:
        raise AppError(
            f"the budget of [{report.stage}] is spent: {report.num_waiting:,} pair(s) were not asked about; raise "
            "budget to go on, what was answered is not paid for again"
        )
    if report.bad_lines:
        first = report.bad_lines[0]
        raise AppError(
            f"{len(report.bad_lines):,} line(s) of the completions file of [{report.stage}] could not be used, the "
            f"others are stored; the first is {first.where}: {first.detail}"
        )
