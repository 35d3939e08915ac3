"""`gradus evaluate`: models side by side on any BEIR folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, progress_bar, show_table, write_json


def evaluate(
    models: Annotated[list[str], typer.Argument(help="`minilm`, or a model's folder; several are compared.")],
    data: Annotated[Path, typer.Option("--data", help="A folder in the BEIR layout.")],
    split: Annotated[str, typer.Option("--split", help="Which judgments: a file in qrels/.")] = "dev",
    pool: Annotated[
        int | None,
        typer.Option("--pool", min=1, help="Rank only judged documents and each query's BM25 top N; default: all."),
    ] = None,
    json: JsonFile = None,
) -> None:
    """nDCG@10, MRR@10 and Recall@100, with a paired bootstrap against the first model.

    Without --pool the whole corpus is ranked, which is what published figures mean.
    """
    from app.evaluation import evaluate_models

    with progress_bar("Evaluating") as progress:
        report = evaluate_models(models, data, split=split, pool=pool, progress=progress)
    show_evaluation(report)
    if json is not None:
        write_json(json, report)
    if report["faults"]:
        raise AppError(
            f"{len(report['faults'])} bad row(s) in {data} were left out; the first is {report['faults'][0]}"
        )


def show_evaluation(report: dict[str, Any]) -> None:
    """The metrics as a table, with differences to the first model."""
    rows = []
    for model in report["models"]:
        change = model.get("difference", {}).get("ndcg@10")
        shown = (
            ""
            if change is None
            else "{:+.3f} ({:+.3f} to {:+.3f})".format(change["difference"], *change["interval_95"])
        )
        metrics = model["metrics"]
        rows.append((model["name"], metrics["ndcg@10"], metrics["mrr@10"], metrics["recall@100"], shown))
    columns = ["model", "nDCG@10", "MRR@10", "Recall@100", "nDCG@10 against the first, 95 %"]
    show_table(f"{report['num_queries']:,} queries, {report['num_documents']:,} documents", columns, rows)
    if report["pool"]:
        console.print(
            f"Ranked within a labelled pool (judged documents and each query's BM25 top {report['pool']}), so these "
            f"figures are higher than full-corpus ones. For the whole corpus, leave out --pool: "
            f"gradus evaluate {escape(' '.join(m['model'] for m in report['models']))} --data {escape(report['data'])} "
            f"--split {report['split']}"
        )
