"""From what a judge answered to a grade with its evidence, or the reason why it is none.

What a model sends is data. The quote must stand in the passage, white space aside: a judge that makes up its evidence
has not read the passage, and its grade is worth nothing.
"""

from dataclasses import dataclass
from typing import Any

from db.quotes import stands_in

_MAX_TEXT = 2_000
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Graded:
    """Relevance 0 to 3, the words of the passage that decide ('' where nothing does), and the judge's reason."""

    relevance: int
    evidence: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why an answer is no judgement."""

    reason: str
    detail: str


def read_judgement(value: Any, passage: str) -> Graded | Unusable:
    """The judgement in the JSON value that a judge answered with. Never raises on what a model wrote."""
    if not isinstance(value, dict):
        return Unusable("wrong_shape", "the answer is not an object")
    relevance, evidence, reason = (value.get(name) for name in ("relevance", "evidence", "reason"))
    if not isinstance(relevance, int) or isinstance(relevance, bool) or not 0 <= relevance <= 3:
        return Unusable("wrong_shape", f"relevance {_shown(relevance)} is not 0, 1, 2 or 3")
    if not isinstance(evidence, str) or not isinstance(reason, str):
        return Unusable("wrong_shape", "evidence and reason have to be texts")
    quote = _as_in_passage(evidence.strip(), passage)
    if not quote:
        if relevance >= 2:
            return Unusable("no_evidence", f"relevance {relevance} without a quote from the document")
        return Graded(relevance, "", _storable(reason))
    if not stands_in(quote, passage):
        return Unusable("quote_not_in_text", f"the evidence does not stand in the document: {_shown(quote)}")
    return Graded(relevance, quote, _storable(reason))


def _as_in_passage(quote: str, passage: str) -> str:
    """The prompt shows a closing tag escaped; a judge that copies it means what the passage has."""
    return quote if stands_in(quote, passage) else quote.replace("<\\/", "</")


def _storable(text: str) -> str:
    """Cut to a sane length, without what a database refuses."""
    return text.strip()[:_MAX_TEXT].replace("\x00", "\ufffd").encode(errors="replace").decode()


def _shown(value: Any) -> str:
    return _storable(repr(value)[:_SHOWN])
