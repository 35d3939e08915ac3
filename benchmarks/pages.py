"""Does a page cost more in a large store? Opens every page in a real browser, on a small store and on a large one.

Usage: python benchmarks/pages.py [SIZE ...] [--rounds N] [--folder FOLDER]
    (SIZE: numbers of candidates; default 10000 1000000. FOLDER keeps the stores for another call; by default they are
    thrown away. A million candidates take some fifteen minutes to fill.)

A store is filled as `store_scale.py` fills it (imported and scored by a stand-in encoder); half of the negatives then
stand as written by a generation run, with ranks, requests and completions, and all candidates in two releases. Each
page is opened `rounds` times in a new browser context, the stores in turn: the first time is cold, nothing is cached
yet. Prints a Markdown table: bytes over the WebSocket and seconds until the page is painted, and the bytes and
seconds of a step on it (another row, the next page of rows).
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from scripts.screenshots import launched, opened_page, page_paths, served, wait_until_painted  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

MOST_BYTES = 300_000
# The button that takes a step on the page, where it has one.
STEPS = {"overview": "Next", "runs": "Next", "store_browser": "Older"}


@dataclass(slots=True)
class Cost:
    """Bytes and seconds of every round."""

    num_bytes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, num_bytes: int, seconds: float) -> None:
        self.num_bytes.append(num_bytes)
        self.seconds.append(seconds)


def fill(folder: Path, num_candidates: int) -> str:
    """A store of so many candidates in the folder; one that is there already is used again. Returns its URL."""
    import store_scale

    from curation.embeddings import EmbeddingCache
    from curation.importing.pairs import import_pairs
    from curation.scoring import score
    from db.store import Store

    url = f"sqlite:///{folder}/store.db"
    if (folder / "filled").exists():
        return url
    folder.mkdir(parents=True, exist_ok=True)
    store_scale.write_rows(folder / "rows.parquet", num_candidates, is_repetitive=False)
    store = Store.open(url)
    import_pairs(store, folder / "rows.parquet", negatives=["negatives"])
    score(store, EmbeddingCache(folder / "embeddings", store_scale.HashEncoder()))
    _write_ledger(store)
    _write_releases(store)
    store.close()
    (folder / "filled").touch()
    return url


def _write_ledger(store: Any) -> None:
    """A generation run that wrote four negatives of every example, each example by one request."""
    from sqlalchemy import text

    from db.runs import start_run

    with store.write() as session:
        run = start_run(session, "generate", "scale", {"model": "stand-in", "pack": "v2"}, 0).id
        body = zlib.compress(b'{"messages": [{"role": "user", "content": "Write four negatives."}]}', 1)
        answer = zlib.compress(b'{"negatives": ["one", "two", "three", "four"]}' * 20, 1)
        for statement in _LEDGER:
            session.execute(text(statement), {"run": run, "body": body, "answer": answer, "now": "2026-01-01 00:00:00"})
        session.execute(
            text("update run set state = 'finished', finished_at = started_at where id = :run"), {"run": run}
        )


_LEDGER = (
    "create temp table place as select id, example_id, row_number() over (partition by example_id order by id) - 1 as n"
    " from candidate",
    "update candidate set rank = p.n, grade = case p.n when 1 then 'hard' when 4 then 'easy' else 'medium' end,"
    " origin = 'synthetic', run_id = :run from place p where p.id = candidate.id and p.n between 1 and 4",
    "insert into request (id, digest, model, sample_index, state, created_at)"
    " select id, digest, 'stand-in', 0, 'done', :now from example",
    "insert into request_body (request_id, body) select id, :body from example",
    "insert into run_request (run_id, request_id, plan_index, custom_id, kind, attributes, source, example_id, outcome,"
    " num_accepted, notes) select :run, id, id, 'ex-' || id, 'graded_negatives', '{}', '{}', id,"
    " case id % 7 when 0 then 'partial' else 'accepted' end, 4, '{\"ranks\": [1, 2, 3, 4]}' from example",
    "insert into completion (id, request_id, attempt, engine, finish_reason, input_tokens, output_tokens, cost_usd,"
    " latency_s, received_at) select id, id, 1, 'stand-in', 'stop', 900, 700, 0.001, 2.5, :now from example",
    "insert into completion_body (completion_id, body) select id, :answer from example",
    "insert into sourcing (candidate_id, run_id, request_id) select id, :run, example_id from place"
    " where n between 1 and 4",
    "insert into rejection (run_id, subject, position, reason, detail) select :run, 'ex-' || id, 1, 'length_ratio',"
    " 'too long' from example where id % 7 = 0",
    "drop table place",
)


def _write_releases(store: Any) -> None:
    """Two releases, of all candidates and of most, with the parts of a manifest that pages read."""
    from sqlalchemy import func, select, text

    from curation.release.recipe import ReleaseRecipe
    from db.tables.base import utc_now
    from db.tables.examples import Candidate
    from db.tables.releases import Release

    with store.write() as session:
        num = session.scalar(select(func.count()).select_from(Candidate))
        for number, name in enumerate(("scale-1.0.0", "scale-1.1.0")):
            manifest = {"num_items": num, "rows": {"graded": {"train": num // 8}}, "files": {}, "gates": [], "runs": []}
            release = Release(
                name=name,
                digest=str(number) * 64,
                recipe=ReleaseRecipe().model_dump(mode="json"),
                manifest=manifest,
                path="",
                created_at=utc_now(),
            )
            session.add(release)
            session.flush()
            items = (
                "insert into release_item (release_id, candidate_id, split, position)"
                " select :release, id, 'train', id % 8 from candidate where id % 100 >= :number"
            )
            session.execute(text(items), {"release": release.id, "number": number})


def open_page(browser: "Browser", address: str, path: str) -> tuple[int, float, tuple[int, float] | None]:
    """(bytes, seconds) of the first paint in a new context, and of a step where the page has one."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    received = [0]

    def count(payload: str | bytes) -> None:
        received[0] += len(payload if isinstance(payload, bytes) else payload.encode())

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    start = time.monotonic()
    page.goto(f"{address}/{path}")
    wait_until_painted(page, settle_ms=_SETTLE_MS)
    first = received[0], time.monotonic() - start - _SETTLE_MS / 1000
    step = None
    button = page.get_by_role("button", name=STEPS.get(path or "overview", "no such button"), exact=True)
    if button.count() and button.first.is_enabled():
        received[0], start = 0, time.monotonic()
        button.first.click()
        wait_until_painted(page, settle_ms=_SETTLE_MS)
        step = received[0], time.monotonic() - start - _SETTLE_MS / 1000
    context.close()
    return *first, step


