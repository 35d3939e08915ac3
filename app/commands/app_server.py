"""`gradus app`: the pages, on this machine only."""

from typing import Annotated

import typer

from app.errors import AppError
from app.options import StoreUrl
from app.terminal import console, escape


def app(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 8501,
    store: StoreUrl = None,
) -> None:
    """Open the pages: what the store holds, the ladder, the last runs, the examples. Single-user, loopback only."""
    import os
    import sys
    from pathlib import Path

    from app.settings import Settings

    url = store or Settings().store_url
    shown = _checked_store(url)
    _require_free(port)
    options = {
        "server.address": "127.0.0.1",
        "server.port": str(port),
        "server.headless": "true",
        "server.enableAgentApi": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    page = Path(__file__).parents[1] / "pages" / "main.py"
    command = [sys.executable, "-m", "streamlit", "run", str(page)]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    console.print(f"Gradus on http://127.0.0.1:{port} (this machine only; everyone on it may look). Ctrl-C ends it.")
    console.print(f"[dim]{escape(shown)}[/]")
    sys.stdout.flush()
    # The server takes this process' place: whatever ends `gradus app` ends the server, and no child is left behind.
    os.execve(sys.executable, command, {**os.environ, "GRADUS_STORE": url})


def _checked_store(url: str) -> str:
    """The store's URL without its password, once the store has been opened: pages cannot tell a person in one line."""
    from pathlib import Path

    from db.store import Store

    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.is_file():
        raise AppError(f"no store at {file}: run 'gradus demo' or 'gradus import' first, or name one with --store")
    opened = Store.open(url)
    opened.close()
    return opened.engine.url.render_as_string(hide_password=True)


def _require_free(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise AppError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
