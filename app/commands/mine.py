"""`gradus mine`: hard negatives from the corpus, by a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import escape, progress_bar, show_table, write_json

_FATES = {"keep": "kept short", "drop": "dropped", "deeper": "after searching deeper"}


def mine(
    recipe: Annotated[Path, typer.Argument(help="A mining recipe (TOML).")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Mine negatives: teachers propose, a ceiling below the positive keeps suspected positives out."""
    from app.encoders import build_teacher
    from app.recipes import load_recipe
    from curation.mining.mining import mine as run
    from curation.mining.recipe import MineRecipe

    resolved = load_recipe(recipe, MineRecipe)
    with opened_store(store) as opened, progress_bar(f"Mining {resolved.name}") as progress:
        report = run(opened, resolved, build_teacher, progress=progress)
    found = report.to_dict()
    columns = ["teacher", "proposed", "known positives", f"refused by {resolved.method}", "survivors", "survival"]
    rows = [
        (of["teacher"], of["num_proposed"], of["num_known_positives"], of["num_over_ceiling"], of["num_survivors"],
         of["survival_rate"])
        for of in [*found["teachers"], found | {"teacher": "all"}]
    ]  # fmt: skip
    show_table(f"Mining {escape(resolved.name)}: what was proposed", columns, rows)
    counts = [
        ("examples", report.num_examples),
        ("negatives kept", report.num_candidates),
        (f"examples with fewer than asked ({_FATES[resolved.too_few]})", report.num_short_of_negatives),
        ("findings new to the store", report.num_new),
    ]
    if resolved.too_few == "deeper":
        counts.insert(2, ("queries searched deeper", report.num_searched_deeper))
    show_table("What was kept", ["what", "number"], counts)
    if json is not None:
        write_json(json, found)
