"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from app.terminal import console


def _claim_standard_output(path: Path | None) -> Path | None:
    """With `--json -` standard output is the report's alone, however the option is written; the rest goes to stderr."""
    if path is not None and str(path) == "-":
        console.stderr = True
    return path


StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store: sqlite:///FILE or postgresql://...; default: store.db in the data folder.",
        show_default=False,
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write the report as JSON; - for standard output.",
        callback=_claim_standard_output,
    ),
]
