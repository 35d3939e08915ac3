"""Text from models, corpora and people as HTML that stays text, and as cells of a table.

Nothing of it is markup, none of it turns the reading direction of what stands beside it, what has no width is named,
and a text is cut so that no page grows with it.
"""

import html
import re
import unicodedata
from collections.abc import Sequence

from app.terminal import one_line, visible

# Spaces and joiners without width, soft hyphens, invisible operators, tags and variation selectors' supplement.
_NO_WIDTH = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
# Joiners that scripts and emoji are written with.
_JOINERS = "\u200c\u200d"


def shown(text: str) -> str:
    """Plain text without what drives or turns the page; characters without width are named, such as [U+200B]."""
    text = visible(text)
    return _NO_WIDTH.sub(lambda found: _named(found, text), text)


def _named(found: re.Match[str], text: str) -> str:
    """A joiner inside a script that needs it stays; between Latin letters it only hides something."""
    mark = found.group()
    around = text[max(0, found.start() - 1) : found.start()], text[found.end() : found.end() + 1]
    if mark in _JOINERS and all(side and _is_joined(side) for side in around):
        return mark
    return f"[U+{ord(mark):04X}]"


def _is_joined(letter: str) -> bool:
    # Emoji are symbols (So, Sk with skin tones) and may carry a variation selector (Mn).
    return not letter.isascii() and unicodedata.category(letter) in {"Lo", "Mn", "Mc", "So", "Sk", "Cf"}


def escaped(text: str, most_bytes: int = 12_000) -> str:
    """Text as HTML in a direction of its own, of at most about so many bytes; what is cut off is counted."""
    kept = _head(text, most_bytes)
    rest = f" … ({len(text) - len(kept):,} more characters)" if len(kept) < len(text) else ""
    return f"<bdi>{html.escape(shown(kept))}</bdi>{rest}"


def _head(text: str, most_bytes: int) -> str:
    """The longest beginning, found by halves, whose HTML is not larger."""
    if _size(text[: most_bytes + 1]) <= most_bytes:
        return text[: most_bytes + 1] if len(text) > most_bytes else text
    low, high = 0, min(len(text), most_bytes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(text[:middle]) <= most_bytes else (low, middle - 1)
    return text[:low]


def _size(text: str) -> int:
    return len(html.escape(shown(text)).encode("utf-8", "replace"))


def cell(text: str | None, most: int = 160) -> str:
    """One line of a table, of at most so many characters."""
    line = one_line(shown((text or "")[: 4 * most]))
    return line if len(line) <= most and len(text or "") <= 4 * most else f"{line[:most]}…"


def block(text: str, most_bytes: int = 12_000) -> str:
    """A text with its line breaks; a line without an end is broken where the page ends."""
    style = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate"
    return f"<div style='{style}' dir='auto'>{escaped(text, most_bytes)}</div>"


def fair_share(texts: Sequence[str], budget: int, most: int = 12_000) -> int:
    """The most bytes that each text may take, so that all fit the budget: short ones leave room to long ones."""
    sizes = sorted(min(most, _size(text[: most + 1])) for text in texts)
    for place, size in enumerate(sizes):
        share = budget // (len(sizes) - place)
        if size > share:
            return share
        budget -= size
    return most
