"""Releases: what is frozen, by which gates, what changed between two, and publishing one after a dry run."""

from collections.abc import Sequence
from typing import Any

import streamlit as st
from sqlalchemy import func, select

from app.errors import AppError
from app.pages.frame import ask, heading, page, plain, show_refused, store_url
from app.pages.person import acting_name
from app.publishing import hub_repository, plan_as, plan_in_words, publish_as
from app.viewing.showing import cell
from curation.errors import CurationError
from curation.publishing.changes import Change
from curation.release.catalogue import Listed, find_release, list_releases
from curation.release.differences import diff_releases
from db.publications import publications
from db.store import Store
from db.tables.releases import Release, ReleaseEvent

_MOST_ROWS = 20
Marks = tuple[int, int]


@st.cache_data(show_spinner="Reading the releases", max_entries=4)
def _listed(_store: Store, url: str, marks: Marks) -> list[Listed]:
    return list_releases(_store)


@st.cache_data(show_spinner="Comparing", max_entries=8)
def _difference(_store: Store, url: str, first: str, second: str, marks: Marks) -> dict[str, Any]:
    return diff_releases(_store, first, second)


def show(store: Store) -> None:
    with store.read() as session:
        newest = (session.scalar(select(func.max(table.id))) or 0 for table in (Release, ReleaseEvent))
        marks: Marks = (next(newest), next(newest))
    listed = _listed(store, store_url(), marks)
    if not listed:
        st.info("Nothing is released yet. Run `gradus release create NAME-1.0.0`.")
        return
    table = [
        {
            "release": one.name,
            "made": one.created_at,
            "candidates": one.num_items,
            "parent": one.parent or "",
            "state": cell(f"retired: {one.retired}") if one.retired else "in use",
            "digest": cell(one.digest, 12),
        }
        for one in reversed(listed)
    ]
    made = st.column_config.DatetimeColumn("made (UTC)", format="YYYY-MM-DD HH:mm", timezone="UTC")
    st.dataframe(table, hide_index=True, width="stretch", column_config={"made": made})
    names = [one.name for one in reversed(listed)]
    asked = st.query_params.get("release", "")
    name = st.selectbox("Release", names, index=names.index(asked) if asked in names else 0, format_func=cell)
    ask(release=name)
    chosen = next(one for one in listed if one.name == name)
    with store.read() as session:
        release = find_release(session, name)
        manifest, release_id = release.manifest, release.id
    _show_release(chosen, manifest, publications(store, release_id))
    if len(names) > 1:
        _show_difference(store, names, chosen, marks)
    _show_publishing(store, chosen)


def _show_release(chosen: Listed, manifest: dict[str, Any], published: Sequence[dict[str, str]]) -> None:
    if chosen.retired:
        st.warning(plain(f"Retired: {chosen.retired}", 400))
    for one in published:
        st.text(cell(f"Published as {one.get('repo')}@{one.get('tag')} on {one.get('endpoint')}", 300))
    st.subheader("Gates")
    _show_gates(manifest.get("gates") or [])
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Rows")
        rows = [
            {"configuration": cell(config), "split": cell(split), "rows": num}
            for config, splits in chosen.rows.items()
            for split, num in splits.items()
        ]
        st.dataframe(rows, hide_index=True, width="stretch", height="content")
    with right:
        st.subheader("Made of")
        runs = [
            {
                "kind": cell(run["kind"]),
                "run": cell(run["name"]),
                "recipe": cell(run["recipe_digest"], 12),
                "seed": run["seed"],
            }
            for run in manifest.get("runs") or ()
        ]
        st.dataframe(runs, hide_index=True, width="stretch")
        sources = [
            {"source": cell(one["name"]), "licence": cell(one["licence"]), "examples": one["num_examples"]}
            for one in manifest.get("sources") or ()
        ]
        st.dataframe(sources, hide_index=True, width="stretch")


def _show_gates(gates: Sequence[dict[str, Any]]) -> None:
    if not gates:
        st.info("This release was made without gates.")
        return
    rows = [
        {
            "gate": cell(gate["gate"].replace("_", " ")),
            "limit": cell(f"{gate['sense']} {gate['limit']:g}"),
            "figure": "not measured" if gate["figure"] is None else f"{gate['figure']:.4g}",
            "of": cell(gate["note"]),
            "verdict": "met"
            if gate["is_met"]
            else cell(f"let through by {gate['overridden_by']}: {gate.get('reason') or ''}")
            if gate["overridden_by"]
            else "shut",
        }
        for gate in gates
    ]
    st.dataframe(rows, hide_index=True, width="stretch")
    for gate in gates:
        if not gate["is_met"] and gate["rows"]:
            with st.expander(plain(f"Rows behind {gate['gate'].replace('_', ' ')}")):
                shown = [_readable(row) for row in gate["rows"][:_MOST_ROWS]]
                st.dataframe(shown, hide_index=True, width="stretch")


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """Words and figures of a row; digests are for programs."""
    return {
        cell(name): value if value is None or isinstance(value, int | float) else cell(str(value))
        for name, value in row.items()
        if "digest" not in name and not name.startswith("audited")
    }


