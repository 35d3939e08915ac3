"""Every error that generation raises on purpose.

GeneratorError        one line for the person: what, which value, what to do
├── EngineStopped     the engine cannot go on (no server, no key, no such model); the run resumes when run again
└── TooManyRefused    more completions were refused than the recipe allows; it carries the run's report
"""

from typing import Any


class GeneratorError(Exception):
    """Base of all errors of generation."""


class EngineStopped(GeneratorError):  # noqa: N818 - it reports a state of the world, and is caught by name
    """Infrastructure failed; everything that was answered is stored."""


class TooManyRefused(GeneratorError):  # noqa: N818 - it reports a state of the run, and is caught by name
    """All answers are stored and read; too few of them were of use. `report` says where the run stands."""

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report
