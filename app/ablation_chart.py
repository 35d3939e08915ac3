"""An ablation as a picture: a sweep as a line over its axis, other arms as dots, seeds beside their mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.evaluating.chart import save_figure
from app.terminal import visible

_BLUE, _GREY = "#3366aa", "#999999"


def write_ablation_chart(path: Path, report: Mapping[str, Any]) -> None:
    """A panel for each set; the model before training is a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = report["sets"]
    is_sweep = all(arm["place"] is not None for arm in sets[0]["arms"][1:])
    height = 3.2 if is_sweep else 0.9 + 0.32 * len(sets[0]["arms"])
    figure = Figure(figsize=(8, height * len(sets)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, one in zip(figure.subplots(len(sets), 1, squeeze=False)[:, 0], sets, strict=True):
        title = f"{report['ablation']}: {one['metric']} on {Path(one['data']).name}, {one['split']}"
        axes.set_title(visible(title), loc="left", fontsize=10, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        base, *arms = one["arms"]
        if is_sweep:
            _draw_sweep(axes, report["ablation"], arms)
            axes.axhline(base["mean"], color=_GREY, linestyle="--", linewidth=1, label=base["arm"])
            axes.set_ylabel(one["metric"])
        else:
            _draw_arms(axes, arms)
            axes.axvline(base["mean"], color=_GREY, linestyle="--", linewidth=1, label=base["arm"])
            axes.set_xlabel(one["metric"])
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
