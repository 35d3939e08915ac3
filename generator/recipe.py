"""What a generation run is: what to ask, from which prompts, of which model, through which engine."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchFileEngine(_Table):
    """Requests go to a file in the OpenAI Batch format, completions come from one; what answers is outside."""

    kind: Literal["batch_file"]
    completions: Path
    requests: Path | None = None


class OpenAiEngine(_Table):
    """Chat Completions at any base URL. The key is read from the environment variable `api_key_env`."""

    kind: Literal["openai"]
    base_url: str = Field(pattern=r"^https?://")
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=32, ge=1, le=4096)
    timeout_s: float = Field(default=120, gt=0)
    max_attempts: int = Field(default=5, ge=1)


class CellPlan(_Table):
    """Exactly the requests that a plan file lists, one JSON object a line."""

    cells: Path
    collection: str | None = None
    task_instruction: str = ""


class DrawnPlan(_Table):
    """Graded negatives for pairs drawn from a collection, attributes balanced over their combinations."""

    collection: str
    split: str
    num_pairs: int = Field(ge=1)
    task_instruction: str = Field(min_length=1)
    attributes: dict[Literal["domain", "education_level", "length", "language"], tuple[str, ...]]


class GenerateRecipe(_Table):
    """A generation recipe. `seed` decides every draw; `temperature` is the model's."""

    name: str = Field(min_length=1)
    seed: int = 0
    pack: str = "v1"
    model: str = Field(min_length=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    plan: CellPlan | DrawnPlan
    engine: Annotated[BatchFileEngine | OpenAiEngine, Field(discriminator="kind")]
    max_rejected: float = Field(default=0.5, gt=0, le=1, description="Share of completions; above it the run fails.")

    def identity(self) -> dict[str, object]:
        """What makes a run the same run: everything but where the engine stands and where files lie."""
        fields = self.model_dump(mode="json", exclude={"engine"})
        if isinstance(self.plan, CellPlan):
            fields["plan"].pop("cells")
        return fields
