"""What the folder of a trained model says of its training, read whole and checked before any of it is stored.

The trainer writes `training.json`, `metrics.jsonl` and `margins.parquet`; the folder may come from anywhere. Figures
that an earlier version did not write are null; a key that this version does not know is refused, so that nothing is
lost without a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from app.errors import AppError

if TYPE_CHECKING:
    import pyarrow as pa

    from db.trainings import NewTraining

_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Figure = Annotated[float, Field(allow_inf_nan=False)] | None
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: _Name
    model: str
    schedule: str
    pooling: str
    seed: int
    query_prompt: str = ""


class _Summary(BaseModel):
    """What training.json needs to hold; whatever else it says is kept as it is."""

    model_config = ConfigDict(frozen=True)

    recipe: _Recipe
    release: _Name
    release_digest: _Digest
    num_examples: _Count
    num_steps: _Count
    instruction: str | None = None
    machine: str | None = None
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class _Rank(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    negatives: Annotated[int, Field(ge=1, lt=2**31)]
    loss: _Figure = None
    similarity: _Figure = None
    margin: _Figure = None
    above_positive: _Figure = None
    gradient: _Figure = None
    gradient_variance: _Figure = None


class _Step(BaseModel):
    """A line of metrics.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: _Count
    block: _Count
    rank: _Count | None
    loss: _Figure = None
    learning_rate: _Figure = None
    gradient_norm: _Figure = None
    query_gradient_variance: _Figure = None
    positive: _Figure = None
    written: _Figure = None
    mined: _Figure = None
    masked: _Count | None = None
    ranks: dict[Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,3}|mined)$")], _Rank] = Field(
        default_factory=dict
    )


def read_training(model: Path) -> "NewTraining":
    """The training of a model's folder.

    Raises:
        AppError: A file is missing, broken, of a newer version, or does not go with the others.
    """
    from db.trainings import NewTraining

    summary, raw = _summary(model)
    steps = _steps(model)
    if len(steps) != summary.num_steps:
        raise AppError(
            f"model {model}: metrics.jsonl has {len(steps):,} steps, training.json says {summary.num_steps:,}: copy "
            "the folder again"
        )
    return NewTraining(raw, summary.machine, summary.started_at, summary.finished_at, steps)


def training_summary(model: Path) -> Mapping[str, Any]:
    """What `gradus train` wrote beside the weights, as it stands in training.json.

    Raises:
        AppError: It is no folder of a model that `gradus train` made.
    """
    return _summary(model)[1]


def _summary(model: Path) -> tuple[_Summary, Mapping[str, Any]]:
    text = _bytes(model, "training.json")
    try:
        summary, raw = _Summary.model_validate_json(text), orjson.loads(text)
    except (ValidationError, orjson.JSONDecodeError) as error:
        raise AppError(f"model {model}: training.json: {_told(error)}") from error
    return summary, raw


def _steps(model: Path) -> list[dict[str, Any]]:
    steps = []
    for number, line in enumerate(_bytes(model, "metrics.jsonl").splitlines()):
        try:
            step = _Step.model_validate_json(line)
        except ValidationError as error:
            raise AppError(f"model {model}: metrics.jsonl, line {number + 1}: {_told(error)}") from error
        if step.step != number:
            raise AppError(f"model {model}: metrics.jsonl, line {number + 1} is of step {step.step}, not {number}")
        steps.append(step.model_dump())
    return steps


def _bytes(model: Path, name: str) -> bytes:
    try:
        content = (model / name).read_bytes()
    except OSError as error:
        raise AppError(
            f"model {model}: no {name} there ({error.strerror}); give a folder that 'gradus train' made"
        ) from error
    if rb"\u0000" in content:
        raise AppError(f"model {model}: {name} holds a NUL character, which no database can store")
    return content


def _told(error: ValidationError | orjson.JSONDecodeError) -> str:
    """The first fault in a line: where, and what."""
    if isinstance(error, orjson.JSONDecodeError):
        return f"not JSON: {error}"
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is not known to this version of Gradus: upgrade it"
    return f"{where}: {first['msg']}" if where else first["msg"]


def read_margins(model: Path) -> "pa.Table | None":
    """Columns example_id, negative_id and margin of every negative each time it was trained on; None without the file.

    Raises:
        AppError: The file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = model / "margins.parquet"
    if not path.is_file():
        return None
    wanted = pa.schema([("example_id", pa.string()), ("negative_id", pa.string()), ("margin", pa.float64())])
    try:
        return pq.read_table(path, columns=wanted.names).cast(wanted)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise AppError(f"model {model}: margins.parquet cannot be read: {str(error).splitlines()[0]}") from error
