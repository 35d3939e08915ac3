"""The pages' entry point: navigation."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit runs this file as a script, which puts its own folder first on the path: `app` must be found above it.
ROOT = str(Path(__file__).parents[2])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

st.set_page_config(page_title="Gradus", layout="wide")
st.navigation([st.Page(str(Path(__file__).parent / "overview.py"), title="Overview", default=True)]).run()
