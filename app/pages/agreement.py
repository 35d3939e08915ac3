"""How far the people of a session agree, how carefully they decide, and what their audit sample says by now.

Reviewers are told by pseudonym. What takes long is computed once for each newest decision.
"""

from typing import Any

import altair as alt
import streamlit as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.pages.frame import ask, refusals, store_url
from app.pages.person import person_here
from app.viewing.showing import cell
from curation.judging.agreement import Coefficient
from curation.reviewing.coefficients import Agreements, Pair
from curation.reviewing.human_audit import SessionReport, session_report
from curation.reviewing.people import reviewer_of
from curation.reviewing.quality import Accuracy, Pace
from curation.reviewing.sampling import Audited, ErrorRate
from curation.reviewing.sessions import list_sessions
from db.store import Store
from db.tables.review import Decision

_RESAMPLES = 400
_ADVICE = {
    "going on": "go on: the interval does not decide yet",
    "good enough": "stop: the error rate is surely low enough",
    "too many errors": "stop: there are surely too many errors",
    "all looked at": "all of it was looked at",
}


@st.cache_data(show_spinner="Comparing what people decided", max_entries=16)
def _report(url: str, name: str, mark: int, _store: Store) -> SessionReport:
    """Computed anew when anybody has decided anything since (`mark`)."""
    with _store.read() as session:
        return session_report(session, name, num_resamples=_RESAMPLES)


def show() -> None:
    with refusals() as store:
        st.title("Agreement")
        person = person_here(store)
        with store.read() as session:
            reviewer_of(session, person.name)
            names = [one.name for one in list_sessions(session)]
            mark = _newest(session)
        if not names:
            st.info("There is no review session yet: make one on the page Review.")
            return
        asked = st.query_params.get("session", "")
        place = names.index(asked) if asked in names else 0
        chosen = st.selectbox("Review session", names, index=place, format_func=cell)
        ask(session=chosen)
        report = _report(store_url(), chosen, mark, store)
        if not report.num:
            st.info("Nobody has decided anything in this session yet.")
            return
        _show_figures(report)
        if report.audit is not None:
            _show_audit(report.audit)
        _show_scale("What becomes of a negative", report.agreement.outcome, "outcome")
        _show_scale("Its grade (easy < medium < hard)", report.agreement.grade, "grade")
        _show_paces(report.paces)
        _show_accuracies(report.accuracies)


def _newest(session: Session) -> int:
    return session.scalar(select(func.max(Decision.id))) or 0


def _show_figures(report: SessionReport) -> None:
    for column, (label, value) in zip(
        st.columns(6),
        {
            "negatives": f"{report.num:,}",
            "by several": f"{report.agreement.outcome.num_shared_units:,}",
            "same outcome": _share(report.agreement.outcome.share_same),
            "disputed": f"{report.fates['disputed']:,}",
            "settled": f"{report.num_settled:,}",
            "changed": _share(report.num_changed / report.num),
        }.items(),
        strict=True,
    ):
        column.metric(label, value)
    if report.num_skipped or report.num_flagged:
        st.caption(
            f"Examples that somebody skipped: {report.num_skipped:,}; flagged: {report.num_flagged:,}. Negatives on "
            "which nobody decided are in none of these figures."
        )


def _show_audit(audit: Audited) -> None:
    st.subheader("Audit sample")
    low, high = audit.overall.interval
    st.markdown(
        f"**{_ADVICE[audit.advice]}**. Error rate {_share(audit.overall.estimate)}, {audit.confidence:.0%} interval "
        f"{low:.1%} to {high:.1%}; it holds at every moment at which one could stop."
    )
    st.dataframe([_rate(one) for one in (*audit.strata, audit.overall)], hide_index=True, width="stretch")


def _rate(one: ErrorRate) -> dict[str, Any]:
    low, high = one.interval
    return {
        "stratum": cell(one.name), "negatives": one.size, "looked at": one.looked_at, "wrong": one.wrong,
        "error rate": _share(one.estimate), "interval": f"{low:.1%} to {high:.1%}",
    }  # fmt: skip


