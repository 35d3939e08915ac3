"""How long does a release of a million rows take beside `datasets`' own to_parquet, and in how much memory?

Usage: python benchmarks/release.py [--rows 1000000] [--words 60] [--repeats 3] [--folder FOLDER] [--rows-only]

A store is filled once: examples with two to four graded negatives, one to three mined ones, scores and provenance. The
rows of all seven configurations together are at least --rows. Each measurement runs in a process of its own, the arms
take turns, and what an arm imports is loaded before its clock starts:

* release: `create_release` in parts: rows to Parquet, then all of it (audit and freezing too), then `verify_release`.
  --rows-only leaves out the audit, which is no part of writing rows: rows, then the SHA-256 of their files.
* to_parquet: `datasets` writes the same rows of the same configurations, from Arrow files that are there already:
  the least it can do, for it neither reads a store nor joins. Once as it is (snappy), once compressed as a release is.
* from_generator and to_parquet: the same from rows that are dictionaries already, as `datasets` takes rows that come
  out of anything but Arrow; what reads a store into dictionaries is not counted.
* sqlite3: the same texts, candidates, scores and sourcings read by Python's own driver in the store's order, and left
  at that: no reader of this store takes less.

Prints machine, versions, median and range, processor time, peak memory, and the ratios.
"""

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_A_EXAMPLE = 16.0  # rows of all configurations that an example gives, about


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fill(url: str, num_rows: int, num_words: int) -> None:
    """A store whose release has about this many rows."""
    from db.examples import NewCandidate, NewSourcing, put_candidates, put_examples, put_sourcings
    from db.insert import insert_missing
    from db.runs import start_run
    from db.store import Store
    from db.tables.examples import Score
    from db.tables.texts import Collection
    from db.teachers import put_teacher
    from db.texts import put_passages, put_queries

    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]

    def text(head: str) -> str:
        return f"{head} {' '.join(draw.choices(words, k=draw.randint(num_words // 2, num_words * 3 // 2)))}"

    store = Store.open(url)
    num = round(num_rows / _A_EXAMPLE) + 1
    with store.write() as session:
        insert_missing(session, Collection, [{"name": "bench", "kind": "beir", "licence": "cc-by-4.0"}])
        run = start_run(session, "mine", "bench", {"bench": 1}, 0).id
        teacher = put_teacher(session, name="minilm", version="w", kind="bi-encoder", max_length=256)
    for start in range(0, num, 1_000):
        numbers = range(start, min(num, start + 1_000))
        with store.write() as session:
            queries = put_queries(session, [f"what is known of subject {n}" for n in numbers])
            shapes = [(2 + n % 3, 1 + n % 3) for n in numbers]
            texts = [
                [text(f"answer {n}"), *(text(f"negative {n} {place}") for place in range(sum(shape)))]
                for n, shape in zip(numbers, shapes, strict=True)
            ]
            flat = iter(put_passages(session, [one for several in texts for one in several]))
            passages = [[next(flat) for _ in several] for several in texts]
            pairs = [(query, of[0]) for query, of in zip(queries, passages, strict=True)]
            examples = put_examples(session, pairs, origin="corpus", collection_id=1)
            candidates, scores = [], []
            for query, example, of, (num_written, _) in zip(queries, examples, passages, shapes, strict=True):
                for place, passage in enumerate(of):
                    is_written = 0 < place <= num_written
                    grade = (None, "hard", "medium", "medium", "easy")[place] if is_written else None
                    origin = "corpus" if not place else "synthetic" if is_written else "mined"
                    role = "negative" if place else "positive"
                    rank = place if is_written else None
                    candidates.append(NewCandidate(example, passage, role, origin, run, grade, rank))
                    scores.append(
                        {"teacher_id": teacher, "query_id": query, "passage_id": passage,
                         "value": 0.9 - 0.1 * place + draw.random() / 20, "num_tokens": num_words}
                    )  # fmt: skip
            keys = put_candidates(session, candidates)
            found = [keys[one.example_id, one.passage_id] for one in candidates]
            put_sourcings(session, [NewSourcing(key, run, None, teacher, 1, 0.5, 0.8) for key in found])
            insert_missing(session, Score, scores)
    store.close()


