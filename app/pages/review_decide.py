"""The decision page: one example, its negatives one after the other, by keys.

Everything that a press needs is bound into its button: the slot, the negative and the decision that stood when it was
painted, and the button's key names them too. Streamlit then runs the callback of the button that the person saw; with
a constant key it runs that of the server's last rendering, and decisions land on items that nobody saw. For the same
reason all of it is one fragment, and where a person stands is read from the store at each run.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import streamlit as st
from sqlalchemy.exc import DatabaseError

from app.pages.frame import asked_number, plain, refusals, show_refused
from app.pages.keyboard import hear_keys
from app.pages.person import person_here
from app.reviewing.desk import (
    Desk,
    Press,
    Seat,
    accept_edit,
    focus_of,
    open_desk,
    press,
    rescored,
    step_back,
    stepped,
    swap_partner,
)
from app.reviewing.edit_scoring import bundled_encoder, scoring_of
from app.reviewing.ladder_view import item_html, progress_html, rescored_html
from app.viewing.showing import shown
from curation.errors import CurationError, LeaseLostError
from curation.reviewing.edits import Rescored
from db.store import Store
from db.tables.base import utc_now

_VERDICTS = (
    ("Keep", "K", Press("keep")),
    ("Drop", "D", Press("drop")),
    ("Hard", "1", Press("regrade", "hard")),
    ("Medium", "2", Press("regrade", "medium")),
    ("Easy", "3", Press("regrade", "easy")),
    ("False negative", "F", Press("false_negative")),
)
_Done = TypeVar("_Done")
_MAX_NOTE, _MAX_TEXT, _MAX_RUBRIC = 10_000, 100_000, 40_000
# The page begins below the navigation, and headings of the guidelines are not larger than the item.
_STYLE = """<style>
  [data-testid="stMainBlockContainer"] { padding-top: 4.2rem; }
  .st-key-guidelines :is(h1, h2, h3, h4, h5, h6) { font-size: 1rem; padding: .4rem 0 .1rem; }
