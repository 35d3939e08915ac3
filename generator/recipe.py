"""What a generation run is: what to ask, from which prompts, of which model, through which engine."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_BASE_URL = r"^https?://"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BatchFileEngine(_Table):
    """Requests go to a file in the OpenAI Batch format, completions come from one; what answers is outside."""

    kind: Literal["batch_file"]
    completions: Path
    requests: Path | None = None


class OpenAiEngine(_Table):
    """Chat Completions at one base URL or several. The key is read from the environment variable `api_key_env`."""

    kind: Literal["openai"]
    base_url: str | tuple[str, ...]
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=32, ge=1, le=4096, description="Most requests in flight at each base URL.")
    timeout_s: float = Field(default=120, gt=0)
    max_attempts: int = Field(default=5, ge=1)

    @property
    def base_urls(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = (value,) if isinstance(value, str) else value
        if not urls or any(not url.startswith(("http://", "https://")) for url in urls):
            raise ValueError("give a URL that begins with http:// or https://, or a list of them")
        if len(set(urls)) < len(urls):
            raise ValueError("the same URL stands twice")
        return value


class OpenAiBatchEngine(_Table):
    """The Batch API at a base URL: files of requests, answered within a day, at a discount."""

    kind: Literal["openai_batch"]
    base_url: str = Field(default="https://api.openai.com/v1", pattern=_BASE_URL)
    api_key_env: str = "OPENAI_API_KEY"
    max_requests: int = Field(default=50_000, ge=1, le=50_000, description="Requests in one file.")
    max_bytes: int = Field(default=190_000_000, ge=1_000, le=200_000_000, description="Bytes of one file.")
    poll_s: float = Field(default=30, gt=0)


class VllmEngine(_Table):
    """vLLM offline, in this process. What is left out is vLLM's own choice. Needs the `vllm` package."""

    kind: Literal["vllm"]
    model_path: str | None = Field(default=None, description="Folder or Hub name; the recipe's model by default.")
    dtype: str = "auto"
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    batch: int = Field(default=512, ge=1, description="Requests taken from the ledger at a time.")
    seed: int = Field(default=0, ge=0, description="The engine's; a request without a seed gets one drawn from it.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Anything else that vLLM's LLM(...) takes.")

    @model_validator(mode="after")
    def _sets_no_key_twice(self) -> "VllmEngine":
        if twice := sorted({"model", *type(self).model_fields} & set(self.engine_args)):
            key = "model_path" if twice[0] == "model" else twice[0]
            raise ValueError(f"engine_args.{twice[0]}: set the engine's own key {key!r} instead")
        return self


Engine = Annotated[BatchFileEngine | OpenAiEngine | OpenAiBatchEngine | VllmEngine, Field(discriminator="kind")]


class CellPlan(_Table):
    """Exactly the requests that a plan file lists, one JSON object a line."""

    source: Literal["cells"]
    cells: Path
    collection: str | None = None
    task_instruction: str = ""


