"""`gradus store`: is it sound, copy it, unite two."""

from pathlib import Path
from typing import Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

commands = typer.Typer(help="Check, copy and unite stores.", no_args_is_help=True)


@commands.command()
def check(store: StoreUrl = None, json: JsonFile = None) -> None:
    """Recompute every promise of the store; exit code 1 when one is broken."""
    from dataclasses import asdict

    from db.check import check_store

    with opened_store(store) as opened, progress_bar("Checking") as progress:
        findings = check_store(opened, progress=progress)
    if json is not None:
        write_json(json, {"is_sound": not findings, "findings": [asdict(finding) for finding in findings]})
    for finding in findings:
        named = "; ".join(finding.rows)
        console.print(f"[red]broken[/]: {finding.promise}: {finding.num_rows:,} ({escape(named)})")
    if findings:
        raise AppError(f"the store breaks {len(findings)} promise(s); restore a backup, or re-run what made the rows")
    console.print("The store is sound.")


@commands.command()
def backup(
    target: Annotated[Path, typer.Argument(help="A new SQLite file.")],
    store: StoreUrl = None,
) -> None:
    """Copy the store into a new SQLite file, also while it is in use."""
    from db.backup import backup as copy

    with opened_store(store) as opened, progress_bar("Copying") as progress:
        copy(opened, target, progress=progress)
    console.print(f"Copied to {escape(str(target))}")


@commands.command()
def merge(
    other: Annotated[str, typer.Argument(metavar="URL|FILE", help="The store to add to this one.")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Add everything that another machine's store holds. Twice changes nothing."""
    from dataclasses import asdict

    from db.merge import merge as unite

    if "://" not in other:
        if not Path(other).is_file():
            raise AppError(f"{other}: no such file; give a store's file or URL")
        other = f"sqlite:///{other}"
    with opened_store(store) as target, opened_store(other) as source, progress_bar("Merging") as progress:
        report = unite(target, source, progress=progress)
    rows = [(name, num, report.kept_differing.get(name, 0)) for name, num in report.added.items()]
    show_table("Merged", ["table", "added", "differ, kept as here"], [row for row in rows if row[1] or row[2]])
    if json is not None:
        write_json(json, asdict(report))
