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
    import signal
    import subprocess
    import sys
    from pathlib import Path

    from sqlalchemy import make_url

    from app.settings import Settings
    from db.store import Store

    url = store or Settings().store_url
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.is_file():
        raise AppError(f"no store at {file}: run 'gradus demo' or 'gradus import' first, or name one with --store")
    Store.open(url).close()  # a wrong URL is told here, not by a page
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
    shown = make_url(url).render_as_string(hide_password=True) if "://" in url else url
    console.print(f"[dim]{escape(shown)}[/]")
    process = subprocess.Popen(command, env={**os.environ, "GRADUS_STORE": url})
    # Whoever stops this process means the server too.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        return
    if code > 0:
        raise AppError(f"the server ended with code {code}; is port {port} taken? Choose another with --port")
