"""The ladder plot: similarity to the query per rung, the positive on top, the easiest negative at the bottom."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from curation.audit.order_audit import OrderAudit
from curation.audit.order_statistics import GroupAudit
from curation.audit.ordering import GRADE_OF_RANK

# Okabe and Ito's palette, which colour-blind readers tell apart.
_COLOUR = {"positive": "#009E73", "hard": "#D55E00", "medium": "#E69F00", "easy": "#56B4E9", "mined": "#666666"}


def draw_ladder(report: OrderAudit, path: Path) -> None:
    """Write the ladder of every run as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ladder_png(report))


def ladder_png(report: OrderAudit) -> bytes:
    """The ladder of every run as a PNG; the same report gives the same bytes."""
    groups = report.groups
    heights = [len(group.rungs()) + 0.9 for group in groups]
    figure = Figure(figsize=(8.4, 0.52 * sum(heights) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, group in zip(axes, groups, strict=True):
        draw_group(axis, group)
    axes[-1].set_xlabel(f"cosine similarity to the query ({report.teacher}, {report.max_length} tokens)")
    figure.suptitle("Similarity per rank", x=0.01, ha="left", fontweight="bold")
    image = BytesIO()
    figure.savefig(image, dpi=144, metadata={"Software": None}, format="png")
    return image.getvalue()


def draw_group(axis: Axes, group: GroupAudit) -> None:
    """One run's rungs as violins with quartiles and mean."""
    rungs = group.rungs()
    places = np.arange(len(rungs))[::-1]
    for place, (label, values) in zip(places, rungs, strict=True):
        _draw_rung(axis, place, values, _COLOUR[_meaning(label)])
    labels = [f"{label}{_grade_note(label)}" for label, _ in rungs]
    axis.set_yticks(places, labels)
    axis.set_ylim(-0.6, len(rungs) - 0.4)
    # A dollar sign would begin a formula.
    name = group.run.replace("$", r"\$")
    axis.set_title(f"{name}: {len(group.positive):,} examples", loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _draw_rung(axis: Axes, place: float, values: NDArray[np.float64], colour: str) -> None:
    if len(values) > 1 and np.ptp(values) > 0:
        body = axis.violinplot(
            _thinned(values), positions=[place], orientation="horizontal", widths=0.85, showextrema=False
        )
        for part in body["bodies"]:  # type: ignore[attr-defined]
            part.set_facecolor(colour)
            part.set_alpha(0.35)
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    axis.plot([low, high], [place, place], color=colour, linewidth=4, solid_capstyle="butt")
    axis.plot([middle], [place], "|", color="white", markersize=8, markeredgewidth=1.6)
    mean = values.mean()
    axis.plot([mean], [place], "o", color=colour, markeredgecolor="white", markersize=7)
    axis.annotate(f"{mean:.3f}", (mean, place), (0, 8), textcoords="offset points", ha="center", fontsize=8)


def _thinned(values: NDArray[np.float64], most: int = 2_000) -> NDArray[np.float64]:
    """Evenly spaced order statistics: the density of many values from few."""
    if len(values) <= most:
        return values
    spaced: Sequence[int] = np.linspace(0, len(values) - 1, most).astype(int).tolist()
    return np.sort(values)[spaced]


def _meaning(label: str) -> str:
    return GRADE_OF_RANK.get(int(label[1:]), "easy") if label[1:].isdigit() else label


def _grade_note(label: str) -> str:
    return f"  {_meaning(label)}" if label[1:].isdigit() else ""
