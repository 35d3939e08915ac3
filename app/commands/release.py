"""`gradus release`: freeze a selection under a name, look at it, verify it, write it again, retire it."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, visible, write_json

_NUM_ROWS = 8
commands = typer.Typer(help="Frozen releases of the store.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The release, such as scifact-1.0.0.")]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Where releases lie; default: releases in the data folder.")
]


@commands.callback()
def releases() -> None:
    """Frozen releases of the store."""


@commands.command()
def create(
    name: Annotated[str, typer.Argument(help="NAME-MAJOR.MINOR.PATCH, such as scifact-1.0.0. A name is a promise.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="A release recipe (TOML); default: all runs, hybrid mix.")
    ] = None,
    folder: Folder = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Write a release: Parquet in the published configurations, manifest and dataset card."""
    from app.recipes import load_recipe
    from app.settings import Settings
    from curation.release.gates import GateError
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release

    resolved = load_recipe(recipe, ReleaseRecipe) if recipe else ReleaseRecipe()
    try:
        with opened_store(store) as opened, progress_bar(f"Releasing {escape(name)}") as progress:
            released = create_release(opened, resolved, name, folder=folder or Settings().releases, progress=progress)
    except GateError as error:
        _show_gates([gate.to_dict() for gate in error.results])
        if json is not None:
            write_json(json, {"refused": str(error), "gates": [gate.to_dict() for gate in error.results]})
        raise
    _show_gates(released.manifest["gates"])
    _show_rows(name, released.manifest["rows"])
    state = "frozen" if released.is_new else "unchanged"
    parent = released.manifest["parent"]
    since = f", since {parent['name']}" if parent else ""
    console.print(f"{state}: {escape(str(released.folder))}, digest {released.digest[:16]}{escape(since)}")
    if json is not None:
        write_json(json, released.manifest)


