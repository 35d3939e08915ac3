"""Overview: what the store holds, the ladder, the last runs, and one example with its negatives in order."""

import html
import io

import streamlit as st
from sqlalchemy.orm import Session

from app.overview import ExampleView, Rung, example_view, last_runs, neighbouring_example, scoring_teacher, store_counts
from app.settings import Settings
from curation.errors import CurationError
from db.store import Store

# Okabe and Ito's palette, as in the ladder plot.
_COLOUR = {"positive": "#009E73", "hard": "#D55E00", "medium": "#E69F00", "easy": "#56B4E9"}
_OTHER = "#666666"
_MAX_RUNGS, _MAX_SHOWN = 60, 20_000


@st.cache_resource
def _store(url: str) -> Store:
    return Store.open(url)


@st.cache_data(show_spinner="Drawing the ladder")
def _ladder(url: str, teacher: str, num_scores: int) -> bytes | str:
    """The ladder as PNG, or why there is none; drawn anew when the number of scores changes."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from curation.audit import audit
    from curation.ladder import draw_ladder

    try:
        report = audit(_store(url), teacher=teacher)
    except CurationError as error:
        return str(error)
    with TemporaryDirectory() as folder:
        draw_ladder(report, Path(folder) / "ladder.png")
        return (Path(folder) / "ladder.png").read_bytes()


def show() -> None:
    url = Settings().store_url
    with _store(url).read() as session:
        st.title("Gradus")
        counts = dict(store_counts(session))
        if not counts["examples"]:
            st.info("The store has no examples yet. Run `gradus demo`, or import your own with `gradus import`.")
            return
        _show_counts(counts)
        left, right = st.columns([3, 2], gap="large")
        with left:
            st.subheader("Ladder")
            teacher = scoring_teacher(session)
            ladder = _ladder(url, teacher, counts["scores"]) if teacher else "No scores yet: run `gradus score`."
            if isinstance(ladder, bytes):
                st.image(io.BytesIO(ladder), width="stretch")
            else:
                st.info(ladder)
        with right:
            st.subheader("Last runs")
            _show_runs(session)
        _show_example(session)


def _show_counts(counts: dict[str, int]) -> None:
    shown = ["documents", "queries", "examples", "completions", "scores", "releases"]
    for column, name in zip(st.columns(len(shown)), shown, strict=True):
        column.metric(name.capitalize(), f"{counts[name]:,}")
    negatives = [
        f"{num:,} {name.removeprefix('negatives, ')}" for name, num in counts.items() if name.startswith("neg")
    ]
    st.caption("Negatives: " + ", ".join(negatives))


def _show_runs(session: Session) -> None:
    rows = [
        {"kind": run.kind, "run": run.name, "state": run.state, "started": run.started_at, "seconds": run.seconds}
        for run in last_runs(session)
    ]
    st.dataframe(rows, hide_index=True, width="stretch")


def _show_example(session: Session) -> None:
    st.subheader("One example, its negatives in order")
    asked = st.query_params.get("example", "")
    current = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 18 else None
    view = example_view(session, current) if current is not None else None
    if view is None:
        current = neighbouring_example(session, None, 1)
        view = example_view(session, current) if current is not None else None
    if view is None:
        st.info("No example has negatives yet: run `gradus generate` or `gradus mine`.")
        return
    before, after, _ = st.columns([1, 1, 6])
    _step_button(session, before, "Previous", view.id, -1)
    _step_button(session, after, "Next", view.id, 1)
    st.html(_query_html(view))
    for rung in view.rungs[:_MAX_RUNGS]:
        st.html(_rung_html(rung))
    if len(view.rungs) > _MAX_RUNGS:
        st.caption(f"and {len(view.rungs) - _MAX_RUNGS:,} more")


def _step_button(
    session: Session, place: "st.delta_generator.DeltaGenerator", label: str, current: int, step: int
) -> None:
    target = neighbouring_example(session, current, step)
    place.button(
        label,
        key=f"{label}-{current}",
        disabled=target is None,
        width="stretch",
        on_click=lambda: st.query_params.update({"example": str(target)}),
    )


def _shown(text: str) -> str:
    """Text from outside: escaped, and without the control and direction marks that change how the rest reads."""
    return html.escape("".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text))


def _query_html(view: ExampleView) -> str:
    return f"<div style='font-size:1.15rem;margin:.2rem 0 .6rem'><b>Query</b> {_shown(view.query)}</div>"


def _rung_html(rung: Rung) -> str:
    """A rung: label, a bar whose length is the similarity, and the text. Everything from outside is escaped."""
    colour = _COLOUR.get(rung.grade or rung.label, _OTHER)
    similarity = "" if rung.similarity is None else f"{rung.similarity:.3f}"
    width = 0 if rung.similarity is None else round(100 * min(1.0, abs(rung.similarity)), 1)
    colour = colour if (rung.similarity or 0) >= 0 else _OTHER  # a negative cosine is drawn grey, by its size
    note = " · ".join(part for part in (rung.grade, rung.origin) if part)
    broken = (
        f"<div style='opacity:.75'><i>Breaks:</i> {_shown(rung.violated_requirement)}</div>"
        if (rung.violated_requirement)
        else ""
    )
    return (
        f"<div style='border-left:6px solid {colour};padding:.3rem .8rem;margin:.25rem 0'>"
        f"<div style='display:flex;gap:.8rem;align-items:center'>"
        f"<b style='width:5rem'>{html.escape(rung.label)}</b>"
        f"<div style='flex:1;background:rgba(128,128,128,.18);height:.55rem;border-radius:4px'>"
        f"<div style='width:{width}%;background:{colour};height:100%;border-radius:4px'></div></div>"
        f"<span style='width:3.2rem;font-variant-numeric:tabular-nums'>{similarity}</span>"
        f"<span style='width:10rem;opacity:.75'>{html.escape(note)}</span></div>{broken}"
        f"<details><summary style='cursor:pointer'>{_shown(rung.text[:140])}</summary>"
        f"<div style='white-space:pre-wrap;padding-top:.4rem'>{_shown(rung.text[:_MAX_SHOWN])}</div></details></div>"
    )


show()