class Clock:
    """Seconds of the clock and of the processor (all threads), of each part under its name."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start, processor = time.perf_counter(), time.process_time()
        yield
        self.taken[part], self.taken[f"{part}_cpu"] = time.perf_counter() - start, time.process_time() - processor
        self.taken[f"{part}_mb"] = peak_mb()


def release(url: str, folder: Path, rows_only: bool) -> dict[str, float]:
    """Seconds of each part, and the peak after it."""
    import pandas  # noqa: F401 - pyarrow loads it at the first array

    from curation.release.building import Builder
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release
    from curation.release.verifying import verify_release
    from db.files import digest_file
    from db.store import Store

    store, recipe, clock = Store.open(url), ReleaseRecipe(), Clock()
    made = folder / "rows"
    made.mkdir(parents=True)
    with clock.time("rows"):
        rows = Builder(store, recipe, made).write(lambda done, total: None)
    clock.taken["num_rows"] = sum(num for splits in rows.values() for num in splits.values())
    clock.taken["num_graded"] = sum(rows["graded"].values())
    if rows_only:
        with clock.time("verify"):
            for path in sorted(made.rglob("*.parquet")):
                digest_file(path)
    else:
        shutil.rmtree(made)
        with clock.time("create"):
            created = create_release(store, recipe, f"bench-1.0.{time.time_ns() % 1_000_000}", folder=folder)
        with clock.time("verify"):
            problems = verify_release(store, created.name).problems
        assert not problems, problems
        made = created.folder
    clock.taken["mb"] = sum(path.stat().st_size for path in made.rglob("*.parquet")) / 2**20
    (folder / "last").symlink_to(made)
    return clock.taken


def by_sqlite3(url: str) -> dict[str, float]:
    """Seconds that Python's own driver takes for what a release reads, joined as little as it can be."""
    import sqlite3

    connection, clock = sqlite3.connect(url.removeprefix("sqlite:///")), Clock()
    texts = """select e.id, e.digest, q.text, q.digest from example e join query q on q.id = e.query_id
        order by e.digest"""
    candidates = """select c.id, c.example_id, p.digest, p.text, c.grade, c.rank, c.origin, c.run_id
        from example e cross join candidate c on c.example_id = e.id join passage p on p.id = c.passage_id
        order by e.digest"""
    sourcings = """select s.candidate_id, s.run_id, s.teacher_id, s.retrieval_rank, s.score, s.threshold
        from example e cross join candidate c on c.example_id = e.id
        cross join sourcing s on s.candidate_id = c.id and s.teacher_id is not null order by e.digest"""
    scores = "select teacher_id, query_id, passage_id, value from score"
    corpus = (
        "select digest, text from passage p where id in (select passage_id from candidate where origin <> 'synthetic')"
    )
    with clock.time("sqlite3"):
        for statement in (texts, candidates, sourcings, scores, corpus):
            cursor = connection.execute(statement)
            while cursor.fetchmany(5_000):
                pass
    return clock.taken


def arrow(folder: Path, cache: Path) -> None:
    """The rows of the last release as `datasets` on disk in Arrow."""
    from datasets import Dataset

    source = (folder / "last").resolve()
    for config in sorted(path.name for path in source.iterdir() if path.is_dir()):
        for split in sorted({path.name.split("-")[0] for path in (source / config).iterdir()}):
            files = [str(path) for path in sorted((source / config).glob(f"{split}-*"))]
            Dataset.from_parquet(files, cache_dir=str(cache / "hf")).save_to_disk(cache / f"{config}.{split}")


def to_parquet(cache: Path, target: Path, compression: str | None) -> dict[str, float]:
    """Seconds that `datasets` takes for the same rows, from Arrow; compressed with snappy where nothing is asked."""
    from datasets import load_from_disk
    from datasets.io import parquet

    target.mkdir(parents=True)
    if compression:  # datasets leaves its callers no choice
        given = parquet.get_parquet_column_options
        chosen = {"compression": compression, "compression_level": 3}
        parquet.get_parquet_column_options = lambda *asked: given(*asked) | chosen
    several = [(path.name, load_from_disk(path)) for path in sorted(cache.iterdir()) if path.name != "hf"]
    clock, part = Clock(), compression or "to_parquet"
    with clock.time(part):
        for name, rows in several:
            rows.to_parquet(target / f"{name}.parquet")
    return clock.taken | {"mb": sum(path.stat().st_size for path in target.iterdir()) / 2**20}