_SETTLE_MS = 600


@contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """The folder, or one that is thrown away."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def measure(sizes: list[int], rounds: int, folder: Path) -> dict[tuple[str, int, str], Cost]:
    """Costs by (page, size, what), the stores in turn in every round."""
    from playwright.sync_api import sync_playwright

    costs: dict[tuple[str, int, str], Cost] = {}
    with ExitStack() as stack:
        urls = {size: fill(folder / str(size), size) for size in sizes}
        addresses = {
            size: stack.enter_context(served(url, {"GRADUS_DATA": str(folder / str(size))}))
            for size, url in urls.items()
        }
        browser = launched(stack.enter_context(sync_playwright()))
        paths = page_paths(opened_page(browser, viewport={"width": 1600, "height": 900}), addresses[sizes[0]])
        for number in range(rounds):
            for path in paths:
                for size in sizes:
                    num_bytes, seconds, step = open_page(browser, addresses[size], path)
                    what = "first time" if number == 0 else "again"
                    costs.setdefault((path or "overview", size, what), Cost()).add(num_bytes, seconds)
                    if step is not None:
                        costs.setdefault((path or "overview", size, "step"), Cost()).add(*step)
        browser.close()
    return costs


def show(costs: dict[tuple[str, int, str], Cost]) -> bool:
    """The table; whether every first paint keeps to what it may send."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("streamlit", "sqlalchemy", "playwright"))
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} processors, {versions}; ")
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print("| page | candidates | what | kB over the WebSocket, most | seconds, median (least to most) |")
    print("| --- | ---: | --- | ---: | ---: |")
    for (path, size, what), cost in sorted(costs.items(), key=lambda one: (one[0][0], one[0][2], one[0][1])):
        spread = f"{statistics.median(cost.seconds):.2f} ({min(cost.seconds):.2f} to {max(cost.seconds):.2f})"
        print(f"| {path} | {size:,} | {what} | {max(cost.num_bytes) / 1000:,.1f} | {spread} |")
    paints = {key: max(cost.num_bytes) for key, cost in costs.items() if key[2] != "step"}
    worst = max(paints, key=lambda key: paints[key])
    print(f"\nMost of a first paint: {paints[worst] / 1000:,.1f} kB ({worst[0]}, {worst[1]:,} candidates).")
    return paints[worst] <= MOST_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with kept(chosen.folder) as folder:
        costs = measure(chosen.sizes, chosen.rounds, folder)
    if not show(costs):
        raise SystemExit(f"a page sent more than {MOST_BYTES // 1000} kB on its first paint")


if __name__ == "__main__":
    main()