</style>"""

_encoder = st.cache_resource(bundled_encoder)


def show() -> None:
    st.html(_STYLE)
    hear_keys()
    with refusals() as store:
        person = person_here(store)
        session_id = asked_number("session")
        if session_id is None:
            st.info("No review session is open here: choose one on the page of sessions.")
            st.page_link("review.py", label="Review sessions")
            return
        _desk(store, Seat(session_id, person.name))


@st.fragment
def _desk(store: Store, seat: Seat) -> None:
    with refusals():
        is_detailed = st.session_state.get("is_detailed", False)
        try:
            desk, progress, last = open_desk(store, seat, is_detailed=is_detailed)
        except CurationError:
            _give_back(None, "what you wrote was not recorded")
            _show_told()
            raise
        _give_back(desk, "it was decided elsewhere, or is somebody else's by now; what you wrote was not recorded")
        left, right = st.columns([3.2, 1], gap="medium")
        with right:
            st.html(progress_html(progress))
            if desk is not None:
                _show_guidelines(desk)
        with left:
            with st.container():  # there without a child too: what follows keeps its place, and a box its cursor
                _show_told()
            if desk is None:
                st.success("Nothing is left for you in this session.")
                _button("Undo", "U", f"end-{last}", _undo, store, seat, last, disabled=last is None)
            else:
                _show_item(store, desk)


def _give_back(desk: Desk | None, why: str) -> None:
    """A text whose negative is not before the person any more is told, not dropped with its form."""
    written: tuple[str, str] | None = st.session_state.get("written")
    if written is None:
        return
    if desk is not None:
        focus = focus_of(desk, *st.session_state.get("place", {}).get(desk.item.key, (None, None)))
        if written[0] == f"{desk.item.key}-{focus}":
            return
    told = st.session_state.get("told", ("", ""))[0]
    st.session_state["told"] = (told or why, written[1])
    st.session_state["written"] = st.session_state["writing"] = st.session_state["edit"] = None


def _show_guidelines(desk: Desk) -> None:
    with st.container(key="guidelines", gap="xsmall"):
        st.caption(f"Guidelines: {plain(desk.rubric_title)}")
        st.markdown(shown(desk.rubric[:_MAX_RUBRIC]))
        if len(desk.rubric) > _MAX_RUBRIC:
            st.caption(f"{len(desk.rubric) - _MAX_RUBRIC:,} more characters are not shown here.")


def _show_item(store: Store, desk: Desk) -> None:
    focus = focus_of(desk, *st.session_state.get("place", {}).get(desk.item.key, (None, None)))
    painted = f"{desk.item.key}-{focus}"
    shown_at = _first_shown(painted)
    # What is painted goes over the wire before its keys: a key of what is not painted yet could decide it unseen.
    keys = st.container()
    st.html(item_html(desk.item, focus, is_detailed=st.session_state.get("is_detailed", False)))
    with keys:
        _show_controls(store, desk, focus, painted, shown_at)


def _show_controls(store: Store, desk: Desk, focus: int, painted: str, shown_at: datetime) -> None:
    """The keys, or in their place the text that is being written."""
    writing, edit = st.session_state.get("writing"), st.session_state.get("edit")
    if edit and edit[0] == painted:
        _show_rescored(store, desk, painted, edit[1], shown_at)
    elif writing and writing[1] == painted:
        _show_writing(store, desk, focus, writing[0], shown_at)
    else:
        st.session_state["writing"] = None  # a box that was asked for elsewhere does not open on a way back
        _show_keys(store, desk, focus, painted, shown_at)


def _show_keys(store: Store, desk: Desk, focus: int, painted: str, shown_at: datetime) -> None:
    def key(label: str, shortcut: str, act: Callable[..., None], *args: Any, **options: Any) -> None:
        _button(label, shortcut, painted, act, *args, **options)

    with st.container(horizontal=True, gap="xsmall"):
        for label, shortcut, what in _VERDICTS:
            key(label, shortcut, _press, store, desk, what, focus, shown_at)
        key("Edit", "E", _write, "edit", painted)
        other = swap_partner(desk, focus)
        label = f"Swap with {plain(other[1])}" if other else "Swap"
        swap = (store, desk, Press("swap"), focus, shown_at, other and other[0])
        key(label, "W", _press, *swap, disabled=other is None)
    with st.container(horizontal=True, gap="xsmall"):
        key("Accept all", "A", _press, store, desk, Press("accept_all"), None, shown_at)
        key("Skip", "S", _press, store, desk, Press("skip"), None, shown_at)
        key("Flag", "G", _write, "flag", painted)
        key("Undo", "U", _undo, store, desk.seat, desk.last_decision_id, disabled=desk.last_decision_id is None)
        key("Previous", "Up", _place, desk, stepped(desk, focus, -1))
        key("Next", "Down", _place, desk, stepped(desk, focus, 1))
        key("Why", "V", _toggle_details)


def _button(
    label: str, shortcut: str, painted: str, act: Callable[..., None], *args: Any, disabled: bool = False
) -> None:
    name = label.split(" with ", maxsplit=1)[0].lower().replace(" ", "-")
    st.button(label, key=f"{name}-{painted}", shortcut=shortcut, on_click=act, args=args, disabled=disabled)


def _show_writing(store: Store, desk: Desk, focus: int, kind: str, shown_at: datetime) -> None:
    """A text to write: Ctrl+Enter saves it, Escape leaves it."""
    painted = f"{desk.item.key}-{focus}"
    box = f"text-{kind}-{painted}"
    title = "New text of the negative" if kind == "edit" else "What is wrong with this example"
    text = next(rung.text for rung in desk.item.rungs if rung.candidate_id == focus) if kind == "edit" else ""
    with st.container(key="writing"), st.form(f"form-{kind}-{painted}", border=False):
        if kind == "edit":
            _encoder()  # begins to load: by the time the text is written it can be scored
        most = _MAX_TEXT if kind == "edit" else _MAX_NOTE
        st.text_area(title, text, key=box, max_chars=most, height=200)
        st.form_submit_button("Save (Ctrl+Enter)", on_click=_save, args=(store, desk, focus, kind, box, shown_at))
    _button("Cancel", "Esc", painted, _write, None, painted)


def _show_rescored(store: Store, desk: Desk, painted: str, edit: Rescored, shown_at: datetime) -> None:
    """The teachers' figures of an edited text beside the old ones, before it is accepted."""
    st.html(rescored_html(edit))
    with st.container(horizontal=True, gap="xsmall"):
        _button("Accept the edit", "Y", painted, _accept_edit, store, desk, edit, shown_at)
        _button("Cancel", "Esc", painted, _drop_edit)


