"""Store: candidates in pages, under filters that stand in the URL; a row opens its example."""

from typing import Any

import streamlit as st
from sqlalchemy.orm import Session

from app.pages.example import show_example
from app.pages.frame import ask, asked_number, page
from app.viewing.browsing import GRADES, ORIGINS, PAGE, ROLES, Filters, Page, browse, runs_of, teachers_of
from app.viewing.overview import example_view
from app.viewing.showing import cell
from db.store import Store

_FIELDS = ("run", "origin", "grade", "role", "text", "teacher", "least", "most")


def show(store: Store) -> None:
    with store.read() as session:
        filters = _filters(session)
        older, newer = asked_number("older"), asked_number("newer")
        with st.spinner("Looking"):
            if newer is not None:
                found = browse(session, filters, beyond=newer, towards="newer")
            else:
                found = browse(session, filters, beyond=older)
        marked = _show_rows(found, filters, older, newer)
        _show_steps(found, older, newer)
        example = asked_number("example")
        view = example_view(session, example) if example is not None else None
        if view is not None:
            st.subheader("The example")
            show_example(view, marked)
        elif example is not None:
            st.info("There is no such example.")


def _from_start() -> None:
    """Another filter begins at the newest."""
    ask(older=None, newer=None)


def _filters(session: Session) -> Filters:
    """The filters as the URL has them; each writes itself there."""
    runs, teachers = dict(runs_of(session)), dict(teachers_of(session))
    first = st.columns([3, 2, 2, 2])
    run = _choice(first[0], "Run", "run", [str(key) for key in runs], {str(key): name for key, name in runs.items()})
    origin = _choice(first[1], "Origin", "origin", ORIGINS)
    grade = _choice(first[2], "Grade", "grade", GRADES)
    role = _choice(first[3], "Role", "role", ROLES)
    second = st.columns([3, 2, 2, 2])
    text = second[0].text_input(
        "Text contains", key="text", bind="query-params", max_chars=200, on_change=_from_start, type="search"
    )
    names = {str(key): name for key, name in teachers.items()}
    teacher = _choice(second[1], "Score by", "teacher", list(names), names)
    by = teacher or next(iter(names), None)
    number: dict[str, Any] = {"value": None, "step": 0.05, "format": "%.2f", "bind": "query-params"}
    least = second[2].number_input("At least", key="least", on_change=_from_start, disabled=by is None, **number)
    most = second[3].number_input("At most", key="most", on_change=_from_start, disabled=by is None, **number)
    return Filters(
        run_id=int(run) if run else None,
        origin=origin,
        grade=grade,
        role=role,
        text=(text or "").strip(),
        teacher_id=int(by) if by else None,
        least=least if by else None,
        most=most if by else None,
    )


def _choice(place: Any, label: str, key: str, options: Any, names: dict[str, str] | None = None) -> str | None:
    """One of the options, or none; the URL names it by the option itself."""
    named = names or {}
    chosen: str | None = place.selectbox(
        label,
        list(options),
        index=None,
        placeholder="any",
        key=key,
        bind="query-params",
        on_change=_from_start,
        format_func=lambda option: cell(named.get(option, option), 80),
    )
    return chosen


def _show_rows(found: Page, filters: Filters, older: int | None, newer: int | None) -> int | None:
    """The table; a chosen row puts its example into the URL. Returns the candidate that was chosen."""
    if not found.rows:
        st.info("Nothing matches." if found.is_end else "Nothing yet: search on, there is more to look through.")
        return None
    table = [
        {
            "role": row.role,
            "grade": row.grade or "",
            "rank": row.rank,
            "origin": row.origin,
            "score": row.score,
            "query": cell(row.query, 90),
            "text": cell(row.text, 160),
            "run": cell(row.run, 60),
        }
        for row in found.rows
    ]
    chosen = st.dataframe(
        table,
        hide_index=True,
        width="stretch",
        height=420,
        on_select="rerun",
        selection_mode="single-row",
        key=f"rows-{hash(filters)}-{older}-{newer}",
        column_config={
            "score": st.column_config.NumberColumn(format="%.3f"),
            "query": st.column_config.TextColumn(width="medium"),
            "text": st.column_config.TextColumn(width="large"),
        },
    )
    for place in chosen["selection"]["rows"][:1]:
        ask(example=found.rows[place].example_id)
        return found.rows[place].id
    return None


def _show_steps(found: Page, older: int | None, newer: int | None) -> None:
    """Steps by key. While a search for something rare has not come to the end, it says so."""
    is_first = older is None and newer is None
    going_newer = newer is not None
    last = found.rows[-1].id if found.rows and going_newer else found.reached
    first = found.reached if going_newer else (found.rows[0].id if found.rows else older)
    no_older = found.is_end and not going_newer
    no_newer = is_first or (going_newer and found.is_end)
    with st.container(horizontal=True):
        st.button("Newest", disabled=is_first, on_click=_from_start, width=120)
        st.button("Newer", disabled=no_newer, on_click=lambda: ask(newer=first, older=None), width=120)
        st.button("Older", disabled=no_older, on_click=lambda: ask(older=last, newer=None), width=120)
    if not found.is_end and len(found.rows) < PAGE:
        st.caption(
            f"{len(found.rows)} found so far; the search paused at candidate {found.reached:,}. Step on to go on."
        )


with page("Store") as opened:
    show(opened)
