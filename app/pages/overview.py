"""Overview: what the store holds, the ladder, the last runs, and one example with its negatives in order."""

import html
import io

import streamlit as st
from sqlalchemy.orm import Session

from app.overview import ExampleView, Rung, example_view, last_runs, neighbouring_example, store_counts
from app.settings import Settings
from app.terminal import visible
from curation.errors import CurationError
from db.store import Store

# Okabe and Ito's palette, as in the ladder plot.
_COLOUR = {"positive": "#009E73", "hard": "#D55E00", "medium": "#E69F00", "easy": "#56B4E9"}
_OTHER = "#666666"
_LADDER_RUNS, _LADDER_EXAMPLES = 8, 500
_MAX_RUNGS, _MAX_TEXT, _SUMMARY = 40, 4_000, 140


@st.cache_resource
def _store(url: str) -> Store:
    return Store.open(url)


@st.cache_data(show_spinner="Drawing the ladder", max_entries=16)
def _ladder(url: str, teacher: str, num_scores: int) -> bytes | str:
    """The ladder of a sample as PNG, or why there is none; drawn anew when the number of scores changes."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from curation.audit.ladder import draw_ladder
    from curation.audit.order_audit import audit_sample

    try:
        report = audit_sample(_store(url), teacher=teacher, num_runs=_LADDER_RUNS, num_examples=_LADDER_EXAMPLES)
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
            _show_ladder(session, url, counts["scores"])
        with right:
            st.subheader("Last runs")
            _show_runs(session)
        _show_example(session)


def _show_ladder(session: Session, url: str, num_scores: int) -> None:
    from curation.audit.order_audit import scoring_teachers

    st.subheader("Ladder")
    teachers = scoring_teachers(session)
    if not teachers:
        st.info("No teacher has scored anything yet: run `gradus score`.")
        return
    teacher = st.selectbox("Teacher", teachers, format_func=visible) if len(teachers) > 1 else teachers[0]
    ladder = _ladder(url, teacher, num_scores)
    if isinstance(ladder, str):
        st.text(visible(ladder))
        return
    st.image(io.BytesIO(ladder), width="stretch")
    st.caption(f"The newest {_LADDER_RUNS} runs, up to {_LADDER_EXAMPLES} examples of each. All: `gradus audit`.")


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
        {
            "kind": run.kind,
            "run": visible(run.name),
            "state": run.state,
            "started": run.started_at,
            "seconds": run.seconds,
        }
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
    lowest = -1.0 if any((rung.similarity or 0) < 0 for rung in view.rungs) else 0.0
    for rung in view.rungs[:_MAX_RUNGS]:
        st.html(_rung_html(rung, lowest))
    if len(view.rungs) > _MAX_RUNGS:
        st.caption(f"{len(view.rungs) - _MAX_RUNGS:,} more negatives of this example are not shown.")


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


def _query_html(view: ExampleView) -> str:
    return f"<div style='font-size:1.15rem;margin:.2rem 0 .6rem'><b>Query</b> {_escaped(view.query)}</div>"


def _rung_html(rung: Rung, lowest: float) -> str:
    """A rung: label, a bar from zero to the similarity, and the text. Everything from outside is escaped.

    `lowest` is where the bar's axis begins: 0, or -1 where the example has negative similarities.
    """
    colour = _COLOUR.get(rung.grade or rung.label, _OTHER)
    similarity = "" if rung.similarity is None else f"{rung.similarity:.3f}"
    note = " · ".join(part for part in (rung.grade, rung.origin) if part)
    broken = _escaped(rung.violated_requirement or "")
    breaks = f"<div style='opacity:.75'><i>Breaks:</i> {broken}</div>" if broken else ""
    return (
        f"<div style='border-left:6px solid {colour};padding:.3rem .8rem;margin:.25rem 0'>"
        f"<div style='display:flex;gap:.8rem;align-items:center'>"
        f"<b style='width:5rem'>{_escaped(rung.label)}</b>"
        f"{_bar_html(rung.similarity or 0.0, lowest, colour)}"
        f"<span style='width:3.2rem;font-variant-numeric:tabular-nums'>{similarity}</span>"
        f"<span style='width:10rem;opacity:.75'>{_escaped(note)}</span></div>{breaks}"
        f"<details><summary style='cursor:pointer'>{_escaped(rung.text[:_SUMMARY])}</summary>"
        f"<div style='white-space:pre-wrap;padding-top:.4rem'>{_escaped(rung.text)}</div></details></div>"
    )


def _bar_html(similarity: float, lowest: float, colour: str) -> str:
    start, end = sorted((0.0, max(lowest, min(1.0, similarity))))
    left, width = (round(100 * part / (1.0 - lowest), 1) for part in (start - lowest, end - start))
    bar = f"margin-left:{left}%;width:{width}%;background:{colour};height:100%;border-radius:4px"
    axis = "flex:1;background:rgba(128,128,128,.18);height:.55rem;border-radius:4px"
    return f"<div style='{axis}'><div style='{bar}'></div></div>"


def _escaped(text: str) -> str:
    """Text from outside as HTML: no markup, no characters that turn the reading direction, no endless page."""
    rest = f" … ({len(text) - _MAX_TEXT:,} more characters)" if len(text) > _MAX_TEXT else ""
    return html.escape(visible(text[:_MAX_TEXT])) + rest


show()
