"""Evaluated models as a picture: each set's main metric, with the interval of the difference to the first model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import AppError
from app.terminal import visible

_BLUE, _GREY = "#3366aa", "#999999"


def check_chart_file(path: Path | None) -> None:
    """Refuse a picture's file before anything is spent.

    Raises:
        AppError: It does not end in .png or .svg.
    """
    if path is not None and path.suffix not in (".png", ".svg"):
        raise AppError(f"--plot {str(path)!r}: the file must end in .png or .svg")


def write_evaluation_chart(path: Path, reports: Sequence[Mapping[str, Any]]) -> None:
    """A row of two panels for each set: the main metric of every model, and differences with 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.9 + 0.35 * len(report["models"]) for report in reports]
    figure = Figure(figsize=(10, sum(heights) + 0.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(reports), 2, squeeze=False, height_ratios=heights)
    for (left, right), report in zip(panels, reports, strict=True):
        metric = report["metrics"][0]
        names = [visible(model["name"]) for model in report["models"]]
        places = range(len(names))
        left.barh(places, [model["metrics"][metric] for model in report["models"]], color=_BLUE, height=0.6)
        for place, model in enumerate(report["models"]):
            value = model["metrics"][metric]
            left.annotate(f"{value:.3f}", (max(value, 0), place), (3, 0), textcoords="offset points", va="center")
            change = model.get("difference", {}).get(metric)
            if change is not None:
                draw_interval(right, change, place)
        left.set_title(visible(f"{Path(report['data']).name}, {report['split']}: {metric}"), loc="left", fontsize=9,
                       parse_math=False)  # fmt: skip
        right.set_title("against the first, 95 %", loc="left", fontsize=9)
        right.axvline(0, color=_GREY, linewidth=0.8)
        left.set_yticks(places, names, fontsize=8, parse_math=False)
        right.set_yticks(places, [""] * len(names))
        for axes in (left, right):
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.spines[["top", "right"]].set_visible(False)
        left.margins(x=0.15)
    save_figure(figure, path)


def draw_interval(axes: Any, change: Mapping[str, Any], place: float) -> None:
    """A difference with its interval, as a dot on a line."""
    low, high = change["interval_95"]
    axes.plot([low, high], [place, place], color=_BLUE, linewidth=1.5)
    axes.plot([change["difference"]], [place], "o", color=_BLUE, markersize=5)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; the ending decides the format.

    Raises:
        AppError: The file cannot be written.
    """
    import warnings

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path)
    except OSError as error:
        raise AppError(f"cannot write {path}: {error.strerror}") from error
