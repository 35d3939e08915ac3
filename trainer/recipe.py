"""What a training run is: from which release, which model, in which order, with which loss."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Pooling = Literal["log1p", "sum", "mean", "last", "own"]
Group = Literal["hard", "medium", "easy", "mined", "in_batch"]
Positive = Annotated[float, Field(gt=0)]
_MOST = 2**31 - 1
# Smaller temperatures push every gradient that is not zero beyond what a step can follow; cosines differ by 2 at most.
Temperature = Annotated[float, Field(ge=1e-3, le=1_000)]
Weight = Annotated[float, Field(ge=1e-6, le=1_000)]
Margin = Annotated[float, Field(ge=-2, le=2)]
Dropout = Annotated[float, Field(ge=0, le=0.9)]
_FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GroupTerms(BaseModel):
    """How negatives of one grade count in the contrastive loss; `trainer.loss` has the formula."""

    model_config = _FROZEN

    weight: float = Field(default=1.0, ge=0, le=1_000, description="Factor of a negative's term; 0 leaves it out.")
    margin: float = Field(
        default=0.0, ge=0, le=2, description="Added to a negative's cosine: the positive must win by it."
    )
    temperature: Temperature | None = Field(default=None, description="In place of the recipe's.")


class Slots(BaseModel):
    """Negatives of a row, in place of the release's own mix: both counts, or `total` and `ratio`."""

    model_config = _FROZEN

    written: int | None = Field(default=None, ge=0, le=1_000)
    mined: int | None = Field(default=None, ge=0, le=1_000)
    total: int | None = Field(default=None, ge=1, le=1_000)
    ratio: float | None = Field(
        default=None, ge=0, le=1_000, description="Written to mined negatives, met on average (SyNeg's R)."
    )

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Self:
        counts, mix = (self.written, self.mined), (self.total, self.ratio)
        if not (None not in counts and mix == (None, None)) and not (None not in mix and counts == (None, None)):
            raise ValueError("give either 'written' and 'mined', or 'total' and 'ratio'")
        return self


class Ordering(BaseModel):
    """RankNet over the known order: positive, hard, medium (N2 and N3 tied), easy."""

    model_config = _FROZEN

    weight: Weight = 2.0
    temperature: Temperature = 0.1


class Distillation(BaseModel):
    """Learning a teacher's scores, which the release stores, over a row's positive and own negatives."""

    model_config = _FROZEN

    teacher: str = Field(min_length=1, description="A teacher's name as the release's scores have it.")
    kind: Literal["kl", "margin_mse"] = "kl"
    weight: Weight = 1.0
    temperature: Temperature = Field(default=1.0, description="Divides the model's cosines.")
    teacher_temperature: Temperature = Field(default=1.0, description="Divides the teacher's scores.")


class Matryoshka(BaseModel):
    """The loss at several lengths of the embedding, each its first numbers, renormalised."""

    model_config = _FROZEN

    dimensions: tuple[Annotated[int, Field(ge=1, le=_MOST)], ...] = Field(min_length=1)
    weights: tuple[Weight, ...] | None = None

    @model_validator(mode="after")
    def _has_a_weight_each(self) -> Self:
        if len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError("dimensions has one twice")
        if self.weights is not None and len(self.weights) != len(self.dimensions):
            raise ValueError("weights needs one number for each of dimensions")
        return self


class LoRA(BaseModel):
    """Low-rank adapters in place of full fine-tuning."""

    model_config = _FROZEN

    rank: int = Field(default=16, ge=1, le=4_096)
    alpha: int = Field(default=32, ge=1, le=65_536)
    dropout: Dropout = 0.05


