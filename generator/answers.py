"""From a completion's text to a validated draft.

What a model sends is data: JSON is parsed, validated against the entry's schema and never evaluated. The parts of an
answer are validated one by one, so that a bad negative does not cost the three good ones beside it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import json_repair
import jsonschema_rs
import orjson

from generator.edit_script import Replacement, Unfit, apply_script
from generator.prompt_pack import Entry, Slot

_FENCE = re.compile(r"^\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_MAX_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a completion, or the part at `position` (from 1; 0 is the whole), was refused."""

    reason: str
    detail: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class Met:
    """What the answer says of one requirement of one text. `is_critical` where it says so."""

    is_met: bool
    is_critical: bool
    quote: str


@dataclass(frozen=True, slots=True)
class DraftNegative:
    """A negative as written, with its place in the answer. `edited_from` names the source that it changes."""

    position: int
    rank: int
    grade: str
    text: str
    violated_requirement: str
    slot: Slot
    answers_query: bool = False
    edited_from: str | None = None
    requirement: int | None = None
    breaks_critical: bool = True
    met: tuple[Met, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftQuery:
    """A query that a document is said to answer, with the words that answer it."""

    position: int
    text: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A completion that has the shape that was asked for, and the parts of it that were refused."""

    negatives: tuple[DraftNegative, ...] = ()
    query: str | None = None
    positive: str | None = None
    tasks: tuple[str, ...] = ()
    queries: tuple[DraftQuery, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


def read_answer(
    entry: Entry,
    text: str,
    *,
    finish_reason: str | None = None,
    sources: Mapping[str, str] | None = None,
    positions: Sequence[int] | None = None,
) -> Draft | Refusal:
    """The draft in a completion, or why there is none. Never raises on what a model wrote.

    Args:
        entry: Whose prompt was answered.
        finish_reason: As the engine reported it; `length` means that the answer is not whole.
        sources: Texts that an edit may change, by the name that the prompt gives them.
        positions: Parts that were asked for, from 1; all of the entry's slots by default.
    """
    if finish_reason == "length":
        return Refusal("cut_off", "the completion was cut off at its length limit")
    value, is_repaired = json_value(text)
    if isinstance(value, Refusal):
        return value
    if "u0000" in text and _holds_nul(value):
        return Refusal("control_character", "the answer holds a NUL character")
    if fault := _fault(entry.whole, value):
        return Refusal("wrong_shape", fault)
    if not isinstance(value, dict):
        return Refusal("wrong_shape", "the answer is not an object")
    # What the entry does not declare nobody has validated.
    value = {name: of for name, of in value.items() if name in entry.fields}
    notes: dict[str, Any] = {"json_repaired": True} if is_repaired else {}
    parts = value.get(entry.facts.parts, [])
    for name in entry.facts.choose:
        if isinstance(value.get(name), str):
            notes[name] = value[name]
    if entry.facts.parts == "tasks":
        return _tasks(entry, parts, notes)
    if entry.facts.parts == "queries":
        return _queries(entry, parts, notes)
    asked = list(positions or range(1, len(entry.facts.slots) + 1))
    reader = _NegativeReader(entry, value.get("requirements"), sources or {}, notes)
    refusals = [] if len(parts) == len(asked) else [_wrong_count(entry, parts, len(asked))]
    read = [reader.read(part, position) for part, position in zip(parts, asked, strict=False)]
    return Draft(
        tuple(one for one in read if isinstance(one, DraftNegative)),
        _stripped(value.get("query")),
        _stripped(value.get("positive")),
        refusals=(*refusals, *(one for one in read if isinstance(one, Refusal))),
        notes=notes,
    )


def json_value(text: str) -> tuple[Any, bool]:
    """The JSON value in an answer (a `Refusal` when there is none), and whether it had to be repaired."""
    fenced = _FENCE.match(text)
    try:
        return orjson.loads(fenced.group(1) if fenced else text), False
    except orjson.JSONDecodeError as error:
        failure = Refusal("not_json", f"{error}; it begins {text[:60]!r}")
    if "{" not in text:
        return failure, False
    try:
        repaired = json_repair.loads(text, skip_json_loads=True)
        # Through text once more: halves of a surrogate pair join, and what is no Unicode or no JSON number is refused.
        value = orjson.loads(json.dumps(repaired))
    except (ValueError, RecursionError):  # too deep, or no JSON after all
        return failure, False
    return (value, True) if isinstance(value, dict) and value else (failure, False)


def _holds_nul(value: Any) -> bool:
    """Whether a text in it holds the one character that a database cannot store."""
    if isinstance(value, str):
        return "\x00" in value
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_holds_nul, inside))


def _fault(validator: jsonschema_rs.Validator, value: Any) -> str | None:
    if validator.is_valid(value):
        return None
    error = next(iter(validator.iter_errors(value)))
    where = ".".join(str(part) for part in error.instance_path) or "the answer"
    return f"{where}: {error.message}"[:_MAX_DETAIL]


def _stripped(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) else None


def _wrong_count(entry: Entry, parts: Sequence[Any], asked: int) -> Refusal:
    return Refusal("wrong_count", f"{len(parts)} {entry.facts.parts} where {asked} were asked for")


def _tasks(entry: Entry, parts: Sequence[Any], notes: dict[str, Any]) -> Draft | Refusal:
    faults = [_fault(entry.part, part) for part in parts]
    good = [part.strip() for part, fault in zip(parts, faults, strict=True) if fault is None and part.strip()]
    refusals = [Refusal("wrong_shape", fault, place) for place, fault in enumerate(faults, start=1) if fault]
    if not good:
        return Refusal("wrong_shape", "tasks: none that is a text")
    return Draft(tasks=tuple(dict.fromkeys(good)), refusals=tuple(refusals), notes=notes)


def _queries(entry: Entry, parts: Sequence[Any], notes: dict[str, Any]) -> Draft:
    read: list[DraftQuery] = []
    refusals: list[Refusal] = []
    for position, part in enumerate(parts, start=1):
        if fault := _fault(entry.part, part):
            refusals.append(Refusal("wrong_shape", fault, position))
        else:
            evidence = part.get("evidence", "") if "evidence" in entry.part_fields else ""
            read.append(DraftQuery(position, part["text"].strip(), _restored(evidence)))
    return Draft(queries=tuple(read), refusals=tuple(refusals), notes=notes)


class _NegativeReader:
    """Reads the negatives of one answer; what each breaks refers to the answer's own list of requirements."""

    def __init__(self, entry: Entry, requirements: Any, sources: Mapping[str, str], notes: dict[str, Any]) -> None:
        self._entry, self._sources, self._notes = entry, sources, notes
        listed = requirements if isinstance(requirements, list) else []
        self._requirements: list[dict[str, Any]] = [item for item in listed if isinstance(item, dict)]

    def read(self, part: Any, position: int) -> DraftNegative | Refusal:
        slot = self._entry.facts.slots[position - 1]
        if fault := _fault(self._entry.part, part):
            return Refusal("wrong_shape", fault, position)
        part = {name: of for name, of in part.items() if name in self._entry.part_fields}
        for name, asked in (("similarity_level", slot.level), ("source", slot.source)):
            if asked is not None and part.get(name) != asked:
                return Refusal("wrong_level", f"{name} {part.get(name)!r} where {asked!r} was asked for", position)
        violated = part.get("violated_requirement", "")
        if isinstance(violated, int) and not 0 <= violated < len(self._requirements):
            detail = f"violated_requirement {violated} of {len(self._requirements)} (counted from 0)"
            return Refusal("unknown_requirement", detail, position)
        text = self._text(part, slot, position)
        return text if isinstance(text, Refusal) else self._negative(part, slot, position, text, violated)

    def _text(self, part: Mapping[str, Any], slot: Slot, position: int) -> str | Refusal:
        if "script" not in part:
            return str(part.get("text", "")).strip()
        changes = [change for change in part["script"] if isinstance(change, dict)]
        source = self._sources.get(slot.source or "")
        if source is None:
            return Refusal("unknown_source", f"there is no source {slot.source!r} to edit", position)
        if not changes:
            return source if slot.as_it_is else Refusal("unchanged", "the edit script is empty", position)
        script = [
            Replacement(_restored(change.get("find", "")), _restored(change.get("replace", ""))) for change in changes
        ]
        edited = apply_script(source, script)
        if isinstance(edited, Unfit):
            return Refusal(edited.reason, edited.detail, position)
        if edited.is_mended:
            self._notes.setdefault("loosely_found", []).append(position)
        return edited.text.strip()

    def _negative(
        self, part: Mapping[str, Any], slot: Slot, position: int, text: str, violated: int | str
    ) -> DraftNegative:
        number = violated if isinstance(violated, int) else None
        named = self._requirements[number] if number is not None else {"text": violated, "critical": True}
        said = [item for item in part.get("requirements_met", ()) if isinstance(item, dict)]
        met = tuple(self._met(item) for item in said)
        says_met = number is not None and any(item.get("met") for item in said if item.get("index") == number)
        return DraftNegative(
            position,
            rank=position,
            grade=slot.grade,
            text=text,
            violated_requirement=str(named.get("text", "")),
            slot=slot,
            answers_query=says_met or bool(part.get("self_check", {}).get("answers_query")),
            edited_from=slot.source,
            requirement=number,
            breaks_critical=bool(named.get("critical", True)),
            met=met,
        )

    def _met(self, item: Mapping[str, Any]) -> Met:
        index = item.get("index")
        is_known = isinstance(index, int) and 0 <= index < len(self._requirements)
        known = self._requirements[index] if is_known and index is not None else {}
        return Met(bool(item.get("met")), bool(known.get("critical", False)), _restored(item.get("quote", "")))


def _restored(text: Any) -> str:
    """A closing tag as the source has it; the prompt showed it escaped."""
    return str(text).replace("<\\/", "</")
