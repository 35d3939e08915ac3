"""Every error that curation raises on purpose.

CurationError    one line for the person: what, which value, what to do
"""


class CurationError(Exception):
    """Base of all errors of curation."""
