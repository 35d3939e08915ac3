"""What code can check of a part before it enters the store. Each check gives the reason for a refusal, or None.

Which checks apply, and with what limits, stands in the entry (entry.toml, [checks] and [[slots]]).
"""

import difflib
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from generator.answers import DraftNegative, DraftQuery, Refusal
from generator.language import wrong_language
from generator.prompt_pack import Checks

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LEAKS = re.compile(
    r"\bhard negatives?\b|\bthe (?:given |original )?(?:positive (?:document|passage)|search query)\b|"
    r"\bthis (?:document|text|passage) (?:does not|doesn't) (?:answer|address|satisfy)\b|\bsimilarity[_ ]level\b",
    re.IGNORECASE,
)
# A text without any of these cannot hold a leak; finding that out takes a tenth of the pattern's time.
_LEAK_HINTS = ("hard negative", "positive ", "search query", "this document", "this text", "this passage", "similarity")
_QUERY_LEAKS = re.compile(r"\b(?:this|the) (?:document|text|passage|article|study|authors?)\b(?! of\b)", re.IGNORECASE)
# Labels and phrases vary several times in length without giving anything away.
_MIN_POSITIVE_CHARACTERS = 200
_Found = tuple[str, str] | None


@dataclass(slots=True)
class AnswerContext:
    """What the parts of one answer are checked against; grows by every part that passes."""

    positive: str
    language: str | None
    checks: Checks
    sources: dict[str, str]
    accepted: list[DraftNegative] = field(default_factory=list)
    _positive_sentences: frozenset[str] | None = None
    _sentences: set[str] = field(default_factory=set)
    _normalised: dict[str, str] = field(default_factory=dict)

    def normalised(self, text: str) -> str:
        """The text for comparing, worked out once however many checks ask."""
        if text not in self._normalised:
            self._normalised[text] = normalised(text)
        return self._normalised[text]

    def add(self, negative: DraftNegative) -> None:
        self.accepted.append(negative)
        if self.checks.shared_words is not None:
            self._sentences |= _long_sentences(negative.text, self.checks.shared_words)

    def shares_sentence(self, text: str) -> str | None:
        """A sentence that an accepted negative has already."""
        return self._first_in(text, self._sentences, self.checks.shared_words)

    def copies_sentence(self, text: str) -> str | None:
        """A sentence of the positive that stands in the text."""
        least = self.checks.copied_words
        if least is None:
            return None
        if self._positive_sentences is None:
            self._positive_sentences = frozenset(_long_sentences(self.positive, least))
        return self._first_in(text, self._positive_sentences, least)

    def _first_in(self, text: str, sentences: Collection[str], least: int | None) -> str | None:
        # Looking for each of a few sentences is several times faster than cutting the text into its own.
        if least is None or not any(sentence in self.normalised(text) for sentence in sentences):
            return None
        return min(_long_sentences(text, least) & set(sentences), default=None)


