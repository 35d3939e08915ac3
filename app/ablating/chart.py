"""An ablation as pictures: what was measured (a sweep as a line over its axis, other arms as dots, seeds beside their
mean), and the course of its trainings, step by step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.ablating.ablation import BASE
from app.ablating.course import CURVES, norm_shares, smoothed
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
    """How each arm's training went; false where no journal was kept, and nothing to draw.

    Panels over the steps, a line for each arm: each set's metric, where it was measured on the way, and the curves of
    the journals, means over seeds and over a twentieth of the steps around each. Below, how often the gradient had
    which norm, over the steps of all seeds after the warm-up.
    """
    from matplotlib import color_sequences
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = {name: one for name, one in report["training"].items() if one["course"] is not None}
    if not trained:
        return False
    colours = color_sequences["tab10"]
    styles = {
        name: {"color": colours[number % len(colours)], "linestyle": ("-", "--")[number // len(colours) % 2]}
        for number, name in enumerate(trained)
    }
    sets = [one for one in report["sets"] if any(len(arm["by_step"]["step"]) > 1 for arm in one["arms"])]
    num = len(sets) + len(CURVES) + 1
    figure = Figure(figsize=(9, 2.4 * num), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(num, 1))
    for axes, one in zip(panels, sets, strict=False):
        _draw_way(axes, one, styles)
    for axes, curve in zip(panels[len(sets) :], CURVES, strict=False):
        _draw_curve(axes, curve, {name: one["course"] for name, one in trained.items()}, styles)
    _draw_norms(panels[-1], trained, styles)
    _share_steps(panels[:-1], [one["course"] for one in trained.values()])
    handles, labels = panels[len(sets)].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.suptitle(visible(f"{report['ablation']}: the course of each arm's training"), x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)
    return True


def _draw_way(axes: Any, one: Mapping[str, Any], styles: Mapping[str, Any]) -> None:
    """A set's metric after each stop, from the model before training on."""
    base = [arm["mean"] for arm in one["arms"] if arm["arm"] == BASE]  # a plain transformer has none
    for arm in (arm for arm in one["arms"] if arm["arm"] in styles):
        steps, means = [0] * len(base) + arm["by_step"]["step"], base + arm["by_step"]["mean"]
        axes.plot(steps, means, marker="o", markersize=3, linewidth=1.3, **styles[arm["arm"]])
    title = f"{one['metric']} on {Path(one['data']).name}, {one['split']}"
    axes.set_title(visible(title), loc="left", fontsize=9, parse_math=False)


def _draw_curve(axes: Any, curve: str, courses: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Any]) -> None:
    for name, course in courses.items():
        values = smoothed(np.array(course[curve], np.float64), max(1, len(course["step"]) // 20))
        axes.plot(_taken(course), values, linewidth=1.3, label=visible(name), **styles[name])
    axes.set_title(_TITLES[curve], loc="left", fontsize=9)


def _draw_norms(axes: Any, trained: Mapping[str, Mapping[str, Any]], styles: Mapping[str, Any]) -> None:
    """Source: SyNeg, arXiv 2412.17250, the gradient figure."""
    centres, shares = norm_shares({name: one["gradient_norms"] for name, one in trained.items()})
    for name, of_arm in shares.items():
        axes.plot(centres, of_arm, linewidth=1.3, **styles[name])
    axes.set_title("share of the steps by the norm of their gradient, after the warm-up", loc="left", fontsize=9)
    axes.set_xlabel("norm of the gradient")
    axes.spines[["top", "right"]].set_visible(False)


def _share_steps(panels: Sequence[Any], courses: Sequence[Mapping[str, Any]]) -> None:
    """The same steps on all axes, and borders of blocks where all arms have the same."""
    borders = {tuple(_block_borders(course)) for course in courses}
    last = max(len(course["step"]) for course in courses)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, last * 1.01)
        for border in next(iter(borders)) if len(borders) == 1 else ():
            axes.axvline(border, color=_GREY, linestyle=":", linewidth=0.8)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    panels[-1].set_xlabel("step")


def _taken(course: Mapping[str, Any]) -> list[int]:
    """Steps that were taken when a step's values are known, from 1: journals count from 0."""
    return [step + 1 for step in course["step"]]


def _block_borders(course: Mapping[str, Any]) -> list[float]:
    """Between the last step of a block and the first of the next."""
    steps, blocks = _taken(course), course["block"]
    return [step - 0.5 for step, before, block in zip(steps[1:], blocks, blocks[1:], strict=False) if block != before]
