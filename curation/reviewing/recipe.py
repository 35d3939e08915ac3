"""What a review session is: which candidates are asked about, in which order, by whom, under which rubric.

The same model comes from a TOML file and from the page.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Grade = Literal["hard", "medium", "easy"]
Origin = Literal["synthetic", "edited", "mined", "corpus"]
Order = Literal["suspicion", "disagreement", "uncertainty", "random"]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Attribute = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,100}$")]
_FROZEN = ConfigDict(extra="forbid", frozen=True)


class ScoreRange(BaseModel):
    """Candidates whose similarity by a teacher lies in a range, ends included."""

    model_config = _FROZEN

    teacher: Name
    min: float | None = Field(default=None, allow_inf_nan=False)
    max: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min} is above max = {self.max}")
        return self


class Sample(BaseModel):
    """A random audit sample, stratified by grade and origin. `size` is the most that is drawn.

    The sample is asked in random order, so that it may be stopped: as soon as the share of wrong candidates is known
    to lie below (or above) `max_error_rate` with the confidence asked for.
    """

    model_config = _FROZEN

    size: int = Field(ge=1, le=1_000_000)
    allocation: Literal["proportional", "equal"] = "proportional"
    max_error_rate: float | None = Field(default=None, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class QueueDefinition(BaseModel):
    """Which negatives are asked about; what is left empty lets everything through. `text` is searched, whatever its
    case, in the query, the positive and the negative. `limit` is the most examples."""

    model_config = _FROZEN

    runs: tuple[Name, ...] = ()
    release: Name | None = None
    grades: tuple[Grade, ...] = ()
    origins: tuple[Origin, ...] = ()
    attributes: dict[Attribute, tuple[Name, ...]] = Field(default_factory=dict)
    languages: tuple[Name, ...] = ()
    text: Name | None = None
    scores: tuple[ScoreRange, ...] = ()
    order: Order = "suspicion"
    sample: Sample | None = None
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _sample_is_random(self) -> Self:
        if self.sample is not None and "order" in self.model_fields_set and self.order != "random":
            raise ValueError(f"order = {self.order!r}: a sample is asked in random order; leave order out")
        if self.sample is not None and self.limit is not None:
            raise ValueError("limit: a sample has its own size; leave limit out")
        return self


class RubricText(BaseModel):
    """The guidelines beside the item: a Markdown file, or the text itself. A changed text is a new version."""

    model_config = _FROZEN

    name: Name = "default"
    file: Path | None = None
    text: str | None = Field(default=None, min_length=1, max_length=200_000)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.file is not None and self.text is not None:
            raise ValueError("give file or text, not both")
        return self


class Gold(BaseModel):
    """Hidden items whose answers are known, from a JSONL file of query, passage (a text or its SHA-256), decision and,
    for regrade, grade; or from what was settled in an earlier session. Everybody gets each of them."""

    model_config = _FROZEN

    file: Path | None = None
    session: Name | None = None
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.file is None) == (self.session is None):
            raise ValueError("give file or session")
        return self


class Repeats(BaseModel):
    """A share of the items is shown a second time to whoever had it, at least `distance` items later."""

    model_config = _FROZEN

    share: float = Field(gt=0, le=0.5)
    distance: int = Field(default=20, ge=1)


class SessionRecipe(BaseModel):
    """A review session. `reviewers` empty means that every reviewer may take part; `overlap` is how many people see an
    item. A blind session hides origin, model, grade and what others decided."""

    model_config = _FROZEN

    name: Name
    queue: QueueDefinition = QueueDefinition()
    rubric: RubricText = RubricText()
    reviewers: tuple[Name, ...] = ()
    overlap: int = Field(default=1, ge=1, le=100)
    blind: bool = False
    lease_minutes: float = Field(default=15.0, gt=0, le=7 * 24 * 60)
    gold: Gold | None = None
    repeats: Repeats | None = None
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _enough_people(self) -> Self:
        if len(set(self.reviewers)) != len(self.reviewers):
            raise ValueError("reviewers: a name stands twice")
        if self.reviewers and len(self.reviewers) < self.overlap:
            raise ValueError(f"overlap = {self.overlap} needs as many reviewers, {len(self.reviewers)} are named")
        return self
