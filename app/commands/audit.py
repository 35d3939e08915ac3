"""`gradus score` and `gradus audit`: what a teacher says of the candidates and of their order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

Teacher = Annotated[str, typer.Option("--teacher", help="`minilm`, or a sentence-transformers model's folder.")]


def score(teacher: Teacher = "minilm", store: StoreUrl = None, json: JsonFile = None) -> None:
    """Score every candidate's similarity to its query. Only what has no score yet is computed."""
    from app.encoders import embedding_cache
    from curation.scoring import score as run

    with opened_store(store) as opened, progress_bar("Scoring") as progress:
        report = run(opened, embedding_cache(teacher), progress=progress)
    console.print(f"{report.num_candidates:,} candidates; {report.num_new:,} pairs scored now by {escape(teacher)}")
    if json is not None:
        write_json(json, report.to_dict())


def audit(
    teacher: Annotated[str, typer.Option("--teacher", help="Name of a teacher that has scored.")] = "minilm",
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the ladder (PNG).")] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Audit the order: does similarity fall from rank 1 to rank 4, and how much stands above the positive?"""
    from curation.audit.order_audit import audit as run

    with opened_store(store) as opened, progress_bar("Auditing") as progress:
        report = run(opened, teacher=teacher, progress=progress)
    audited = report.to_dict()
    show_audit(audited)
    if json is not None:
        write_json(json, audited)
    if plot is not None:
        from curation.audit.ladder import draw_ladder

        draw_ladder(report, plot)
        console.print(f"Drew {escape(str(plot))}")


def show_audit(audited: dict[str, Any]) -> None:
    """The audit as two tables: rungs, and order."""
    rungs: list[tuple[Any, ...]] = []
    orders: list[tuple[Any, ...]] = []
    for group in audited["groups"]:
        positive = group["positive"]
        rungs.append(
            (group["run"], "positive", group["num_examples"], positive["mean"], None, None, positive["truncated"])
        )
        for label, rank in group["ranks"].items():
            numbers = (rank["num"], rank["mean"], rank["above_positive"], rank["length_ratio"], rank["truncated"])
            rungs.append((group["run"], label, *numbers))
        if order := group["order"]:
            low, high = order["interval_95"]
            interval = f"{low:.3f} to {high:.3f}"
            shares = (order["accuracy"], interval, order["tau_b"], order["whole_order_right"])
            orders.append((group["run"], order["num_pairs"], *shares, order["num_inversions"]))
    name, length = audited["teacher"]["name"], audited["teacher"]["max_length"]
    columns = ["run", "rank", "n", "mean cosine", "above positive", "length ratio", "truncated"]
    show_table(f"Similarity to the query ({name}, {length} tokens)", columns, rungs)
    columns = ["run", "cross-grade pairs", "in order", "95 % interval", "tau-b", "whole order right", "inversions"]
    show_table("Order", columns, orders)
