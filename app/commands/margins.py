"""`gradus margins`: what training made of each negative, back in the store for the reviewers."""

from pathlib import Path
from typing import Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, show_table, write_json


def margins(
    model: Annotated[Path, typer.Argument(help="Folder of a model that `gradus train` made.")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Write a model's margins to the store, as scores of a teacher `margin of MODEL`.

    Review queues by suspicion then say of a negative that it is suspected to be false (training kept it above the
    positive), or too easy for its grade (far below it from the start). Done again, nothing changes.
    """
    from app.closed_loop import put_margins

    with opened_store(store, must_exist=True) as opened:
        report = put_margins(opened, model)
    rows = [
        ("negatives trained on", report.num_negatives),
        ("not in this store", report.num_unknown),
        ("above the positive on average: suspected false", report.num_above_positive),
        ("far below it: easy", report.num_far_below),
        ("new scores", report.num_new),
    ]
    show_table(escape(report.teacher), ["what", "number"], rows)
    console.print('Next: gradus review create RECIPE, with order = "suspicion" in its [queue]', markup=False)
    if json is not None:
        write_json(json, report.to_dict())