class TrainRecipe(BaseModel):
    """A training recipe; sizes are of the whole run, however many processes share it."""

    model_config = _FROZEN

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="1 to 100 letters, digits, '.', '_' and '-', of which the first is a letter or a digit.",
    )
    release: str = Field(min_length=1, description="A release's name in the data folder, or a folder.")
    split: str = Field(default="train", pattern=r"^[A-Za-z0-9_]+$", description="Letters, digits and '_'.")

    model: str = Field(default="minilm", min_length=1)
    pooling: Pooling = Field(default="log1p", description="log1p is ATA; own keeps the model's.")
    detach_weights: bool = Field(default=False, description="Whether gradients stop at ATA's weights.")
    bidirectional: bool = Field(default=False, description="Let every token of a decoder see every other.")
    lora: LoRA | None = None
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the weights; adapters: float32.")
    gradient_checkpointing: bool = False
    dropout: Dropout = Field(default=0.0, description="Of the model; adapters have their own.")
    query_prompt: str = Field(default="", description="Put before each query; {instruction} stands for the example's.")
    passage_prompt: str = ""
    include_prompt: bool = Field(default=True, description="Whether the tokens of a prompt are pooled.")
    max_length: int = Field(default=128, ge=8, le=_MOST, description="Tokens.")
    max_query_length: int | None = Field(
        default=None, ge=8, le=_MOST, description="Tokens; the same as passages if left out."
    )

    schedule: str = Field(
        default="easy_to_hard",
        pattern=r"^(easy_to_hard|reverse|random|mixture|fixed:[1-4])$",
        description="easy_to_hard, reverse, random, mixture, or fixed:K with a rank K.",
    )
    passes: int = Field(default=1, ge=1, le=1_000, description="Passes over the examples in each of the four blocks.")
    max_steps: int | None = Field(
        default=None, ge=1, le=1_000_000, description="In place of passes; shared out by `shares`."
    )
    shares: tuple[Positive, Positive, Positive, Positive] = (0.25, 0.25, 0.25, 0.25)
    batch_size: int = Field(default=16, ge=2, le=1_000_000, description="Rows whose passages count against each other.")
    accumulate: int = Field(default=1, ge=1, le=10_000, description="Batches of a step.")
    one_source: bool = Field(default=False, description="Rows of a batch come from one source of the release.")
    negatives: Slots | None = None

    temperature: Temperature = 0.05
    grades: dict[Group, GroupTerms] = Field(default_factory=dict)
    mask_margin: Margin | None = Field(
        default=None,
        description="Leave out a negative above the positive's cosine plus this, unless it was written for the query.",
    )
    ordering: Ordering | None = None
    distillation: Distillation | None = None
    matryoshka: Matryoshka | None = None

    learning_rate: float = Field(default=2e-5, ge=1e-9, le=1)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps.")
    clip: float = Field(default=1.0, ge=1e-6, le=1e6, description="Largest norm of the gradient.")
    seed: int = Field(default=0, ge=0, lt=2**63)

    bf16: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu"] = "auto"
    chunk_tokens: int = Field(
        default=4_096, ge=1, le=_MOST, description="Tokens, with padding, that one forward pass takes."
    )
    kept_tokens: int = Field(
        default=65_536, ge=0, le=_MOST, description="Tokens whose graphs a process keeps; others run twice."
    )
    checkpoint_every: int = Field(default=10, ge=1, le=_MOST, description="Steps.")

    @field_validator("query_prompt", "passage_prompt")
    @classmethod
    def _stands_for_an_instruction_or_nothing(cls, prompt: str, info: ValidationInfo) -> str:
        if info.field_name == "query_prompt":
            found = re.search(r"[{}]", prompt.replace("{instruction}", ""))
            known = "{instruction}, the example's own, is all that braces can stand for"
        else:
            found, known = re.search(r"[{}]", prompt), "passages have no instruction, so braces stand for nothing here"
        if found:
            raise ValueError(f"{known}; write the rest of the prompt out, without braces")
        return prompt

    @model_validator(mode="after")
    def _shares_need_steps(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares = {list(self.shares)}: they must add up to 1")
        if len(set(self.shares)) > 1 and self.max_steps is None:
            raise ValueError("shares divide max_steps, which is missing")
        if self.max_steps is not None and self.passes > 1:
            raise ValueError("give max_steps or passes, not both")
        return self

    @model_validator(mode="after")
    def _every_key_counts(self) -> Self:
        if self.pooling == "own" and not self.include_prompt:
            raise ValueError("include_prompt = false: pooling = 'own' keeps the model's; choose another pooling")
        slots = self.negatives
        if slots is not None and 0 in (slots.written, slots.ratio) and self.schedule != "mixture":
            name = "written" if slots.written == 0 else "ratio"
            raise ValueError(
                f"schedule = {self.schedule!r} orders written negatives, and negatives.{name} = 0 leaves none: use "
                "'mixture'"
            )
        # bfloat16 has 8 bits: at a learning rate of 2e-5 nearly every update rounds to nothing.
        if self.dtype == "bfloat16" and self.lora is None:
            raise ValueError(
                "dtype = 'bfloat16' is for weights that stay as they are: give lora, or leave it out (bf16 = 'on' "
                "computes in bfloat16 and learns in float32)"
            )
        return self
