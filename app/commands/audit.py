"""`gradus score` and `gradus audit`: what a teacher says of the candidates, and whether they are safe to train on."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from curation.audit.figures import AuditReport, Progress
    from curation.audit.order_audit import VectorsOf
    from db.store import Store

Teacher = Annotated[str, typer.Option("--teacher", help="`minilm`, or a sentence-transformers model's folder.")]
_LEVEL = {"wrong": "[bold red]wrong[/]", "look": "[yellow]look[/]", "holds": "[green]holds[/]", "unknown": "[dim]-[/]"}


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
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", help="A teacher that has scored, the first on top; default: all that have."),
    ] = None,
    run: Annotated[list[str] | None, typer.Option("--run", help="Audit this run only; may be repeated.")] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--evaluation",
            metavar="COLLECTION[:SPLIT]",
            help="What must not stand in the examples; default: all dev and test splits.",
        ),
    ] = None,
    leak_texts: Annotated[
        int, typer.Option("--leak-texts", min=100, help="Most texts of a set when leaks are measured.")
    ] = 2_000,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the ladder (PNG).")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a report with plots that stands alone.")
    ] = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Audit the candidates: order, leaks beside their controls with causes, duplicates, contamination, diversity."""
    with opened_store(store) as opened:
        report = _audited(opened, teacher or [], run or [], evaluation or [], leak_texts)
    audited = report.to_dict()
    show_audit(audited)
    if json is not None:
        write_json(json, audited)
    if plot is not None:
        from curation.audit.ladder import draw_ladder

        draw_ladder(report.order, plot)
        console.print(f"Drew {escape(str(plot))}")
    if html is not None:
        _write_html(html, report)


def _audited(store: "Store", teachers: list[str], runs: list[str], evaluation: list[str], most: int) -> "AuditReport":
    from curation.audit.figures import audit_figures
    from curation.audit.order_audit import scoring_teachers

    if not teachers:
        with store.read() as session:
            there = scoring_teachers(session)
        # The platform's own teacher first; with no scores at all, the audit says what to do.
        teachers = sorted(there, key=lambda name: name != "minilm") or ["minilm"]
    with progress_bar("Auditing") as move:
        return audit_figures(
            store,
            teacher=teachers[0],
            more_teachers=teachers[1:],
            runs=runs,
            evaluation=evaluation,
            vectors_of=_vectors_of,
            max_leak_texts=most,
            stage=_stages(move),
        )


def _stages(move: "Progress") -> "Callable[[str], Progress]":
    """Each stage moves the one bar from its own beginning."""

    def stage(_what: str) -> "Progress":
        move(0, None)
        return move

    return stage


def _vectors_of(_name: str, version: str) -> "VectorsOf | None":
    """A bi-encoder's cached embeddings, looked up without loading it."""
    from app.settings import Settings
    from curation.embeddings import cached_vectors

    return cached_vectors(Settings().embeddings, version)


def _write_html(path: Path, report: "AuditReport") -> None:
    from curation.audit.html_report import html_report

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html_report(report), encoding="utf-8")
    except OSError as error:
        raise AppError(f"cannot write {path}: {error.strerror}") from error
    console.print(f"Wrote {escape(str(path))}")


def show_audit(audited: dict[str, Any]) -> None:
    """The verdicts first, then the figures behind them."""
    _show_verdicts(audited)
    for scored in (audited, *audited["scorers"]):
        _show_rungs(scored)
        _show_order(scored)
    _show_leaks(audited)


def _show_verdicts(audited: dict[str, Any]) -> None:
    from rich.table import Table

    from curation.audit.verdicts import verdicts

    table = Table(title="Verdicts", title_justify="left", title_style="bold")
    for column in ("", "about", "of", "what was found"):
        table.add_column(column)
    for one in verdicts(audited):
        table.add_row(_LEVEL[one.level], one.about, escape(one.subject), escape(one.text))
    console.print(table)


def _show_rungs(audited: dict[str, Any]) -> None:
    rungs: list[tuple[Any, ...]] = []
    for group in audited["groups"]:
        positive = group["positive"]
        num = group["num_examples"]
        rungs.append((group["run"], "positive", num, positive["mean"], None, None, None, positive["truncated"]))
        for label, rank in group["ranks"].items():
            near = rank["to_positive"] and rank["to_positive"]["mean"]
            numbers = (rank["num"], rank["mean"], near, rank["above_positive"], rank["length_ratio"], rank["truncated"])
            rungs.append((group["run"], label, *numbers))
    columns = ["run", "rank", "n", "to query", "to positive", "above positive", "length ratio", "truncated"]
    show_table(f"Similarity ({_teacher(audited)})", columns, rungs)


def _show_order(audited: dict[str, Any]) -> None:
    orders: list[tuple[Any, ...]] = []
    for group in audited["groups"]:
        if order := group["order"]:
            low, high = order["interval_95"]
            interval = f"{low:.3f} to {high:.3f}"
            shares = (order["accuracy"], interval, order["tau_b"], order["whole_order_right"])
            orders.append((group["run"], order["num_pairs"], *shares, order["num_inversions"]))
    columns = ["run", "cross-grade pairs", "in order", "95 % interval", "tau-b", "whole order right", "inversions"]
    show_table(f"Order ({_teacher(audited)})", columns, orders)


def _teacher(audited: dict[str, Any]) -> str:
    name, length = audited["teacher"]["name"], audited["teacher"]["max_length"]
    return f"{name}, {length} tokens" if length else str(name)


def _show_leaks(audited: dict[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = []
    for group in audited["groups"]:
        for leak in group["leaks"].values():
            if leak["auc"] is None:
                continue
            low, high = leak["interval_95"]
            by_rank = ", ".join(f"{label} {one['auc']:.2f}" for label, one in leak["by_rank"].items())
            sets = " / ".join(leak["sets"])
            interval = f"{low:.3f} to {high:.3f}"
            rows.append((group["run"], sets, leak["num_texts"], leak["auc"], interval, leak["control_auc"], by_rank))
    columns = ["run", "told apart, without the query", "texts", "AUC", "95 % interval", "control", "by rank"]
    most = audited["max_leak_texts"]
    show_table(f"Leaks (0.5: not told apart; at most {most:,} texts a set, drawn by digest)", columns, rows)
