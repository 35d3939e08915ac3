"""Screenshots of every page in light and dark, at 1280 and 800 pixels, and what stood wrong on any of them.

Usage: python scripts/screenshots.py FOLDER [--store URL] [--address URL] [--page PATH]
    (FOLDER: where the PNG files go. A server is started for --store, default: the one of GRADUS_DATA; or give the
    --address of one that runs.)

Pages are those of the navigation. A page that scrolls sideways, or shows an exception, is named and the exit code is 1.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

ROOT = Path(__file__).parents[1]
WIDTHS = (1280, 800)
SCHEMES = ("light", "dark")
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TIMEOUT_MS = 180_000
_MOST_HEIGHT = 6_000
_SETTLE_MS, _LOOK_MS = 700, 50
IS_BUSY = (
    "document.querySelector('[data-testid=stApp][data-test-script-state=running], [data-testid=stSkeleton],"
    " [data-testid=stSpinner], [data-stale=true]') !== null"
)


@contextmanager
def served(store: str | None, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of `gradus app` on a free port, ended afterwards; with more of an environment than this process'."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # This checkout's code, whichever one the installed command would run.
    command = [sys.executable, "-c", "from app.cli import main; main()", "app", "--port", str(port)]
    command += ["--store", store] if store else []
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if urlopen(f"{address}/_stcore/health").status == 200:
                    break
            except OSError:
                if server.poll() is not None:
                    raise SystemExit(f"gradus app ended with {server.returncode}") from None
                time.sleep(0.25)
        else:
            raise SystemExit(f"gradus app did not answer at {address} within a minute")
        yield address
    finally:
        server.terminate()
        server.wait(60)


def launched(playwright: "Playwright") -> "Browser":
    """Debian's Chromium, or the one that CHROMIUM names."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        raise SystemExit("there is no chromium on the path: apt install chromium, or set CHROMIUM")
    return playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))


def opened_page(browser: "Browser", **options: Any) -> "Page":
    """A page in a context of its own, which waits for whatever it waits for as long as a busy machine takes."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(_TIMEOUT_MS)
    return page


def wait_until_painted(page: "Page", settle_ms: int = _SETTLE_MS) -> None:
    """Until the script has run, its fragments too, and nothing has changed for a moment."""
    page.locator("[data-testid=stMain] [data-testid=stElementContainer]").first.wait_for(state="attached")
    quiet = -_LOOK_MS
    for _ in range(_TIMEOUT_MS // _LOOK_MS):
        quiet = 0 if page.evaluate(IS_BUSY) else quiet + _LOOK_MS
        if quiet >= settle_ms:
            return
        page.wait_for_timeout(_LOOK_MS)
    raise SystemExit(f"{page.url} was not painted within {_TIMEOUT_MS // 1000} s")


def page_paths(page: "Page", address: str) -> list[str]:
    """Paths of the navigation's pages, the first is the default one."""
    page.goto(address)
    wait_until_painted(page)
    links = page.locator("[data-testid=stTopNavLink], [data-testid=stSidebarNavLink]")
    found = [link.get_attribute("href") or "" for link in links.all()]
    return list(dict.fromkeys(href.removeprefix(address).strip("/") for href in found))


def faults(page: "Page") -> list[str]:
    """What is wrong to the eye of a program: exceptions, and blocks that are wider than the page."""
    found = []
    if page.locator("[data-testid=stException]").count():
        found.append("shows an exception")
    wide = page.evaluate(
        "(() => { const main = document.querySelector('[data-testid=stMain]');"
        " return main ? main.scrollWidth - main.clientWidth : 0 })()"
    )
    if wide > 1:
        found.append(f"is {wide} pixels wider than its window")
    return found


def shoot(address: str, folder: Path, only: Sequence[str] = ()) -> list[str]:
    """Write NAME-WIDTH-SCHEME.png for every page; returns what stood wrong."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = launched(playwright)
        paths = list(only) or page_paths(opened_page(browser, viewport={"width": 1600, "height": 900}), address)
        for scheme in SCHEMES:
            for width in WIDTHS:
                page = opened_page(browser, color_scheme=scheme, viewport={"width": width, "height": 900})
                for path in paths:
                    page.set_viewport_size({"width": width, "height": 900})
                    page.goto(f"{address}/{path}")
                    wait_until_painted(page)
                    name = f"{path.partition('?')[0] or 'overview'}-{width}-{scheme}"
                    wrong += [f"{name} {what}" for what in faults(page)]
                    page.set_viewport_size({"width": width, "height": _whole_height(page)})
                    page.wait_for_timeout(_SETTLE_MS)
                    page.screenshot(path=str(folder / f"{name}.png"))
                page.context.close()
        browser.close()
    return wrong


def _whole_height(page: "Page") -> int:
    """Streamlit scrolls inside its window, so the window is made as high as what is in it."""
    height: int = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    return max(900, min(_MOST_HEIGHT, height + 80))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store")
    parser.add_argument("--address")
    parser.add_argument("--page", action="append", help="only this path, like review_decide?session=1; may be repeated")
    chosen = parser.parse_args()
    if chosen.address:
        wrong = shoot(chosen.address, chosen.folder, chosen.page or ())
    else:
        with served(chosen.store) as address:
            wrong = shoot(address, chosen.folder, chosen.page or ())
    for what in wrong:
        print(what)
    print(f"{len(list(chosen.folder.glob('*.png')))} screenshots in {chosen.folder}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
