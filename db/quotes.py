"""Whether words that someone quotes stand in a text. White space is all that may differ."""


def stands_in(quote: str, text: str) -> bool:
    """Whether the text holds the quote as it is; an empty quote stands nowhere."""
    words = " ".join(quote.split())
    return bool(words) and words in " ".join(text.split())
