"""`gradus review bulk`: one decision on many negatives of a session, after a look at what would change."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.errors import AppError
from app.opening import opened_store
from app.options import JsonFile, StoreUrl
from app.reviewing.acting import Acting, acting_reviewer
from app.terminal import console, shortened, show_table, write_json

if TYPE_CHECKING:
    from curation.reviewing.bulk import Preview

_LISTED = 50
_ID = 12  # letters of a bulk's id that are shown; --undo takes its beginning


def bulk(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="A bulk recipe (TOML): [decision] verdict, grade; [filter] session, grades, origins, languages, text, "
            "reason, min_suspicion, max_suspicion, decided.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Decide. Without it, only what would change is shown.")] = False,
    undo: Annotated[
        str | None, typer.Option("--undo", metavar="BULK", help="Take a bulk decision back as one.", show_default=False)
    ] = None,
    acting: Acting = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> None:
    """Decide on many negatives at once: see what would change, decide with --yes, --undo takes it back.

    Without a recipe, the bulk decisions are listed.
    """
    if recipe is not None and undo is not None:
        raise AppError("give a recipe or --undo, not both")
    if undo is not None:
        told = _undo(store, undo, acting)
    elif recipe is not None:
        told = _decide(store, recipe, acting, is_meant=yes)
    else:
        told = _list(store)
    if json is not None:
        write_json(json, told)


def _decide(store: str | None, recipe: Path, acting: str | None, *, is_meant: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from app.recipes import load_recipe
    from curation.reviewing.bulk import apply, preview
    from curation.reviewing.bulk_filter import BulkRecipe

    asked = load_recipe(recipe, BulkRecipe)
    with opened_store(store, must_exist=True) as opened:
        with opened.write() as session:
            by = acting_reviewer(session, acting)
        with opened.read() as session:
            seen = preview(session, asked.filter, asked.decision, by)
        _show_preview(seen)
        told: dict[str, Any] = {"preview": asdict(seen), "applied": None}
        if not is_meant:
            console.print("Nothing was decided: --yes decides.")
            return told
        with opened.write() as session:
            made = apply(session, asked.filter, asked.decision, by, mark=seen.mark)
    console.print(f"Decided on {made.num:,} negatives; 'gradus review bulk --undo {made.bulk_id[:_ID]}' takes it back")
    return told | {"applied": asdict(made)}


def _show_preview(seen: "Preview") -> None:
    rows: list[tuple[str, int]] = [
        ("would get the decision", seen.num),
        ("in so many examples", seen.num_examples),
        ("of these your own decision gives way", seen.num_own),
        ("of these somebody decided otherwise: disputed", seen.num_against),
        ("decided so by you already: left alone", seen.num_same),
        ("settled: left alone", seen.num_settled),
    ]
    show_table("What would change", ["negatives", "number"], rows)
    show_table("As you decided them by now", ["decision", "number"], sorted(seen.now.items()))
    shown = [
        (shortened(row["query"], 60), shortened(row["text"], 80), row["grade"] or "-", row["decided"] or "-")
        for row in seen.rows
    ]
    show_table("The first of them", ["query", "negative", "grade", "yours"], shown)


def _undo(store: str | None, bulk_id: str, acting: str | None) -> dict[str, Any]:
    from curation.reviewing.bulk import undo_bulk

    with opened_store(store, must_exist=True) as opened, opened.write() as session:
        num = undo_bulk(session, bulk_id, acting_reviewer(session, acting))
    console.print(f"Took {num:,} decisions back")
    return {"undone": num}


def _list(store: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from curation.reviewing.bulk import bulks

    with opened_store(store, must_exist=True) as opened, opened.read() as session:
        found = bulks(session, limit=_LISTED)
    rows = [
        (one.bulk_id[:_ID], one.session, one.decision, f"{one.at:%Y-%m-%d %H:%M}", one.num,
         one.num_standing)
        for one in found
    ]  # fmt: skip
    show_table("Bulk decisions", ["bulk", "session", "decision", "at", "negatives", "standing"], rows)
    return {"bulks": [asdict(one) for one in found]}