@commands.command()
def show(
    name: Annotated[str | None, typer.Argument(help="The release; all of them without it.")] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Show a release: rows, sources, runs, where it was published, whether it was retired. Without a name, list all."""
    from curation.release.catalogue import find_release, list_releases
    from db.publications import publications

    with opened_store(store) as opened:
        listed = list_releases(opened)
        manifest: dict[str, Any] = {}
        published: list[dict[str, str]] = []
        if name is not None:
            with opened.read() as session:
                release = find_release(session, name)
            manifest, published = release.manifest, publications(opened, release.id)
    if name is None:
        rows = [
            (
                one.name,
                one.digest[:12],
                f"{one.created_at:%Y-%m-%d}",
                one.num_items,
                one.parent,
                one.retired or "in use",
            )
            for one in listed
        ]
        show_table("Releases", ["release", "digest", "made", "candidates", "parent", "state"], rows)
        if json is not None:
            write_json(json, {"releases": [one.to_dict() for one in listed]})
        return
    found = next(one for one in listed if one.name == name)
    _show_gates(manifest["gates"])
    _show_rows(name, found.rows)
    sources = [(one["name"], one["licence"], one["num_examples"]) for one in manifest.get("sources", ())]
    show_table("Sources", ["source", "licence", "examples"], sources)
    runs = [(run["kind"], run["name"], run["recipe_digest"][:12], run["seed"]) for run in manifest["runs"]]
    show_table("Runs", ["kind", "run", "recipe", "seed"], runs)
    console.print(f"{escape(found.path)}, digest {found.digest[:16]}, made {found.created_at:%Y-%m-%d %H:%M} UTC")
    console.print(f"parent: {escape(found.parent or 'none')}")
    for one in published:
        console.print(
            escape(f"published: {one['endpoint']}/datasets/{one['repo']} at {one['tag']}, {one['commit'][:12]}")
        )
    if found.retired is not None:
        console.print(f"[yellow]retired[/]: {escape(found.retired)}")
    if json is not None:
        write_json(json, {"release": found.to_dict(), "publications": published, "manifest": manifest})


@commands.command()
def diff(
    first: Annotated[str, typer.Argument(help="The earlier release.")],
    second: Annotated[str, typer.Argument(help="The later one.")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Say which rows came, went and changed from one release to another, and why."""
    from curation.release.differences import diff_releases

    with opened_store(store) as opened:
        found = diff_releases(opened, first, second)
    changes = [(one["key"], str(one["was"]), str(one["now"])) for one in found["recipe"]]
    if changes:
        show_table("Recipe", ["key", "was", "now"], changes)
    if found["rows"]:
        rows = [(one["configuration"], one["split"], one["was"], one["now"]) for one in found["rows"]]
        show_table("Rows", ["configuration", "split", "was", "now"], rows)
    parts = [("came", found["came"]), ("went", found["went"])]
    parts += [("changed side", found["changed"]["split"]), ("changed place", found["changed"]["place"])]
    reasons = [
        (what, one["num"], one["reason"], _named(one["rows"])) for what, part in parts for one in part["reasons"]
    ]
    if reasons:
        show_table("Candidates", ["what", "number", "why", "such as"], reasons)
    console.print(f"{found['num_kept']:,} candidates are in both")
    console.print(f"configurations with other bytes: {', '.join(found['configurations']) or 'none'}")
    if json is not None:
        write_json(json, found)


def _named(rows: list[dict[str, Any]]) -> str:
    return _short(rows[0]["text"]) if rows else ""


@commands.command()
def verify(
    name: Name,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="A copy of the release; default: where it was written.")
    ] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Recompute every SHA-256 of a release: files against the manifest, the manifest against the store."""
    from curation.release.verifying import verify_release

    with opened_store(store) as opened, progress_bar(f"Verifying {escape(name)}") as progress:
        found = verify_release(opened, name, folder=folder, progress=progress)
    if found.retired is not None:
        console.print(f"[yellow]retired[/]: {escape(found.retired)}")
    if json is not None:
        write_json(json, found.to_dict())
    if found.problems:
        show_table("Problems", ["where", "problem"], [(one["where"], one["problem"]) for one in found.problems])
        first = found.problems[0]
        told = visible(f"{first['where']}: {first['problem']}")
        raise AppError(
            f"release {name!r} is not what was frozen, {len(found.problems)} problem(s); the first is {told}"
        )
    console.print(f"sound: {found.num_files} files, {found.num_bytes:,} bytes in {escape(str(found.folder))}")


@commands.command()
def export(
    name: Name,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Where to write; default: where the release was, or this folder for JSON lines."),
    ] = None,
    format_: Annotated[
        Literal["release", "jsonl"],
        typer.Option("--format", help="The release's folder again, or a configuration as JSON lines."),
    ] = "release",
    config: Annotated[
        str | None, typer.Option("--config", help="Configuration to write as JSON lines; default: n-tuple.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out files whose bytes would be others.")
    ] = False,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Write a release again from what the store froze, with the same bytes; or a configuration of it as JSON lines."""
    from curation.release.exporting import export_jsonl, export_release

    if format_ == "release" and config is not None:
        raise typer.BadParameter("--config goes with --format jsonl")
    if format_ == "jsonl" and allow_missing:
        raise typer.BadParameter("--allow-missing goes with --format release")
    with opened_store(store) as opened, progress_bar(f"Writing {escape(name)}") as progress:
        if format_ == "jsonl":
            written = export_jsonl(opened, name, config or "n-tuple", folder=folder or Path(), progress=progress)
        else:
            again = export_release(opened, name, folder=folder, allow_missing=allow_missing, progress=progress)
            written = [again]
    for one in written:
        console.print(f"Wrote {escape(str(one.target))}: {one.num_rows:,} rows in {one.num_files} file(s)")
        for file, why in one.left_out.items():
            console.print(f"[yellow]left out[/] {escape(file)}: {escape(why)}")
    if json is not None:
        write_json(json, {"written": [one.to_dict() for one in written]})


@commands.command()
def retire(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why nobody should use it any more.")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Retire a release: its rows and files stay, but it is neither created again nor published."""
    from curation.release.catalogue import retire_release

    with opened_store(store) as opened:
        retired = retire_release(opened, name, reason)
    console.print(f"retired: {escape(name)}")
    if json is not None:
        write_json(json, retired.to_dict())


def _show_rows(name: str, rows: dict[str, dict[str, int]]) -> None:
    flat = [(config, split, num) for config, splits in rows.items() for split, num in splits.items()]
    show_table(f"Release {escape(name)}", ["configuration", "split", "rows"], flat)


def _show_gates(gates: list[dict[str, Any]]) -> None:
    """Every gate, and the rows behind those that failed."""
    verdicts = [
        (
            gate["gate"],
            f"{gate['sense']} {gate['limit']:g}",
            "not measured" if gate["figure"] is None else gate["figure"],
            gate["note"],
            "met" if gate["is_met"] else f"let through by {gate['overridden_by']}" if gate["overridden_by"] else "shut",
        )
        for gate in gates
    ]
    if verdicts:
        show_table("Gates", ["gate", "limit", "figure", "of", "verdict"], verdicts)
    for gate in gates:
        if not gate["is_met"] and gate["rows"]:
            # Digests are for --json: a person looks at words and figures.
            columns = [name for name in gate["rows"][0] if "digest" not in name and not name.startswith("audited")]
            rows = [tuple(_short(row.get(column)) for column in columns) for row in gate["rows"][:_NUM_ROWS]]
            show_table(f"{gate['gate']}: rows to look at", columns, rows)


def _short(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)[:60]
