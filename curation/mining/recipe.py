"""What a mining run is: who proposes, who judges, how far below the positive a negative has to stay."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MineRecipe(BaseModel):
    """A mining recipe (NV-Retriever's TopK-PercPos, arXiv 2407.15831).

    `examples` says for which examples: `all` of the collection with a positive in `split`, or only the `generated`
    ones, which have machine-written negatives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    collection: str
    split: str = "train"
    examples: Literal["all", "generated"] = "all"
    proposers: tuple[Literal["bm25", "dense"], ...] = Field(default=("bm25", "dense"), min_length=1)
    teacher: str = "minilm"
    percentage: float = Field(default=0.95, gt=0, le=1)
    depth: int = Field(default=50, ge=1)
    num_negatives: int = Field(default=8, ge=1)
