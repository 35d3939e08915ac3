"""One example on a page: its query, its positive, and a ladder of negatives for every run."""

from collections.abc import Sequence

import streamlit as st

from app.pages.frame import plain
from app.viewing.overview import ExampleView, Ladder, Rung
from app.viewing.showing import cell, escaped, fair_share

# Okabe and Ito's palette, as in the ladder plot.
COLOUR = {"positive": "#009E73", "hard": "#D55E00", "medium": "#E69F00", "easy": "#56B4E9", "mined": "#8C8C8C"}
_MAX_RUNGS, _MAX_BYTES, _SUMMARY = 40, 80_000, 140


def show_example(view: ExampleView, marked: int | None = None) -> None:
    """The example with its ladders; the candidate `marked` stands out. What is sent is bounded whatever it holds."""
    st.html(
        "<div style='font-size:1.15rem;margin:.2rem 0 .6rem;overflow-wrap:anywhere'>"
        f"<b>Query</b> {escaped(view.query, 8_000)}</div>"
    )
    rungs = [*([view.positive] if view.positive else []), *(rung for ladder in view.ladders for rung in ladder.rungs)]
    most = fair_share([rung.text for rung in rungs[:_MAX_RUNGS]], _MAX_BYTES)
    lowest = -1.0 if any((rung.similarity or 0) < 0 for rung in rungs) else 0.0
    if view.teacher:
        st.caption(f"Similarity to the query by {plain(view.teacher)}")
    if view.positive:
        st.html(_rung_html(view.positive, lowest, most, is_marked=False))
    left = _MAX_RUNGS - bool(view.positive)
    for ladder in view.ladders:
        if left <= 0:
            break
        st.html(_ladder_html(ladder, ladder.rungs[:left], lowest, most, marked))
        left -= len(ladder.rungs)
    if left < 0:
        st.caption(f"{-left:,} more negatives of this example are not shown.")


def _ladder_html(ladder: Ladder, rungs: Sequence[Rung], lowest: float, most: int, marked: int | None) -> str:
    inverted = _inverted(rungs)
    parts = (
        _rung_html(rung, lowest, most, is_marked=rung.candidate_id == marked, is_inverted=rung.candidate_id in inverted)
        for rung in rungs
    )
    head = (
        f"<div style='margin:.7rem 0 .1rem;opacity:.8'>{escaped(cell(ladder.run), 800)} ({escaped(ladder.kind)})</div>"
    )
    return head + "".join(parts)


def _inverted(rungs: Sequence[Rung]) -> set[int]:
    """Negatives that stand above one of a harder grade of the same run."""
    hardness = {"hard": 0, "medium": 1, "easy": 2}
    known = [(hardness[one.grade], one.similarity, one) for one in rungs if one.grade and one.similarity is not None]
    return {
        one.candidate_id
        for easier, value, one in known
        if any(harder < easier and below < value for harder, below, _ in known)
    }


def _rung_html(rung: Rung, lowest: float, most: int, *, is_marked: bool, is_inverted: bool = False) -> str:
    """A rung: label, a bar from zero to the similarity, and the text. Everything from outside is escaped.

    `lowest` is where the bar's axis begins: 0, or -1 where the example has negative similarities.
    """
    colour = COLOUR.get(rung.grade or rung.label, COLOUR["mined"])
    similarity = "" if rung.similarity is None else f"{rung.similarity:.3f}"
    note = " · ".join(
        part for part in (rung.grade, rung.origin if rung.origin != rung.label else None) if part
    ) + (" · inverted" if is_inverted else "")  # fmt: skip
    broken = rung.violated_requirement or ""
    breaks = f"<div style='opacity:.75'><i>Breaks:</i> {escaped(broken, 1_000)}</div>" if broken else ""
    ring = "outline:2px solid currentColor;" if is_marked else ""
    body = "white-space:pre-wrap;padding-top:.4rem;overflow-wrap:anywhere"
    return (
        f"<div style='border-left:6px solid {colour};padding:.3rem .8rem;margin:.25rem 0;{ring}'>"
        f"<div style='display:flex;gap:.8rem;align-items:center'>"
        f"<b style='width:5rem'>{escaped(rung.label)}</b>"
        f"{_bar_html(rung.similarity or 0.0, lowest, colour)}"
        f"<span style='width:3.2rem;font-variant-numeric:tabular-nums'>{similarity}</span>"
        f"<span style='width:11rem;opacity:.8'>{escaped(note)}</span></div>{breaks}"
        f"<details {'open' if is_marked else ''}><summary style='cursor:pointer;overflow-wrap:anywhere'>"
        f"{escaped(cell(rung.text, _SUMMARY), 600)}</summary>"
        f"<div style='{body}'>{escaped(rung.text, most)}</div></details></div>"
    )


def _bar_html(similarity: float, lowest: float, colour: str) -> str:
    start, end = sorted((0.0, max(lowest, min(1.0, similarity))))
    left, width = (round(100 * part / (1.0 - lowest), 1) for part in (start - lowest, end - start))
    bar = f"margin-left:{left}%;width:{width}%;background:{colour};height:100%;border-radius:4px"
    axis = "flex:1;min-width:3rem;background:rgba(128,128,128,.18);height:.55rem;border-radius:4px"
    return f"<div style='{axis}'><div style='{bar}'></div></div>"
