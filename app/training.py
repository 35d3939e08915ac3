"""What commands about training share: where a recipe's release and model lie, and the store that hears of it."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import AppError
from app.opening import opened_if_there, opened_store

if TYPE_CHECKING:
    from app.closed_loop import TrainingReport
    from trainer.recipe import TrainRecipe

_MOST_NAMED = 8


def release_folder(recipe: "TrainRecipe", store: str | None = None) -> Path:
    """The folder of the recipe's release, by its name in the data folder or as a path.

    Args:
        store: URL of the store that knows which releases were retired; the default one if left out.

    Raises:
        AppError: Neither is there.
        CurationError: The store knows it by this name, and that it was retired. A path is taken as it is.
    """
    from app.settings import Settings

    named = Settings().releases / recipe.release
    if named.is_dir():
        _require_in_use(recipe.release, store)
        return named
    if not Path(recipe.release).is_dir():
        raise AppError(
            f"release = {recipe.release!r}: no folder, and no release in {named.parent}; {_there(named.parent)}"
        )
    return Path(recipe.release)


def _require_in_use(name: str, url: str | None) -> None:
    from sqlalchemy import select

    from curation.release.catalogue import require_in_use
    from db.tables.releases import Release

    with opened_if_there(url) as store:
        if store is None:
            return
        with store.read() as session:
            release = session.scalars(select(Release).where(Release.name == name)).one_or_none()
            if release is not None:
                require_in_use(session, release)


def _there(releases: Path) -> str:
    """The releases of a folder, in words."""
    found = sorted(path.parent.name for path in releases.glob("*/manifest.json"))
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    if not found:
        return "there is none yet: make one with 'gradus release create'"
    return f"give --release, or in the recipe one of those there: {', '.join(found[:_MOST_NAMED])}{more}"


def trained_or_given(model: str) -> str:
    """The folder of the model of this name that was trained here; else the name or folder as it was given."""
    from app.settings import Settings
    from curation.embeddings import BUNDLED_MODELS

    trained = Settings().models / model
    return str(trained) if model not in BUNDLED_MODELS and (trained / "training.json").is_file() else model


def start_folder(recipe: "TrainRecipe") -> Path:
    """The folder of the model that a recipe starts from: a bundled one, one that was trained here, or a path.

    Raises:
        AppError: The recipe would give its model a bundled one's name, which later recipes start from.
        CurationError: There is no such model.
    """
    from curation.embeddings import BUNDLED_MODELS, any_model_folder

    if recipe.name.lower() in BUNDLED_MODELS:
        raise AppError(f"name = {recipe.name!r}: a model that comes with Gradus has this name; give another")
    return any_model_folder(trained_or_given(recipe.model))


def store_to_tell(asked: str | None) -> str | None:
    """URL of the store that a training will be imported into, which can be opened now; None where there is none.

    Raises:
        AppError: `asked` names a file that is not there.
        StoreError: The store cannot be opened: better before the training than after it.
    """
    from app.settings import Settings

    with opened_if_there(asked) as store:
        return None if store is None else asked or Settings().store_url


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
