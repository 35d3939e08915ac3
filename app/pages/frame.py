"""What every page stands in: the store, our errors as one line, values of the URL, and text from outside.

Streamlit reads Markdown in captions, labels, headings and messages: what comes from a store goes there by `plain`
only. A bug keeps its traceback, on the terminal.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st
from sqlalchemy.exc import DatabaseError

from app.errors import AppError
from app.settings import Settings
from app.viewing.showing import cell, escaped
from curation.errors import CurationError
from db.errors import StoreError
from db.store import Store
from generator.errors import GeneratorError

_EXPECTED = (AppError, StoreError, CurationError, GeneratorError)
# What looks like an address becomes a link after escapes are read, so it is parted by a joiner without width.
_ADDRESS = re.compile(r"(?i)(?<=[a-z])(?=://)|(?<=www)(?=\.)|(?=@)")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&^=@/])")


@st.cache_resource
def _opened(url: str) -> Store:
    return Store.open(url)


@contextmanager
def page(title: str) -> Iterator[Store]:
    """A page under its title."""
    st.title(title)
    with refusals() as store:
        yield store


@contextmanager
def refusals() -> Iterator[Store]:
    """The store; what is refused is one line on the page."""
    try:
        yield _opened(store_url())
    except _EXPECTED as error:
        show_refused(str(error))
    except DatabaseError as error:
        show_refused(f"the database refused: {str(error.orig).splitlines()[0]}")


def store_url() -> str:
    """What the store is cached under; it may hold a password and is never shown."""
    return Settings().store_url


def show_refused(text: str) -> None:
    """An error as one line of plain text."""
    st.error(plain(cell(text, 1_000)))


def plain(text: str, most: int = 200) -> str:
    """Text for a place that reads Markdown, shown as it is."""
    return _MARKDOWN.sub(r"\\\1", _ADDRESS.sub("\u2060", cell(text, most)))


def heading(text: str) -> None:
    """A small heading with text from outside."""
    st.html(f"<div style='font-weight:600;font-size:1.1rem;overflow-wrap:anywhere'>{escaped(text, 600)}</div>")


def asked_number(name: str) -> int | None:
    """A key that the URL names; None when it names none, or something else."""
    asked = st.query_params.get(name, "")
    return int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 18 else None


def ask(**wanted: object) -> None:
    """Put these into the URL; None takes one out."""
    for name, value in wanted.items():
        if value is None:
            st.query_params.pop(name, None)
        else:
            st.query_params[name] = str(value)
