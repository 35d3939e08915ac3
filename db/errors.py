"""Every error the store raises on purpose.

StoreError              one line for the person: what, which value, what to do
├── StoreVersionError   the schema is newer than this code, or is not a Gradus store
└── MergeConflictError  two stores say different things under the same identity
"""


class StoreError(Exception):
    """Base of all errors of the store."""


class StoreVersionError(StoreError):
    """The database cannot be upgraded to this code's schema."""


class MergeConflictError(StoreError):
    """Two stores disagree about a row that has the same identity in both."""
