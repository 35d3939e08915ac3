"""Prompt packs: folders of entries, each a folder with a prompt, a response schema and what code checks.

A pack is named by its folder's name here, or by a path to a user's own folder. An entry is `prompt.j2` (Jinja,
rendered in a sandbox), `schema.json` (the response schema) and `entry.toml` (whom it asks about, which parts it
answers with, which checks they must pass), so that a new way of making negatives needs no code.
"""

import hashlib
import math
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import orjson
from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateNotFound, UndefinedError, meta
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from generator.errors import GeneratorError

_BUNDLED = Path(__file__).parent / "prompts"
_ATTRIBUTES = Path(__file__).with_name("attributes.toml")
# What the template puts where its stable part ends; no text holds it.
_BREAK = "\x1e"
# Every field of an answer that code reads, whichever entry it answers.
_READ = frozenset(
    {
        "query", "positive", "negatives", "edits", "tasks", "queries", "text", "evidence", "similarity_level", "source",
        "script", "find", "replace", "violated_requirement", "requirements", "critical", "requirements_met", "index",
        "met", "quote", "self_check", "answers_query",
    }
)  # fmt: skip
Attributes = Mapping[str, tuple[str, ...]]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Slot(_Table):
    """One negative that an answer has to bring, in order; the first has rank 1, the hardest.

    `level` is what the answer must call it, `source` the text that it must edit (`as_it_is` allows an empty script),
    `critical_unmet` how many critical requirements it must fail: exactly one, or some.
    """

    grade: Literal["hard", "medium", "easy"]
    level: str | None = None
    source: str | None = None
    as_it_is: bool = False
    critical_unmet: Literal["one", "some"] | None = None


class Checks(_Table):
    """What code checks of every part beside its shape; what is None is not checked."""

    length_ratio: tuple[float, float] | None = None
    copied_words: int | None = Field(
        default=None, ge=1, description="Shortest sentence, in words, that counts as copied."
    )
    shared_words: int | None = Field(default=None, ge=1, description="The same, between two negatives of an answer.")
    opening_words: int | None = Field(
        default=None, ge=1, description="Two negatives must not begin with the same words."
    )
    changed_words: float | None = Field(
        default=None, gt=0, le=1, description="Largest share of a source's words changed."
    )
    distinct_requirements: bool = False
    language: bool = False

    @field_validator("length_ratio")
    @classmethod
    def _is_a_range(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] < math.inf:
            raise ValueError(
                f"length_ratio = [{value[0]:g}, {value[1]:g}]: give [shortest, longest], the positive is 1"
            )
        return value


