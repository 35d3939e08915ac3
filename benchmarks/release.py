"""How long does a release of a million rows take beside `datasets`' own to_parquet, and in how much memory?

Usage: python benchmarks/release.py [--rows 1000000] [--words 60] [--repeats 3] [--folder FOLDER]

A store is filled once: examples with two to four graded negatives, one to three mined ones, scores and provenance. The
rows of all seven configurations together are at least --rows. Each measurement runs in a process of its own:

* release: `create_release` in parts: rows to Parquet, the audit, freezing; then `verify_release`.
* to_parquet: `datasets` writes the same rows of the same configurations, from Arrow files that are there already:
  the least it can do, for it neither reads a store nor joins.
* from_generator and to_parquet: the same from rows that are dictionaries already, as `datasets` takes rows that come
  out of anything but Arrow; what reads a store into dictionaries is not counted.

Prints machine, versions, median and range, peak memory, and the ratios.
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
from importlib import metadata
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


def release(url: str, folder: Path) -> dict[str, float]:
    """Seconds of each part, and the peak after it."""
    from curation.release.building import Builder
    from curation.release.recipe import ReleaseRecipe
    from curation.release.release import create_release
    from curation.release.verifying import verify_release
    from db.store import Store

    store, recipe, taken = Store.open(url), ReleaseRecipe(), {}
    start = time.perf_counter()
    (folder / "rows").mkdir(parents=True)
    rows = Builder(store, recipe, folder / "rows").write(lambda done, total: None)
    taken["rows"], taken["rows_mb"] = time.perf_counter() - start, peak_mb()
    taken["num_rows"] = sum(num for splits in rows.values() for num in splits.values())
    shutil.rmtree(folder / "rows")
    start = time.perf_counter()
    created = create_release(store, recipe, f"bench-1.0.{time.time_ns() % 1_000_000}", folder=folder)
    taken["create"], taken["create_mb"] = time.perf_counter() - start, peak_mb()
    start = time.perf_counter()
    problems = verify_release(store, created.name).problems
    assert not problems, problems
    taken["verify"], taken["verify_mb"] = time.perf_counter() - start, peak_mb()
    taken["mb"] = sum(path.stat().st_size for path in created.folder.rglob("*")) / 2**20
    (folder / "last").unlink(missing_ok=True)
    (folder / "last").symlink_to(created.folder)
    return taken


def arrow(folder: Path, cache: Path) -> None:
    """The rows of the last release as `datasets` on disk in Arrow."""
    from datasets import Dataset

    source = (folder / "last").resolve()
    for config in sorted(path.name for path in source.iterdir() if path.is_dir()):
        for split in sorted({path.name.split("-")[0] for path in (source / config).iterdir()}):
            files = [str(path) for path in sorted((source / config).glob(f"{split}-*"))]
            Dataset.from_parquet(files, cache_dir=str(cache / "hf")).save_to_disk(cache / f"{config}.{split}")


def to_parquet(cache: Path, target: Path) -> dict[str, float]:
    """Seconds that `datasets` takes for the same rows, from Arrow."""
    from datasets import load_from_disk

    target.mkdir(parents=True)
    several = [(path.name, load_from_disk(path)) for path in sorted(cache.iterdir()) if path.name != "hf"]
    start = time.perf_counter()
    for name, rows in several:
        rows.to_parquet(target / f"{name}.parquet")
    return {
        "to_parquet": time.perf_counter() - start,
        "to_parquet_mb": peak_mb(),
        "mb": sum(path.stat().st_size for path in target.iterdir()) / 2**20,
    }


def generated(folder: Path, cache: Path) -> dict[str, float]:
    """Seconds that `datasets` takes for the same rows, from dictionaries."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    source, seconds = (folder / "last").resolve(), 0.0
    for config in sorted(path.name for path in source.iterdir() if path.is_dir()):
        for split in sorted({path.name.split("-")[0] for path in (source / config).iterdir()}):
            files = sorted((source / config).glob(f"{split}-*"))
            reading = 0.0

            def rows(files: list[Path]) -> Iterator[dict[str, Any]]:
                nonlocal reading
                for file in files:
                    start = time.perf_counter()
                    for batch in pq.ParquetFile(file).iter_batches(1_000):
                        several = batch.to_pylist()
                        reading += time.perf_counter() - start
                        yield from several
                        start = time.perf_counter()

            start = time.perf_counter()
            place = str(cache / f"{config}.{split}")
            made = Dataset.from_generator(rows, gen_kwargs={"files": files}, cache_dir=place, num_proc=None)
            made.to_parquet(cache / f"{config}.{split}.parquet")
            seconds += time.perf_counter() - start - reading
    return {"generated": seconds, "generated_mb": peak_mb()}


