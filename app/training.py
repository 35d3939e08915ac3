"""What commands about training share: where a recipe's release lies."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import AppError

if TYPE_CHECKING:
    from trainer.recipe import TrainRecipe


def release_folder(recipe: "TrainRecipe") -> Path:
    """The folder of the recipe's release, by its name in the data folder or as a path.

    Raises:
        AppError: Neither is there.
    """
    from app.settings import Settings

    named = Settings().releases / recipe.release
    folder = named if named.is_dir() else Path(recipe.release)
    if not folder.is_dir():
        raise AppError(f"release = {recipe.release!r}: neither a release in {named.parent} nor a folder")
    return folder
