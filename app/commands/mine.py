"""`gradus mine`: hard negatives from the corpus, by a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.terminal import escape, progress_bar, show_table, write_json


def mine(
    recipe: Annotated[Path, typer.Argument(help="A mining recipe (TOML).")],
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Mine negatives: BM25 and a dense teacher propose, a positive-aware ceiling keeps suspected positives out."""
    from app.encoders import embedding_cache
    from app.recipes import load_recipe
    from curation.mining.mining import mine as run
    from curation.mining.recipe import MineRecipe

    resolved = load_recipe(recipe, MineRecipe)
    with opened_store(store) as opened, progress_bar(f"Mining {resolved.name}: embedding") as progress:
        report = run(opened, resolved, embedding_cache(resolved.teacher), progress=progress)
    rows = [
        ("examples", report.num_examples),
        ("passages proposed", report.num_proposed),
        ("known positives among them", report.num_known_positives),
        (f"not below {resolved.percentage:.0%} of the positive", report.num_over_ceiling),
        ("survivors", report.num_survivors),
        ("negatives kept", report.num_candidates),
        ("examples with fewer than asked", report.num_short_of_negatives),
        ("findings new to the store", report.num_new),
    ]
    show_table(f"Mining {escape(resolved.name)}", ["what", "number"], rows)
    if json is not None:
        write_json(json, report.to_dict())
