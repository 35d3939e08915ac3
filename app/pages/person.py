"""Who looks at the pages, said loudly where nobody signs in, and as whom a press on them acts.

Where people sign in, a page is shown to those whom an admin has added; without sign-in everyone on this machine is one
person. What a person may do is checked by the functions that write.
"""

import streamlit as st

from app.pages.frame import plain, refusals
from app.reviewing.identity import Identity, identity_of, is_sign_in_configured, put_first_person
from app.settings import Settings
from curation.errors import CurationError
from curation.reviewing.people import reviewer_of
from db.store import Store


def is_admitted() -> bool:
    """Whether the person of this session may look; otherwise the page says why not, and how."""
    with refusals() as store:
        if not is_sign_in_configured():
            return True
        identity = identity_of(st.user.to_dict(), None, is_sign_in=True)
        if identity is None:
            st.title("Gradus")
            st.info("Sign in to see these pages.")
            st.button("Sign in", on_click=st.login)
            return False
        with store.read() as session:
            reviewer_of(session, identity.name)
        return True
    return False  # `refusals` has said why


def acting_name(store: Store) -> str:
    """The name under which this session writes.

    Raises:
        CurationError: Nobody has signed in.
    """
    return _acting(store).name


def person_here(store: Store) -> Identity:
    """The same person, told on the page where everybody on this machine is that person."""
    identity = _acting(store)
    if identity.is_single_user:
        st.warning(
            f"Single-user: nobody signs in, and whoever opens these pages on this machine decides as "
            f"**{plain(identity.name)}**. Another name: GRADUS_REVIEWER."
        )
    return identity


def _acting(store: Store) -> Identity:
    identity = identity_of(st.user.to_dict(), Settings().reviewer, is_sign_in=is_sign_in_configured())
    if identity is None:
        raise CurationError("nobody has signed in: sign in first")
    put_first_person(store, identity)
    return identity
