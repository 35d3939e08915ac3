"""Does memory grow with the store? Walks synthetic stores of two sizes, each in its own process.

Usage: python benchmarks/store_scale.py [SIZE ...] [--stages import,score,audit,release] [--repetitive]
    (SIZE: numbers of candidates; default 100000 1000000)

The encoder is a stand-in that hashes a text into a unit vector: what is measured is the store's road, not a model.
Texts are drawn words, as different from each other as real ones; with --repetitive all follow one template, the worst
case for near-duplicates. Prints a Markdown table: seconds by the clock and of the processor, the latter per million
candidates, and the process' peak memory after each stage (the audit's stages apart), and the growth per candidate
between the sizes. With more than one SIZE
equal, the spread shows.
"""

import argparse
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from curation.audit.figures import Progress
    from db.store import Store

ROOT = Path(__file__).parents[1]
Row = tuple[int, str, float, float, float]
_A_ROW = 8  # candidates of a row: a positive and seven negatives


class HashEncoder:
    """A text's unit vector from its hash: cheap, and the same on every machine."""

    name, version, dimension, max_length = "minilm", "hash", 8, 16

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        seeds = np.array([[hash((text, place)) % 1000 for place in range(8)] for text in texts], np.float32)
        vectors = seeds - 500
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.full(len(texts), 12)


def write_rows(path: Path, num_candidates: int, *, is_repetitive: bool) -> None:
    schema = pa.schema([("query", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))])
    make = template_row if is_repetitive else drawn_row
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_candidates // _A_ROW, 5_000):
            numbers = range(start, min(start + 5_000, num_candidates // _A_ROW))
            writer.write_table(pa.Table.from_pylist([make(n) for n in numbers], schema=schema))


def template_row(n: int) -> dict[str, object]:
    return {
        "query": f"what is known about subject {n}",
        "positive": f"a passage that answers what is asked about subject {n}, at some length " * 3,
        "negatives": [f"a passage about subject {n} that misses requirement {k}, at length " * 3 for k in range(7)],
    }


def drawn_row(n: int) -> dict[str, object]:
    """40 words a text from a vocabulary of 20,000, small ones more often; every 50th row repeats a text of another."""
    draw = random.Random(n)
    positive, *negatives = [_words(draw, 40) for _ in range(_A_ROW)]
    if n % 50 == 49:
        negatives[0] = _words(random.Random(n - 1), 40) + " indeed"
    return {"query": f"{_words(draw, 8)} {n}", "positive": positive, "negatives": negatives}


def _words(draw: random.Random, num: int) -> str:
    return " ".join(f"w{int(20_000 * draw.random() ** 2)}" for _ in range(num))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def tell(stage: str, start: tuple[float, float]) -> None:
    seconds, of_processor = (end - begin for begin, end in zip(start, now(), strict=True))
    print(stage, round(seconds, 1), round(of_processor, 1), round(peak_mb()), flush=True)


def walk(num_candidates: int, stages: Sequence[str], *, is_repetitive: bool) -> None:
    """The road in this process; prints `stage seconds processor_seconds peak_mb` lines."""
    from curation.embeddings import EmbeddingCache
    from curation.importing.pairs import import_pairs
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release
    from curation.scoring import score
    from db.store import Store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.parquet", num_candidates, is_repetitive=is_repetitive)
        tell("(written)", now())
        store = Store.open(f"sqlite:///{folder}/store.db")
        works = {
            "import": lambda: import_pairs(store, folder / "rows.parquet", negatives=["negatives"]),
            "score": lambda: score(store, EmbeddingCache(folder / "embeddings", HashEncoder())),
            "audit": lambda: audit(store, folder),
            "release": lambda: create_release(store, ReleaseRecipe(), "scale-1.0.0", folder=folder),
        }
        for stage in stages:
            start = now()
            works[stage]()
            tell(stage, start)
        store.close()


def audit(store: "Store", folder: Path) -> None:
    """The whole audit with its pages, a line for each of its stages."""
    from curation.audit.figures import audit_figures
    from curation.audit.html_report import html_report
    from curation.embeddings import cached_vectors

    begun: list[tuple[str, tuple[float, float]]] = []

    def stage(what: str) -> "Progress":
        finish()
        begun.append((what, now()))
        return lambda done, total: None

    def finish() -> None:
        if begun:
            what, start = begun.pop()
            tell(f"audit:{what.replace(' ', '-')}", start)

    report = audit_figures(
        store,
        teacher="minilm",
        vectors_of=lambda _, version: cached_vectors(folder / "embeddings", version),
        stage=stage,
    )
    stage("HTML")
    (folder / "audit.html").write_text(html_report(report))
    finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--stages", default="import,score,audit,release")
    parser.add_argument("--repetitive", action="store_true")
    chosen = parser.parse_args()
    stages = chosen.stages.split(",")
    rows: list[Row] = []
    for size in chosen.sizes:
        paths = [str(ROOT), str(ROOT / "benchmarks")]
        call = f"store_scale.walk({size}, {stages!r}, is_repetitive={chosen.repetitive})"
        code = f"import sys; sys.path[:0] = {paths!r}; import store_scale; {call}"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as walking:
            for line in walking.stdout or ():
                print(f"{size:,}: {line}", end="", file=sys.stderr, flush=True)
                stage, *numbers = line.split()
                rows.append((size, stage, *map(float, numbers)))
        if walking.returncode:
            raise SystemExit(walking.returncode)
    show(chosen.sizes, rows)


def show(sizes: Sequence[int], rows: Sequence[Row]) -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors\n")
    print("| candidates | stage | seconds | of the processor | seconds a million | peak MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for size, stage, seconds, of_processor, peak in rows:
        a_million = of_processor * 1e6 / size
        print(f"| {size:,} | {stage} | {seconds:,.1f} | {of_processor:,.1f} | {a_million:,.0f} | {peak:,.0f} |")
    peaks = {size: peak for size, *_, peak in rows}
    if len(peaks) > 1:
        small, large = min(peaks), max(peaks)
        growth = (peaks[large] - peaks[small]) * 1024 * 1024 / (large - small)
        print(f"\nGrowth between {small:,} and {large:,}: {growth:.0f} bytes a candidate.")


if __name__ == "__main__":
    main()
