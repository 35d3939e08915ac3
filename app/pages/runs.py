"""Runs: where each stands while it goes on, what it cost, why things were refused, an answer beside its texts."""

from typing import Any

import streamlit as st
from sqlalchemy.orm import Session

from app.errors import AppError
from app.pages.example import COLOUR
from app.pages.frame import ask, asked_number, heading, page, plain, show_refused, store_url
from app.pages.person import acting_name
from app.reasking import ask_again
from app.viewing.run_view import (
    ASKING,
    Attempt,
    Parsed,
    RequestView,
    RunChoice,
    list_runs,
    rejection_reasons,
    request_page,
    request_view,
    run_marks,
)
from app.viewing.showing import block, cell, escaped, fair_share
from curation.errors import CurationError
from curation.reviewing.people import reviewer_of
from db.store import Store
from db.tables.ledger import Run
from generator.progress import RunProgress, run_progress

_REFRESH_S = 5
_ROWS = 50
_OUTCOMES = ("all", "accepted", "partial", "rejected", "open")
_TEXT_BYTES, _PROMPT_BYTES = 60_000, 30_000


@st.cache_data(show_spinner="Counting", max_entries=32)
def _progress(_store: Store, url: str, run_id: int, marks: tuple[Any, ...]) -> RunProgress:
    with _store.read() as session:
        return run_progress(session, session.get_one(Run, run_id))


@st.cache_data(show_spinner=False, max_entries=32)
def _reasons(_store: Store, url: str, run_id: int, marks: tuple[Any, ...]) -> list[tuple[str, int, str, str]]:
    with _store.read() as session:
        return rejection_reasons(session, run_id)


def show(store: Store) -> None:
    with store.read() as session:
        runs = {run.id: run for run in list_runs(session)}
    if not runs:
        st.info("Nothing has run yet. Run `gradus demo`, or import your own with `gradus import`.")
        return
    keys = list(runs)
    asked = asked_number("run")
    asking = next((key for key in keys if runs[key].kind in ASKING), keys[0])
    run_id = st.selectbox(
        "Run",
        keys,
        index=keys.index(asked if asked in runs else asking),
        format_func=lambda key: cell(f"{runs[key].name} ({runs[key].kind}, {runs[key].state})"),
    )
    if asked != run_id:
        ask(run=run_id, request=None, after=None)
    is_running = runs[run_id].state == "running"
    st.fragment(_show_state, run_every=_REFRESH_S if is_running else None)(store, run_id)
    if runs[run_id].kind in ASKING:
        _show_requests(store, run_id)


def _show_state(store: Store, run_id: int) -> None:
    """Where the run stands; while it goes on, this alone is read again every few seconds."""
    with store.read() as session:
        run = next(one for one in list_runs(session) if one.id == run_id)
        marks = run_marks(session, run_id)
        ended = f", ended {run.finished_at:%Y-%m-%d %H:%M:%S}" if run.finished_at else ""
        st.caption(
            f"{run.state.capitalize()}; started {run.started_at:%Y-%m-%d %H:%M:%S} UTC{ended}; seed {run.seed}, "
            f"code {plain(run.code_version)}. Read again every {_REFRESH_S} seconds."
            if run.state == "running"
            else f"{run.state.capitalize()}; started {run.started_at:%Y-%m-%d %H:%M:%S} UTC{ended}; seed {run.seed}, "
            f"code {plain(run.code_version)}"
        )
        if run.kind in ASKING:
            _show_progress(_progress(store, store_url(), run_id, marks))
        else:
            _show_totals(session, run)
        _show_rejections(_reasons(store, store_url(), run_id, marks))


