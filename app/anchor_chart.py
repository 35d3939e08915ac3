"""A text with its anchors lit up, as a picture in a file (PNG or HTML) and as colours."""

import html
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import AppError
from app.terminal import visible

if TYPE_CHECKING:
    from trainer.anchors import AnchorPicture, AnchorToken

_BRIGHTEST = 4.0  # times the mean's weight
_WIDTH = 84  # characters of a line in the PNG
_SHOWN_SPECIALLY = {" ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5"}


def light(times_mean: float) -> tuple[int, int, int]:
    """White up to the mean's weight, then through amber to red at four times it."""
    share = min(max((times_mean - 1) / (_BRIGHTEST - 1), 0.0), 1.0)
    return 255, round(255 - 165 * share), round(255 - 215 * share**0.6)


def shown(token: "AnchorToken") -> str:
    """The token as a person reads it: its part of the text, or its name; blanks alone get a sign."""
    text = token.text.strip() or "".join(_SHOWN_SPECIALLY.get(char, char) for char in token.text) or token.token
    return visible(text)


def write_chart(path: Path, title: str, picture: "AnchorPicture") -> None:
    """Write the picture; the ending decides the format.

    Raises:
        AppError: Another ending than .png or .html, or the file cannot be written.
    """
    if path.suffix not in (".png", ".html"):
        raise AppError(f"--plot {str(path)!r}: the file must end in .png or .html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            path.write_text(_html(title, picture), encoding="utf-8")
        else:
            _draw(path, title, picture)
    except OSError as error:
        raise AppError(f"cannot write {path}: {error.strerror}") from error


def _html(title: str, picture: "AnchorPicture") -> str:
    spans = "\n".join(
        f'<span style="background:rgb{light(token.times_mean)}" title="{html.escape(visible(token.token))}: '
        f'{token.times_mean:.2f} times the mean">{html.escape(shown(token))}</span>'
        for token in picture.tokens
    )
    style = (
        "body{font:16px/2 sans-serif;max-width:50em;margin:2em auto;color:#222}span{padding:2px 4px;border-radius:3px}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style>\n<h1>{html.escape(title)}</h1>\n<p>{spans}</p>\n"
        f"<p>{_legend(picture.mode)}</p></html>\n"
    )


def _legend(mode: str) -> str:
    return f"Mode {mode}. White: at most mean pooling's weight; red: {_BRIGHTEST:g} times it and more."


def _lines(tokens: Sequence["AnchorToken"]) -> Iterator[list[tuple[float, str, float]]]:
    """Tokens by line: where each starts, its text, its weight."""
    line: list[tuple[float, str, float]] = []
    start = 0.0
    for token in tokens:
        text = shown(token)[:_WIDTH]
        if line and start + len(text) > _WIDTH:
            yield line
            line, start = [], 0.0
        line.append((start, text, token.times_mean))
        start += len(text) + 0.8
    yield line


def _draw(path: Path, title: str, picture: "AnchorPicture") -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    lines = list(_lines(picture.tokens))
    height = 0.9 + 0.3 * len(lines)
    figure = Figure(figsize=(10, height), dpi=150)
    axes = figure.add_axes((0.02, 0.3 / height, 0.96, 0.3 * len(lines) / height))
    figure.text(0.02, 0.1 / height, _legend(picture.mode), fontsize=9, color="#555555")
    axes.set_xlim(-0.5, _WIDTH + 1)
    axes.set_ylim(len(lines), 0)
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    for row, line in enumerate(lines):
        for start, text, times_mean in line:
            colour = tuple(part / 255 for part in light(times_mean))
            axes.add_patch(Rectangle((start - 0.3, row + 0.1), len(text) + 0.6, 0.8, facecolor=colour, linewidth=0))
            axes.text(start, row + 0.5, text, family="monospace", fontsize=12, va="center", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as a box; the HTML shows it
        FigureCanvasAgg(figure).print_png(str(path))
