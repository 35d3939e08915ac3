"""The pages' entry point: navigation."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit runs this file as a script, which puts its own folder first on the path: `app` must be found above it.
ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# (file, title); what is not there yet is left out.
PAGES = (
    ("overview", "Overview"),
    ("audit", "Ordering audit"),
    ("runs", "Runs"),
    ("store_browser", "Store"),
    ("releases", "Releases"),
    ("training", "Training"),
    ("review", "Review"),
    ("review_decide", "Decide"),
)

st.set_page_config(page_title="Gradus", layout="wide")
_FILES = [(Path(__file__).parent / f"{name}.py", name, title) for name, title in PAGES]
st.navigation(
    [
        st.Page(str(file), title=title, url_path=name, default=name == "overview")
        for file, name, title in _FILES
        if file.is_file()
    ],
    position="top",
).run()