def _show_progress(now: RunProgress) -> None:
    share = now.num_read / now.num_planned if now.num_planned else 0.0
    st.progress(share, text=f"{now.num_read:,} of {now.num_planned:,} read")
    money = "no known price" if now.spent_usd is None else f"${now.spent_usd:,.4f}"
    figures = {
        "Accepted": f"{now.outcomes.get('accepted', 0):,}",
        "Partial": f"{now.outcomes.get('partial', 0):,}",
        "Rejected": f"{now.outcomes.get('rejected', 0):,}",
        "Failed": f"{now.num_failed:,}",
        "Waiting": f"{now.num_waiting:,}",
        "Answers a minute": f"{now.per_minute:,}",
        "Spent": money,
    }
    with st.container(horizontal=True, gap="medium"):
        for label, value in figures.items():
            st.metric(label, value, width="content")
    cached = f", {now.cached_tokens / now.input_tokens:.0%} of it read from a cache" if now.input_tokens else ""
    lines = [f"Tokens: {now.input_tokens:,} in{cached}; {now.output_tokens:,} out"]
    if now.reserved_usd:
        lines.append(f"Reserved for what is in flight: ${now.reserved_usd:,.4f}")
    if now.eta_s is not None and now.num_waiting:
        lines.append(f"About {now.eta_s:,.0f} s left")
    if now.accepted_by_rank:
        lines.append("By rank: " + ", ".join(f"N{rank} {num:,}" for rank, num in now.accepted_by_rank.items()))
    st.text("\n".join(lines))
    for reason, num in now.failures.items():
        show_refused(f"{num:,} failed: {reason}")


def _show_totals(session: Session, run: RunChoice) -> None:
    totals = session.get_one(Run, run.id).totals or {}
    numbers = [(name, value) for name, value in totals.items() if isinstance(value, int | float | str)]
    if numbers:
        rows = [{"what": cell(name.replace("_", " ")), "figure": cell(str(value))} for name, value in numbers[:60]]
        st.dataframe(rows, hide_index=True, width="content")


def _show_rejections(reasons: list[tuple[str, int, str, str]]) -> None:
    if not reasons:
        return
    st.subheader("Why things were refused")
    rows = [
        {"reason": cell(reason), "number": num, "such as": cell(subject), "detail": cell(detail)}
        for reason, num, subject, detail in reasons
    ]
    st.dataframe(rows, hide_index=True, width="stretch")


def _show_requests(store: Store, run_id: int) -> None:
    st.subheader("Requests")
    outcome = st.segmented_control(
        "Outcome", _OUTCOMES, default="all", required=True, key="outcome", bind="query-params"
    )
    after = asked_number("after")
    with store.read() as session:
        wanted = None if outcome == "all" else outcome
        rows = request_page(session, run_id, outcome=wanted, after=-1 if after is None else after, limit=_ROWS + 1)
    if not rows:
        st.info("No such request.")
    else:
        table = [
            {
                "request": cell(one.custom_id),
                "state": one.state,
                "outcome": one.outcome or "",
                "accepted": one.num_accepted,
                "tokens": one.tokens,
                "cost, $": one.cost_usd,
                "seconds": one.latency_s,
            }
            for one in rows[:_ROWS]
        ]
        chosen = st.dataframe(
            table,
            hide_index=True,
            width="stretch",
            height=320,
            on_select="rerun",
            selection_mode="single-row",
            key=f"requests-{run_id}-{outcome}-{after}",
        )
        with st.container(horizontal=True):
            st.button("First", disabled=after is None, on_click=lambda: ask(after=None), width=120)
            last = rows[min(len(rows), _ROWS) - 1].plan_index
            st.button("Next", disabled=len(rows) <= _ROWS, on_click=lambda: ask(after=last), width=120)
        for place in chosen["selection"]["rows"][:1]:
            ask(request=rows[place].id)
    request = asked_number("request")
    if request is None and rows:
        request = rows[0].id
    if request is not None:
        _show_request(store, run_id, request)


def _show_request(store: Store, run_id: int, request_id: int) -> None:
    with store.read() as session:
        view = request_view(session, run_id, request_id)
    if view is None:
        st.info("This run wants no such request.")
        return
    heading(f"Request {view.custom_id}")
    facts = {**view.attributes, "kind": view.kind, "state": view.state, "outcome": view.outcome or "not read"}
    st.text(cell(", ".join(f"{name}: {value}" for name, value in facts.items()), 1_000))
    if view.sample_index:
        st.text(f"Draw number {view.sample_index + 1} of the same prompt")
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**What came back**")
        if not view.attempts:
            st.info("No answer yet.")
        texts = [one.text or "" for one in view.attempts]
        most = fair_share(texts, _TEXT_BYTES, _TEXT_BYTES) if texts else 0
        for one in view.attempts:
            _show_attempt(one, most)
    with right:
        st.markdown("**What was read from it**")
        _show_parsed(view)
    with st.expander("What was asked"):
        most = fair_share([text for _, text in view.messages], _PROMPT_BYTES, _PROMPT_BYTES) if view.messages else 0
        for role, text in view.messages:
            st.html(f"<b>{escaped(role, 100)}</b>{_framed(text, most)}")
    _show_ask_again(store, view)


