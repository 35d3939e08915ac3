"""What does a request cost the client? Ours, its peers and a bare aiohttp loop against one fast loopback server.

Usage: python benchmarks/generation_throughput.py [--num 2000] [--rounds 3] [--concurrency 64 256] [--peers ENVS]
       python benchmarks/generation_throughput.py --memory      (peak memory at 1,000 and at 200,000 planned requests)

Arms, interleaved, each in its own process; prompts of 1.5 kB, answers of 1 kB:
    aiohttp   a bare loop that does nothing with the answers: the floor
    sdk       a loop over AsyncOpenAI, its default client
    ledger    ours: leases, transport and the durable ledger; the requests were planned before, as for the loops
    all       ours with everything on: plan, checks, candidates, commits
    curator, data_designer, distilabel   by their own public API, from the environments that peers/install.sh made

CPU is of the whole process tree, less that of the same arm with 20 requests, per request.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
OURS = ("ledger", "all")
LOOPS = {"aiohttp": "aiohttp_arm.py", "sdk": "openai_sdk_arm.py"}
PEERS = {"curator": "curator_arm.py", "data_designer": "data_designer_arm.py", "distilabel": "distilabel_arm.py"}
_ATTRIBUTES = {
    "domain": ["a", "b", "c"],
    "education_level": ["x", "y"],
    "length": ["as long as"],
    "language": ["English"],
}
_PROMPT = "You write hard negatives for training a text-embedding model. " * 21


@contextmanager
def server(delay_ms: float = 0) -> Iterator[int]:
    command = [sys.executable, str(ROOT / "benchmarks" / "loopback_server.py"), "--delay-ms", str(delay_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline().split()[1])
    finally:
        process.kill()
        process.wait()


def bodies(num: int) -> list[dict[str, object]]:
    return [
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"{_PROMPT}<query>query {n}</query>"}],
            "response_format": {"type": "json_object"},
            "temperature": 1.0,
        }
        for n in range(num)
    ]


def fill(folder: Path, num: int) -> "object":
    """A store with a collection of `num` judged pairs."""
    from db.insert import insert_missing
    from db.store import Store
    from db.tables.texts import Collection, CollectionQuery, Document, Qrel
    from db.texts import put_passages, put_queries

    store = Store.open(f"sqlite:///{folder}/store.db")
    with store.write() as session:
        collection = Collection(name="bench", kind="beir")
        session.add(collection)
        session.flush()
        for start in range(0, num, 5_000):
            numbers = range(start, min(num, start + 5_000))
            passages = put_passages(session, [f"positive {n}" for n in numbers])
            queries = put_queries(session, [f"query {n}" for n in numbers])
            rows = [
                {"collection_id": collection.id, "external_id": f"d{n}", "passage_id": p}
                for n, p in zip(numbers, passages, strict=True)
            ]
            insert_missing(session, Document, rows)
            rows = [
                {"collection_id": collection.id, "external_id": f"q{n}", "query_id": q}
                for n, q in zip(numbers, queries, strict=True)
            ]
            insert_missing(session, CollectionQuery, rows)
        qrels = [
            {"collection_query_id": n + 1, "document_id": n + 1, "split": "train", "relevance": 1} for n in range(num)
        ]
        for start in range(0, num, 5_000):
            insert_missing(session, Qrel, qrels[start : start + 5_000])
    return store


def recipe(folder: Path, url: str, num: int, concurrency: int) -> "object":
    """Graded negatives from a pack whose prompt is 1.5 kB long."""
    from generator.prompt_pack import PromptPack
    from generator.recipe import GenerateRecipe

    entry = folder / "pack" / "graded_negatives"
    entry.mkdir(parents=True, exist_ok=True)
    bundled = PromptPack.load("v1").folder / "graded_negatives"
    for name in ("entry.toml", "schema.json"):
        (entry / name).write_bytes((bundled / name).read_bytes())
    (entry / "prompt.j2").write_text(
        f"{_PROMPT}{{{{ task_instruction }}}} {{{{ domain }}}} {{{{ education_level }}}} {{{{ length }}}} "
        "{{ language }}"
        "<query>{{ query }}</query><positive>{{ positive }}</positive>"
    )
    return GenerateRecipe.model_validate(
        {
            "name": "bench", "model": "m", "pack": str(folder / "pack"),
            "plan": {
                "source": "pairs", "entry": "graded_negatives", "collection": "bench", "split": "train", "num": num,
                "task_instruction": "Match.", "attributes": _ATTRIBUTES,
            },
            "engine": {"kind": "openai", "base_url": url, "concurrency": concurrency},
        }
    )  # fmt: skip


def ask_with_ledger(url: str, num: int, concurrency: int, folder: Path, phase: str) -> int:
    from sqlalchemy import func, select

    from db.runs import start_run
    from db.store import Store
    from db.tables.ledger import Request
    from generator.budget import WorstCase
    from generator.desk import Desk
    from generator.engines import openai
    from generator.ledger import enqueue
    from generator.models import facts_of
    from generator.plan import Planned
    from generator.recipe import OpenAiEngine

    store = Store.open(f"sqlite:///{folder}/ledger.db")
    with store.write() as session:
        run_id = start_run(session, "generate", "bench", {"num": num}, 0).id
        if phase == "prepare":
            planned = (Planned(n, f"c{n}", "k", {}, {}, body) for n, body in enumerate(bodies(num)))
            while chunk := list(itertools.islice(planned, 500)):
                enqueue(session, run_id, chunk, "m")
            return 0
    desk = Desk(store, run_id, None, worst=WorstCase(facts_of("m"), None))
    with desk:
        openai.run(desk, OpenAiEngine(kind="openai", base_url=url, concurrency=concurrency), None)
    with store.read() as session:
        return session.scalar(select(func.count()).where(Request.state == "done")) or 0


def ask_with_all(url: str, num: int, concurrency: int, folder: Path, phase: str) -> int:
    from generator.generation import generate

    if phase == "prepare":
        fill(folder, num)
        return 0
    from db.store import Store

    report = generate(Store.open(f"sqlite:///{folder}/store.db"), recipe(folder, url, num, concurrency))
    assert report.num_accepted == 4 * num, report
    return report.outcomes["accepted"]


def run_ours(arm: str, url: str, num: int, concurrency: int, folder: Path, phase: str) -> None:
    """One of our arms in this process; prints what a peer's arm prints."""
    start = time.perf_counter()
    ask = {"ledger": ask_with_ledger, "all": ask_with_all}[arm]
    num_good = ask(url, num, concurrency, folder, phase)
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert phase == "prepare" or num_good == num, (num_good, num)
    cpu_s, peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(json.dumps({"wall_s": time.perf_counter() - start, "cpu_s": cpu_s, "peak_mb": peak_mb}))


