"""Every error that curation raises on purpose.

CurationError            one line for the person: what, which value, what to do
└── LeaseLostError       a slot of a review session is somebody else's by now; nothing of the person's work is lost
"""


class CurationError(Exception):
    """Base of all errors of curation."""


class LeaseLostError(CurationError):
    """The lease ran out and the slot was handed on. `text` is what the person had written, to be kept for them."""

    def __init__(self, message: str, *, text: str | None = None) -> None:
        super().__init__(message)
        self.text = text
