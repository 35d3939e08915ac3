"""`gradus prompts`: the packs and their entries, and two ways of writing side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, show_table, write_json

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from curation.audit.comparing import WayReport
    from generator.prompt_pack import PromptPack

commands = typer.Typer(help="Prompt packs: list, show, compare.", invoke_without_command=True)
PackNames = Annotated[
    list[Path] | None, typer.Option("--pack", help="A folder of your own entries to list too; may be given again.")
]


@commands.callback()
def list_packs(context: typer.Context, pack: PackNames = None, json: JsonFile = None) -> None:
    """List the entries of every bundled pack, and of your own."""
    if context.invoked_subcommand is not None:
        return
    from generator.prompt_pack import PromptPack, bundled_packs

    packs = [*bundled_packs(), *(PromptPack.load(str(folder)) for folder in pack or [])]
    rows = [row for one in packs for row in _rows(one)]
    for entry, subject, parts, attributes, title in rows:
        answers = "" if parts == "none" else f", answers with {parts}"
        cells = "" if attributes == "-" else f", attributes {attributes}"
        console.print(f"[bold]{escape(entry)}[/]\n  {escape(title)}\n  [dim]asks about a {subject}{answers}{cells}[/]")
    if json is not None:
        names = ("entry", "subject", "parts", "attributes", "title")
        write_json(json, {"packs": {one.name: one.digest for one in packs},
                          "entries": [dict(zip(names, row, strict=True)) for row in rows]})  # fmt: skip


def _rows(pack: "PromptPack") -> list[tuple[str, str, str, str, str]]:
    rows: list[tuple[str, str, str, str, str]] = []
    for name in pack.entry_names:
        facts = pack.entry(name).facts
        parts = f"{len(facts.slots)} {facts.parts}" if facts.slots else facts.parts
        rows.append((f"{pack.name}/{name}", facts.subject, parts, facts.attributes or "-", facts.title))
    return rows


@commands.command()
def show(entry: Annotated[str, typer.Argument(help="PACK/ENTRY, as listed.")]) -> None:
    """Print an entry's files: prompt, schema, slots and checks."""
    pack, name = _split(entry)
    folder = pack.entry(name).folder
    for file in ("entry.toml", "prompt.j2", "schema.json"):
        console.print(f"[bold]{file}[/]")
        console.print(escape((folder / file).read_text()), soft_wrap=True)


@commands.command()
def compare(
    first: Annotated[str, typer.Argument(help="PACK/ENTRY of one way of writing, as listed.")],
    second: Annotated[str, typer.Argument(help="PACK/ENTRY of the other.")],
    encoder: Annotated[str, typer.Option("--encoder", help="minilm, or a model's folder.")] = "minilm",
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Set two ways of writing side by side on the pairs that the store has from both.

    Order and similarity by an encoder, negatives above their positive, length, how well character n-grams tell them
    from the positives (0.5: not at all), and what they cost.
    """
    from app.encoders import embedding_cache
    from curation.audit.comparing import compare_ways, groups_of

    with opened_store(store) as opened, opened.read() as session:
        ways = []
        for entry in (first, second):
            pack, name = _split(entry)
            runs = _runs(session, pack, name)
            ways.append((entry, groups_of(session, runs, name), _cost(session, runs, name)))
        reports = compare_ways(ways[0][:2], ways[1][:2], embedding_cache(encoder))
    costs = [cost for *_, cost in ways]
    _show(reports, costs)
    if json is not None:
        write_json(json, {"ways": [{**r.to_dict(), **cost} for r, cost in zip(reports, costs, strict=True)]})


def _split(entry: str) -> tuple["PromptPack", str]:
    from generator.prompt_pack import PromptPack

    pack, _, name = entry.rpartition("/")
    if not pack:
        raise AppError(f"{entry!r}: name an entry as PACK/ENTRY; 'gradus prompts' lists them")
    return PromptPack.load(pack), name


def _runs(session: "Session", pack: "PromptPack", name: str) -> list[int]:
    """Runs that used this very pack and entry."""
    from sqlalchemy import select

    from db.tables.ledger import Run, RunRequest

    pack.entry(name)
    runs = [
        run.id for run in session.scalars(select(Run).where(Run.kind == "generate"))
        if run.recipe.get("pack_digest") == pack.digest
    ]  # fmt: skip
    used = select(RunRequest.run_id).where(RunRequest.run_id.in_(runs), RunRequest.kind == name).distinct()
    found = list(session.scalars(used))
    if not found:
        raise AppError(f"no run in the store used {pack.name}/{name}: run 'gradus generate' with it first")
    return found


def _cost(session: "Session", runs: list[int], name: str) -> dict[str, float | None]:
    """Mean tokens of a request, and its mean price where one is known."""
    from sqlalchemy import func, select

    from db.tables.ledger import Completion, RunRequest

    row = session.execute(
        select(func.avg(Completion.input_tokens), func.avg(Completion.output_tokens), func.avg(Completion.cost_usd))
        .join(RunRequest, RunRequest.request_id == Completion.request_id)
        .where(RunRequest.run_id.in_(runs), RunRequest.kind == name)
    ).one()
    names = ("input_tokens", "output_tokens", "cost_usd")
    return {name: None if value is None else float(value) for name, value in zip(names, row, strict=True)}


def _show(reports: tuple["WayReport", "WayReport"], costs: list[dict[str, float | None]]) -> None:
    rows = [("pairs in common", *(f"{report.num_pairs:,}" for report in reports))]
    for rank in sorted({rank for report in reports for rank in report.similarity}):
        rows.append((f"N{rank}: cosine to the query", *(_number(r.similarity.get(rank)) for r in reports)))
        rows.append((f"N{rank}: above the positive", *(_share(r.above_positive.get(rank)) for r in reports)))
        rows.append((f"N{rank}: length, positive = 1", *(_number(r.length_ratio.get(rank)) for r in reports)))
        leaks = [report.leaks.get(rank) for report in reports]
        told = ["-" if leak is None else f"{leak.auc:.3f} ({leak.low:.3f} to {leak.high:.3f})" for leak in leaks]
        rows.append((f"N{rank}: told from positives, AUC", *told))
    rows.append(("order accuracy", *(_share(report.order_accuracy) for report in reports)))
    rows.append(("input tokens a request", *(_number(cost["input_tokens"], 0) for cost in costs)))
    rows.append(("output tokens a request", *(_number(cost["output_tokens"], 0) for cost in costs)))
    rows.append(("US dollars a request", *(_number(cost["cost_usd"], 6) for cost in costs)))
    show_table("Side by side", ["what", *(report.name for report in reports)], rows)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
