"""Ordering audit: the ladder of a run, how similarities spread at each rank, inversions to look at, and leaks.

Figures are of a bounded sample, or as a release froze them; the audit of a whole store is `gradus audit`.
"""

from typing import Any

import streamlit as st
from sqlalchemy.orm import Session

from app.pages.charts import distribution_chart, ladder_chart
from app.pages.example import show_example
from app.pages.frame import ask, asked_number, page, plain, show_refused, store_url
from app.viewing.order_sample import (
    LEAK_TEXTS,
    NUM_EXAMPLES,
    OrderSample,
    audited_runs,
    order_samples,
    released_leaks,
    sampled_leaks,
)
from app.viewing.overview import example_view, store_marks
from app.viewing.showing import cell
from curation.audit.order_audit import scoring_teachers
from curation.errors import CurationError
from db.store import Store

_KINDS = {
    "negative_from_positive": "Negatives told from positives",
    "synthetic_from_real": "Machine-written text told from real text",
    "negative_from_machine_positive": "Negatives told from machine-written positives",
}
_NUM_CAUSES = 6


@st.cache_data(show_spinner="Auditing a sample", max_entries=32, ttl="10m")
def _sample(_store: Store, url: str, teacher: str, run_id: int, marks: tuple[int, ...]) -> OrderSample | str:
    try:
        return order_samples(_store, teacher, run_id=run_id)[0]
    except CurationError as error:
        return str(error)


@st.cache_data(show_spinner="Measuring leaks", max_entries=32)
def _measured_leaks(_store: Store, url: str, run_id: int, marks: tuple[int, ...]) -> dict[str, Any]:
    return sampled_leaks(_store, run_id)


def show(store: Store) -> None:
    with store.read() as session:
        runs = dict(audited_runs(session))
        teachers = scoring_teachers(session)
        if not runs or not teachers:
            st.info(
                "Nothing to audit yet: bring negatives with `gradus generate` or `gradus mine`, then `gradus score`."
            )
            return
        left, right = st.columns([3, 2])
        asked = asked_number("run")
        keys = list(runs)
        place = keys.index(asked) if asked in runs else 0
        run_id = left.selectbox("Run", keys, index=place, format_func=lambda key: cell(runs[key]))
        teacher = right.selectbox("Teacher", teachers, format_func=cell)
        ask(run=run_id)
        marks = store_marks(session)
        sample = _sample(store, store_url(), teacher, run_id, marks)
        if isinstance(sample, str):
            show_refused(f"{runs[run_id]}: {sample}")
            return
        _show_figures(sample)
        _show_charts(sample)
        _show_inversions(session, sample)
        _show_leaks(store, session, sample, run_id, marks)


def _show_figures(sample: OrderSample) -> None:
    order = sample.figures["order"]
    with st.container(horizontal=True, gap="medium"):
        st.metric("Examples looked at", f"{sample.num_examples:,}", width="content")
        if order:
            st.metric("Pairs in order", f"{order['accuracy']:.1%}", width="content")
            st.metric("Whole order right", f"{order['whole_order_right']:.1%}", width="content")
            st.metric("Kendall tau-b", "-" if order["tau_b"] is None else f"{order['tau_b']:.3f}", width="content")
            st.metric("Inversions", f"{order['num_inversions']:,}", width="content")
    is_sample = sample.num_examples >= NUM_EXAMPLES
    drawn = f"The first {NUM_EXAMPLES} examples by digest, as good as drawn"
    whole = drawn if is_sample else "Every scored example of the run"
    interval = order and order["interval_95"]
    spread = f"; pairs in order, 95 % interval {interval[0]:.1%} to {interval[1]:.1%}" if interval else ""
    st.caption(f"{whole}, by {plain(sample.teacher)}{spread}. Everything: `gradus audit`.")


def _show_charts(sample: OrderSample) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Ladder")
        st.altair_chart(ladder_chart(sample.rungs, cell(sample.teacher, 60)), width="stretch")
    with right:
        st.subheader("Spread at each rank")
        st.altair_chart(distribution_chart(sample.bins), width="stretch")
    ranks = sample.figures["ranks"]
    rows = [
        {
            "rank": label,
            "texts": one["num"],
            "mean": one["mean"],
            "above the positive": one["above_positive"],
            "length to the positive's": one["length_ratio"],
            "cut short": one["truncated"],
        }
        for label, one in ranks.items()
    ]
    share = st.column_config.NumberColumn(format="percent")
    figure = st.column_config.NumberColumn(format="%.3f")
    st.dataframe(
        rows,
        hide_index=True,
        width="stretch",
        column_config={
            "mean": figure,
            "above the positive": share,
            "length to the positive's": figure,
            "cut short": share,
        },
    )