class _Quota(_Table):
    """How much to ask: a number of requests, or a number accepted in every cell of attributes x rank."""

    attributes: str | dict[str, tuple[str, ...]] | None = None
    num: int | None = Field(default=None, ge=1, description="Requests, balanced over the attribute cells.")
    accepted_per_cell: int | None = Field(default=None, ge=1, description="Accepted texts of every rank in every cell.")
    max_per_cell: int | None = Field(default=None, ge=1, description="Requests a cell; 3 times the quota by default.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "_Quota":
        if (self.num is None) == (self.accepted_per_cell is None):
            raise ValueError("give either num (requests) or accepted_per_cell (accepted texts of each rank)")
        if self.max_per_cell is not None and self.accepted_per_cell is None:
            raise ValueError("max_per_cell belongs to accepted_per_cell")
        if isinstance(self.attributes, dict) and any(not values for values in self.attributes.values()):
            raise ValueError("an attribute without values leaves no cell")
        return self

    @property
    def most_per_cell(self) -> int | None:
        return self.max_per_cell or (3 * self.accepted_per_cell if self.accepted_per_cell else None)


class PairPlan(_Quota):
    """Negatives for judged (query, positive) pairs of a collection, drawn without replacement.

    `neighbours` says who finds the documents that an entry edits beside the positive.
    """

    source: Literal["pairs"]
    collection: str
    split: str
    task_instruction: str = Field(min_length=1)
    entry: str = "minimal_edits"
    neighbours: Literal["bm25", "minilm"] = "bm25"


class TaskPlan(_Quota):
    """MGH in two stages: tasks of each type are brainstormed, then examples with graded negatives are written for them.

    `num` and the quotas count examples; every brainstormed task is used once before one is used again.
    """

    source: Literal["tasks"]
    task_types: tuple[Literal["short-long", "long-short", "short-short", "long-long", "sts"], ...] = (
        "short-long",
        "long-short",
        "short-short",
        "long-long",
        "sts",
    )
    tasks_per_type: int = Field(default=12, ge=1)
    tasks_per_request: int = Field(default=12, ge=1, le=50)
    topics: tuple[str, ...] = ()
    brainstorm: str = "task_brainstorm"
    entry: str = "graded_example"


class DocumentPlan(_Quota):
    """Queries, with or without negatives, from the documents of a collection, drawn without replacement.

    `top_k`: a query is kept if it retrieves its own document among the first k of the whole collection; 0 keeps all.
    """

    source: Literal["documents"]
    collection: str
    entry: str = "document_queries"
    top_k: int = Field(default=10, ge=0)
    retriever: Literal["bm25", "minilm"] = "bm25"


Plan = Annotated[CellPlan | PairPlan | TaskPlan | DocumentPlan, Field(discriminator="source")]


class Budget(_Table):
    """What the run may spend at most, over all its processes and restarts; reserved before a request leaves."""

    usd: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _limits_something(self) -> "Budget":
        if self.usd is None and self.tokens is None:
            raise ValueError("give usd, tokens or both")
        return self


def refuse_unlimited(budget: Budget | None, model: str, max_output_tokens: int | None) -> None:
    """A budget holds only where the worst case of an answer is known.

    Raises:
        ValueError: Nothing limits an answer's length, or dollars are limited and the model's price is not known.
    """
    from generator.models import facts_of

    if budget is not None:
        facts = facts_of(model)
        if max_output_tokens is None and facts.max_output is None:
            raise ValueError("a budget needs max_output_tokens: the worst case of each answer is reserved")
        if budget.usd is not None and not facts.has_price:
            raise ValueError(f"budget.usd needs a price, and none is known of {model!r}: use budget.tokens")


class EmbeddingGate(_Table):
    """Negatives are measured as they arrive: similarity to the query must fall from grade to grade.

    A negative that is not at least `margin` less similar than those of harder grades is refused and asked again. One
    above its positive is suspect: kept and marked, or refused.
    """

    encoder: str = "minilm"
    margin: float = Field(default=0.0, ge=0, le=2)
    above_positive: Literal["keep", "refuse"] = "keep"


class GenerateRecipe(_Table):
    """A generation recipe. `seed` decides every draw; `temperature` is the model's."""

    name: str = Field(min_length=1)
    seed: int = 0
    pack: str = "v2"
    model: str = Field(min_length=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    max_output_tokens: int | None = Field(default=None, ge=1)
    effort: str | None = Field(default=None, description="Reasoning effort; what is known of the model by default.")
    model_seed: bool = Field(default=False, description="Send a seed with every request, where the model takes one.")
    plan: tuple[Plan, ...]
    engine: Engine
    budget: Budget | None = None
    gate: EmbeddingGate | None = None
    max_repairs: int = Field(default=2, ge=0, le=10, description="How often what failed of an answer is asked again.")
    max_rejected: float = Field(default=0.5, gt=0, le=1, description="Share of completions; above it the run fails.")

    @field_validator("plan", mode="before")
    @classmethod
    def _one_plan_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, dict) else value

    @field_validator("plan")
    @classmethod
    def _asks_something(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not 1 <= len(value) <= 100:
            raise ValueError("give one [plan], or up to 100 [[plan]] tables")
        return value

    @model_validator(mode="after")
    def _a_budget_needs_a_limit_of_output(self) -> "GenerateRecipe":
        refuse_unlimited(self.budget, self.model, self.max_output_tokens)
        return self

    def identity(self) -> dict[str, object]:
        """What makes a run the same run: everything but where the engine stands, what it may cost, where files lie."""
        fields = self.model_dump(mode="json", exclude={"engine", "budget", "max_rejected"})
        for plan in fields["plan"]:
            plan.pop("cells", None)
        return fields
