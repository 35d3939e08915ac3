"""The columns of a release, and Parquet files that are the same bytes for the same rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_A_GROUP = 1_000
_SHARD_BYTES = 256 << 20

_SCORES = pa.list_(pa.struct([("teacher", pa.string()), ("value", pa.float32())]))
_NEGATIVE = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("grade", pa.string()),
        ("rank", pa.int8()),
        ("origin", pa.string()),
        ("violated_requirement", pa.string()),
        ("mined_rank", pa.int32()),
        ("scores", _SCORES),
    ]
)
GRADED = pa.schema(
    [
        ("example_id", pa.string()),
        ("query", pa.string()),
        ("query_id", pa.string()),
        ("positive", pa.string()),
        ("positive_id", pa.string()),
        ("positive_scores", _SCORES),
        ("instruction", pa.string()),
        ("task_type", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("num_synthetic_slots", pa.int8()),
        ("num_mined_slots", pa.int8()),
        ("more_positives", pa.list_(pa.struct([("id", pa.string()), ("text", pa.string())]))),
        ("negatives", pa.list_(_NEGATIVE)),
    ]
)
TRIPLET = pa.schema([(name, pa.string()) for name in ("anchor", "positive", "negative")])
CORPUS = pa.schema([(name, pa.string()) for name in ("_id", "title", "text")])
QUERIES = pa.schema([(name, pa.string()) for name in ("_id", "text")])
QRELS = pa.schema([("query-id", pa.string()), ("corpus-id", pa.string()), ("score", pa.int32())])


def n_tuple(slots: int) -> pa.Schema:
    """Exactly the columns that sentence-transformers trains on."""
    names = ["anchor", "positive", *(f"negative_{number}" for number in range(1, slots + 1))]
    return pa.schema([(name, pa.string()) for name in names])


class ShardedWriter:
    """Rows of one split into CONFIG/SPLIT-00000-of-0000N.parquet; a new file when one has grown large."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._rows: list[Mapping[str, Any]] = []
        self._writer: pq.ParquetWriter | None = None
        self._shards: list[Path] = []
        self.num_rows = 0

    def write(self, row: Mapping[str, Any]) -> None:
        self._rows.append(row)
        self.num_rows += 1
        if len(self._rows) == _ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._shards.append(self._folder / f"{self._split}-{len(self._shards):05d}.part")
            self._writer = pq.ParquetWriter(self._shards[-1], self._schema, compression="zstd", compression_level=3)
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
        if self._shards[-1].stat().st_size > _SHARD_BYTES:
            self._writer.close()
            self._writer = None

    def close(self) -> list[Path]:
        """Finish the files and give them their final names; no rows, no file."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        total = len(self._shards)
        names = [self._folder / f"{self._split}-{i:05d}-of-{total:05d}.parquet" for i in range(total)]
        for part, name in zip(self._shards, names, strict=True):
            part.rename(name)
        return names


class ReleaseWriters:
    """One writer per configuration and split."""

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema]) -> None:
        self._folder, self._schemas = folder, schemas
        self._writers: dict[tuple[str, str], ShardedWriter] = {}

    def write(self, config: str, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if (config, split) not in self._writers:
            writer = ShardedWriter(self._folder / config, split, self._schemas[config])
            self._writers[config, split] = writer
        for row in rows:
            self._writers[config, split].write(row)

    def close(self) -> dict[str, dict[str, int]]:
        """Rows per configuration and split."""
        counts: dict[str, dict[str, int]] = {}
        for (config, split), writer in sorted(self._writers.items()):
            if writer.close():
                counts.setdefault(config, {})[split] = writer.num_rows
        return counts