class EntryFacts(_Table):
    """The contents of entry.toml. `neighbours` are retrieval ranks (from 1) of the documents beside a pair."""

    title: str
    subject: Literal["pair", "task_type", "task", "document", "judgement", "query"]
    parts: Literal["negatives", "edits", "tasks", "queries", "none"] = "negatives"
    response_format: Literal["text", "json_object", "json_schema"] = "json_schema"
    attributes: str | None = None
    choose: tuple[str, ...] = ()
    neighbours: tuple[int, ...] = ()
    slots: tuple[Slot, ...] = ()
    checks: Checks = Checks()

    @model_validator(mode="after")
    def _edits_what_is_there(self) -> "EntryFacts":
        for slot in self.slots:
            if slot.source is not None and slot.source not in self.sources:
                known = ", ".join(self.sources) or "none"
                raise ValueError(f"source = {slot.source!r}: a {self.subject} has no such text to edit; it has {known}")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the texts that the subject brings and that an edit may change."""
        if self.subject == "document":
            return ("document",)
        if self.subject != "pair":
            return ()
        named = tuple(f"neighbour_{rank}" for rank in range(1, len(self.neighbours) + 1))
        return ("positive", *named, *(("neighbour",) if len(named) == 1 else ()))


class Entry:
    """One prompt of a pack with its response schema and checks."""

    def __init__(self, folder: Path, environment: SandboxedEnvironment) -> None:
        self.name, self.folder, self._environment = folder.name, folder, environment
        self.facts = self._read_facts()
        self.schema = self._read_schema()
        parts = self.facts.parts
        self._parts_schema = _inside(self.schema, "properties", parts, "items")
        if parts != "none" and not self._parts_schema:
            raise GeneratorError(
                f"{folder}/schema.json: properties.{parts}.items is missing, entry.toml names {parts!r}"
            )
        with _told(folder / "schema.json"):
            self.whole, self.part = self._validators()
        self.variables = self._read_variables()

    def render(self, variables: Mapping[str, object]) -> tuple[str, str]:
        """The prompt's stable part and the rest; the first is empty where the template does not mark it.

        Raises:
            GeneratorError: The template needs a variable that is not given, or is malformed.
        """
        text = self._render("prompt.j2", {**variables, "stable_part_ends": _BREAK})
        stable, mark, rest = text.partition(f"{_BREAK}\n")
        return (stable, rest) if mark else ("", text)

    def render_repair(self, faults: list[dict[str, object]]) -> str:
        """The follow-up that asks for the failed parts alone; an entry may bring its own repair.j2."""
        template = "repair.j2" if not (self.folder / "repair.j2").is_file() else f"{self.name}/repair.j2"
        with _told(self.folder / "repair.j2"):
            return self._environment.get_template(template).render(faults=faults, parts=self.facts.parts)

    @cached_property
    def digest(self) -> str:
        """It changes when any byte of the entry does."""
        return _digest_of_files(self.folder)

    @cached_property
    def task_types(self) -> dict[str, str]:
        """How the entry describes each type of task, from its task_types.toml."""
        path = self.folder / "task_types.toml"
        if not path.is_file():
            return {}
        with _told(path):
            return {str(k): str(v) for k, v in tomllib.loads(path.read_text(encoding="utf-8")).items()}

    def _validators(self) -> tuple[jsonschema_rs.Validator, jsonschema_rs.Validator]:
        """(validates an answer but for its parts, so that a bad one does not cost the good ones beside it; validates
        one part)."""
        loose = _what_we_read(self.schema)
        if self.facts.parts != "none":
            loose["properties"][self.facts.parts] = {"type": "array"}
        return jsonschema_rs.validator_for(loose), jsonschema_rs.validator_for(_what_we_read(self._parts_schema))

    @property
    def fields(self) -> frozenset[str]:
        """Fields of an answer that the schema declares."""
        return frozenset(_inside(self.schema, "properties"))

    @property
    def part_fields(self) -> frozenset[str]:
        """Fields of a part that the schema declares."""
        return frozenset(_inside(self._parts_schema, "properties"))

    def _read_variables(self) -> frozenset[str]:
        """Variables that the prompt uses."""
        path = self.folder / "prompt.j2"
        with _told(path):
            source, _, _ = self._environment.loader.get_source(self._environment, f"{self.name}/prompt.j2")  # type: ignore[union-attr]
            found = meta.find_undeclared_variables(self._environment.parse(source))
        if not source.strip():
            raise GeneratorError(f"{path}: the file is empty, so there is nothing to ask")
        return frozenset(found - {"stable_part_ends"})

    def _render(self, template: str, variables: Mapping[str, object]) -> str:
        path = self.folder / template
        try:
            with _told(path):
                return self._environment.get_template(f"{self.name}/{template}").render(variables)
        except GeneratorError as error:
            if isinstance(error.__cause__, UndefinedError):
                raise GeneratorError(
                    f"{error}: entry {self.name!r} needs it; give it in the recipe's plan.attributes, or in the "
                    "attributes of each line of plan.cells"
                ) from error
            raise

    def _read_facts(self) -> EntryFacts:
        path = self.folder / "entry.toml"
        try:
            with _told(path):
                return EntryFacts.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            told = first["msg"].removeprefix("Value error, ")
            where = ".".join(map(str, first["loc"]))
            raise GeneratorError(f"{path}: {where}: {told}" if where else f"{path}: {told}") from error

    def _read_schema(self) -> dict[str, Any]:
        path = self.folder / "schema.json"
        with _told(path):
            schema = orjson.loads(path.read_bytes())
            jsonschema_rs.meta.validate(schema)
        if not isinstance(schema, dict):
            raise GeneratorError(f"{path}: not a JSON schema of an object")
        return schema


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """One line for whatever a file of an entry does: a template is someone's program, and may fail in any way."""
    try:
        yield
    except (ValidationError, GeneratorError):
        raise
    except jsonschema_rs.ValidationError as error:
        raise GeneratorError(f"{path}: not a JSON schema: {error.message}") from error
    except TemplateNotFound as error:
        raise GeneratorError(f"{path}: there is no template {error.name!r}") from error
    except OSError as error:
        raise GeneratorError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GeneratorError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except TemplateError as error:
        raise GeneratorError(f"{path}: {error.message}") from error
    except Exception as error:
        raise GeneratorError(f"{path}: {type(error).__name__}: {error}") from error