def _show_inversions(session: Session, sample: OrderSample) -> None:
    st.subheader("Inversions")
    order = sample.figures["order"]
    if not order:
        st.info("This run's negatives have no ranks, so there is no order to invert.")
        return
    pairs = ", ".join(f"{pair} {share:.1%}" for pair, share in order["by_pair"].items())
    st.caption(f"Harder above easier, by pair: {plain(pairs)}. Choose a row to see the example.")
    if not sample.inversions:
        st.success("No negative stands above a harder one.")
        return
    rows = [
        {"query": cell(one.query), "harder": f"N{one.harder_rank}", "easier": f"N{one.easier_rank}", "gap": one.gap}
        for one in sample.inversions
    ]
    chosen = st.dataframe(
        rows,
        hide_index=True,
        width="stretch",
        height=260,
        on_select="rerun",
        selection_mode="single-row",
        key=f"inversions-{sample.run}-{sample.teacher}",
        column_config={"gap": st.column_config.NumberColumn(format="%.3f", help="How far the easier one is above")},
    )
    if len(sample.inversions) < order["num_inversions"]:
        st.caption(f"The widest {len(sample.inversions)} of {order['num_inversions']:,}.")
    for place in chosen["selection"]["rows"][:1]:
        view = example_view(session, sample.inversions[place].example_id or 0)
        if view is not None:
            with st.container(border=True):
                show_example(view)


def _show_leaks(store: Store, session: Session, sample: OrderSample, run_id: int, marks: tuple[int, ...]) -> None:
    st.subheader("Leaks")
    st.caption(
        "A classifier reads the texts alone, without the query. 0.5: it cannot tell the sets apart; the control is the "
        "same classifier between two sets of real texts, and what it scores is the aim."
    )
    frozen = released_leaks(session, sample.run)
    leaks = frozen[1] if frozen else None
    if frozen:
        st.caption(f"As release {plain(frozen[0])} froze them.")
    elif st.session_state.get(f"leaks-{run_id}") or st.button(
        f"Measure on {LEAK_TEXTS} texts of a set", key=f"measure-{run_id}"
    ):
        st.session_state[f"leaks-{run_id}"] = True
        leaks = _measured_leaks(store, store_url(), run_id, marks)
        st.caption(f"Measured now, on at most {LEAK_TEXTS} texts of a set; `gradus audit` takes more.")
    for kind, leak in (leaks or {}).items():
        _show_leak(_KINDS.get(kind, kind), leak)


def _show_leak(title: str, leak: dict[str, Any]) -> None:
    with st.container(border=True):
        st.markdown(f"**{plain(title)}**")
        if leak.get("auc") is None:
            st.text(cell(str(leak.get("reason") or "not measured")))
            return
        low, high = leak["interval_95"]
        control = "no control" if leak.get("control_auc") is None else f"control {leak['control_auc']:.3f}"
        told = {True: "It tells more than the control.", False: "It tells no more than the control.", None: ""}[
            leak["stands_out"]
        ]
        st.text(f"AUC {leak['auc']:.3f} ({low:.3f} to {high:.3f}), {control}. {told}")
        by_rank = ", ".join(f"{label} {one['auc']:.3f}" for label, one in leak.get("by_rank", {}).items())
        if by_rank:
            st.text(cell(f"By rank: {by_rank}", 400))
        if causes := leak.get("causes"):
            _show_causes(causes, [cell(name, 40) for name in leak["sets"]], leak.get("controls") or [])


def _show_causes(causes: dict[str, Any], sets: list[str], controls: list[dict[str, Any]]) -> None:
    base = controls[0]["properties"] if controls else {}
    first, second = sets
    properties = [
        {
            "property alone": cell(one["name"]),
            "AUC": one["auc"],
            "control": base.get(one["name"]),
            f"mean, {first}": one["mean_first"],
            f"mean, {second}": one["mean_second"],
        }
        for one in causes["properties"][:_NUM_CAUSES]
    ]
    words = [
        {"word": cell(one["text"], 60), "speaks for": name, first: one["share_first"], second: one["share_second"]}
        for name, side in ((first, "first_words"), (second, "second_words"))
        for one in causes[side][:_NUM_CAUSES]
    ]
    left, right = st.columns(2)
    number = st.column_config.NumberColumn(format="%.3f")
    share = st.column_config.NumberColumn(format="percent")
    with left:
        config = {"AUC": number, "control": number, f"mean, {first}": number, f"mean, {second}": number}
        st.dataframe(properties, hide_index=True, width="stretch", column_config=config)
    with right:
        st.dataframe(
            words, hide_index=True, width="stretch", height="content", column_config={first: share, second: share}
        )


with page("Ordering audit") as opened:
    show(opened)
