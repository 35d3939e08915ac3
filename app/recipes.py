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
        return f"unknown key {where!r}; {_meant(path[-1], valid)}"
    if path and path[-1] == "[key]":  # of a table whose keys are a choice
        return f"unknown key {'.'.join(path[:-1])!r}; choose {detail.get('ctx', {}).get('expected', '')}"
    if detail["type"] == "missing":
        if isinstance(detail["loc"][-1], int):  # a place in a list of fixed length, whose input is the list
            return f"{'.'.join(path[:-1])} = {_shown(detail['input'])}: needs more values, it has {path[-1]}"
        return f"the key {where!r} is missing"
    message = _message(detail, model, path)
    if isinstance(detail["input"], dict):  # of a table as a whole, whose message names its keys
        return f"{where}: {message}" if where else message
    return f"{where} = {_shown(detail['input'])}: {message}"


def _meant(key: str, valid: list[str]) -> str:
    """The valid key that this one looks like, or all of them."""
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5) or [one for one in valid if one.startswith(key)]
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(valid))}"


def _message(detail: ErrorDetails, model: type[BaseModel], path: list[str]) -> str:
    """What is wrong with a value, in words that say what to write instead."""
    keys = ", ".join(_valid_keys(model, path)) if path else ""
    match detail["type"]:
        case "string_pattern_mismatch" if told := _description(model, path):
            return f"give {told[0].lower() if told[1:2].islower() else told[0]}{told[1:].removesuffix('.')}"
        case "model_type" | "model_attributes_type" if keys:
            return f"give a table, {path[-1]} = {{ ... }}, of the keys {keys}"
        case "dict_type":
            return f"give a table, {path[-1]} = {{ ... }}"
        case "string_too_short":
            return "give a value, or leave the key out if it has a default"
        case _:
            told = detail["msg"].removeprefix("Value error, ").replace(" after validation", "")
            return (
                re.sub(r"^(Input|Tuple|List) ", "", told)
                .replace("valid tuple", "list")
                .replace("a valid boolean", "true or false")
            )


def _description(model: type[BaseModel], path: list[str]) -> str | None:
    tables = _tables_at(model, path[:-1])
    return next((table.model_fields[path[-1]].description for table in tables if path[-1] in table.model_fields), None)


def _shown(value: Any) -> str:
    """The value, without the user and password of a URL in it, and not at any length."""
    told = str(value).lower() if isinstance(value, bool) else repr(value)
    return shortened(_CREDENTIALS.sub("[hidden]@", told), _MAX_VALUE)


def _valid_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """Keys of the table that the path leads to; tagged unions add their tag to the path, which is passed over."""
    return [name for table in _tables_at(model, path) for name in table.model_fields]


def _tables_at(model: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    tables = [model]
    for part in path:
        inner = [table.model_fields[part].annotation for table in tables if part in table.model_fields]
        if inner:
            tables = [table for annotation in inner for table in _models_in(annotation)]
    return tables


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
