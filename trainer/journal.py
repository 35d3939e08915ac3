"""The files that a training writes as it goes: metrics by step, margins by negative, and events for TensorBoard.

They follow the checkpoints: a run that was cut off takes back what it wrote after the last one, and ends with the same
bytes of metrics and margins as one that was not (TensorBoard's events hold the clock, so those differ).
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

_MARGINS = pa.schema(
    [
        ("step", pa.int32()),
        ("example_id", pa.string()),
        ("negative_id", pa.string()),
        ("rank", pa.int8()),
        ("margin", pa.float64()),
    ]
)


class Journal:
    """A training's journal in its folder; of the main process alone."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._metrics, self._started = folder, folder / "metrics.jsonl", folder / "started_at"
        self._margins: list[pa.Table] = []
        self._num_shards = 0
        self._board: Any = None

    def open(self, mark: dict[str, int] | None) -> None:
        """Begin, or go back to a checkpoint's mark."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if mark is None or not self._started.is_file():
            self._started.write_text(datetime.now(UTC).isoformat(timespec="seconds"))
        mark = mark or {"bytes": 0, "shards": 0, "step": 0}
        self._metrics.touch()
        with self._metrics.open("r+b") as file:
            file.truncate(mark["bytes"])
        self._num_shards = mark["shards"]
        for number, path in enumerate(self._shards()):
            if number >= self._num_shards:
                path.unlink()
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self._folder / "runs"), purge_step=mark["step"])

    def _shards(self) -> list[Path]:
        return sorted(self._folder.glob("margins-*.parquet"))

    def note(self, metrics: dict[str, Any], margins: dict[str, list[Any]]) -> None:
        """Write down a step."""
        with self._metrics.open("ab") as file:
            file.write(orjson.dumps(metrics) + b"\n")
        self._margins.append(pa.table(margins, schema=_MARGINS))
        for name, value in _scalars(metrics):
            self._board.add_scalar(name, value, metrics["step"])

    def mark(self, step: int) -> dict[str, int]:
        """Put what was noted on disk; what a checkpoint keeps to come back here."""
        if self._margins:
            pq.write_table(pa.concat_tables(self._margins), self._folder / f"margins-{self._num_shards:06d}.parquet")
            self._margins, self._num_shards = [], self._num_shards + 1
        self._board.flush()
        return {"bytes": self._metrics.stat().st_size, "shards": self._num_shards, "step": step}

    def started_at(self) -> str:
        """When the first step was begun, kills and all: an ISO time in UTC."""
        return self._started.read_text()

    def metrics(self) -> list[dict[str, Any]]:
        """Every step's line."""
        return [orjson.loads(line) for line in self._metrics.read_bytes().splitlines()]

    def finish(self, target: Path) -> None:
        """Move all into the model's folder."""
        self._board.close()
        shutil.copyfile(self._metrics, target / "metrics.jsonl")
        shutil.copytree(self._folder / "runs", target / "runs")
        with pq.ParquetWriter(target / "margins.parquet", _MARGINS) as writer:
            for path in self._shards():
                writer.write_table(pq.read_table(path, schema=_MARGINS))


def _scalars(metrics: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if name == "ranks":
            for rank, values in value.items():
                yield from ((f"{key}/{rank}", number) for key, number in values.items())
        elif isinstance(value, int | float) and name != "step":
            yield f"step/{name}", value
