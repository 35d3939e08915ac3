"""Charts of the pages, from small rows of numbers."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from app.pages.example import COLOUR

_GRADES = list(COLOUR)
_RUNG_HEIGHT, _AXIS_HEIGHT = 44, 76


def _colour() -> alt.Color:
    return alt.Color(
        "grade:N", scale=alt.Scale(domain=_GRADES, range=[COLOUR[grade] for grade in _GRADES]), legend=None
    )


def ladder_chart(rungs: Sequence[dict[str, Any]], teacher: str) -> alt.LayerChart | alt.FacetChart:
    """Similarity per rung: quartiles as a bar, the median as a gap in it, the mean as a point with its figure."""
    order = [rung["rung"] for rung in rungs]
    base = alt.Chart(alt.Data(values=list(rungs))).encode(
        y=alt.Y("rung:N", sort=order, title=None, axis=alt.Axis(labelLimit=120)),
        tooltip=[
            alt.Tooltip("rung:N"),
            alt.Tooltip("num:Q", title="texts", format=","),
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "lower", "median", "upper")),
        ],
    )
    title = f"similarity to the query ({teacher})"
    quartiles = base.mark_bar(height=9, opacity=0.55).encode(
        x=alt.X("lower:Q", title=title, scale=alt.Scale(zero=False)), x2="upper:Q", color=_colour()
    )
    middle = base.mark_tick(thickness=3, size=15).encode(x="median:Q", color=_colour())
    mean = base.mark_point(filled=True, size=110, opacity=1).encode(x="mean:Q", color=_colour())
    figure = base.mark_text(dy=-13, fontSize=12, color="gray").encode(
        x="mean:Q", text=alt.Text("mean:Q", format=".3f")
    )  # fmt: skip
    return alt.layer(quartiles, middle, mean, figure).properties(height=_RUNG_HEIGHT * len(order) + _AXIS_HEIGHT)


def distribution_chart(bins: Sequence[dict[str, Any]]) -> alt.Chart:
    """How similarities spread at each rung; the legend takes out and brings back."""
    grades = {row["rung"]: row["grade"] for row in bins}
    rungs = list(grades)
    scale = alt.Scale(domain=rungs, range=[COLOUR.get(grades[rung], COLOUR["mined"]) for rung in rungs])
    # N2 and N3 share a grade and so a colour; the dashes tell them apart.
    dashes = alt.Scale(domain=rungs, range=[[5, 3] if rung == "N3" else [1, 0] for rung in rungs])
    legend = alt.Legend(title=None, orient="bottom")
    picked = alt.selection_point(fields=["rung"], bind="legend", name="rungs")
    return (
        alt.Chart(alt.Data(values=list(bins)))
        .mark_line(interpolate="monotone", strokeWidth=2)
        .encode(
            x=alt.X("similarity:Q", title="similarity to the query"),
            y=alt.Y("share:Q", title="share of the texts", axis=alt.Axis(format="%")),
            color=alt.Color("rung:N", scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("rung:N", scale=dashes, legend=legend),
            opacity=alt.condition(picked, alt.value(1.0), alt.value(0.12)),
            tooltip=[alt.Tooltip("rung:N"), alt.Tooltip("similarity:Q"), alt.Tooltip("share:Q", format=".1%")],
        )
        .add_params(picked)
        .properties(height=300)
    )


_RANK_COLOUR = {
    "N1": COLOUR["hard"],
    "N2": COLOUR["medium"],
    "N3": "#9B6BD6",  # not the medium grade's own, which N2 has: the two have to be told apart, in dark too
    "N4": COLOUR["easy"],
    "mined": COLOUR["mined"],
    "all": "#CC79A7",
    "random": "#CC79A7",
}


def _rank_colour(rows: Sequence[dict[str, Any]]) -> alt.Color:
    ranks = sorted({row["rank"] for row in rows}, key=lambda rank: (rank not in _RANK_COLOUR, rank))
    scale = alt.Scale(domain=ranks, range=[_RANK_COLOUR.get(rank, COLOUR["mined"]) for rank in ranks])
    return alt.Color("rank:N", scale=scale, legend=alt.Legend(title=None, orient="right"))


def curve_chart(rows: Sequence[dict[str, Any]], measure: str, title: str) -> alt.Chart:
    """A measure over the steps, a colour a rank; a second model is dashed."""
    many = len({row["model"] for row in rows}) > 1
    chart = alt.Chart(alt.Data(values=list(rows)), title=title).mark_line(
        strokeWidth=2, point=alt.OverlayMarkDef(size=14)
    )
    encoded = chart.encode(  # points too: a rank that was trained for one step has no line
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format=",d")),
        y=alt.Y(f"{measure}:Q", title=None, scale=alt.Scale(zero=False)),
        color=_rank_colour(rows),
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("rank:N"), alt.Tooltip("step:Q"), alt.Tooltip(f"{measure}:Q")],
    )
    dashes = alt.StrokeDash("model:N", legend=alt.Legend(title=None, orient="bottom"))
    return (encoded.encode(strokeDash=dashes) if many else encoded).properties(height=230)


def variance_chart(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """Variance of the gradient's norm in each block of the curriculum."""
    blocks = [{**row, "block": f"{row['block']}"} for row in rows]
    return (
        alt.Chart(alt.Data(values=blocks))
        .mark_bar(size=26)
        .encode(
            x=alt.X("block:N", title="block", axis=alt.Axis(labelAngle=0), sort=None),
            xOffset="model:N",
            y=alt.Y("gradient_variance:Q", title="variance of the norm"),
            color=_rank_colour(blocks),
            tooltip=[alt.Tooltip("model:N"), alt.Tooltip("rank:N"), alt.Tooltip("gradient_variance:Q", format=".3f")],
        )
        .properties(height=220)
    )
