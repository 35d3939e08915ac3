"""The key of an engine, which some servers repeat in their errors or texts: it never reaches the store or a person."""

from dataclasses import replace
from typing import Any

import orjson

from generator.ledger import Answer

# A shorter one is no key but a word that stands in for one ("none"), and stands in honest texts too.
_SHORTEST = 8
_TEXTS = ("text", "error", "finish_reason", "model_reported")


class Secret:
    """Takes one key, or None, out of what servers send."""

    def __init__(self, key: str | None) -> None:
        self._key = key if key and len(key) >= _SHORTEST else ""
        escaped = orjson.dumps(self._key)[1:-1]
        forms = (self._key.encode(), escaped, escaped.replace(b"/", b"\\/"))
        self._forms = tuple(dict.fromkeys(forms)) if self._key else ()

    def out_of_bytes(self, raw: bytes) -> bytes:
        """What a server sent, without the key in any form that JSON gives it. Before anything is parsed or cut: half a
        key would not be found again."""
        for form in self._forms:
            if form in raw:
                raw = raw.replace(form, b"[key]")
        return raw

    def out_of(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def out_of_answer(self, answer: Answer) -> Answer:
        if not self._key:
            return answer
        texts: dict[str, Any] = {name: getattr(answer, name) for name in _TEXTS}
        found: dict[str, Any] = {name: self.out_of(text) for name, text in texts.items() if text and self._key in text}
        return replace(answer, **found) if found else answer