def generated(folder: Path, cache: Path) -> dict[str, float]:
    """Seconds that `datasets` takes for the same rows, from dictionaries; making those is not counted."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    source, total, reading = (folder / "last").resolve(), Clock(), [0.0, 0.0]

    def rows(files: list[Path]) -> Iterator[dict[str, Any]]:
        for file in files:
            batches, part = pq.ParquetFile(file).iter_batches(1_000), Clock()
            while True:
                with part.time("reading"):
                    several = [one.to_pylist() for one in islice(batches, 1)]
                reading[0] += part.taken["reading"]
                reading[1] += part.taken["reading_cpu"]
                if not several:
                    break
                yield from several[0]

    with total.time("generated"):
        for config in sorted(path.name for path in source.iterdir() if path.is_dir()):
            for split in sorted({path.name.split("-")[0] for path in (source / config).iterdir()}):
                files = sorted((source / config).glob(f"{split}-*"))
                place = str(cache / f"{config}.{split}")
                made = Dataset.from_generator(rows, gen_kwargs={"files": files}, cache_dir=place, num_proc=None)
                made.to_parquet(cache / f"{config}.{split}.parquet")
    total.taken["generated"] -= reading[0]
    total.taken["generated_cpu"] -= reading[1]
    return total.taken


def measured(call: str, *arguments: object) -> dict[str, float]:
    """What a function of this file returns, called in a fresh process."""
    paths = [str(ROOT), str(ROOT / "benchmarks")]
    spelled = ", ".join(f"Path({str(one)!r})" if isinstance(one, Path) else repr(one) for one in arguments)
    code = (
        f"import sys, json; sys.path[:0] = {paths!r}\nfrom pathlib import Path\nimport release\n"
        f"print(json.dumps(release.{call}({spelled})))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of all configurations together")
    parser.add_argument("--words", type=int, default=60, help="words of a passage, on average")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=lambda text: Path(text).resolve(), help="keep the store here and use it again")
    parser.add_argument("--rows-only", action="store_true", help="no audit and no freezing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = asked.folder or Path(temporary)
        store = folder / f"store-{asked.rows}-{asked.words}.db"
        if not store.exists():
            measured("fill", f"sqlite:///{store}.partial", asked.rows, asked.words)
            Path(f"{store}.partial").rename(store)
        found: list[dict[str, float]] = []
        for repeat in range(asked.repeats):
            place, cache = Path(temporary) / f"release-{repeat}", Path(temporary) / "arrow"
            found.append(measured("release", f"sqlite:///{store}", place, asked.rows_only))
            found.append(measured("by_sqlite3", f"sqlite:///{store}"))
            if not repeat:
                measured("arrow", place, cache)
            for compression in (None, "zstd"):
                found.append(measured("to_parquet", cache, Path(temporary) / "parquet", compression))
                shutil.rmtree(Path(temporary) / "parquet")
            found.append(measured("generated", place, Path(temporary) / "generated"))
            shutil.rmtree(Path(temporary) / "generated")
            shutil.rmtree(place)
        report(asked, found)


ARMS = {
    "to_parquet": "`datasets` to_parquet, from Arrow, snappy",
    "zstd": "`datasets` to_parquet, from Arrow, zstd as a release",
    "generated": "`datasets` from_generator, to_parquet, snappy",
    "sqlite3": "sqlite3 reads the same, nothing else",
    "rows": "release: rows from the store to Parquet",
    "create": "release: all of it, audit and freezing too",
    "verify": "release: verify",
}


def report(asked: argparse.Namespace, found: list[dict[str, float]]) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("datasets", "pyarrow", "sqlalchemy"))
    first = next(one for one in found if "rows" in one)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}; {first['num_rows']:,.0f} rows ({first['num_graded']:,.0f} graded ones), {asked.words} words a")
    print(f"passage, {asked.repeats} runs, load {os.getloadavg()[0]:.1f} at the end\n")
    print("Ratios: by the processor's time / by the clock.\n")
    print("| what | seconds of the processor | of the clock | to snappy | to zstd | to from_generator | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for arm, what in ARMS.items():
        if several := [one for one in found if arm in one]:
            times = [median(several, f"{arm}_cpu"), median(several, arm)]
            bases = ("to_parquet", "zstd", "generated")
            against = [[median(found, f"{base}_cpu"), median(found, base)] for base in bases]
            ratios = [f"{times[0] / base[0]:.2f} / {times[1] / base[1]:.2f}" for base in against]
            shown = [spread([one[key] for one in several]) for key in (f"{arm}_cpu", arm)]
            peak = max(one[f"{arm}_mb"] for one in several)
            print(f"| {what} | {' | '.join([*shown, *ratios])} | {peak:.0f} |")
    sizes = {arm: next(one["mb"] for one in found if arm in one) for arm in ("rows", "to_parquet", "zstd")}
    print(
        f"\nfiles: {sizes['rows']:.0f} MB released, {sizes['to_parquet']:.0f} MB by to_parquet, {sizes['zstd']:.0f} MB"
        " with zstd"
    )


def median(several: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in several if key in one)


if __name__ == "__main__":
    main()
