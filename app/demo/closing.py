"""The end of the demo: what is in the store, what the audit says, what training changed, and where to go next."""

import shutil
from pathlib import Path
from typing import Any

import orjson

from app.opening import opened_store
from app.settings import Settings
from app.terminal import console, show_table


def show_closing(settings: Settings) -> None:
    """Print the closing tables from the store and from the reports that the stages wrote."""
    _show_store()
    _show_audit(_read(settings.data / "audit.json"))
    _show_metrics(_read(settings.data / "evaluation.json"))
    activate = "" if shutil.which("gradus") else " (first: source .venv/bin/activate)"
    console.print(f"[bold]Next[/]{activate}")
    for command, why in (
        ("gradus app", "look at the examples and the ladder in a browser"),
        ("gradus status", "what the store holds"),
        ("gradus train app/demo/recipes/train.toml --dry-run", "the curriculum as a printed plan"),
    ):
        console.print(f"  [bold cyan]{command:<52}[/] {why}")


def _read(path: Path) -> dict[str, Any]:
    report: dict[str, Any] = orjson.loads(path.read_bytes())
    return report


def _show_store() -> None:
    from app.viewing.overview import store_counts

    with opened_store(None) as store, store.read() as session:
        rows = store_counts(session)
    show_table("In the store", ["what", "rows"], rows)


def _show_audit(audited: dict[str, Any]) -> None:
    rows = []
    for group in audited["groups"]:
        order = group["order"]
        means = " > ".join(f"{rank['mean']:.3f}" for rank in group["ranks"].values())
        above = max(rank["above_positive"] for rank in group["ranks"].values())
        rows.append((group["run"], f"{group['positive']['mean']:.3f} | {means}", above, order and order["accuracy"]))
    columns = ["run", "mean cosine: positive | N1 > ...", "most above positive", "pairs in order"]
    show_table("What the audit says", columns, rows)


def _show_metrics(report: dict[str, Any]) -> None:
    from app.commands.evaluate import show_evaluation

    show_evaluation(report)
