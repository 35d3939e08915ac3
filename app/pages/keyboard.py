"""What a page that is decided by keys hears: keyboard.js says which presses count."""

from pathlib import Path

import streamlit as st

_SCRIPT = f"<script>{Path(__file__).with_suffix('.js').read_text(encoding='utf-8')}</script>"


def hear_keys() -> None:
    """Once on each page that is decided by keys. No data is in it."""
    st.html(_SCRIPT, unsafe_allow_javascript=True)