def _press(
    store: Store,
    desk: Desk,
    what: Press,
    candidate_id: int | None,
    shown_at: datetime,
    other_candidate_id: int | None = None,
    note: str | None = None,
) -> None:
    done = _try(
        lambda: press(
            store, desk, what, candidate_id, shown_at=shown_at, other_candidate_id=other_candidate_id, note=note
        )
    )
    if done is not None and candidate_id is not None:
        _stand(desk.item.key, *((candidate_id, None) if what.kind == "swap" else (None, candidate_id)))


def _save(store: Store, desk: Desk, focus: int, kind: str, box: str, shown_at: datetime) -> None:
    """What is refused stays in its form, as long as its negative stands there."""
    text = st.session_state[box]
    st.session_state["written"] = (f"{desk.item.key}-{focus}", text)
    if kind == "edit":
        edit = _try(lambda: rescored(store, desk, focus, text, scoring_of(store, _encoder())))
        if edit is not None:
            st.session_state["edit"] = (f"{desk.item.key}-{focus}", edit)
            st.session_state["writing"] = None
        return
    note = _try(lambda: press(store, desk, Press("flag"), None, shown_at=shown_at, note=text))
    if note is not None and note.is_new:
        st.session_state["writing"] = st.session_state["written"] = None


def _accept_edit(store: Store, desk: Desk, edit: Rescored, shown_at: datetime) -> None:
    done = _try(lambda: accept_edit(store, desk, edit, shown_at=shown_at), edit.text)
    st.session_state["edit"] = st.session_state["written"] = None
    if done is not None:
        _stand(desk.item.key, None, edit.candidate_id)


def _drop_edit() -> None:
    st.session_state["edit"] = st.session_state["written"] = None


def _undo(store: Store, seat: Seat, painted_last: int | None) -> None:
    undone = _try(lambda: step_back(store, seat, painted_last))
    if undone is not None:
        _stand(f"{undone.assignment_id}-{undone.item_id}", undone.candidate_id, None)


def _place(desk: Desk, candidate_id: int) -> None:
    _stand(desk.item.key, candidate_id, None)


def _stand(item_key: str, wanted: int | None, after: int | None) -> None:
    """Where the page stands in an item: on a negative, or on the first open one after it. Lost at a reload, no harm."""
    st.session_state["place"] = {item_key: (wanted, after)}


def _write(kind: str | None, painted: str) -> None:
    st.session_state["writing"] = None if kind is None else (kind, painted)
    st.session_state["written"] = None


def _toggle_details() -> None:
    st.session_state["is_detailed"] = not st.session_state.get("is_detailed", False)


def _try(act: Callable[[], _Done], text: str = "") -> _Done | None:
    """What is refused is told until the next act; with the text that the person wrote, until they dismiss it."""
    if not st.session_state.get("told", ("", ""))[1]:
        st.session_state.pop("told", None)
    try:
        return act()
    except LeaseLostError as error:
        # The form goes at once: the item may come back to this person, as one that they have to look at anew.
        _, written = st.session_state.get("written") or ("", "")
        st.session_state["writing"] = st.session_state["edit"] = st.session_state["written"] = None
        st.session_state["told"] = (str(error).partition(". Your text: ")[0], text or written)
    except CurationError as error:
        st.session_state["told"] = (str(error).partition(". Your text: ")[0], text)
    except DatabaseError as error:
        st.session_state["told"] = (f"the database refused, try again: {str(error.orig).splitlines()[0]}", text)
    return None


def _show_told() -> None:
    told, text = st.session_state.get("told", ("", ""))
    if told:
        show_refused(told)
    if text:
        st.caption("What you wrote:")
        st.code(shown(text), language=None, wrap_lines=True)
        st.button("Dismiss", key="dismiss", shortcut="X", on_click=lambda: st.session_state.pop("told", None))


def _first_shown(painted: str) -> datetime:
    """When this was painted first; painting it again does not make a decision look faster."""
    before, at = st.session_state.get("shown_at", ("", None))
    if before != painted or at is None:
        at = utc_now()
        st.session_state["shown_at"] = (painted, at)
    return at


show()
