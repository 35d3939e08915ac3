"""Talking to a person: progress bars, tables and JSON files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from app.errors import AppError

console = Console(highlight=False)
# Control characters but tab and newline, marks and overrides of the reading direction, lone surrogates.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for long work; gives the callable (done, total or None) that moves it. Gone when the work is done."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)

        def move(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield move


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; numbers stand on the right, floats with three decimals."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        # What a row is called is never cut short.
        table.add_column(column, justify="right" if is_number else "left", overflow="ellipsis" if index else "fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value))


def visible(text: str) -> str:
    """Text from outside without what drives a terminal or turns the reading direction; each is shown replaced."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Text from anywhere as one line that is safe to show."""
    return re.sub(r"\s*[\n\t]\s*", " ", visible(text)).strip()


def shortened(text: str, most: int = 200) -> str:
    """One line of at most so many characters."""
    line = one_line(text)
    return line if len(line) <= most else f"{line[:most]}..."


def escape(text: str) -> str:
    """Text from outside, shown as it is in a terminal: no markup, no control characters."""
    from rich.markup import escape as escape_markup

    return escape_markup(visible(text))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a report as JSON; `-` means standard output."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS) + b"\n"
    if str(path) == "-":
        print(text.decode(), end="")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise AppError(f"cannot write {path}: {error.strerror}") from error
    console.print(f"Wrote {escape(str(path))}")
