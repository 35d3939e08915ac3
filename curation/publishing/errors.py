"""Why a release is not published.

PublishingError             one line: what, which value, what is left on the Hub, what to do
├── UnreachableError        the endpoint does not answer; a dry run goes on without it
├── MovedHeadError          somebody else committed in between
└── TagExistsError          the tag appeared in between; its content decides what that means
"""

from curation.errors import CurationError


class PublishingError(CurationError):
    """Base of all errors of publishing."""


class UnreachableError(PublishingError):
    """The endpoint does not answer, or the connection was lost."""


class MovedHeadError(PublishingError):
    """The repository's head is no longer the one that was read."""


class TagExistsError(PublishingError):
    """The tag is already there."""