def measure(arm: str, url: str, num: int, concurrency: int, envs: Path | None = None) -> dict[str, float]:
    """One process of this arm, after another that prepared what it asks."""
    with tempfile.TemporaryDirectory() as folder:
        if arm in OURS:
            for phase in ("prepare", "ask"):
                command = [sys.executable, __file__, "--arm", arm, "--url", url, "--folder", folder, "--phase", phase]
                told = _told([*command, "--num", str(num), "--concurrency", str(concurrency)])
            return told
        requests = Path(folder) / "requests.jsonl"
        requests.write_text("".join(json.dumps(body) + "\n" for body in bodies(num)))
        peer = PEERS.get(arm)
        python = str(envs / arm / "bin" / "python") if peer and envs else sys.executable
        command = [python, str(ROOT / "benchmarks" / "peers" / (peer or LOOPS[arm])), "--base-url", url]
        command += ["--requests", str(requests), "--concurrency", str(concurrency), "--workdir", f"{folder}/home"]
        return _told(command)


def _told(command: list[str]) -> dict[str, float]:
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return dict(json.loads(told.splitlines()[-1]))


def compare(num: int, rounds: int, concurrencies: list[int], arms: list[str], envs: Path | None) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {num:,} requests,")
    print(f"{rounds} interleaved rounds: medians (min-max)")
    for concurrency in concurrencies:
        net: dict[str, list[float]] = {arm: [] for arm in arms}
        rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(rounds):
            for arm in arms:
                with server() as port:
                    url = f"http://127.0.0.1:{port}/v1"
                    base, full = (measure(arm, url, n, concurrency, envs) for n in (20, num))
                net[arm].append((full["cpu_s"] - base["cpu_s"]) / (num - 20) * 1e6)
                rows[arm].append(full)
        print(f"\n| concurrency {concurrency} | CPU us/request, net | SDK loop / this | whole job, s | peak MB |")
        print("|---|---|---|---|---|")
        for arm in arms:
            ratio = median(net["sdk"]) / median(net[arm])
            wall, peak = (median(row[key] for row in rows[arm]) for key in ("wall_s", "peak_mb"))
            spread = f"{median(net[arm]):,.0f} ({min(net[arm]):,.0f}-{max(net[arm]):,.0f})"
            print(f"| {arm} | {spread} | {ratio:.1f} | {wall:.1f} | {peak:.0f} |", flush=True)


def compare_memory() -> None:
    print("| planned requests | peak MB | wall s |\n|---|---|---|")
    for num in (1_000, 200_000):
        with server() as port:
            result = measure("all", f"http://127.0.0.1:{port}/v1", num, 64)
        print(f"| {num:,} | {result['peak_mb']:.0f} | {result['wall_s']:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments; without it they are left out")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--arm", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.arm:
        run_ours(given.arm, given.url, given.num, given.concurrency[0], given.folder, given.phase)
    elif given.memory:
        compare_memory()
    else:
        arms = [*LOOPS, *OURS, *(PEERS if given.peers else ())]
        compare(given.num, given.rounds, given.concurrency, arms, given.peers)


if __name__ == "__main__":
    main()
