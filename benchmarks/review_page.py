"""How long from a key to the next negative on the decision page, and does it grow with the store?

Usage: python benchmarks/review_page.py [SIZE ...] [--rounds 3] [--presses 20] [--gap-ms 250] [--folder FOLDER]
    (SIZE: numbers of candidates in the store; default 1000 1000000)

Fills a store of each size (see store_scale.py; kept in FOLDER, and used again, where one is given), makes a review
session of 500 examples in each, and presses K in a real Chromium at this gap, the stores taking turns. All times are
measured inside the page by a MutationObserver: from the key press to the moment when another negative is painted, and
to the moment when its keys are there too; what the server computes for a press is processor time, which
other work on the machine hardly changes. WebSocket bytes are those received until the page has come to rest.
Prints a Markdown table.
"""

import argparse
import itertools
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
WITNESS = """
window.painted = []; window.ready = []; window.pressed = [];
new MutationObserver(() => {
  const now = document.querySelector('[data-shown]')?.dataset.shown;
  if (now && now !== window.painted.at(-1)?.key) window.painted.push({key: now, at: performance.now()});
  if (now && now !== window.ready.at(-1)?.key && document.querySelector(`.st-key-keep-${now}`))
    window.ready.push({key: now, at: performance.now()});
}).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
addEventListener('keydown', () => window.pressed.push(performance.now()), true);
"""
_ITEMS = 500


@dataclass
class Arm:
    """What was measured on a store of one size."""

    size: int
    address: str
    server: int
    session_id: int
    paint_ms: list[float] = field(default_factory=list)
    ready_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    first_bytes: list[int] = field(default_factory=list)
    press_bytes: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    num_presses: int = 0


def fill(url: str, folder: Path, size: int) -> None:
    """A store of that many candidates, each with a similarity, and one person."""
    import store_scale

    from curation.embeddings import EmbeddingCache
    from curation.importing.pairs import import_pairs
    from curation.reviewing.people import put_reviewer
    from curation.scoring import score
    from db.store import Store

    rows = folder / f"rows-{size}.parquet"
    store_scale.write_rows(rows, size, is_repetitive=False)
    store = Store.open(url)
    import_pairs(store, rows, negatives=["negatives"])
    score(store, EmbeddingCache(folder / "embeddings", store_scale.HashEncoder()))
    with store.write() as session:
        put_reviewer(session, "ada", "admin")
    store.close()
    rows.unlink()


def new_session(url: str) -> int:
    from curation.reviewing.people import reviewer_of
    from curation.reviewing.queue import draw_queue
    from curation.reviewing.recipe import SessionRecipe
    from curation.reviewing.sessions import create_session
    from db.store import Store

    fields = {"name": f"benchmark {time.time_ns()}", "queue": {"order": "random", "limit": _ITEMS}}
    recipe = SessionRecipe.model_validate(fields)
    store = Store.open(url)
    with store.read() as session:
        queue = draw_queue(session, recipe.queue, recipe.seed)
    with store.write() as session:
        created = create_session(session, recipe, reviewer_of(session, "ada"), queue=queue).id
    store.close()
    return created


@contextmanager
def served(url: str) -> Iterator[tuple[str, int]]:
    """The pages' address, and the server's process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from app.cli import main; main()", "app", "--port", str(port), "--store", url]
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "GRADUS_REVIEWER": "ada"}, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(400):
            try:
                urlopen(f"http://127.0.0.1:{port}/_stcore/health").close()
                break
            except OSError:
                time.sleep(0.25)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.terminate()
        server.wait(20)


def measure(browser: Any, arm: Arm, *, num_presses: int, gap_ms: int) -> None:
    """One opening of the page and a burst of presses."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    received: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
    page.add_init_script(WITNESS)
    start = time.monotonic()
    page.goto(f"{arm.address}/review_decide?session={arm.session_id}")
    page.wait_for_function("window.ready.length > 0", timeout=120_000)
    arm.first_ms.append(1000 * (time.monotonic() - start))
    page.wait_for_timeout(2_000)
    arm.first_bytes.append(sum(received))
    before = processor_s(arm.server)
    for _ in range(num_presses):
        page.keyboard.press("k")
        page.wait_for_timeout(gap_ms)
    page.wait_for_timeout(2_000)
    arm.press_bytes.append((sum(received) - arm.first_bytes[-1]) / num_presses)
    painted, ready, pressed = (page.evaluate(f"window.{name}") for name in ("painted", "ready", "pressed"))
    arm.server_ms.append(1000 * (processor_s(arm.server) - before) / num_presses)
    arm.paint_ms += waits(pressed, painted)
    arm.ready_ms += waits(pressed, ready)
    arm.num_presses += len(pressed)
    page.context.close()


