"""One decision on many negatives: a filter, what would change, and only then the decision; undone as one."""

from typing import Any

import streamlit as st

from app.pages.frame import plain, refusals, show_refused
from app.pages.person import person_here
from app.recipes import checked
from app.viewing.showing import cell
from curation.errors import CurationError
from curation.reviewing.bulk import Preview, apply, bulks, preview, undo_bulk
from curation.reviewing.bulk_filter import BulkRecipe
from curation.reviewing.people import require, reviewer_of
from curation.reviewing.sessions import list_sessions
from db.store import Store
from db.tables.base import utc_now

_GRADES = ("hard", "medium", "easy")
_ORIGINS = ("synthetic", "mined", "corpus", "edited")
_DECISIONS = {
    "drop": ("drop", None),
    "keep": ("keep", None),
    "false negative": ("false_negative", None),
    "regrade hard": ("regrade", "hard"),
    "regrade medium": ("regrade", "medium"),
    "regrade easy": ("regrade", "easy"),
}
_LISTED = 20


def show() -> None:
    with refusals() as store:
        st.title("Bulk decisions")
        person = person_here(store).name
        with store.read() as session:
            require(session, reviewer_of(session, person), "admin")
            names = [one.name for one in list_sessions(session) if one.state == "open"]
        _show_told()
        if names:
            _show_form(store, person, names)
            _show_preview(store, person)
        else:
            st.info("No review session is open: bulk decisions are made in one, under its guidelines.")
        _show_made(store, person)


def _show_form(store: Store, person: str, names: list[str]) -> None:
    with st.form("bulk", border=False, enter_to_submit=False):
        left, middle, right = st.columns(3)
        chosen = left.selectbox("Review session", names, format_func=cell)
        grades = left.multiselect("Grades", _GRADES)
        origins = left.multiselect("Origins", _ORIGINS)
        text = middle.text_input("Text in the query or the negative")
        reason = middle.text_input("Reason for suspicion", placeholder="above the positive")
        languages = middle.text_input("Languages", placeholder="en, tr")
        low, high = right.slider("Suspicion", 0.0, 1.0, (0.0, 1.0))
        decided = right.selectbox("Decided by anybody", ["any", "no", "yes"])
        decision = right.selectbox("Decision", list(_DECISIONS))
        if not st.form_submit_button("See what would change", type="primary"):
            return
    verdict, grade = _DECISIONS[decision]
    wanted: dict[str, Any] = {
        "session": chosen,
        "grades": grades,
        "origins": origins,
        "languages": [one.strip() for one in languages.split(",") if one.strip()],
        "text": text.strip() or None,
        "reason": reason.strip() or None,
        "min_suspicion": low or None,
        "max_suspicion": high if high < 1 else None,
        "decided": decided,
    }
    asked = checked({"filter": wanted, "decision": {"verdict": verdict, "grade": grade}}, BulkRecipe)
    with store.read() as session:
        seen = preview(session, asked.filter, asked.decision, reviewer_of(session, person))
    st.session_state["bulk_preview"] = (asked, seen, decision, utc_now())


def _show_preview(store: Store, person: str) -> None:
    held = st.session_state.get("bulk_preview")
    if held is None:
        return
    asked, seen, decision, shown_at = held
    st.subheader(f"What would change: {decision} in {plain(asked.filter.session)}")
    figures = {
        "would get it": seen.num,
        "examples": seen.num_examples,
        "your own gives way": seen.num_own,
        "disputed then": seen.num_against,
        "so already": seen.num_same,
        "settled, left alone": seen.num_settled,
    }
    for column, (label, num) in zip(st.columns(len(figures)), figures.items(), strict=True):
        column.metric(label, f"{num:,}")
    st.caption("By now: " + ", ".join(f"{num:,} {plain(what)}" for what, num in seen.now.items()))
    _show_rows(seen)
    st.button(
        f"Decide on {seen.num:,}", key=f"bulk-{seen.mark}", type="primary", disabled=not seen.num,
        on_click=_decide, args=(store, person, asked, seen.mark, shown_at),
    )  # fmt: skip


def _show_rows(seen: Preview) -> None:
    if seen.rows:
        rows = [
            {
                "query": cell(row["query"]),
                "negative": cell(row["text"]),
                "grade": row["grade"],
                "origin": row["origin"],
                "yours": row["decided"],
                "others against": row["num_against"],
            }
            for row in seen.rows
        ]
        st.dataframe(rows, hide_index=True, width="stretch")
        st.caption(f"The first {len(rows):,} of {seen.num:,}.")


def _decide(store: Store, person: str, asked: BulkRecipe, mark: int, shown_at: Any) -> None:
    def act() -> str:
        with store.write() as session:
            by = reviewer_of(session, person)
            made = apply(session, asked.filter, asked.decision, by, mark=mark, shown_at=shown_at)
        return f"Decided on {made.num:,} negatives; it is undone below as one."

    _try(act)
    st.session_state.pop("bulk_preview", None)


def _undo(store: Store, person: str, bulk_id: str) -> None:
    def act() -> str:
        with store.write() as session:
            num = undo_bulk(session, bulk_id, reviewer_of(session, person))
        return f"Took {num:,} decisions back; what had given way stands again."

    _try(act)


def _show_made(store: Store, person: str) -> None:
    with store.read() as session:
        made = bulks(session, limit=_LISTED)
    if not made:
        return
    st.subheader("Made so far")
    for one in made:
        left, right = st.columns([5, 1])
        left.text(
            f"{one.at:%Y-%m-%d %H:%M}  {one.decision}, {one.num:,} negatives in {cell(one.session)} by {one.reviewer}; "
            f"{one.num_standing:,} stand"
        )
        right.button(
            "Undo", key=f"undo-{one.bulk_id}", disabled=not one.num_standing, on_click=_undo,
            args=(store, person, one.bulk_id),
        )  # fmt: skip


def _try(act: Any) -> None:
    try:
        st.session_state["bulk_told"] = (True, act())
    except CurationError as error:
        st.session_state["bulk_told"] = (False, str(error))


def _show_told() -> None:
    is_done, told = st.session_state.pop("bulk_told", (True, ""))
    if told and is_done:
        st.success(told)
    elif told:
        show_refused(told)


show()
