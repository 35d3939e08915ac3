"""`gradus publish`: a release on the Hub, under one commit and one tag, read back and compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curation.publishing.changes import Change
    from curation.publishing.publishing import Plan


def publish(
    release: Annotated[str, typer.Argument(help="Name of a release in the store.")],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="The data set repository; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Another Hub; default: HF_ENDPOINT, else huggingface.co."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="A copy of the release; default: where it was written.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Publish a release: its folder is checked, one commit, one tag (its version), then every file is read back.

    The token is the one of HF_TOKEN or of `hf auth login`. A call that was cut off is finished by the next one.
    """
    from app.publishing import hub_repository
    from curation.publishing import publishing

    hub = hub_repository(repo, endpoint)
    with opened_store(store) as opened:
        if dry_run:
            plan = publishing.plan_publication(opened, release, hub, is_private=private, folder=folder)
            _show_plan(plan, hub.url)
            if json is not None:
                write_json(json, _plan_report(plan, hub))
            return
        with progress_bar(f"Publishing {release}") as progress:
            published = publishing.publish(opened, release, hub, is_private=private, folder=folder, progress=progress)
    _show_files(f"{published.repo}@{published.tag}", published.changes)
    if published.over_xet is False:
        console.print(escape(f"{published.endpoint} has no Xet storage: the files went over LFS"))
    done = "published" if published.is_new_commit else "finished" if published.is_new_tag else "unchanged"
    console.print(
        escape(f"{done}: {hub.url} at {published.tag}, commit {published.commit}, ")
        + f"{published.num_verified} files read back and compared"
    )
    console.print(escape(f'load_dataset("{published.repo}", "graded", revision="{published.tag}")'))
    if json is not None:
        write_json(json, published.to_dict())


def _show_plan(plan: "Plan", url: str) -> None:
    from app.publishing import plan_in_words

    content = plan.content
    _show_files(f"{content.name} as {content.tag}", plan.changes)
    console.print(escape(f"dry run, nothing was written: {plan_in_words(plan, url)}"))


def _show_files(title: str, changes: "Sequence[Change]") -> None:
    rows = [(change.path, change.action, change.size) for change in changes]
    total = sum(change.size for change in changes if change.action in ("add", "replace"))
    show_table(escape(title), ["file", "change", "bytes"], [*rows, ("to upload", "", total)])


def _plan_report(plan: "Plan", hub: Any) -> dict[str, Any]:
    return {
        "release": plan.content.name,
        "repo": hub.repo,
        "endpoint": hub.endpoint,
        "tag": plan.content.tag,
        "commit": plan.commit,
        "is_tagged": plan.is_tagged,
        "is_reachable": plan.is_reachable,
        "is_new_repository": plan.is_reachable and plan.state is None,
        "note": plan.note,
        "files": [{"path": c.path, "action": c.action, "size": c.size} for c in plan.changes],
    }