def _show_scale(title: str, found: Agreements, key: str) -> None:
    st.subheader(title)
    if not found.num_shared_units:
        st.caption("No two people have decided the same negative yet.")
        return
    kind = "ordinal" if key == "grade" else "nominal"
    left, right = st.columns(2)
    left.metric(f"Krippendorff's alpha ({kind}), {found.num_shared_units:,} negatives", _value(found.alpha))
    num = f"{found.num_fleiss_units:,} negatives by {found.num_fleiss_reviewers} people each"
    right.metric(f"Fleiss' kappa, {num}", _value(found.fleiss))
    left.caption(f"95 % interval over examples: {_interval(found.alpha)}")
    right.caption(f"95 % interval over examples: {_interval(found.fleiss)}")
    pairs = [pair for pair in found.pairs if pair.num_units]
    weights = "quadratic weights" if key == "grade" else "unweighted"
    rows = [
        {
            "one": pair.first, "other": pair.second, "negatives": pair.num_units, "same": _share(pair.share_same),
            f"Cohen's kappa ({weights})": _value(pair.kappa), "interval": _interval(pair.kappa),
        }
        for pair in pairs
    ]  # fmt: skip
    st.dataframe(rows, hide_index=True, width="stretch")
    _show_confusion(pairs, found.categories, key)


def _show_confusion(pairs: list[Pair], categories: tuple[str, ...], key: str) -> None:
    place = 0
    if len(pairs) > 1:
        options = range(len(pairs))
        place = st.selectbox(
            "Who said what of the same negatives", options, key=f"pair-{key}",
            format_func=lambda at: cell(f"{pairs[at].first} and {pairs[at].second}"),
        )  # fmt: skip
    pair = pairs[place]
    names = [name.replace("_", " ") for name in categories]
    rows = [
        {f"{pair.first} \\ {pair.second}": name, **dict(zip(names, row, strict=True))}
        for name, row in zip(names, pair.confusion, strict=True)
    ]
    st.dataframe(rows, hide_index=True, width="stretch")


def _show_paces(paces: list[Pace]) -> None:
    st.subheader("Pace and keys")
    st.caption("Warnings to look at; no decision is dropped for one.")
    rows = [
        {
            "reviewer": one.reviewer, "presses": one.num_presses, "median, s": round(one.median_s, 1),
            "faster than reading": one.num_faster_than_reading, "far below their median": one.num_far_below_median,
            "longest run": f"{one.run.length:,} times {one.run.label}", "warnings": "; ".join(one.warnings),
        }
        for one in paces
    ]  # fmt: skip
    st.dataframe(rows, hide_index=True, width="stretch")


def _show_accuracies(accuracies: list[Accuracy]) -> None:
    st.subheader("Hidden checks")
    if not accuracies:
        st.caption("Nobody has answered a hidden gold item or a repeat yet.")
        return
    rows = [
        {
            "reviewer": one.reviewer, "check": one.kind, "answers": one.num, "right": one.num_right,
            "interval": f"{one.interval_95[0]:.0%} to {one.interval_95[1]:.0%}",
            "drift": "falls off" if one.is_drifting else "",
        }
        for one in accuracies
    ]  # fmt: skip
    st.dataframe(rows, hide_index=True, width="stretch")
    points = [
        {
            "at": block.until.isoformat(),
            "share right": block.num_right / block.num,
            "of": f"{one.kind}, {one.reviewer}",
        }
        for one in accuracies
        for block in one.blocks
    ]
    chart = alt.Chart(alt.Data(values=points))
    lines = chart.mark_line(point=True).encode(
        alt.X("at:T", title=None),
        alt.Y("share right:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        alt.Color("of:N", title=None),
    )
    st.altair_chart(lines, width="stretch")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _value(found: Coefficient) -> str:
    return "not defined" if found.value is None else f"{found.value:.2f}"


def _interval(found: Coefficient) -> str:
    if found.interval_95 is None:
        return "-"
    return f"{found.interval_95[0]:.2f} to {found.interval_95[1]:.2f}"


show()
