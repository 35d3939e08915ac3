"""`gradus import training`: what was trained elsewhere, or before there was a store, into the store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, show_table, write_json

if TYPE_CHECKING:
    from app.closed_loop import TrainingReport


def training(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="Folders that `gradus train` made.")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Import what trainings said: every step's figures, and margins as scores of a teacher `margin of MODEL`.

    `gradus train` does this by itself where the store is. Review queues by suspicion then say of a negative that it is
    suspected to be false (training kept it above the positive), or too easy for its grade (far below it on the mean of
    its steps). Done again, nothing changes.
    """
    from app.closed_loop import import_training

    reports = []
    with opened_store(store, must_exist=True) as opened:
        for model in models:
            reports.append(import_training(opened, model))
            _show(reports[-1])
    if any(report.num_new for report in reports):
        console.print('Next: gradus review create RECIPE, with order = "suspicion" in its [queue]', markup=False)
    if json is not None:
        write_json(json, {"trainings": [report.to_dict() for report in reports]})


def _show(report: "TrainingReport") -> None:
    console.print(escape(report.in_words()), soft_wrap=True)
    if report.teacher is None:
        return
    rows = [
        ("negatives trained on", report.num_negatives),
        ("not in this store", report.num_unknown),
        ("without a margin that is a number", report.num_not_finite),
        ("above the positive on average: suspected false", report.num_above_positive),
        ("far below it: easy", report.num_far_below),
        ("new scores", report.num_new),
    ]
    show_table(escape(report.teacher), ["what", "number"], rows)
