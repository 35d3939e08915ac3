"""What a release is: which candidates, mixed how, split how."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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


class ReleaseRecipe(_Table):
    """A release recipe; `seed` decides the mix and the split. `runs` empty means candidates of every run."""

    title: str = "Graded hard negatives"
    language: tuple[str, ...] = ("en",)
    licence: str = "other"
    runs: tuple[str, ...] = ()
    teacher: str = "minilm"
    mix: Mix = Mix()
    split: Split = Split()
    seed: int = 0