def normalised(text: str) -> str:
    """The text for comparing: NFKC, lower case, runs of white space as one blank."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def check_negative(negative: DraftNegative, context: AnswerContext) -> Refusal | None:
    """Why this negative cannot enter, or None."""
    is_written = negative.edited_from is None
    found = (
        _check_text(negative, context)
        or _check_requirements(negative, context)
        or (_check_written(negative, context) if is_written else _check_edit(negative, context))
    )
    return None if found is None else Refusal(*found, negative.position)


def check_query(query: DraftQuery, document: str, language: str | None, earlier: Sequence[str]) -> Refusal | None:
    """Why a query that a document is said to answer cannot enter, or None."""
    found: _Found = None
    if not query.text:
        found = ("empty", "the query is blank")
    elif normalised(query.text) in {normalised(text) for text in earlier}:
        found = ("duplicate", "the query equals an earlier one of the same answer")
    elif leak := _QUERY_LEAKS.search(query.text):
        found = ("leak_phrase", f"the query speaks of its document: {leak.group()!r}")
    elif not query.evidence.strip() or normalised(query.evidence) not in normalised(document):
        found = ("quote_not_in_text", f"quoted, but not in the document: {query.evidence[:60]!r}")
    elif language is not None and (told := wrong_language(query.text, language)):
        found = ("wrong_language", told)
    return None if found is None else Refusal(*found, query.position)


def check_written_pair(
    query: str, positive: str | None, language: str | None, *, is_of_document: bool
) -> Refusal | None:
    """Why a query that an answer wrote, for a document or with its positive, cannot enter, or None."""
    if leak := (_QUERY_LEAKS if is_of_document else _LEAKS).search(query):
        return Refusal("leak_phrase", f"the query speaks of its document: {leak.group()!r}")
    if positive and (leak := _LEAKS.search(positive)):
        return Refusal("leak_phrase", f"the positive gives itself away: {leak.group()!r}")
    # A query may be a name, a formula or an error message: its language says little.
    if positive and language is not None and (told := wrong_language(positive, language)):
        return Refusal("wrong_language", told)
    return None


def _check_text(negative: DraftNegative, context: AnswerContext) -> _Found:
    if not negative.text:
        return "empty", "the text is blank"
    if negative.answers_query:
        return "self_check", "the answer itself says that this text satisfies the query"
    text = context.normalised(negative.text)
    if text == context.normalised(context.positive):
        return "is_the_positive", "the text equals the positive"
    if text in {context.normalised(other.text) for other in context.accepted}:
        return "duplicate", "the text equals another negative of the example"
    if any(hint in text for hint in _LEAK_HINTS) and (leak := _LEAKS.search(negative.text)):
        return "leak_phrase", f"the text gives itself away: {leak.group()!r}"
    if context.checks.language and context.language and (told := wrong_language(negative.text, context.language)):
        return "wrong_language", told
    return None


def _check_requirements(negative: DraftNegative, context: AnswerContext) -> _Found:
    """What the answer says of the text has to be so: verbatim quotes, and critical requirements unmet."""
    if not negative.breaks_critical:
        return "not_critical", "the requirement that it breaks is not a critical one"
    for met in negative.met:
        if met.is_met and met.quote.strip() and normalised(met.quote) not in context.normalised(negative.text):
            return "quote_not_in_text", f"quoted, but not in the text: {met.quote[:60]!r}"
    if negative.slot.critical_unmet is not None and negative.met:
        unmet = sum(met.is_critical and not met.is_met for met in negative.met)
        if unmet == 0:
            return "requirement_met", "it meets every critical requirement, so it may be relevant itself"
        if negative.slot.critical_unmet == "one" and unmet > 1:
            return "too_many_unmet", f"{unmet} critical requirements are unmet where exactly one was asked for"
    broken = {normalised(other.violated_requirement) for other in context.accepted}
    if context.checks.distinct_requirements and normalised(negative.violated_requirement) in broken:
        return "same_requirement", "another negative of the example breaks the same requirement"
    return None


def _check_written(negative: DraftNegative, context: AnswerContext) -> _Found:
    checks, positive = context.checks, context.positive
    if checks.length_ratio is not None and len(positive) >= _MIN_POSITIVE_CHARACTERS:
        ratio = len(negative.text) / len(positive)
        if not checks.length_ratio[0] <= ratio <= checks.length_ratio[1]:
            return "length_ratio", f"{ratio:.2f} times the positive's length"
    if copied := context.copies_sentence(negative.text):
        return "copied_sentence", f"copied from the positive: {copied[:60]!r}"
    if shared := context.shares_sentence(negative.text):
        return "shared_sentence", f"stands in an earlier negative too: {shared[:60]!r}"
    if checks.opening_words is not None:
        opening = _opening(negative.text, checks.opening_words)
        if opening is not None and opening in {_opening(n.text, checks.opening_words) for n in context.accepted}:
            return "repeated_opening", f"an earlier negative begins with the same words: {opening!r}"
    return None


def _check_edit(negative: DraftNegative, context: AnswerContext) -> _Found:
    source = context.sources[negative.edited_from or ""]
    if negative.text == source and negative.slot.as_it_is:
        return None
    if normalised(negative.text) == normalised(source):
        return "unchanged", "the edit equals its source"
    most = context.checks.changed_words
    if most is not None:
        changed = share_of_words_changed(source, negative.text)
        if changed > most:
            return "too_many_changes", f"{changed:.0%} of the words changed, at most {most:.0%} asked for"
    return None


def share_of_words_changed(source: str, edited: str) -> float:
    """Words of the source that do not stand in the edited text in the same order, as a share of its words."""
    before, after = source.split(), edited.split()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return 1 - sum(block.size for block in blocks) / max(1, len(before))


def _long_sentences(text: str, least_words: int) -> set[str]:
    sentences = (sentence for sentence in _SENTENCE.split(text) if len(sentence) >= 2 * least_words - 1)
    long = (normalised(sentence) for sentence in sentences)
    return {sentence for sentence in long if sentence.count(" ") >= least_words - 1}


def _opening(text: str, num_words: int) -> str | None:
    words = text.split(maxsplit=num_words)
    return normalised(" ".join(words[:num_words])) if len(words) > num_words else None
