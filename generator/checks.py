"""What code can check of a negative before it enters the store. Each check gives the reason for a refusal, or None."""

import difflib
import re
import unicodedata
from collections.abc import Sequence

from generator.responses import DraftNegative, Refusal

# A negative much shorter or longer than its positive gives itself away by length alone.
_MIN_LENGTH_RATIO, _MAX_LENGTH_RATIO = 0.33, 3.0
_MAX_CHANGED_WORDS = 0.3
_MIN_COPIED_WORDS = 8
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LEAKS = re.compile(
    r"\bhard negatives?\b|\bthe (?:given |original )?(?:positive (?:document|passage)|search query)\b|"
    r"\bthis (?:document|text|passage) (?:does not|doesn't) (?:answer|address|satisfy)\b|\bsimilarity[_ ]level\b",
    re.IGNORECASE,
)
_SCRIPTS = {
    "Korean": ("HANGUL",),
    "Chinese": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "Russian": ("CYRILLIC",),
}


def normalised(text: str) -> str:
    """The text for comparing: NFKC, lower case, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_negative(
    negative: DraftNegative, *, positive: str, source: str | None, earlier: Sequence[str], language: str | None
) -> Refusal | None:
    """Why this negative cannot enter, or None.

    Args:
        positive: Text of the example's positive.
        source: Text that a minimal edit changed; None for a free-written negative.
        earlier: Texts of the negatives accepted before it in the same answer.
        language: Language that the plan asked for.
    """
    found = _check_any(negative, positive, earlier, language)
    if found is None:
        found = _check_written(negative, positive) if source is None else _check_edit(negative, source)
    return None if found is None else Refusal(*found, negative.position)


def _check_any(
    negative: DraftNegative, positive: str, earlier: Sequence[str], language: str | None
) -> tuple[str, str] | None:
    if "\x00" in negative.text:
        return "control_character", "the text holds a NUL character"
    if not negative.text:
        return "empty", "the text is blank"
    if negative.answers_query:
        return "self_check", "the answer itself says that this text satisfies the query"
    text = normalised(negative.text)
    if text == normalised(positive):
        return "is_the_positive", "the text equals the positive"
    if text in {normalised(other) for other in earlier}:
        return "duplicate", "the text equals an earlier negative of the same answer"
    if leak := _LEAKS.search(negative.text):
        return "leak_phrase", f"the text gives itself away: {leak.group()!r}"
    return _check_language(negative.text, language)


def _check_language(text: str, language: str | None) -> tuple[str, str] | None:
    scripts = _SCRIPTS.get(language or "")
    if scripts is None:
        return None
    letters = [c for c in text if c.isalpha()]
    in_script = sum(unicodedata.name(c, "").startswith(scripts) for c in letters)
    if letters and in_script < 0.3 * len(letters):
        return "wrong_language", f"{in_script} of {len(letters)} letters are in the script of {language}"
    return None


def _check_written(negative: DraftNegative, positive: str) -> tuple[str, str] | None:
    ratio = len(negative.text) / len(positive)
    # Labels and phrases vary several times in length without giving anything away.
    if len(positive) >= 200 and not _MIN_LENGTH_RATIO <= ratio <= _MAX_LENGTH_RATIO:
        return "length_ratio", f"{ratio:.2f} times the positive's length"
    known = {normalised(sentence) for sentence in _SENTENCE.split(positive)}
    for sentence in _SENTENCE.split(negative.text):
        if len(sentence.split()) >= _MIN_COPIED_WORDS and normalised(sentence) in known:
            return "copied_sentence", f"copied from the positive: {sentence[:60]!r}"
    return None


def _check_edit(negative: DraftNegative, source: str) -> tuple[str, str] | None:
    if normalised(negative.text) == normalised(source):
        return "unchanged", "the edit equals its source"
    if not negative.breaks_critical:
        return "not_critical", "the requirement that it breaks is not a critical one"
    for quote in negative.quotes:
        if quote.strip() and quote not in negative.text:
            return "quote_not_in_text", f"quoted, but not in the text: {quote[:60]!r}"
    changed = share_of_words_changed(source, negative.text)
    if changed > _MAX_CHANGED_WORDS:
        return "too_many_changes", f"{changed:.0%} of the words changed, at most {_MAX_CHANGED_WORDS:.0%} asked for"
    return None


def share_of_words_changed(source: str, edited: str) -> float:
    """Words of the source that do not stand in the edited text in the same order, as a share of its words."""
    before, after = source.split(), edited.split()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return 1 - sum(block.size for block in blocks) / max(1, len(before))
