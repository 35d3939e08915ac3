"""Disputes, one after the other, settled by keys.

As on the decision page all that a press needs is bound into its button, and the button's key names the dispute.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import streamlit as st

from app.pages.frame import plain, refusals, show_refused
from app.pages.keyboard import hear_keys
from app.pages.person import person_here
from app.reviewing.adjudicating import (
    OpenDispute,
    last_settled_id,
    open_dispute,
    open_disputes,
    said_html,
    settle_dispute,
    take_back,
)
from app.reviewing.ladder_view import item_html
from app.viewing.showing import cell
from curation.errors import CurationError
from curation.reviewing.adjudication import Dispute
from curation.reviewing.sessions import list_sessions
from db.store import Store
from db.tables.base import utc_now

_VERDICTS = (
    ("Keep", "K", "keep", None),
    ("Drop", "D", "drop", None),
    ("Hard", "1", "regrade", "hard"),
    ("Medium", "2", "regrade", "medium"),
    ("Easy", "3", "regrade", "easy"),
    ("False negative", "F", "false_negative", None),
)
_FIRST_EDIT_KEY, _MOST_EDITS = 4, 6


def show() -> None:
    hear_keys()
    with refusals() as store:
        st.title("Adjudication")
        person = person_here(store)
        with store.read() as session:
            names = [one.name for one in list_sessions(session)]
        chosen = st.selectbox(
            "Review session", names, index=None, placeholder="All of them together", key="adjudicated",
            format_func=cell,
        )  # fmt: skip
        _disputes(store, person.name, (chosen,) if chosen else ())


@st.fragment
def _disputes(store: Store, person: str, sessions: tuple[str, ...]) -> None:
    with refusals():
        known = st.session_state.get("disputes")
        if known is None or known[0] != sessions:
            known = (sessions, open_disputes(store, person, sessions))
            st.session_state["disputes"], st.session_state["dispute_place"] = known, 0
        _show_told()
        direction = st.session_state.pop("dispute_direction", 1)
        found = open_dispute(store, person, known[1], st.session_state["dispute_place"], sessions, direction)
        if found is None:
            st.success("No dispute is open here.")
            last = last_settled_id(store, person)
            with st.container(horizontal=True, gap="xsmall"):
                _button("Look again", "L", f"end-{last}", _look_again)
                _button("Undo", "U", f"end-{last}", _undo, store, person, last, disabled=last is None)
            return
        place, opened = found
        st.session_state["dispute_place"] = place
        _show_dispute(store, person, opened, f"{place + 1:,} of {len(known[1]):,}")


def _show_dispute(store: Store, person: str, opened: OpenDispute, where: str) -> None:
    dispute = opened.dispute
    shown_at = _first_shown(opened.key)
    keys = st.container()
    st.caption(f"Dispute {where}, session {plain(dispute.session)}, guidelines {plain(dispute.rubric)}")
    st.html(said_html(dispute))
    st.html(item_html(opened.item, dispute.candidate_id, is_detailed=True))
    with keys, st.container(horizontal=True, gap="xsmall"):
        for label, shortcut, verdict, grade in _VERDICTS:
            _button(label, shortcut, opened.key, _settle, store, person, dispute, verdict, shown_at, grade)
        for number, edit in enumerate(opened.edits[:_MOST_EDITS]):
            key = str(_FIRST_EDIT_KEY + number)
            _button(
                f"Edit {number + 1}",
                key,
                opened.key,
                _settle,
                store,
                person,
                dispute,
                "edit",
                shown_at,
                None,
                edit.child,
            )
        last = opened.last_settled_id
        _button("Undo", "U", opened.key, _undo, store, person, last, disabled=last is None)
        _button("Previous", "Up", opened.key, _step, -1)
        _button("Next", "Down", opened.key, _step, 1)


def _button(
    label: str, shortcut: str, painted: str, act: Callable[..., None], *args: Any, disabled: bool = False
) -> None:
    key = f"{label.lower().replace(' ', '-')}-{painted}"
    st.button(label, key=key, shortcut=shortcut, on_click=act, args=args, disabled=disabled)


def _settle(
    store: Store, person: str, dispute: Dispute, verdict: str, shown_at: datetime, grade: str | None,
    child_id: int | None = None,
) -> None:  # fmt: skip
    try:
        settle_dispute(store, person, dispute, verdict, shown_at=shown_at, grade=grade, child_id=child_id)
    except CurationError as error:
        st.session_state["told"] = str(error)


def _undo(store: Store, person: str, painted_last: int) -> None:
    try:
        candidate = take_back(store, person, painted_last)
    except CurationError as error:
        st.session_state["told"] = str(error)
        return
    known = st.session_state.get("disputes")
    if known is None or candidate not in known[1]:
        _look_again()
    else:
        st.session_state["dispute_place"] = known[1].index(candidate)


def _look_again() -> None:
    st.session_state.pop("disputes", None)


def _step(step: int) -> None:
    """On to another dispute, or back; what was settled meanwhile is passed over."""
    st.session_state["dispute_place"] += step
    st.session_state["dispute_direction"] = step


def _show_told() -> None:
    if told := st.session_state.pop("told", ""):
        show_refused(told)


def _first_shown(painted: str) -> datetime:
    before, at = st.session_state.get("dispute_shown_at", ("", None))
    if before != painted or at is None:
        at = utc_now()
        st.session_state["dispute_shown_at"] = (painted, at)
    return at


show()
