"""What differs between two texts, word by word, and text from outside as HTML that shows it whole.

Words are compared as written, whatever white space follows. Chinese, Japanese and Hangul are compared by character, and
a mark stays with its letter.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from app.terminal import visible

_CHARACTERS = "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_MARKS = "!-/:-@\\[-`{-~\u00a1\u00ab\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f\uff01-\uff0f\u0964\u0965"
_TOKEN = re.compile(rf"(?:[{_CHARACTERS}]|[^\s{_MARKS}{_CHARACTERS}]+|.)\s*", re.DOTALL)
# What takes no room on the page: soft hyphen, zero-width spaces and joiners, fillers, tag characters.
_ROOMLESS = re.compile(
    "[\u00ad\u034f\u115f\u1160\u180b-\u180e\u200b-\u200d\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_JOINERS = "\u200c\u200d"
# Matching takes time by the square of the words; beyond this the rest is shown without marks.
_MAX_TOKENS = 1_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text; `is_own` when the other text does not have it there."""

    text: str
    is_own: bool


def word_diff(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """The pieces of both texts; joined, each list is its text again, character by character."""
    tokens_one, rest_one = _tokens(one)
    tokens_other, rest_other = _tokens(other)
    words_one, words_other = [[token.rstrip() for token in tokens] for tokens in (tokens_one, tokens_other)]
    matcher = SequenceMatcher(None, words_one, words_other, autojunk=False)
    pieces_one: list[Piece] = []
    pieces_other: list[Piece] = []
    for what, start_one, end_one, start_other, end_other in matcher.get_opcodes():
        _append(pieces_one, tokens_one[start_one:end_one], is_own=what != "equal")
        _append(pieces_other, tokens_other[start_other:end_other], is_own=what != "equal")
    _append(pieces_one, [rest_one], is_own=False)
    _append(pieces_other, [rest_other], is_own=False)
    return pieces_one, pieces_other


def _tokens(text: str) -> tuple[list[str], str]:
    """The first words and what follows them."""
    tokens: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        if len(tokens) == _MAX_TOKENS:
            break
        tokens.append(match.group())
        end = match.end()
    return tokens, text[end:]


def _append(pieces: list[Piece], tokens: Sequence[str], *, is_own: bool) -> None:
    if text := "".join(tokens):
        pieces.append(Piece(text, is_own))


def pieces_html(pieces: Iterable[Piece], *, colour: str) -> str:
    """The pieces with their own words marked; the white space after them is not."""
    mark = f"background:{colour};border-radius:3px;color:inherit;padding:0 1px"
    parts = []
    for piece in pieces:
        words = piece.text.rstrip() if piece.is_own else ""
        marked = f"<mark style='{mark}'>{text_html(words)}</mark>" if words else ""
        parts.append(marked + text_html(piece.text[len(words) :]))
    return "".join(parts)


def text_html(text: str) -> str:
    """Text from outside as HTML: no markup, nothing that turns the reading direction, and nothing hidden.

    A character that takes no room is shown by its code, except a joiner inside a word of another script than Latin,
    where writing needs it.
    """
    shown = html.escape(visible(text))
    return _ROOMLESS.sub(_code_of, shown)


def _code_of(match: re.Match[str]) -> str:
    character = match.group()
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    if character in _JOINERS and before > "\u02ff" and after > "\u02ff":
        return character
    return f"<span style='opacity:.6;font-size:.75em'>[U+{ord(character):04X}]</span>"
