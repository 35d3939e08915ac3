"""An ablation as pictures: what was measured (a sweep as a line over its axis, other arms as dots, seeds beside their
mean), and the course of its trainings, step by step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from app.ablation import BASE
from app.ablation_course import CURVES, smoothed
from app.evaluating.chart import save_figure
from app.terminal import visible

_BLUE, _GREY = "#3366aa", "#999999"
_TITLES = {
    "loss": "loss, of the negatives at that step",
    "margin": "cosine of the positive less that of the row's own negatives",
    "gradient_norm": "norm of the gradient, before it is clipped",
}


def write_ablation_chart(path: Path, report: Mapping[str, Any]) -> None:
    """A panel for each set; the model before training is a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = report["sets"]
    is_sweep = all(arm["place"] is not None for arm in sets[0]["arms"] if arm["arm"] != BASE)
    height = 3.2 if is_sweep else 0.9 + 0.32 * len(sets[0]["arms"])
    figure = Figure(figsize=(8, height * len(sets)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(len(sets), 1, squeeze=False)[:, 0], sets, strict=True):
        title = f"{report['ablation']}: {one['metric']} on {Path(one['data']).name}, {one['split']}"
        axes.set_title(visible(title), loc="left", fontsize=10, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        base = next((arm for arm in one["arms"] if arm["arm"] == BASE), None)  # a plain transformer has none
        arms = [arm for arm in one["arms"] if arm is not base]
        if is_sweep:
            _draw_sweep(axes, report["ablation"], arms)
            axes.set_ylabel(one["metric"])
        else:
            _draw_arms(axes, arms)
            axes.set_xlabel(one["metric"])
        if base is not None:
            line = axes.axhline if is_sweep else axes.axvline
            line(base["mean"], color=_GREY, linestyle="--", linewidth=1, label=BASE)
        axes.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _draw_sweep(axes: Any, name: str, arms: list[Mapping[str, Any]]) -> None:
    ordered = sorted(arms, key=lambda arm: arm["place"])
    places = [arm["place"] for arm in ordered]
    axes.plot(places, [arm["mean"] for arm in ordered], "o-", color=_BLUE, label="mean over seeds")
    for arm in ordered:
        axes.plot([arm["place"]] * len(arm["by_seed"]), arm["by_seed"], ".", color=_BLUE, alpha=0.5)
    axes.set_xlabel(name)
    if name == "temperature":
        axes.set_xscale("log")


def _draw_arms(axes: Any, arms: list[Mapping[str, Any]]) -> None:
    for place, arm in enumerate(arms):
        axes.plot(arm["by_seed"], [place] * len(arm["by_seed"]), ".", color=_BLUE, alpha=0.5)
        axes.plot([arm["mean"]], [place], "o", color=_BLUE, label="mean over seeds" if place == 0 else None)
    axes.set_yticks(range(len(arms)), [visible(arm["arm"]) for arm in arms], parse_math=False)
    axes.set_ylim(len(arms) - 0.5, -0.5)


def write_course_chart(path: Path, report: Mapping[str, Any]) -> bool:
    """A panel for each curve over the steps, a line for each arm; false where no journal was kept, and nothing to draw.

    Lines are means over seeds and over a twentieth of the steps around each.
    """
    from matplotlib import color_sequences
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    courses = {name: one["course"] for name, one in report["training"].items() if one["course"] is not None}
    if not courses:
        return False
    figure = Figure(figsize=(9, 7.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(CURVES), 1, sharex=True)
    colours = color_sequences["tab10"]
    for number, (name, course) in enumerate(courses.items()):
        style = {"color": colours[number % len(colours)], "linestyle": ("-", "--")[number // len(colours) % 2]}
        window = max(1, len(course["step"]) // 20)
        for axes, curve in zip(panels, CURVES, strict=True):
            values = smoothed(np.array(course[curve], np.float64), window)
            axes.plot(course["step"], values, linewidth=1.3, label=visible(name), **style)
    borders = {tuple(_block_borders(course)) for course in courses.values()}
    for axes, curve in zip(panels, CURVES, strict=True):
        axes.set_title(_TITLES[curve], loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        for border in borders.pop() if len(borders) == 1 and curve == CURVES[0] else ():
            for each in panels:
                each.axvline(border, color=_GREY, linestyle=":", linewidth=0.8)
    panels[0].margins(x=0.01)
    panels[-1].set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.suptitle(visible(f"{report['ablation']}: the course of each arm's training"), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)
    return True


def _block_borders(course: Mapping[str, Any]) -> list[float]:
    """Between the last step of a block and the first of the next."""
    steps, blocks = course["step"], course["block"]
    return [step - 0.5 for step, before, block in zip(steps[1:], blocks, blocks[1:], strict=False) if block != before]
