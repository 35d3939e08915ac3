"""The pages' entry point: navigation."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit runs this file as a script, which puts its own folder first on the path: `app` must be found above it.
ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

# (file, title)
PAGES = (
    ("overview", "Overview"),
    ("audit", "Ordering audit"),
    ("runs", "Runs"),
    ("store_browser", "Store"),
    ("releases", "Releases"),
    ("training", "Training"),
    ("review", "Review"),
    ("review_decide", "Decide"),
    ("agreement", "Agreement"),
    ("adjudication", "Adjudication"),
    ("bulk", "Bulk"),
)

st.set_page_config(page_title="Gradus", layout="wide")
from app.pages.person import is_admitted  # noqa: E402 - found above this folder only now

if not is_admitted():
    st.stop()
_HERE = Path(__file__).parent
st.navigation(
    [
        st.Page(str(_HERE / f"{name}.py"), title=title, url_path=name, default=name == "overview")
        for name, title in PAGES
    ],
    position="top",
).run()
