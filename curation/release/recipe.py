"""What a release is: which candidates, mixed how, split how."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.judging.verdicts import Policy
from curation.release.mixing import MixKind, Quota


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mix(_Table):
    """Negatives per training row, and the ratio R of machine-written to mined ones among them.

    `quotas` bound how many slots of a row an origin or a grade may take: `{ hard = 1, edited = 2 }`.
    """

    kind: MixKind = "hybrid"
    ratio: float = Field(default=0.7, gt=0)
    slots: int = Field(default=3, ge=1, le=64)
    quotas: dict[Quota, Annotated[int, Field(ge=0)]] = {}


class Split(_Table):
    """Share of connected components that goes to dev."""

    dev_share: float = Field(default=0.1, ge=0, lt=1)


class FalseNegatives(_Table):
    """What becomes of a negative that a judge calls relevant (`threshold` of 0 to 3 and above).

    `drop` leaves it out, `relabel` makes it another positive of its query, `keep` counts it only. Without a `judge`
    the newest confirmed judgement speaks, whoever judged.
    """

    policy: Policy = "drop"
    judge: str | None = None
    threshold: int = Field(default=2, ge=1, le=3)


class Decisions(_Table):
    """What people's decisions decide: they are applied wherever there are any.

    Attributes:
        required: `none` takes negatives that nobody looked at as they are; `decided` takes only those that somebody
            accepted; `agreed` only those on which two or more people agree, or that an adjudicator settled.
        disputed: Negatives on which people disagree and that nobody settled are left out, or the release is refused.
        sessions: Names of the review sessions that count; all when empty.
    """

    required: Literal["none", "decided", "agreed"] = "none"
    disputed: Literal["leave_out", "refuse"] = "leave_out"
    sessions: tuple[str, ...] = ()


GateName = Literal[
    "order_accuracy",
    "negatives_from_positives",
    "synthetic_from_real",
    "judged_false_negatives",
    "duplicates",
    "contamination",
]


class Override(_Table):
    """Someone lets a failing gate through; the card names them and their reason."""

    gate: GateName
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Gates(_Table):
    """Limits that a release must meet; none by default.

    Attributes:
        order_accuracy: Least share of cross-grade pairs in order, of the worst run.
        negatives_from_positives: Highest AUC at which a reader who does not see the query tells negatives from
            positives, of the worst run; 0.5 is chance.
        synthetic_from_real: The same of machine-written against real text.
        judged_false_negatives: Highest share of judged negatives that answer their query.
        duplicates: Highest share of examples in which a text repeats another, exactly or nearly.
        contamination: Highest number of evaluation queries and pairs among the examples, exact or near.
    """

    order_accuracy: float | None = Field(default=None, ge=0, le=1)
    negatives_from_positives: float | None = Field(default=None, ge=0.5, le=1)
    synthetic_from_real: float | None = Field(default=None, ge=0.5, le=1)
    judged_false_negatives: float | None = Field(default=None, ge=0, le=1)
    duplicates: float | None = Field(default=None, ge=0, le=1)
    contamination: int | None = Field(default=None, ge=0)
    overrides: tuple[Override, ...] = ()

    @model_validator(mode="after")
    def _overrides_open_a_gate(self) -> "Gates":
        for override in self.overrides:
            if getattr(self, override.gate) is None:
                raise ValueError(f"an override of {override.gate!r}, which has no limit: set one, or leave it out")
        return self


class Acknowledgement(_Table):
    """Someone mixes two licences that conflict; the card names them, the two licences and the reason."""

    licences: tuple[str, str]
    by: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class ReleaseRecipe(_Table):
    """A release recipe; `seed` decides the mix and the split. `runs` empty means candidates of every run.

    Attributes:
        title: Of the card, on one line.
        language: ISO 639 codes for the card, which names no language without them.
        licence: Licence of the rows whose source states none; `other` says that it is not known.
        output_licence: Terms of the generators' outputs, as their makers state them; nothing is said without it.
        acknowledged: Pairs of licences that conflict and are mixed all the same.
    """

    title: str = Field(default="Graded hard negatives", min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
    language: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = ()
    licence: str = Field(default="other", min_length=1)
    output_licence: str | None = Field(default=None, min_length=1)
    acknowledged: tuple[Acknowledgement, ...] = ()
    runs: tuple[str, ...] = ()
    teacher: str = "minilm"
    mix: Mix = Mix()
    split: Split = Split()
    false_negatives: FalseNegatives | None = None
    decisions: Decisions = Decisions()
    gates: Gates = Gates()
    seed: int = 0
