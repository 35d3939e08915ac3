"""Training: curves per rank, gradient variance by block, and margins before and after."""

from pathlib import Path
from typing import Any

import streamlit as st

from app.pages.charts import curve_chart, variance_chart
from app.pages.frame import ask, page, plain, store_url
from app.settings import Settings
from app.viewing.showing import cell
from app.viewing.training_curves import (
    TrainedModel,
    evaluation_rows,
    listed_models,
    model_marks,
    stored_model,
    trained_model,
)
from db.store import Store

_TITLES = {
    "loss": "Loss",
    "gradient_norm": "Gradient norm",
    "positive": "Similarity of the positives",
    "written": "Similarity of the written negatives",
    "mined": "Similarity of the mined negatives",
}
_FACTS = ("release", "num_examples", "num_steps", "started_at", "finished_at", "bf16", "machine")


@st.cache_data(show_spinner="Reading the model's files", max_entries=8)
def _of_folder(folder: str, name: str, marks: tuple[int, ...]) -> TrainedModel:
    return trained_model(Path(folder), name)


@st.cache_data(show_spinner="Reading the training", max_entries=8)
def _of_store(_store: Store, url: str, training_id: int, label: str) -> TrainedModel:
    with _store.read() as session:
        return stored_model(session, training_id, label)


def _read(store: Store, folder: Path, label: str, source: int | str) -> TrainedModel:
    if isinstance(source, int):
        return _of_store(store, store_url(), source, label)
    return _of_folder(str(folder), source, model_marks(folder, source))


def show(store: Store) -> None:
    folder = Settings().models
    with store.read() as session:
        sources = listed_models(session, folder)
    names = list(sources)
    if not names:
        st.info("No model is trained yet. Run `gradus train RECIPE`.")
        return
    left, right = st.columns(2)
    asked = st.query_params.get("model", "")
    name = left.selectbox("Model", names, index=names.index(asked) if asked in names else 0, format_func=cell)
    ask(model=name)
    other = right.selectbox(
        "Beside it", [one for one in names if one != name], index=None, placeholder="none", format_func=cell
    )
    models = [_read(store, folder, one, sources[one]) for one in (name, other) if one is not None]
    _show_facts(models)
    _show_evaluation(models)
    st.subheader("Curves per rank")
    for measure, title in _TITLES.items():
        rows = [
            {**point, "step": point["step"] + 1, "model": cell(model.name, 40)}
            for model in models
            for point in model.steps  # numbered from 1, as the plan is
            if point["measure"] == measure
        ]
        if rows:
            st.altair_chart(curve_chart(rows, "value", title), width="stretch")
    margins = [
        {**point, "step": point["step"] + 1, "model": cell(model.name, 40)}
        for model in models
        for point in model.margins
    ]
    if margins:
        st.altair_chart(curve_chart(margins, "margin", "Margin, positive less negative"), width="stretch")
    _show_variance(models)
    _show_margins(models)


def _show_facts(models: list[TrainedModel]) -> None:
    for model in models:
        recipe = model.summary.get("recipe") or {}
        kept = ("model", "schedule", "pooling", "learning_rate", "batch_size", "seed")
        parts = [f"{key.replace('_', ' ')}: {recipe[key]}" for key in kept if key in recipe]
        parts += [f"{key.replace('_', ' ')}: {model.summary[key]}" for key in _FACTS if key in model.summary]
        st.text(cell(f"{model.name}: {', '.join(parts) or 'still in training, or of another version'}", 900))
        if model.missing:
            st.caption(f"Not told: {plain(', '.join(model.missing))}")


def _show_evaluation(models: list[TrainedModel]) -> None:
    """The data folder's report, where it is of one of these models; what it was compared with stands beside it."""
    told, rows = evaluation_rows(Settings().data / "evaluation.json")
    names = {str((model.summary.get("recipe") or {}).get("name", model.name)) for model in models}
    if not names & {row["model"] for row in rows}:
        return
    st.subheader("Before and after")
    st.caption(f"Measured on {plain(told)}, as `evaluation.json` of the data folder has it.")
    table: list[dict[str, Any]] = []
    for row in rows:
        difference = row.pop("difference")
        interval = ""
        if isinstance(difference, dict) and isinstance(difference.get("interval_95"), list):
            low, high = difference["interval_95"]
            interval = f"{difference.get('difference', 0):+.3f} ({low:+.3f} to {high:+.3f})"
        figures = {cell(name, 40): value for name, value in row.items() if name != "model"}
        table.append({"model": cell(row["model"], 60), **figures, "against the first, 95 %": interval})
    config = {name: st.column_config.NumberColumn(format="%.3f") for name in table[0] if name.endswith(("@10", "@100"))}
    st.dataframe(table, hide_index=True, width="stretch", column_config=config)


def _show_variance(models: list[TrainedModel]) -> None:
    rows = [{**block, "model": cell(model.name, 40)} for model in models for block in model.blocks]
    if not rows:
        return
    st.subheader("Gradient variance")
    st.altair_chart(variance_chart([row for row in rows if row["gradient_variance"] is not None]), width="stretch")
    number = st.column_config.NumberColumn(format="%.3f")
    names = ("loss", "positive", "written", "mined", "gradient_variance")
    order = ["model", "block", "rank", *names] if len(models) > 1 else ["block", "rank", *names]
    shown = [{**row, "block": str(row["block"])} for row in rows]
    config = dict.fromkeys(names, number)
    st.dataframe(shown, hide_index=True, width="stretch", column_order=order, column_config=config)


def _show_margins(models: list[TrainedModel]) -> None:
    rows = [
        {
            "model": cell(model.name, 40),
            "rank": one["rank"],
            "margins": one["num"],
            "first quarter": one["before"],
            "last quarter": one["after"],
            "above the positive, first": one["above_before"],
            "above the positive, last": one["above_after"],
        }
        for model in models
        for one in model.before_after
    ]
    if not rows:
        return
    st.subheader("Margins when a rank was met first and last")
    number, share = st.column_config.NumberColumn(format="%.3f"), st.column_config.NumberColumn(format="percent")
    config = {
        "first quarter": number,
        "last quarter": number,
        "above the positive, first": share,
        "above the positive, last": share,
    }
    st.dataframe(rows, hide_index=True, width="stretch", column_config=config)


with page("Training") as opened:
    show(opened)