def _inside(schema: Any, *path: str) -> dict[str, Any]:
    """The table that these keys lead to; {} where one is missing or no table."""
    for key in path:
        schema = schema.get(key) if isinstance(schema, dict) else None
    return schema if isinstance(schema, dict) else {}


class PromptPack:
    """The entries of one folder. `digest` changes when any of its bytes does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        self._environment = SandboxedEnvironment(
            loader=FileSystemLoader([folder, _BUNDLED]), undefined=StrictUndefined, autoescape=False
        )
        self._environment.filters["data"] = _as_data
        self._entries: dict[str, Entry] = {}

    @classmethod
    def load(cls, name: str) -> "PromptPack":
        """The bundled pack of this name, or the folder at this path.

        Raises:
            GeneratorError: Neither is there.
        """
        folder = _BUNDLED / name if is_bundled(name) else Path(name)
        if folder.is_dir() and any(folder.glob("*/entry.toml")):
            return cls(folder)
        bundled = ", ".join(pack.name for pack in bundled_packs())
        raise GeneratorError(
            f"pack = {name!r}: no such prompt pack; bundled: {bundled}; or give a folder whose subfolders hold "
            "entry.toml, prompt.j2 and schema.json"
        )

    def entry(self, name: str) -> Entry:
        """The entry of this name.

        Raises:
            GeneratorError: The pack has no such entry, or one of its files is malformed.
        """
        if name not in self._entries:
            if name not in self.entry_names:
                raise GeneratorError(
                    f"prompt pack {self.name!r} has no entry {name!r}; it has {', '.join(self.entry_names)}"
                )
            self._entries[name] = Entry(self.folder / name, self._environment)
        return self._entries[name]

    @cached_property
    def entry_names(self) -> tuple[str, ...]:
        return tuple(sorted(path.parent.name for path in self.folder.glob("*/entry.toml")))

    @cached_property
    def digest(self) -> str:
        return _digest_of_files(self.folder)


def _digest_of_files(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def is_bundled(name: str) -> bool:
    """Whether a pack of this name comes with Gradus; a name with a slash is a path."""
    return name in {folder.name for folder in _BUNDLED.iterdir() if folder.is_dir()}


def pack_from(folder: Path, name: str) -> str:
    """A recipe's pack: a bundled one by its name, any other as a path from the recipe's folder."""
    return name if is_bundled(name) else str(folder / name)


def bundled_packs() -> Iterator[PromptPack]:
    """The packs that come with Gradus, by name."""
    for folder in sorted(path for path in _BUNDLED.iterdir() if path.is_dir()):
        yield PromptPack(folder)


def attribute_set(name: str) -> Attributes:
    """The named set of attributes and their values.

    Raises:
        GeneratorError: There is no such set.
    """
    sets = tomllib.loads(_ATTRIBUTES.read_text())
    if name not in sets:
        raise GeneratorError(
            f"attributes = {name!r}: no such set; there are {', '.join(sorted(sets))}, or give a table"
        )
    return {key: tuple(values) for key, values in sets[name].items()}


def _what_we_read(schema: Any) -> Any:
    """The schema of the fields that code reads. Servers get the whole; an answer that lacks a plan, or has a field too
    many, is good all the same."""
    if isinstance(schema, list):
        return [_what_we_read(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if (key, value) != ("additionalProperties", False)}
    if isinstance(schema.get("properties"), dict):
        kept["properties"] = {name: _what_we_read(of) for name, of in schema["properties"].items() if name in _READ}
        kept["required"] = [name for name in schema.get("required", ()) if name in _READ]
    return {key: value if key == "properties" else _what_we_read(value) for key, value in kept.items()}


def _as_data(text: object) -> str:
    """Inserted text cannot close the tag that it stands in."""
    return str(text).replace("</", "<\\/").replace(_BREAK, " ")
