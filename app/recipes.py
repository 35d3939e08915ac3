"""Reading recipes: TOML, validated whole before anything is spent, with errors that name field, value and remedy."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, runtime_checkable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from app.errors import RecipeError
from app.terminal import shortened

_CREDENTIALS = re.compile(r"(?<=//)[^/\s'\"]*@")
_MAX_VALUE = 200
Recipe = TypeVar("Recipe", bound=BaseModel)


@runtime_checkable
class _NamesFolders(Protocol):
    """A table with keys that hold either a name or a folder; it knows which is which."""

    def with_names_from(self, folder: Path) -> Any: ...


def load_recipe(path: Path, model: type[Recipe]) -> Recipe:
    """The recipe in a TOML file; relative paths in it are taken from the file's folder.

    Raises:
        RecipeError: No such file, not TOML, an unknown key (with the nearest valid one), or a value that is not valid.
    """
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error
    resolved: Recipe = _with_paths_from(checked(fields, model, f"recipe {path}: "), path.resolve().parent)
    return resolved


def checked(fields: Mapping[str, Any], model: type[Recipe], told: str = "") -> Recipe:
    """The recipe with these fields, from wherever they come.

    Raises:
        RecipeError: As for `load_recipe`; `told` stands before the message.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(f"{told}{_explain(error, model)}") from error


def _with_paths_from(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return value if value.is_absolute() else folder / value
    if isinstance(value, tuple):
        return tuple(_with_paths_from(item, folder) for item in value)
    if isinstance(value, BaseModel):
        changed = value.model_copy(
            update={name: _with_paths_from(getattr(value, name), folder) for name in type(value).model_fields}
        )
        return changed.with_names_from(folder) if isinstance(changed, _NamesFolders) else changed
    return value


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _explain_one(details[0], model) + more


def _explain_one(detail: ErrorDetails, model: type[BaseModel]) -> str:
    path = [str(part) for part in detail["loc"]]
    where = ".".join(path)
    if detail["type"] == "extra_forbidden":
        valid = _valid_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"unknown key {where!r}; {hint}"
    if detail["type"] == "missing":
        return f"the key {where!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict):  # of a table as a whole, whose message names its keys
        return f"{where}: {message}" if where else message
    return f"{where} = {_shown(detail['input'])}: {message}"


def _shown(value: Any) -> str:
    """The value, without the user and password of a URL in it, and not at any length."""
    return shortened(_CREDENTIALS.sub("[hidden]@", repr(value)), _MAX_VALUE)


def _valid_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Keys of the table that the path leads to; tagged unions add their tag to the path, which is passed over."""
    tables = [model]
    for part in path:
        inner = [table.model_fields[part].annotation for table in tables if part in table.model_fields]
        if inner:
            tables = [table for annotation in inner for table in _models_in(annotation)]
    return [name for table in tables for name in table.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