def _show_attempt(one: Attempt, most: int) -> None:
    money = "" if one.cost_usd is None else f", ${one.cost_usd:,.6f}"
    seconds = "" if one.latency_s is None else f", {one.latency_s:.1f} s"
    tokens = f"{one.input_tokens or 0:,} tokens in, {one.output_tokens or 0:,} out"
    st.text(
        cell(
            f"Attempt {one.attempt}, {one.model or one.engine}: {one.finish_reason or '-'}; {tokens}{money}{seconds}",
            400,
        )
    )
    if one.error:
        show_refused(one.error)
    if one.text is not None:
        st.html(_framed(one.text, most))


def _framed(text: str, most: int) -> str:
    style = (
        "border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.6rem;max-height:32rem;overflow-y:auto;"
        "font-family:monospace;font-size:.85rem"
    )
    return f"<div style='{style}'>{block(text, most)}</div>"


def _show_parsed(view: RequestView) -> None:
    if not view.parsed:
        st.info("No candidate came of it.")
    most = fair_share([one.text for one in view.parsed], _TEXT_BYTES) if view.parsed else 0
    st.html("".join(_parsed_html(one, most) for one in view.parsed) or "<div></div>")
    for position, reason, detail in view.rejections:
        where = f"part {position}, " if position else ""
        st.warning(plain(f"Refused: {where}{reason}: {detail}", 400))
    if view.notes:
        notes = ", ".join(f"{name}: {value}" for name, value in view.notes.items())
        st.text(cell(f"Notes: {notes}", 600))
    if view.parsed:
        st.html(f"<a href='store_browser?example={view.parsed[0].example_id}' target='_self'>See the example</a>")


def _parsed_html(one: Parsed, most: int) -> str:
    colour = COLOUR.get(one.grade or one.role, COLOUR["mined"])
    label = "positive" if one.role == "positive" else f"N{one.rank}" if one.rank else "negative"
    violated = one.violated_requirement
    broken = f"<div style='opacity:.8'><i>Breaks:</i> {escaped(violated, 1_000)}</div>" if violated else ""
    head = " · ".join(part for part in (label, one.grade, one.origin) if part)
    return (
        f"<div style='border-left:6px solid {colour};padding:.2rem .8rem;margin:.3rem 0'><b>{escaped(head)}</b>"
        f"{broken}<div style='max-height:14rem;overflow-y:auto'>{block(one.text, most)}</div></div>"
    )


def _show_ask_again(store: Store, view: RequestView) -> None:
    if view.outcome is None:
        if view.state == "failed":
            st.caption("It failed: the next `gradus generate` with the run's recipe asks it again.")
        return
    st.button(
        "Ask again",
        key=f"again-{view.run_id}-{view.id}",
        on_click=_ask_again,
        args=(store, view.run_id, view.id),
        help="Another draw of the same prompt goes into the ledger; the next gradus generate of this recipe sends it.",
    )
    told = st.session_state.pop("asked-again", None)
    if told:
        st.info(plain(told, 400))


def _ask_again(store: Store, run_id: int, request_id: int) -> None:
    try:
        name = acting_name(store)
        with store.write() as session:
            again = ask_again(session, run_id, request_id, reviewer_of(session, name))
    except (AppError, CurationError) as error:
        st.session_state["asked-again"] = str(error)
        return
    st.session_state["asked-again"] = (
        f"{again.custom_id} waits in the ledger, draw {again.sample_index + 1} of this prompt: run 'gradus generate' "
        "with the recipe of this run to send it"
    )


with page("Runs") as opened:
    show(opened)
