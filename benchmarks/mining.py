"""Is exact mining nearly as cheap as the matrix product alone, and cheaper than sentence-transformers' miner?

Usage: python benchmarks/mining.py [--queries 4096] [--documents 100000] [--rounds 5] [--threads 1]
       python benchmarks/mining.py --end-to-end [--data ../shared/data/scifact]

The first form mines 8 negatives per query below 95 % of its positive, over fixed random unit vectors (384 dimensions;
a positive is its query with noise, cosine about 0.8). Every arm runs in a process of its own, arms take turns in each
round, and an arm's figures are CPU seconds from vectors to rows of ids and scores, and peak memory above what the
process held with the vectors loaded. Arms: the bare float32 product in tiles, nothing kept; ours; ours in half
precision (ids compared too); mine_hard_negatives by torch and, where faiss-cpu is installed, by faiss, with a model
that returns the vectors as they are. The second form mines SciFact with MiniLM, cold and warm.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
DIMENSION, NUM_NEGATIVES, SHARE = 384, 8, 0.95
ARMS = {
    "product": "bare float32 product, tiled",
    "ours": "ours",
    "half": "ours, half precision",
    "torch": "mine_hard_negatives, torch",
    "faiss": "mine_hard_negatives, faiss",
}


def write_vectors(folder: Path, num_queries: int, num_documents: int) -> None:
    """Unit vectors: queries, and documents of which the first are the queries' positives."""
    import numpy as np

    draws = np.random.default_rng(0)

    def unit(vectors: Any) -> Any:
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    queries = unit(draws.standard_normal((num_queries, DIMENSION), np.float32))
    documents = unit(draws.standard_normal((num_documents, DIMENSION), np.float32))
    documents[:num_queries] = unit(queries + 0.75 * documents[:num_queries])
    np.save(folder / "queries.npy", queries)
    np.save(folder / "documents.npy", documents)


def memory_mb(field: str) -> float:
    """`VmRSS`, what this process holds, or `VmHWM`, the most that it held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def run_arm(arm: str, folder: Path) -> dict[str, Any]:
    """One arm in this process: CPU and wall seconds, peak memory above the loaded vectors, and the ids of negatives."""
    import numpy as np

    queries, documents = np.load(folder / "queries.npy"), np.load(folder / "documents.npy")
    work = {"product": _product, "ours": _ours, "half": _half}.get(arm) or _prepared_peer(arm, len(queries), documents)
    if arm == "half":
        import torch  # noqa: F401  loading it does not count, for nobody
    forget_peak()
    before, cpu, wall = memory_mb("VmRSS"), time.process_time(), time.perf_counter()
    rows = work(queries, documents)
    cpu, wall, peak = time.process_time() - cpu, time.perf_counter() - wall, memory_mb("VmHWM")
    return {"cpu": cpu, "wall": wall, "memory": peak - before, "process": peak, "rows": rows}


def _product(queries: Any, documents: Any) -> None:
    import numpy as np

    size = 2_048
    space = np.empty(size * size, np.float32)
    for start in range(0, len(documents), size):
        tile = documents[start : start + size]
        for first in range(0, len(queries), size):
            block = queries[first : first + size]
            np.matmul(tile, block.T, out=space[: len(tile) * len(block)].reshape(len(tile), len(block)))


def _ours(queries: Any, documents: Any, precision: Any = "float32") -> list[list[int]]:
    import numpy as np

    from curation.mining.positive_aware import ceilings
    from curation.mining.search import pair_scores, top_k

    positives = np.arange(len(queries))
    of_positives = pair_scores(queries, documents[positives]).astype(np.float32)
    below = ceilings("percentage", of_positives, value=SHARE)
    excluded = [[place] for place in positives.tolist()]
    found, scores = top_k(queries, documents, NUM_NEGATIVES, ceilings_Q=below, excluded=excluded, precision=precision)
    rows: list[list[int]] = found.tolist()
    scores.tolist()
    return rows


def _half(queries: Any, documents: Any) -> list[list[int]]:
    return _ours(queries, documents, "half")


def _prepared_peer(arm: str, num_queries: int, documents: Any) -> Any:
    """The peer with its library loaded and its data set made, so that neither counts."""
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    if arm == "faiss":
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
    texts = [f"d{number}" for number in range(len(documents))]
    data = Dataset.from_dict({"query": [f"q{number}" for number in range(num_queries)], "answer": texts[:num_queries]})

    def work(queries: Any, documents: Any) -> list[list[int]]:
        mined = mine_hard_negatives(
            data, _FixedModel(queries, documents), corpus=texts, relative_margin=1 - SHARE,
            num_negatives=NUM_NEGATIVES, output_format="n-tuple", output_scores=True,
            use_faiss=arm == "faiss", verbose=False,
        )  # fmt: skip
        columns = [mined[f"negative_{number + 1}"] for number in range(NUM_NEGATIVES)]
        by_query = dict(zip(mined["query"], zip(*columns, strict=True), strict=True))
        return [[int(text[1:]) for text in by_query.get(f"q{row}", ())] for row in range(num_queries)]

    return work


class _FixedModel:
    """What mine_hard_negatives asks of a model, over vectors at hand: a text's number is its row."""

    device = "cpu"

    def __init__(self, queries: Any, documents: Any) -> None:
        from sentence_transformers.util import cos_sim, pairwise_cos_sim

        self._queries, self._documents = queries, documents
        self.similarity, self.similarity_pairwise = cos_sim, pairwise_cos_sim

    def get_embedding_dimension(self) -> int:
        return DIMENSION

    def encode_query(self, texts: Any, **_: Any) -> Any:
        return self._queries

    def encode_document(self, texts: Any, **_: Any) -> Any:
        # Its corpus is ours with the positives, which are in it already, in the same order.
        return self._documents


