"""Does memory grow with the store? Imports, scores and releases synthetic stores of two sizes, each in its own process.

Usage: python benchmarks/store_scale.py [SMALL [LARGE]]      (numbers of candidates; default 100000 1000000)

The encoder is a stand-in that hashes a text into a unit vector: what is measured is the store's road, not a model.
Prints seconds and the process' peak memory after each stage, and the growth per candidate between the two sizes.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
_A_ROW = 8  # candidates of a row: a positive and seven negatives


class HashEncoder:
    """A text's unit vector from its hash: cheap, and the same on every machine."""

    name, version, dimension, max_length = "minilm", "hash", 8, 16

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        seeds = np.array([[hash((text, place)) % 1000 for place in range(8)] for text in texts], np.float32)
        vectors = seeds - 500
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.full(len(texts), 12)


def write_rows(path: Path, num_candidates: int) -> None:
    schema = pa.schema([("query", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_candidates // _A_ROW, 5_000):
            numbers = range(start, min(start + 5_000, num_candidates // _A_ROW))
            rows = [
                {
                    "query": f"what is known about subject {n}",
                    "positive": f"a passage that answers what is asked about subject {n}, at some length " * 3,
                    "negatives": [
                        f"a passage about subject {n} that misses requirement {k}, at length " * 3 for k in range(7)
                    ],
                }
                for n in numbers
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def walk(num_candidates: int) -> None:
    """The road in this process; prints `stage seconds peak_mb` lines."""
    from curation.embeddings import EmbeddingCache
    from curation.importing.pairs import import_pairs
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release
    from curation.scoring import score
    from db.store import Store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.parquet", num_candidates)
        print("(written)", 0, round(peak_mb()), flush=True)
        store = Store.open(f"sqlite:///{folder}/store.db")
        for stage, work in (
            ("import", lambda: import_pairs(store, folder / "rows.parquet", negatives=["negatives"])),
            ("score", lambda: score(store, EmbeddingCache(folder / "embeddings", HashEncoder()))),
            ("release", lambda: create_release(store, ReleaseRecipe(), "scale-1.0.0", folder=folder)),
        ):
            start = time.monotonic()
            work()
            print(stage, round(time.monotonic() - start, 1), round(peak_mb()), flush=True)
        store.close()


def main() -> None:
    sizes = [int(argument) for argument in sys.argv[1:]] or [100_000, 1_000_000]
    peaks = []
    for size in sizes:
        paths = [str(ROOT), str(ROOT / "benchmarks")]
        code = f"import sys; sys.path[:0] = {paths!r}; import store_scale; store_scale.walk({size})"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        print(f"{size:,} candidates\n{done.stdout}", flush=True)
        peaks.append(float(done.stdout.split()[-1]))
    if len(peaks) == 2:
        growth = (peaks[1] - peaks[0]) * 1024 * 1024 / (sizes[1] - sizes[0])
        print(f"growth between the sizes: {growth:.0f} bytes a candidate")


if __name__ == "__main__":
    main()
