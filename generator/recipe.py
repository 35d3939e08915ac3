"""What a generation run is: what to ask, from which prompts, of which model, through which engine."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

# A number in quotes is a slip, and is told.
_Whole = Annotated[int, Strict()]
_Real = Annotated[float, Strict()]
_Flag = Annotated[bool, Strict()]
# What stands in tables, terminals and file names.
_NAME = r"^[^\x00-\x1f\x7f-\x9f]+$"


def _checked_url(url: str) -> str:
    """A base URL that paths can be put behind; what is wrong is told without the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("its host or port is not valid") from None
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("a URL holds no blanks and no control characters")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("give a URL that begins with http:// or https:// and names a host, or a list of them")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with user and password would be stored: put the key in the variable api_key_env names")
    if "?" in url or "#" in url:
        raise ValueError("a base URL has no query string and no fragment: paths are put behind it")
    return url


_Url = Annotated[str, AfterValidator(_checked_url)]


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
    concurrency: _Whole = Field(default=32, ge=1, le=4096, description="Most requests in flight at each base URL.")
    timeout_s: _Real = Field(default=120, gt=0)
    max_attempts: _Whole = Field(default=5, ge=1)

    @property
    def base_urls(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url

    @field_validator("base_url")
    @classmethod
    def _are_urls(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        urls = (value,) if isinstance(value, str) else value
        if not urls:
            raise ValueError("give a URL that begins with http:// or https://, or a list of them")
        for url in urls:
            _checked_url(url)
        if len(set(urls)) < len(urls):
            raise ValueError("the same URL stands twice")
        return value


class OpenAiBatchEngine(_Table):
    """The Batch API at a base URL: files of requests, answered within a day, at a discount."""

    kind: Literal["openai_batch"]
    base_url: _Url = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    max_requests: _Whole = Field(default=50_000, ge=1, le=50_000, description="Requests in one file.")
    max_bytes: _Whole = Field(default=190_000_000, ge=1_000, le=200_000_000, description="Bytes of one file.")
    poll_s: _Real = Field(default=30, gt=0)


class VllmEngine(_Table):
    """vLLM offline, in this process. What is left out is vLLM's own choice. Needs the `vllm` package."""

    kind: Literal["vllm"]
    model_path: str | None = Field(default=None, description="Folder or Hub name; the recipe's model by default.")
    dtype: str = "auto"
    max_model_len: _Whole | None = Field(default=None, ge=1)
    max_num_seqs: _Whole | None = Field(default=None, ge=1)
    gpu_memory_utilization: _Real | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: _Whole = Field(default=1, ge=1)
    batch: _Whole = Field(default=512, ge=1, description="Requests taken from the ledger at a time.")
    seed: _Whole = Field(default=0, ge=0, description="The engine's; a request without a seed gets one drawn from it.")
    engine_args: dict[str, Any] = Field(default_factory=dict, description="Anything else that vLLM's LLM(...) takes.")

    def with_names_from(self, folder: Path) -> Self:
        """The table with a model that is a folder taken from this one; anything else is a name on the Hub."""
        path = self.model_path
        is_folder = path is not None and (path.startswith((".", "/", "~")) or (folder / path).exists())
        if path is None or not is_folder:
            return self
        return self.model_copy(update={"model_path": str(folder / Path(path).expanduser())})

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
    num: _Whole | None = Field(default=None, ge=1, description="Requests, balanced over the attribute cells.")
    accepted_per_cell: _Whole | None = Field(
        default=None, ge=1, description="Accepted texts of every rank in every cell."
    )
    max_per_cell: _Whole | None = Field(
        default=None, ge=1, description="Requests a cell; 3 times the quota by default."
    )

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
    """Negatives for judged (query, positive) pairs of a collection, each asked once before one is asked again.

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
    tasks_per_type: _Whole = Field(default=12, ge=1)
    tasks_per_request: _Whole = Field(default=12, ge=1, le=50)
    topics: tuple[str, ...] = ()
    brainstorm: str = "task_brainstorm"
    entry: str = "graded_example"


class DocumentPlan(_Quota):
    """Queries, with or without negatives, from a collection's documents, each asked once before one is asked again.

    `num` is at most the number of documents. `top_k`: a query is kept if `retriever` finds its own document among the
    first k of the whole collection; 0 keeps all. With negatives, an answer whose query is refused is refused whole.
    """

    source: Literal["documents"]
    collection: str
    entry: str = "document_queries"
    top_k: _Whole = Field(default=10, ge=0)
    retriever: Literal["bm25", "minilm"] = "bm25"


Plan = Annotated[CellPlan | PairPlan | TaskPlan | DocumentPlan, Field(discriminator="source")]


class Budget(_Table):
    """What the run may spend at most, over all its processes and restarts; reserved before a request leaves."""

    usd: _Real | None = Field(default=None, gt=0)
    tokens: _Whole | None = Field(default=None, gt=0)

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

    Of two negatives that are not `margin` apart in the order of their grades, the easier one is refused, but for a
    repair, which must fit beside the negatives that stand. What is refused is asked again, `max_repairs` times at most.
    One above its positive is suspect: kept and marked, or refused. Negatives of one grade are tied.
    """

    encoder: str = "minilm"
    margin: _Real = Field(default=0.0, ge=0, le=2)
    above_positive: Literal["keep", "refuse"] = "keep"


class GenerateRecipe(_Table):
    """A generation recipe. `seed` decides what is asked about, and in which cell; `temperature` is the model's."""

    name: str = Field(min_length=1, max_length=200, pattern=_NAME)
    seed: _Whole = Field(default=0, ge=-(2**63), lt=2**63)
    pack: str = Field(default="v2", description="A bundled pack's name, or a folder, from the recipe's folder.")
    model: str = Field(min_length=1)
    temperature: _Real = Field(default=1.0, ge=0, le=2)
    max_output_tokens: _Whole | None = Field(default=None, ge=1)
    effort: str | None = Field(default=None, description="Reasoning effort; what is known of the model by default.")
    model_seed: _Flag = Field(default=False, description="Send a seed with every request, where the model takes one.")
    plan: tuple[Plan, ...]
    engine: Engine
    budget: Budget | None = None
    gate: EmbeddingGate | None = None
    max_repairs: _Whole = Field(
        default=2, ge=0, le=10, description="How often what failed of an answer is asked again."
    )
    max_rejected: _Real = Field(default=0.5, gt=0, le=1, description="Share of completions; above it the run fails.")

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

    def with_names_from(self, folder: Path) -> Self:
        """The recipe with a pack that is not a bundled one taken from this folder."""
        from generator.prompt_pack import pack_from

        return self.model_copy(update={"pack": pack_from(folder, self.pack)})

    def identity(self) -> dict[str, object]:
        """What makes a run the same run: everything but where the engine stands, what it may cost, where files lie."""
        fields = self.model_dump(mode="json", exclude={"engine", "budget", "max_rejected"})
        fields["pack"] = Path(self.pack).name
        for plan in fields["plan"]:
            plan.pop("cells", None)
        return fields