def run_in_process(arm: str, folder: Path, threads: int) -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    code = (
        f"import json, sys; from pathlib import Path; sys.path[:0] = {[str(ROOT), str(ROOT / 'benchmarks')]!r};"
        f"import mining; json.dump(mining.run_arm({arm!r}, Path({str(folder)!r})), open(sys.argv[1], 'w'))"
    )
    # Python would put this folder first, and our `mining` is then this file in both: -P keeps the order given.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder / "figures.json")],
        env={**os.environ, **dict.fromkeys(names, str(threads)), "TQDM_DISABLE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"arm {arm} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return figures


def machine(threads: int) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("numpy", "torch", "sentence-transformers", "faiss-cpu")
    )
    return f"{name}, {os.cpu_count()} cores, {threads} thread(s); Python {platform.python_version()}, {versions}"


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(absent)"


def compare(num_queries: int, num_documents: int, rounds: int, threads: int) -> None:
    arms = list(ARMS)
    if importlib.util.find_spec("faiss") is None:
        arms.remove("faiss")
        print("faiss-cpu is not installed: that arm is left out")
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vectors(folder, num_queries, num_documents)
        for number in range(rounds):
            for arm in arms[number % len(arms) :] + arms[: number % len(arms)]:
                runs[arm].append(run_in_process(arm, folder, threads))
    size = f"{num_queries:,} queries x {num_documents:,} documents, E = {DIMENSION}"
    print(f"\n{size}, {NUM_NEGATIVES} negatives each, {rounds} rounds.\n{machine(threads)}\n")
    print("| arm | CPU s, median (min to max) | x product | wall s | added MB | x ours | process MB | rows as ours |")
    print("|---|---|---|---|---|---|---|---|")
    for arm in arms:
        print(_line(arm, runs))


def _line(arm: str, runs: dict[str, list[dict[str, Any]]]) -> str:
    def middle(arm: str, figure: str) -> float:
        return median(run[figure] for run in runs[arm])

    cpu = [run["cpu"] for run in runs[arm]]
    # A ratio is taken within a round, so that a slow spell of the machine falls on both sides.
    ratios = [run["cpu"] / base["cpu"] for run, base in zip(runs[arm], runs["product"], strict=True)]
    rows, ours = runs[arm][0]["rows"], runs["ours"][0]["rows"]
    same = "-" if rows is None else f"{sum(a == b for a, b in zip(rows, ours, strict=True)):,} of {len(ours):,}"
    memory = middle(arm, "memory")
    return (
        f"| {ARMS[arm]} | {median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) "
        f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {middle(arm, 'wall'):.2f} "
        f"| {memory:.0f} | {memory / max(middle('ours', 'memory'), 0.1):.1f} | {middle(arm, 'process'):.0f} | {same} |"
    )


def end_to_end(data: Path, threads: int) -> None:
    """SciFact by MiniLM: every query against every abstract, with an empty embedding cache and with a full one."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.path.insert(0, str(ROOT))
    from curation.embeddings import BiEncoder, EmbeddingCache
    from curation.mining.teachers import BiEncoderTeacher

    def texts(name: str) -> list[str]:
        rows = map(json.loads, (data / name).read_text(encoding="utf-8").splitlines())
        return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]

    passages, queries = texts("corpus.jsonl"), texts("queries.jsonl")
    print(f"{len(queries):,} queries x {len(passages):,} abstracts, top 50, MiniLM. {machine(threads)}\n")
    print("| embedding cache | CPU s | wall s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        answers = []
        for state in ("cold", "warm"):
            cpu, wall = time.process_time(), time.perf_counter()
            cache = EmbeddingCache(Path(name), BiEncoder("minilm"))
            answers.append(BiEncoderTeacher(passages, cache, cache).top(queries, 50)[0].tolist())
            print(f"| {state} | {time.process_time() - cpu:.1f} | {time.perf_counter() - wall:.1f} |", flush=True)
    print(f"\nSame ids cold and warm: {answers[0] == answers[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4_096)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "scifact")
    arguments = parser.parse_args()
    if arguments.end_to_end:
        end_to_end(arguments.data, arguments.threads)
    else:
        compare(arguments.queries, arguments.documents, arguments.rounds, arguments.threads)


if __name__ == "__main__":
    main()
