"""Edit scripts: a model's replacements on a real document, applied by code, so that the rest stays as it was.

Every `find` must stand in the source exactly once. A `find` that differs from the source only in white space or in
the kind of its quotes and dashes is taken as meant; anything else is refused, with what is wrong, and asked again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_ALIKE = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "−": "-", "\u00a0": " "})
_QUOTED_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Replacement:
    """One change: `find` stands in the source once, `replace` takes its place."""

    find: str
    replace: str


@dataclass(frozen=True, slots=True)
class Edited:
    """The text after the script, and whether a `find` had to be matched loosely."""

    text: str
    is_mended: bool


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a script does not apply."""

    reason: str
    detail: str


def apply_script(source: str, script: Sequence[Replacement]) -> Edited | Unfit:
    """The source with every replacement made. Never raises on what a model wrote."""
    spans: list[tuple[int, int, str]] = []
    is_mended = False
    for number, change in enumerate(script, start=1):
        if not change.find.strip():
            return Unfit("empty_find", f"find number {number} is empty")
        found = _spans(source, change.find)
        if not found:
            found = _loose_spans(source, change.find)
            is_mended = is_mended or bool(found)
        shown = repr(change.find[:_QUOTED_CHARACTERS])
        if not found:
            return Unfit("find_not_in_source", f"find number {number}, {shown}, does not stand in the source document")
        if len(found) > 1:
            times = f"stands in the source document {len(found)} times: take more words around it"
            return Unfit("find_not_unique", f"find number {number}, {shown}, {times}")
        spans.append((*found[0], change.replace))
    spans.sort()
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            shown = repr(source[start:end][:_QUOTED_CHARACTERS])
            return Unfit("overlapping_edits", f"two replacements change the same words: {shown}")
    return Edited(_spliced(source, spans), is_mended)


def _spliced(source: str, spans: Sequence[tuple[int, int, str]]) -> str:
    pieces, position = [], 0
    for start, end, replacement in spans:
        pieces += [source[position:start], replacement]
        position = end
    return "".join([*pieces, source[position:]])


def _spans(source: str, find: str) -> list[tuple[int, int]]:
    starts, start = [], source.find(find)
    while start >= 0:
        starts.append((start, start + len(find)))
        start = source.find(find, start + 1)
    return starts


def _loose_spans(source: str, find: str) -> list[tuple[int, int]]:
    """Places that differ from `find` in nothing but white space and the kind of quotes and dashes."""
    words = find.translate(_ALIKE).split()
    # The table maps one character to one, so places in the translated source are places in the source.
    pattern = r"\s+".join(re.escape(word) for word in words)
    return [match.span() for match in re.finditer(pattern, source.translate(_ALIKE))]
