"""`gradus push-model`: a trained model on the Hub, with a card of its training and of what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from app.opening import opened_if_there
from app.options import JsonFile, StoreUrl
from app.terminal import console, escape, progress_bar, show_table, write_json


def push_model(
    model: Annotated[Path, typer.Argument(help="Folder of a model that `gradus train` made.")],
    repo: Annotated[str, typer.Option("--repo", metavar="ORG/NAME", help="The model repository; made if missing.")],
    tag: Annotated[
        str | None, typer.Option("--tag", help="Name the commit, so that it can be loaded by `revision=TAG`.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option("--results", help="Reports of `gradus evaluate --json`, for the card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="Another Hub; default: HF_ENDPOINT, else huggingface.co."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and the files, and write nothing.")
    ] = False,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Write the model's card, README.md, and push the folder as one commit; every file is compared afterwards.

    The card names the release with its digest, where it was published (as the store knows), the digest of the recipe,
    and the results given. Results of other weights are refused, and so is a tag that names other files. Cut off, run
    it again: it goes on from what is there.
    """
    from app.model_card import model_card, results_of, trained_on
    from app.model_publishing import model_files
    from app.model_publishing import push_model as push
    from app.publishing import hub_repository
    from app.training_files import training_summary

    summary = training_summary(model)
    measured = results_of(model, results or [])
    hub = hub_repository(repo, endpoint, kind="model")
    with opened_if_there(store) as opened:
        source = trained_on(summary, opened, hub.endpoint)
    card = model_card(summary, source, measured, repo=repo, tag=tag, has_code=(model / "modeling_ata.py").is_file())
    if dry_run:
        console.print(escape(card))
        sizes = {name: file.size for name, file in model_files(model).items()} | {"README.md": len(card.encode())}
        show_table(f"To {escape(hub.url)}", ["file", "bytes"], list(sizes.items()))
        console.print("dry run, nothing was written, and the Hub was not asked")
        return
    (model / "README.md").write_text(card, encoding="utf-8")
    title = f"{summary['recipe']['name']}, trained on {source.release}"
    with progress_bar(f"Pushing {model.name}") as progress:
        pushed = push(model, hub, is_private=private, title=title, tag=tag, progress=lambda done: progress(done, None))
    done = "pushed" if pushed.is_new else "unchanged"
    named = f"tag {tag} of commit" if tag is not None else "commit"
    console.print(escape(f"{done}: {pushed.url}, {named} {pushed.commit}, {pushed.num_files} files compared"))
    if json is not None:
        write_json(json, pushed.to_dict())
