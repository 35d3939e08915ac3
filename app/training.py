"""What commands about training share: where a recipe's release lies, and the store that hears of the training."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import AppError
from app.opening import missing_file, opened_store

if TYPE_CHECKING:
    from app.closed_loop import TrainingReport
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


def store_to_tell(asked: str | None) -> str | None:
    """URL of the store that a training will be imported into, which can be opened now; None where there is none.

    Raises:
        AppError: `asked` names a file that is not there.
        StoreError: The store cannot be opened: better before the training than after it.
    """
    from app.settings import Settings

    url = asked or Settings().store_url
    if asked is None and missing_file(url):
        return None
    with opened_store(url, must_exist=True):
        return url


def tell_store(url: str, model: Path) -> "TrainingReport":
    """Import a training that has just ended, or one whose import was cut off.

    Raises:
        AppError: It could not be imported; the model is saved whatever happens here.
    """
    from sqlalchemy.exc import DatabaseError

    from app.closed_loop import import_training
    from db.errors import StoreError

    try:
        with opened_store(url, must_exist=True) as store:
            return import_training(store, model)
    except (AppError, StoreError, DatabaseError) as error:
        reason = str(error.orig) if isinstance(error, DatabaseError) else str(error)
        raise AppError(
            f"the model is saved in {model}, but its metrics are not in the store yet: {reason.splitlines()[0]}; "
            f"then run the same command again, or 'gradus import training {model}'"
        ) from error
