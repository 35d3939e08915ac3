"""From a completion's text to a validated draft.

What a model sends is data: JSON is parsed, validated against a schema and never evaluated. The parts of an answer are
validated one by one, so that a bad negative does not cost the three good ones beside it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

# The papers' similarity levels, in the order in which the prompt asks for them: rank 1 is the hardest.
LEVELS = ("high", "medium", "medium", "low")
GRADE_OF_LEVEL = {"high": "hard", "medium": "medium", "low": "easy"}
# A minimal edit of the positive is the hardest negative there is; one of a neighbour comes next.
EDIT_SOURCES = ("positive", "neighbour")
EDIT_GRADES = ("hard", "medium")

_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a completion, or the part at `position` (from 1; 0 is the whole), was refused."""

    reason: str
    detail: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class DraftNegative:
    """A negative as written, with its place in the answer."""

    position: int
    rank: int
    grade: str
    text: str
    violated_requirement: str
    answers_query: bool = False
    edited_from: str | None = None
    quotes: tuple[str, ...] = ()
    breaks_critical: bool = True


@dataclass(frozen=True, slots=True)
class Draft:
    """A completion that has the shape that was asked for, and the parts of it that were refused."""

    negatives: tuple[DraftNegative, ...] = ()
    query: str | None = None
    positive: str | None = None
    tasks: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = field(default=())


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _SelfCheck(_Part):
    answers_query: bool


class _Negative(_Part):
    similarity_level: Literal["high", "medium", "low"]
    violated_requirement: str
    text: str = Field(min_length=1)
    self_check: _SelfCheck


class _Negatives(_Part):
    negatives: list[Any]


class _Example(_Negatives):
    query: str = Field(min_length=1)
    positive: str = Field(min_length=1)


class _Tasks(_Part):
    tasks: list[str] = Field(min_length=1)


class _Requirement(_Part):
    text: str
    critical: bool


class _Met(_Part):
    index: int
    met: bool
    quote: str


class _Edit(_Part):
    source: Literal["positive", "neighbour"]
    violated_requirement: int = Field(ge=0)
    text: str = Field(min_length=1)
    requirements_met: list[_Met]


class _Edits(_Part):
    requirements: list[_Requirement] = Field(min_length=1)
    edits: list[Any]


_Schema = TypeVar("_Schema", bound=_Part)


def read_completion(kind: str, text: str, finish_reason: str | None = None) -> Draft | Refusal:
    """The draft in a completion of this kind, or why there is none. Never raises on what a model wrote."""
    if finish_reason == "length":
        return Refusal("cut_off", "the completion was cut off at its length limit")
    value = _json_value(text)
    if isinstance(value, Refusal):
        return value
    if kind == "task_brainstorm":
        tasks = _validated(_Tasks, value)
        return tasks if isinstance(tasks, Refusal) else Draft(tasks=tuple(tasks.tasks))
    if kind == "minimal_edit":
        edits = _validated(_Edits, value)
        return edits if isinstance(edits, Refusal) else _edit_draft(edits)
    schema = _Example if kind == "graded_example" else _Negatives
    example = _validated(schema, value)
    if isinstance(example, Refusal):
        return example
    negatives, refusals = _negatives(example.negatives)
    query, positive = (example.query, example.positive) if isinstance(example, _Example) else (None, None)
    return Draft(tuple(negatives), query, positive, refusals=tuple(refusals))


def _json_value(text: str) -> Any:
    fenced = _FENCE.match(text)
    try:
        return orjson.loads(fenced.group(1) if fenced else text)
    except orjson.JSONDecodeError as error:
        return Refusal("not_json", f"{error}; it begins {text[:60]!r}")


def _validated(schema: type[_Schema], value: Any, position: int = 0) -> _Schema | Refusal:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the answer"
        return Refusal("wrong_shape", f"{where}: {first['msg']}", position)


def _negatives(items: Sequence[Any]) -> tuple[list[DraftNegative], list[Refusal]]:
    drafts, refusals = [], _count_refusals(len(items), len(LEVELS), "negatives")
    for position, item in enumerate(items[: len(LEVELS)], start=1):
        negative = _validated(_Negative, item, position)
        expected = LEVELS[position - 1]
        if isinstance(negative, Refusal):
            refusals.append(negative)
        elif negative.similarity_level != expected:
            detail = f"similarity_level {negative.similarity_level!r} where {expected!r} was asked for"
            refusals.append(Refusal("wrong_level", detail, position))
        else:
            drafts.append(
                DraftNegative(
                    position,
                    rank=position,
                    grade=GRADE_OF_LEVEL[expected],
                    text=negative.text.strip(),
                    violated_requirement=negative.violated_requirement,
                    answers_query=negative.self_check.answers_query,
                )
            )
    return drafts, refusals


def _edit_draft(answer: _Edits) -> Draft:
    drafts, refusals = [], _count_refusals(len(answer.edits), len(EDIT_SOURCES), "edits")
    for position, item in enumerate(answer.edits[: len(EDIT_SOURCES)], start=1):
        edit = _validated(_Edit, item, position)
        expected = EDIT_SOURCES[position - 1]
        if isinstance(edit, Refusal):
            refusals.append(edit)
        elif edit.source != expected:
            refusals.append(
                Refusal("wrong_level", f"source {edit.source!r} where {expected!r} was asked for", position)
            )
        elif edit.violated_requirement >= len(answer.requirements):
            detail = f"violated_requirement {edit.violated_requirement} of {len(answer.requirements)} (counted from 0)"
            refusals.append(Refusal("unknown_requirement", detail, position))
        else:
            drafts.append(_edit(edit, answer.requirements, position))
    return Draft(tuple(drafts), refusals=tuple(refusals))


def _edit(edit: _Edit, requirements: Sequence[_Requirement], position: int) -> DraftNegative:
    violated = requirements[edit.violated_requirement]
    says_met = any(item.met for item in edit.requirements_met if item.index == edit.violated_requirement)
    return DraftNegative(
        position,
        rank=position,
        grade=EDIT_GRADES[position - 1],
        text=edit.text.strip(),
        violated_requirement=violated.text,
        answers_query=says_met,
        edited_from=edit.source,
        quotes=tuple(item.quote for item in edit.requirements_met if item.met),
        breaks_critical=violated.critical,
    )


def _count_refusals(num: int, asked: int, what: str) -> list[Refusal]:
    return [] if num == asked else [Refusal("wrong_count", f"{num} {what} where {asked} were asked for")]
