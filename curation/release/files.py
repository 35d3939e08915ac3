"""The columns of a release, and Parquet files that are the same bytes for the same tables.

Row groups and shards end where a table has made them large enough, so their borders depend on the rows alone. Threads
encode and compress (both leave Python's lock) while the next rows are read; they share the files among themselves, and
each file is written by one of them at a time.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_BYTES = 4 << 20
_SHARD_BYTES = 256 << 20
_NUM_THREADS = 2
_MAX_WAITING = 6  # groups that are or wait to be written; each is a little more than _GROUP_BYTES
_OPTIONS: dict[str, Any] = {"compression": "zstd", "compression_level": 3}

SCORES = pa.list_(pa.struct([("teacher", pa.string()), ("value", pa.float32())]))
POSITIVE = pa.struct([("id", pa.string()), ("text", pa.string())])
NEGATIVE = pa.struct(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("grade", pa.string()),
        ("rank", pa.int8()),
        ("origin", pa.string()),
        ("violated_requirement", pa.string()),
        ("mined_rank", pa.int32()),
        ("scores", SCORES),
    ]
)
GRADED = pa.schema(
    [
        ("example_id", pa.string()),
        ("query", pa.string()),
        ("query_id", pa.string()),
        ("positive", pa.string()),
        ("positive_id", pa.string()),
        ("positive_scores", SCORES),
        ("instruction", pa.string()),
        ("task_type", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
        ("num_synthetic_slots", pa.int8()),
        ("num_mined_slots", pa.int8()),
        ("more_positives", pa.list_(POSITIVE)),
        ("negatives", pa.list_(NEGATIVE)),
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


class WritingThreads:
    """Do what they are handed beside the caller, who waits while too much is left to do."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="parquet")
        self._waiting: deque[Future[None]] = deque()

    def do(self, work: Callable[[], None], *, after: Future[None] | None) -> Future[None]:
        """Hand over work to be done once other work is; raises what earlier work raised."""
        if len(self._waiting) == _MAX_WAITING:
            self._waiting.popleft().result()

        def in_turn() -> None:
            # What it waits for was handed over before, so that a thread is at it already.
            if after is not None:
                after.result()
            work()

        self._waiting.append(self._pool.submit(in_turn))
        return self._waiting[-1]

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class ShardedWriter:
    """Writes SPLIT-00000-of-00003.parquet and so on into a folder, closing a file once it is large enough."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, threads: WritingThreads) -> None:
        self._folder, self._split, self._schema, self._threads = folder, split, schema, threads
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._shards: list[Path] = []
        self._last: Future[None] | None = None  # one group after the other, or a file would be of two minds
        self.num_rows = 0

    def write(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._bytes += table.nbytes
        self.num_rows += len(table)
        if self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand over what has come so far as a row group."""
        if not self._tables:
            return
        group = pa.concat_tables(self._tables)
        self._tables, self._bytes = [], 0
        self._last = self._threads.do(lambda: self._write_group(group), after=self._last)

    def _write_group(self, group: pa.Table) -> None:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._shards.append(self._folder / f"{self._split}-{len(self._shards):05d}.part")
            self._writer = pq.ParquetWriter(self._shards[-1], self._schema, **_OPTIONS)
        self._writer.write_table(group, row_group_size=len(group))
        if self._shards[-1].stat().st_size > _SHARD_BYTES:
            self._writer.close()
            self._writer = None

    def close(self) -> list[Path]:
        """Finish the files and give them their final names; no rows, no file."""
        self.flush()
        if self._last is not None:
            self._last.result()
        if self._writer is not None:
            self._writer.close()
        total = len(self._shards)
        names = [self._folder / f"{self._split}-{i:05d}-of-{total:05d}.parquet" for i in range(total)]
        for part, name in zip(self._shards, names, strict=True):
            part.rename(name)
        return names


class ReleaseWriters:
    """One writer per configuration and split; a context, whose end stops the threads that write."""

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema]) -> None:
        self._folder, self._schemas = folder, schemas
        self._writers: dict[tuple[str, str], ShardedWriter] = {}
        self._threads = WritingThreads()

    def __enter__(self) -> "ReleaseWriters":
        return self

    def __exit__(self, *_error: object) -> None:
        self._threads.stop()

    def write(self, config: str, split: str, tables: pa.Table | Iterable[pa.Table]) -> None:
        if (config, split) not in self._writers:
            writer = ShardedWriter(self._folder / config, split, self._schemas[config], self._threads)
            self._writers[config, split] = writer
        for table in [tables] if isinstance(tables, pa.Table) else tables:
            if len(table):
                self._writers[config, split].write(table)

    def close(self) -> dict[str, dict[str, int]]:
        """Rows per configuration and split."""
        counts: dict[str, dict[str, int]] = {}
        for writer in self._writers.values():
            writer.flush()
        for (config, split), writer in sorted(self._writers.items()):
            if writer.close():
                counts.setdefault(config, {})[split] = writer.num_rows
        return counts