def measured(call: str, *arguments: object) -> dict[str, float]:
    """What a function of this file returns, called in a fresh process."""
    paths = [str(ROOT), str(ROOT / "benchmarks")]
    spelled = ", ".join(f"Path({str(one)!r})" if isinstance(one, Path) else repr(one) for one in arguments)
    code = (
        f"import sys, json; sys.path[:0] = {paths!r}\nfrom pathlib import Path\nimport release\n"
        f"print(json.dumps(release.{call}({spelled})))"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
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
    parser.add_argument("--folder", type=Path, help="keep the store here and use it again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        store = folder / f"store-{asked.rows}-{asked.words}.db"
        if not store.exists():
            measured("fill", f"sqlite:///{store}.partial", asked.rows, asked.words)
            Path(f"{store}.partial").rename(store)
        ours, theirs, slowly = [], [], []
        for repeat in range(asked.repeats):
            place = Path(temporary) / f"release-{repeat}"
            ours.append(measured("release", f"sqlite:///{store}", place))
            cache = Path(temporary) / "arrow"
            if not repeat:
                measured("arrow", place, cache)
            theirs.append(measured("to_parquet", cache, Path(temporary) / f"parquet-{repeat}"))
            shutil.rmtree(Path(temporary) / f"parquet-{repeat}")
            slowly.append(measured("generated", place, Path(temporary) / f"generated-{repeat}"))
            shutil.rmtree(Path(temporary) / f"generated-{repeat}")
            if repeat:
                shutil.rmtree(place)
        report(asked, ours, theirs, slowly)


def report(
    asked: argparse.Namespace,
    ours: list[dict[str, float]],
    theirs: list[dict[str, float]],
    slowly: list[dict[str, float]],
) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("datasets", "pyarrow", "sqlalchemy"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{versions}; {ours[0]['num_rows']:,.0f} rows, {asked.words} words a passage, {asked.repeats} runs\n")
    baseline = [one["to_parquet"] for one in theirs]
    lines = [("`datasets` to_parquet, from Arrow", baseline, [one["to_parquet_mb"] for one in theirs])]
    from_rows = [one["generated"] for one in slowly]
    lines.append(("`datasets` from_generator, to_parquet", from_rows, [one["generated_mb"] for one in slowly]))
    for part, what in (
        ("rows", "rows from the store to Parquet"),
        ("create", "all of it, audit and freezing too"),
        ("verify", "verify"),
    ):
        lines.append((f"release: {what}", [one[part] for one in ours], [one[f"{part}_mb"] for one in ours]))
    print("| what | seconds: median (range) | to to_parquet | to from_generator | peak MB |\n|---|---|---|---|---|")
    for what, seconds, peaks in lines:
        ratios = [statistics.median(seconds) / statistics.median(one) for one in (baseline, from_rows)]
        print(f"| {what} | {spread(seconds)} | {ratios[0]:.2f} | {ratios[1]:.2f} | {max(peaks):.0f} |")
    print(f"\nfiles: {ours[0]['mb']:.0f} MB released, {theirs[0]['mb']:.0f} MB by to_parquet")


if __name__ == "__main__":
    main()
