"""Every error that generation raises on purpose.

GeneratorError        one line for the person: what, which value, what to do
└── EngineStopped     the engine cannot go on (no server, no key, no such model); the run resumes when run again
"""


class GeneratorError(Exception):
    """Base of all errors of generation."""


class EngineStopped(GeneratorError):  # noqa: N818 - it reports a state of the world, and is caught by name
    """Infrastructure failed; everything that was answered is stored."""