def processor_s(process: int) -> float:
    """Seconds that the process has computed, all its threads together (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waits(pressed: Sequence[float], changed: Sequence[dict[str, Any]]) -> list[float]:
    """Milliseconds from the first press since the last change to the next change."""
    found = []
    for before, after in itertools.pairwise(changed):
        since = [at for at in pressed if before["at"] <= at < after["at"]]
        if since:
            found.append(after["at"] - since[0])
    return found


def show(arms: Sequence[Arm], versions: str, gap_ms: int) -> None:
    print(f"{platform.platform()}, Python {platform.python_version()}, {versions}, {os.cpu_count()} processors, load "
          f"{os.getloadavg()[0]:.1f} at the end; K every {gap_ms} ms\n")  # fmt: skip
    print("| candidates | presses | negatives painted | to the paint, ms: median (p90; min to max) | to its keys, ms: "
          "median (p90) | first opening, ms | first opening, kB | a press, kB | "
          "the server's processor, ms a press |")  # fmt: skip
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for arm in arms:
        paint, ready = sorted(arm.paint_ms), sorted(arm.ready_ms)
        print(
            f"| {arm.size:,} | {arm.num_presses} | {len(paint)} | {statistics.median(paint):.0f} "
            f"({_p90(paint):.0f}; {paint[0]:.0f} to {paint[-1]:.0f}) | {statistics.median(ready):.0f} "
            f"({_p90(ready):.0f}) | {statistics.median(arm.first_ms):.0f} | {max(arm.first_bytes) / 1000:.0f} | "
            f"{statistics.median(arm.press_bytes) / 1000:.1f} | {statistics.median(arm.server_ms):.0f} |"
        )
    small, large = arms[0], arms[-1]
    ratio = statistics.median(large.paint_ms) / statistics.median(small.paint_ms)
    print(f"\nMedian of {large.size:,} candidates to that of {small.size:,}: {ratio:.2f}.")


def _p90(ordered: Sequence[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--presses", type=int, default=20)
    parser.add_argument("--gap-ms", type=int, default=250)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    import streamlit
    from playwright.sync_api import sync_playwright

    from scripts.screenshots import launched

    with ExitStack() as stack:
        folder = chosen.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        arms = []
        for size in chosen.sizes:
            url = f"sqlite:///{folder}/store-{size}.db"
            if not (folder / f"store-{size}.db").exists():
                print(f"filling {size:,}", file=sys.stderr, flush=True)
                fill(url, folder, size)
            arms.append(Arm(size, *stack.enter_context(served(url)), new_session(url)))
        browser = launched(stack.enter_context(sync_playwright()))
        for number in range(chosen.rounds + 1):
            for arm in arms[:: 1 if number % 2 else -1]:
                print(f"round {number}: {arm.size:,}", file=sys.stderr, flush=True)
                measure(browser, arm, num_presses=chosen.presses, gap_ms=chosen.gap_ms)
                if number == 0:  # the first opening after a server's start imports and compiles
                    warm = (arm.paint_ms, arm.ready_ms, arm.first_ms, arm.first_bytes, arm.press_bytes, arm.server_ms)
                    for measured in warm:
                        measured.clear()
                    arm.num_presses = 0
        versions = f"Chromium {browser.version}, Streamlit {streamlit.__version__}"
        browser.close()
    show(arms, versions, chosen.gap_ms)


if __name__ == "__main__":
    main()
