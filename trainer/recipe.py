"""What a training run is: from which release, which model, in which order, with which loss."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Pooling = Literal["log1p", "sum", "mean", "last"]


class TrainRecipe(BaseModel):
    """A training recipe. `schedule` is `easy_to_hard`, `reverse`, `random`, `mixture` or `fixed:K` with a rank K."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    release: str = Field(min_length=1, description="A release's name in the data folder, or a folder.")
    model: str = "minilm"
    pooling: Pooling = "log1p"
    schedule: str = Field(default="easy_to_hard", pattern=r"^(easy_to_hard|reverse|random|mixture|fixed:[1-9])$")
    learning_rate: float = Field(default=2e-5, gt=0)
    temperature: float = Field(default=0.05, gt=0)
    batch_size: int = Field(default=16, ge=2)
    max_length: int = Field(default=128, ge=8)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps.")
    seed: int = 0
    bf16: Literal["auto", "on", "off"] = "auto"
    checkpoint_every: int = Field(default=10, ge=1, description="Steps.")
