"""Who sits before a review page, said loudly where nobody signs in, and the way in where people do."""

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from sqlalchemy.exc import DatabaseError

from app.errors import AppError
from app.identity import Identity, identity_of, is_sign_in_configured, put_first_person
from app.pages.frame import plain, show_refused
from app.settings import Settings
from curation.errors import CurationError
from db.errors import StoreError
from db.store import Store


@st.cache_resource
def _opened(url: str) -> Store:
    return Store.open(url)


@contextmanager
def refusals() -> Iterator[Store]:
    """The store; what is refused is one line on the page, and a bug keeps its traceback."""
    try:
        yield _opened(Settings().store_url)
    except (AppError, StoreError, CurationError) as error:
        show_refused(str(error))
    except DatabaseError as error:
        show_refused(f"the database refused: {str(error.orig).splitlines()[0]}")


def person_here(store: Store) -> Identity:
    """The person of this page; the page ends here for one who has to sign in first."""
    is_sign_in = is_sign_in_configured()
    identity = identity_of(st.user.to_dict(), Settings().reviewer, is_sign_in=is_sign_in)
    if identity is None:
        st.info("Sign in to review.")
        st.button("Sign in", on_click=st.login)
        st.stop()
    if identity.is_single_user:
        st.warning(
            f"Single-user: nobody signs in, and whoever opens these pages on this machine decides as "
            f"**{plain(identity.name)}**. Another name: GRADUS_REVIEWER."
        )
    put_first_person(store, identity)
    return identity
