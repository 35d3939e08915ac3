"""What differs between two texts, word by word, marked in HTML.

Words are compared as written, whatever white space follows. Chinese, Japanese and Hangul are compared by character, and
a mark stays with its letter.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from app.viewing.showing import shown

_CHARACTERS = "\u2e80-\u2fdf\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_MARKS = "!-/:-@\\[-`{-~\u00a1\u00ab\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u303f\uff01-\uff0f\u0964\u0965"
_TOKEN = re.compile(rf"(?:[{_CHARACTERS}]|[^\s{_MARKS}{_CHARACTERS}]+|.)\s*", re.DOTALL)
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


def share_common(*texts: Sequence[Piece]) -> float:
    """How much of the texts together the other one has too, by characters; 1 for nothing at all."""
    sizes = [(len(piece.text), piece.is_own) for pieces in texts for piece in pieces]
    total = sum(size for size, _ in sizes)
    return 1 - sum(size for size, is_own in sizes if is_own) / total if total else 1.0


def pieces_html(pieces: Iterable[Piece], *, colour: str, marks_own: bool = True) -> str:
    """The pieces with their own words marked, or those in common; the white space after them is not."""
    mark = f"background:{colour};border-radius:3px;color:inherit;padding:0 1px"
    parts = []
    for piece in pieces:
        words = piece.text.rstrip() if piece.is_own == marks_own else ""
        marked = f"<mark style='{mark}'>{html.escape(shown(words))}</mark>" if words else ""
        parts.append(marked + html.escape(shown(piece.text[len(words) :])))
    return "".join(parts)
