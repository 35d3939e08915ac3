"""`gradus evaluate`: models side by side on retrieval, similarity, negation and graded order."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import AppError
from app.options import JsonFile
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from app.evaluating.prompting import Prompts

_MOST_COLUMNS = 4
_TITLES = {
    "ndcg@10": "nDCG@10",
    "mrr@10": "MRR@10",
    "recall@100": "Recall@100",
    "spearman": "Spearman",
    "tau_b": "tau-b",
}


def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="`minilm`, a model trained here, or a folder; several are compared.")
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            help="A BEIR folder; pairs with scores (STS) or edits (negation); a release (graded order); "
            "nanobeir:NAME or mteb:NAME on the Hub. May be given several times.",
        ),
    ],
    split: Annotated[str, typer.Option("--split", help="Which judgments, pairs or examples.")] = "dev",
    pool: Annotated[
        int | None,
        typer.Option("--pool", min=1, help="Rank only judged documents and each query's BM25 top N; default: all."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="A field of a BEIR folder's queries, such as template: nDCG@10 of each value too."),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option("--instruction", help="Of queries that have none of their own, for models trained with one."),
    ] = None,
    query_prompt: Annotated[
        str, typer.Option("--query-prompt", help="Before queries, for models that name no prompt of their own.")
    ] = "",
    passage_prompt: Annotated[str, typer.Option("--passage-prompt", help="The same before documents.")] = "",
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw to a file: .png or .svg.")] = None,
    json: JsonFile = None,
) -> None:
    """Compare models: metrics of each, and a paired bootstrap over queries (pairs, examples) against the first.

    Retrieval: nDCG@10, MRR@10, Recall@100; without --pool the whole corpus is ranked, which is what published figures
    mean. STS: Spearman. Negation: how often a paraphrase is closer than an edit that changes the meaning. A release:
    accuracy per rank and Kendall's tau-b. With several --data the JSON report has one entry each in `sets`.

    A model is asked with the prompts that it names or was trained with; where one takes an instruction, a release's
    examples have theirs, and other sets are given one.
    """
    from app.evaluating.chart import check_chart_file, write_evaluation_chart
    from app.evaluating.measuring import evaluate as measured
    from app.evaluating.measuring import opened_model
    from app.evaluating.prompting import Prompts
    from app.evaluating.sets import opened_set

    check_chart_file(plot)
    sets = [opened_set(one, split, pool, by) for one in data]
    otherwise = Prompts(query_prompt, passage_prompt, instruction)
    opened = [opened_model(model, otherwise=otherwise) for model in models]
    _require_use(otherwise, [model.prompts for model in opened])
    with progress_bar("Evaluating") as progress:
        reports = measured(opened, sets, progress=progress)
    for report in reports:
        show_evaluation(report)
    if plot is not None:
        write_evaluation_chart(plot, reports)
        console.print(f"Wrote {escape(str(plot))}")
    if json is not None:
        write_json(json, reports[0] if len(reports) == 1 else {"sets": reports})
    for report in reports:
        if report["faults"]:
            raise AppError(
                f"{len(report['faults'])} bad row(s) in {report['data']} were left out; the first is "
                f"{report['faults'][0]}"
            )


def _require_use(given: "Prompts", used: "list[Prompts]") -> None:
    """Refuse an option that changes nothing for any model."""
    if given.instruction is not None and not any(prompts.takes_instruction for prompts in used):
        raise AppError(
            f"--instruction {given.instruction!r}: no model's prompt has a place for it ({{instruction}}); for models "
            "without a prompt of their own give it in --query-prompt"
        )
    if (given.query or given.document) and given not in used:
        raise AppError("--query-prompt, --passage-prompt: every model names prompts of its own, which stand")


def show_evaluation(report: dict[str, Any]) -> None:
    """One set as a table: a model a row, or a metric a row where there are many; with differences to the first."""
    metrics = report["metrics"]
    titles = [_TITLES.get(name, name) for name in metrics]
    if len(metrics) > _MOST_COLUMNS:
        groups = report.get("groups", {})
        titles[len(metrics) - len(groups) :] = [
            f"{titles[0]}, {name}: {num:,} {'query' if num == 1 else 'queries'}" for name, num in groups.items()
        ]
        names = [model["name"] for model in report["models"]]
        rows = [(title, *_with_changes(report, name)) for title, name in zip(titles, metrics, strict=True)]
        show_table(_title(report), ["metric", *names], rows)
    else:
        changes = (_change(model.get("difference", {}).get(metrics[0])) for model in report["models"])
        table = [
            (model["name"], *(model["metrics"][name] for name in metrics), change)
            for model, change in zip(report["models"], changes, strict=True)
        ]
        show_table(_title(report), ["model", *titles, f"{titles[0]} against the first, 95 %"], table)
    if own := report.get("num_own_documents"):
        console.print(f"Passed over: the own document of {own:,} queries, of the same _id with the query's text.")
    if report.get("pool"):
        console.print(
            f"Ranked within a labelled pool (judged documents and each query's BM25 top {report['pool']}), so these "
            f"figures are higher than full-corpus ones. For the whole corpus, leave out --pool: "
            f"gradus evaluate {escape(' '.join(m['model'] for m in report['models']))} --data {escape(report['data'])} "
            f"--split {report['split']}"
        )


def _with_changes(report: dict[str, Any], metric: str) -> list[str]:
    """A metric of every model; after the first, with the difference."""
    cells = []
    for model in report["models"]:
        change = _change(model.get("difference", {}).get(metric))
        cells.append(f"{model['metrics'][metric]:.3f}" + (f"  {change}" if change else ""))
    return cells


def _change(change: dict[str, Any] | None) -> str:
    if change is None:
        return ""
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(change["difference"], *change["interval_95"])


def _title(report: dict[str, Any]) -> str:
    if report.get("kind", "retrieval") == "retrieval":
        return f"{report['num_queries']:,} queries, {report['num_documents']:,} documents"
    unit = report["unit"]
    name = escape(Path(report["data"]).name)
    return f"{report['kind'].capitalize()}: {name}, {report['split']}, {report[f'num_{unit}']:,} {unit}"
