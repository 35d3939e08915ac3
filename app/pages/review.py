"""Review sessions: what is open and how far it is, a person's way into one, and a form that makes a new one."""

from typing import Any

import streamlit as st

from app.pages.frame import plain, refusals
from app.pages.person import person_here
from app.reviewing.form import Choices, choices, create_from_form, listed_sessions, recipe_from_form
from app.viewing.showing import cell
from curation.reviewing.people import reviewer_of
from curation.reviewing.sessions import Summary
from db.store import Store

_GRADES = ("hard", "medium", "easy")
_ORIGINS = ("synthetic", "mined", "corpus", "edited")
_ORDERS = ("suspicion", "disagreement", "uncertainty", "random")
_DECIDE = "review_decide.py"
_MOST_BUTTONS, _MOST_ROWS = 9, 200


def show() -> None:
    with refusals() as store:
        st.title("Review sessions")
        person = person_here(store)
        with store.read() as session:
            listed = listed_sessions(session)
            reviewer = reviewer_of(session, person.name)
            offered = choices(session) if reviewer.role == "admin" else None
        _show_sessions(listed)
        if offered is None:
            st.caption("An admin makes new sessions.")
            return
        with st.expander("New review session", expanded=not listed):
            _show_form(store, person.name, offered)


def _show_sessions(listed: list[tuple[int, Summary]]) -> None:
    if not listed:
        st.info("There is no review session yet. Make one below, or with `gradus review create RECIPE`.")
        return
    opened = [(key, one) for key, one in listed if one.state == "open"][:_MOST_BUTTONS]
    with st.container(horizontal=True, gap="xsmall"):
        for number, (key, one) in enumerate(opened, 1):
            if st.button(f"Review {plain(one.name, 60)}", key=f"open-{key}", shortcut=str(number)):
                st.switch_page(_DECIDE, query_params={"session": str(key)})
    rows = [
        {
            "session": cell(one.name),
            "state": one.state,
            "items": one.num_items,
            "turns done": one.num_finished,
            "turns": one.num_slots,
            "overlap": one.overlap,
            "view": "blind" if one.is_blind else "open",
            "guidelines": cell(one.rubric),
            "people": len(one.reviewers),
            "made": one.created_at,
        }
        for _, one in listed[:_MOST_ROWS]
    ]
    st.dataframe(rows, hide_index=True, width="stretch")
    if len(listed) > _MOST_ROWS:
        st.caption(f"{len(listed) - _MOST_ROWS:,} older sessions: `gradus review list`.")


def _show_form(store: Store, person: str, offered: Choices) -> None:
    with st.form("new-session", border=False, enter_to_submit=False):
        form = {**_queue_fields(offered), **_people_fields(offered)}
        if not st.form_submit_button("Create the session", type="primary"):
            return
    recipe = recipe_from_form(form)
    bar = st.progress(0.0, "Drawing the queue")

    def move(done: int, total: int | None) -> None:
        bar.progress(min(done / total, 1.0) if total else 0.0, "Drawing the queue")

    key = create_from_form(store, person, recipe, move)
    st.switch_page(_DECIDE, query_params={"session": str(key)})


def _queue_fields(offered: Choices) -> dict[str, Any]:
    left, right = st.columns(2)
    form: dict[str, Any] = {}
    with left:
        form["name"] = st.text_input("Name")
        form["runs"] = st.multiselect("Runs (empty: all)", offered.runs, format_func=cell)
        form["release"] = st.selectbox("Release", offered.releases, index=None, format_func=cell)
        form["grades"] = st.multiselect("Grades (empty: all)", _GRADES)
        form["origins"] = st.multiselect("Origins (empty: all)", _ORIGINS)
        form["languages"] = st.text_input("Languages, by comma")
        form["attributes"] = st.text_area("Attributes, one a line: domain = law, medicine")
    with right:
        form["text"] = st.text_input("Text in query, positive or negative")
        form["teacher"] = st.selectbox("Score by", offered.teachers, index=None, format_func=cell)
        form["min_score"] = st.number_input("from", value=None, format="%.3f", placeholder="any")
        form["max_score"] = st.number_input("to", value=None, format="%.3f", placeholder="any")
        form["order"] = st.selectbox("Order", _ORDERS)
        form["limit"] = st.number_input("Most examples", min_value=1, value=None, placeholder="all")
        form["sample_size"] = st.number_input(
            "Audit sample: negatives drawn at random over grades and origins", min_value=1, value=None, placeholder="no"
        )
        form["max_error_rate"] = st.number_input(
            "Stop once the error rate is known to lie below or above", min_value=0.0, max_value=1.0, value=None
        )
    return form


def _people_fields(offered: Choices) -> dict[str, Any]:
    left, right = st.columns(2)
    form: dict[str, Any] = {}
    with left:
        form["reviewers"] = st.multiselect("Reviewers (empty: every reviewer)", offered.reviewers, format_func=cell)
        form["overlap"] = st.number_input("People that see each item", min_value=1, max_value=100, value=1)
        form["blind"] = st.checkbox("Blind: grade, origin, model and others' decisions are hidden")
        form["lease_minutes"] = st.number_input("Minutes until an open item is handed on", min_value=0.5, value=15.0)
        form["repeats"] = st.number_input("Share of items shown twice", min_value=0.0, max_value=0.5, value=0.0)
    with right:
        form["gold_session"] = st.selectbox(
            "Hidden gold items: what was settled in", offered.sessions, index=None, format_func=cell
        )
        form["seed"] = st.number_input("Seed", value=0)
        form["rubric_name"] = st.text_input("Guidelines", value="default")
        form["rubric_text"] = st.text_area(
            "Their text in Markdown (empty: the latest version of that name)", max_chars=200_000
        )
    return form


show()
