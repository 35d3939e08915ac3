"""Is a text in the language that was asked for? By its script where that decides, else by a classifier."""

import unicodedata
from functools import cache
from typing import Any

# A few words say nothing certain; names of people and species mislead a classifier.
_MIN_LETTERS = 60
_SAMPLE = 600
_SCRIPTS = {
    "Korean": ("HANGUL",),
    "Chinese": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "Russian": ("CYRILLIC",),
    "Ukrainian": ("CYRILLIC",),
    "Greek": ("GREEK",),
    "Arabic": ("ARABIC",),
    "Hebrew": ("HEBREW",),
    "Hindi": ("DEVANAGARI",),
    "Thai": ("THAI",),
}
_CODES = {
    "English": "en", "German": "de", "French": "fr", "Spanish": "es", "Portuguese": "pt", "Italian": "it",
    "Dutch": "nl", "Polish": "pl", "Czech": "cs", "Swedish": "sv", "Danish": "da", "Finnish": "fi", "Turkish": "tr",
    "Hungarian": "hu", "Romanian": "ro", "Vietnamese": "vi", "Indonesian": "id",
}  # fmt: skip
_ENGLISH = frozenset({"the", "of", "and", "in", "to", "is", "are", "was", "were", "for", "that", "with", "by", "this"})


def wrong_language(text: str, language: str) -> str | None:
    """What speaks against the language, or None; short texts and languages that we cannot tell pass."""
    scripts = _SCRIPTS.get(language)
    if scripts is not None:
        return _wrong_script(text[:_SAMPLE], language, scripts)
    if language not in _CODES or len(text) < _MIN_LETTERS:
        return None
    sample = text[:_SAMPLE]
    # Function words settle most English texts in a hundredth of the classifier's time.
    words = sample.lower().split()
    if language == "English" and sum(word in _ENGLISH for word in words) * 12 >= len(words):
        return None
    found = _identifier().classify(sample)[0]
    return None if found == _CODES[language] else f"reads as {found!r} where {language} was asked for"


def _wrong_script(text: str, language: str, scripts: tuple[str, ...]) -> str | None:
    letters = [c for c in text if c.isalpha()]
    in_script = sum(unicodedata.name(c, "").startswith(scripts) for c in letters)
    if letters and in_script < 0.3 * len(letters):
        return f"{in_script} of {len(letters)} letters are in the script of {language}"
    return None


@cache
def _identifier() -> Any:
    # Loading the model takes as long as the rest of the command line; most runs never need it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(sorted(_CODES.values()))
    return identifier
