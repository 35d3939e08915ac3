"""Overview: what the store holds, the ladder of the newest runs, the last runs, and one example with its negatives."""

import streamlit as st
from sqlalchemy.orm import Session

from app.pages.charts import ladder_chart
from app.pages.example import show_example
from app.pages.frame import ask, asked_number, heading, page, plain, show_refused, store_url
from app.viewing.order_sample import OrderSample, order_samples
from app.viewing.overview import example_view, last_runs, neighbouring_example, store_counts, store_marks
from app.viewing.showing import cell
from curation.errors import CurationError
from db.store import Store

_LADDER_RUNS, _LADDER_EXAMPLES = 3, 300


@st.cache_data(show_spinner="Counting", max_entries=16, ttl="10m")
def _counts(_store: Store, url: str, marks: tuple[int, ...]) -> list[tuple[str, int]]:
    """Counted again when something new has come, or after ten minutes."""
    with _store.read() as session:
        return store_counts(session)


@st.cache_data(show_spinner="Drawing the ladder", max_entries=16)
def _samples(_store: Store, url: str, teacher: str, marks: tuple[int, ...], num_scores: int) -> list[OrderSample] | str:
    """The order in the newest runs, or why there is none."""
    try:
        return order_samples(_store, teacher, num_runs=_LADDER_RUNS, num_examples=_LADDER_EXAMPLES)
    except CurationError as error:
        return str(error)


def show(store: Store) -> None:
    with store.read() as session:
        marks = store_marks(session)
        counts = dict(_counts(store, store_url(), marks))
        if not counts["examples"]:
            st.info("The store has no examples yet. Run `gradus demo`, or import your own with `gradus import`.")
            return
        _show_counts(counts)
        left, right = st.columns([3, 2], gap="large")
        with left:
            _show_ladder(store, session, marks, counts["scores"])
        with right:
            st.subheader("Last runs")
            _show_runs(session)
        _show_example(session)


def _show_counts(counts: dict[str, int]) -> None:
    shown = ["documents", "queries", "examples", "completions", "scores", "releases"]
    with st.container(horizontal=True, gap="medium"):
        for name in shown:
            st.metric(name.capitalize(), f"{counts[name]:,}", width="content")
    lines = [("Negatives", "negatives, "), ("Graded", "graded "), ("Requests", "requests ")]
    for title, start in lines:
        parts = [f"{num:,} {name.removeprefix(start)}" for name, num in counts.items() if name.startswith(start)]
        if parts:
            st.caption(f"{title}: {', '.join(parts)}")
    if "input tokens" in counts:
        st.caption(f"Tokens: {counts['input tokens']:,} in, {counts.get('output tokens', 0):,} out")


def _show_ladder(store: Store, session: Session, marks: tuple[int, ...], num_scores: int) -> None:
    from curation.audit.order_audit import scoring_teachers

    st.subheader("Ladder")
    teachers = scoring_teachers(session)
    if not teachers:
        st.info("No teacher has scored anything yet: run `gradus score`.")
        return
    teacher = st.selectbox("Teacher", teachers, format_func=cell) if len(teachers) > 1 else teachers[0]
    samples = _samples(store, store_url(), teacher, marks, num_scores)
    if isinstance(samples, str):
        show_refused(samples)
        return
    for sample in samples:
        heading(f"{sample.run}: {sample.num_examples:,} examples")
        st.altair_chart(ladder_chart(sample.rungs, cell(sample.teacher, 60)), width="stretch")
    st.caption(
        f"The newest {_LADDER_RUNS} runs, up to {_LADDER_EXAMPLES} examples of each, by {plain(teacher)}. "
        "More: the ordering audit; everything: `gradus audit`."
    )


def _show_runs(session: Session) -> None:
    rows = [
        {"kind": run.kind, "run": cell(run.name), "state": run.state, "started": run.started_at, "seconds": run.seconds}
        for run in last_runs(session)
    ]
    started = st.column_config.DatetimeColumn("started (UTC)", format="YYYY-MM-DD HH:mm", timezone="UTC")
    seconds = st.column_config.NumberColumn(format="%.0f")
    st.dataframe(rows, hide_index=True, width="stretch", column_config={"started": started, "seconds": seconds})


def _show_example(session: Session) -> None:
    st.subheader("One example, its negatives in order")
    current = asked_number("example")
    view = example_view(session, current) if current is not None else None
    if view is None:
        current = neighbouring_example(session, None, 1)
        view = example_view(session, current) if current is not None else None
    if view is None:
        st.info("No example has negatives yet: run `gradus generate` or `gradus mine`.")
        return
    with st.container(horizontal=True):
        _step_button(session, "Previous", view.id, -1)
        _step_button(session, "Next", view.id, 1)
    show_example(view)


def _step_button(session: Session, label: str, current: int, step: int) -> None:
    target = neighbouring_example(session, current, step)
    st.button(
        label,
        key=f"{label}-{current}",
        disabled=target is None,
        width=120,
        on_click=lambda: ask(example=target),
    )


with page("Gradus") as opened:
    show(opened)