def _show_difference(store: Store, names: Sequence[str], chosen: Listed, marks: Marks) -> None:
    st.subheader("What changed")
    others = [name for name in names if name != chosen.name]
    place = others.index(chosen.parent) if chosen.parent in others else None
    since = st.selectbox("Since", others, index=place, placeholder="choose a release", format_func=cell)
    if since is None:
        return
    found = _difference(store, store_url(), since, chosen.name, marks)
    changed = cell(", ".join(found["configurations"]) or "none", 400)
    st.text(f"{found['num_kept']:,} candidates are in both. Configurations with other bytes: {changed}")
    parts = [("came", found["came"]), ("went", found["went"])]
    parts += [("changed side", found["changed"]["split"]), ("changed place", found["changed"]["place"])]
    reasons = [
        {
            "what": what,
            "number": one["num"],
            "why": cell(one["reason"]),
            "such as": cell(one["rows"][0]["text"]) if one.get("rows") else "",
        }
        for what, part in parts
        for one in part["reasons"]
    ]
    if reasons:
        st.dataframe(reasons, hide_index=True, width="stretch")
    recipe = [
        {"recipe": cell(one["key"]), "was": cell(str(one["was"])), "now": cell(str(one["now"]))}
        for one in found["recipe"]
    ]
    if recipe:
        st.dataframe(recipe, hide_index=True, width="stretch")
    rows = [
        {"configuration": cell(one["configuration"]), "split": cell(one["split"]), "was": one["was"], "now": one["now"]}
        for one in found["rows"]
    ]
    if rows:
        st.dataframe(rows, hide_index=True, width="stretch")


def _show_publishing(store: Store, chosen: Listed) -> None:
    """A dry run first, and only what it was about can then be published.

    The Hub is the one of this machine's settings: were it asked for here, the token could be sent anywhere.
    """
    st.subheader("Publish")
    if chosen.retired:
        st.info("It was retired, so it is not published.")
        return
    with st.form("dry-run"):
        repo = st.text_input("Repository", placeholder="ORG/NAME", max_chars=200)
        is_private = st.checkbox("Make it private when it is new")
        asked = st.form_submit_button("Dry run")
    if told := st.session_state.pop("published", None):
        st.success(plain(told, 400))
    if asked:
        st.session_state["planned"] = None
        with st.spinner("Checking the folder, asking the Hub"):
            hub = hub_repository(repo.strip())
            plan = plan_as(store, chosen.name, hub, by=acting_name(store), is_private=is_private)
        st.session_state["planned"] = (chosen.name, hub.repo, is_private, plan_in_words(plan, hub.url), plan.changes)
    planned = st.session_state.get("planned")
    if not planned or planned[0] != chosen.name:
        return
    _, there, private, told, changes = planned
    heading(f"{chosen.name} to {there}")
    st.text(cell(f"Dry run, nothing was written: {told}", 600))
    _show_files(changes)
    if st.button("Publish", type="primary") and _publish(store, chosen.name, there, is_private=private):
        # Painted again without the button: to publish once more takes another dry run.
        st.session_state["planned"] = None
        st.rerun()


def _show_files(changes: Sequence[Change]) -> None:
    rows = [{"file": cell(change.path), "change": change.action, "bytes": change.size} for change in changes]
    st.dataframe(rows[:200], hide_index=True, width="stretch", height=260)


def _publish(store: Store, name: str, repo: str, *, is_private: bool) -> bool:
    """Whether it is on the Hub now; otherwise it says why not."""
    bar = st.progress(0.0, text="Publishing")

    def move(done: int, total: int | None) -> None:
        bar.progress(min(1.0, done / total) if total else 0.0, text=f"Publishing, {done:,} of {total or 0:,}")

    try:
        hub = hub_repository(repo)
        published = publish_as(store, name, hub, by=acting_name(store), is_private=is_private, progress=move)
    except (AppError, CurationError) as error:
        bar.empty()
        show_refused(str(error))
        return False
    bar.empty()
    done = "published" if published.is_new_commit else "finished" if published.is_new_tag else "unchanged"
    st.session_state["published"] = (
        f"{done}: {hub.url} at {published.tag}, commit {published.commit}, {published.num_verified} files read back "
        "and compared"
    )
    return True


with page("Releases") as opened:
    show(opened)
