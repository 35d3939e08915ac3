"""`gradus import`: a user's own data into the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, write_json

if TYPE_CHECKING:
    from curation.importing.rows import ImportReport

commands = typer.Typer(
    help="Import a BEIR folder, a file of pairs, documents, a published set, or trainings.", no_args_is_help=True
)

_MAX_NAMED = 10
CollectionName = Annotated[
    str | None, typer.Option("--name", help="Name of the collection; default: the folder's or file's name.")
]
Licence = Annotated[str | None, typer.Option("--licence", help="Licence of the texts; it travels into releases.")]


@commands.command()
def beir(
    path: Annotated[Path, typer.Argument(help="Folder with corpus.jsonl, queries.jsonl and qrels/*.tsv (.gz too).")],
    name: CollectionName = None,
    licence: Licence = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Import a corpus, its queries and judgments in the BEIR layout. A second import changes nothing."""
    from curation.importing.rows import import_beir

    with opened_store(store) as opened, progress_bar(f"Importing {path.name}") as progress:
        report = import_beir(opened, path, name=name, licence=licence, progress=progress)
    _tell(report, json)


@commands.command()
def pairs(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL or Parquet, one query a row.")],
    query: Annotated[str, typer.Option("--query", help="Column of the query.")] = "query",
    positive: Annotated[
        list[str] | None,
        typer.Option("--positive", help="Column of positives (a text, or a list of texts); may be given again."),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option("--negative", help="Column of existing negatives (text or list); may be given again."),
    ] = None,
    name: CollectionName = None,
    licence: Licence = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Import (query, positives, negatives) rows, with a mapping of the columns."""
    from curation.importing.pairs import import_pairs

    with opened_store(store) as opened, progress_bar(f"Importing {file.name}") as progress:
        report = import_pairs(
            opened,
            file,
            query=query,
            positives=positive or ["positive"],
            negatives=negative or [],
            name=name,
            licence=licence,
            progress=progress,
        )
    _tell(report, json)


@commands.command()
def documents(
    folder: Annotated[Path, typer.Argument(help="Folder with .txt, .md and .pdf files; subfolders too.")],
    name: CollectionName = None,
    licence: Licence = None,
    max_words: Annotated[int, typer.Option("--max-words", min=20, max=5_000, help="Longest passage, in words.")] = 200,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Import your own documents, cut into passages; `gradus generate` can write queries that they answer."""
    from curation.importing.documents import import_documents

    with opened_store(store) as opened, progress_bar(f"Importing {folder.name}") as progress:
        report = import_documents(opened, folder, name=name, licence=licence, max_words=max_words, progress=progress)
    _tell(report, json)


@commands.command()
def hub(
    source: Annotated[str, typer.Argument(help="ORG/NAME[@REVISION] of a Hub, or a folder with a published set.")],
    config: Annotated[str | None, typer.Option("--config", help="Configuration; default: the card's default.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this split; default: all.")] = None,
    query: Annotated[str | None, typer.Option("--query", help="Column of the query, if its name does not say.")] = None,
    positive: Annotated[
        list[str] | None, typer.Option("--positive", help="Column of positives; may be given again.")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", help="Column of negatives; may be given again.")
    ] = None,
    positive_from: Annotated[
        float | None,
        typer.Option(
            "--positive-from",
            help="Least label or score of a positive. Without it: 1 for labels; with scores, a query's first passage.",
        ),
    ] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Another Hub; default: HF_ENDPOINT.")] = None,
    name: CollectionName = None,
    licence: Licence = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Import a published set: a release of Gradus, or any in the layouts that sentence-transformers trains on."""
    from curation.importing.hub import import_hub

    with opened_store(store) as opened, progress_bar(f"Importing {escape(source)}") as progress:
        report = import_hub(
            opened,
            source,
            config=config,
            split=split,
            query=query,
            positives=positive or (),
            negatives=negative or (),
            positive_from=positive_from,
            name=name,
            licence=licence,
            endpoint=endpoint,
            progress=progress,
        )
    _tell(report, json)


def _tell(report: "ImportReport", json: Path | None) -> None:
    """Say what came in; bad rows are named, and make the exit code 1 after the good ones are safe."""
    counts = ", ".join(f"{num:,} {what}" for what, num in report.counts.items())
    console.print(f"Imported {escape(report.collection)}: {counts}; new rows: {report.num_new:,}")
    if json is not None:
        write_json(json, report.to_dict())
    for fault in report.faults[:_MAX_NAMED]:
        console.print(f"[yellow]bad row[/] {escape(str(fault))}")
    if report.num_faults:
        more = f"; the first is {report.faults[0]}"
        raise AppError(f"{report.num_faults:,} bad row(s) were left out, the others are imported{more}")
