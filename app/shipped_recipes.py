"""The training recipes that come with Gradus: by name wherever a recipe's path is asked for."""

from importlib.resources import files
from pathlib import Path

from app.errors import RecipeError


def shipped_recipes() -> dict[str, Path]:
    """Their files by name."""
    folder = Path(str(files("trainer"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def about(path: Path) -> str:
    """What a recipe says of itself: the first sentence of the comment that it begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).partition(". ")[0].removesuffix(".")


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        RecipeError: There is none of this name.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise RecipeError(f"recipe {name}: none of this name comes with Gradus; there are {', '.join(shipped)}")
    return shipped[name]


def recipe_file(given: Path) -> Path:
    """A recipe's path as a person gives it: a file, or the name of a shipped recipe.

    Raises:
        RecipeError: A name that is neither. A path that does not exist is left to whoever opens it.
    """
    if given.exists() or given.suffix or given.name != str(given):
        return given
    if given.name not in shipped_recipes():
        raise RecipeError(
            f"recipe {given}: no file here, and none of this name comes with Gradus; there are "
            f"{', '.join(shipped_recipes())} (gradus recipes tells of them)"
        )
    return shipped_recipe(given.name)
