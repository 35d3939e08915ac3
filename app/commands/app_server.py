"""`gradus app`: the pages, on this machine only unless people sign in."""

from typing import Annotated

import typer

from app.errors import AppError
from app.options import StoreUrl
from app.terminal import console, escape


def app(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8501,
    address: Annotated[
        str, typer.Option("--address", help="Where to listen; elsewhere than on loopback only with sign-in.")
    ] = "127.0.0.1",
    store: StoreUrl = None,
) -> None:
    """Open the pages: what the store holds, runs, the ordering audit, review. Single-user without sign-in."""
    import os
    import sys
    from pathlib import Path

    from app.reviewing.identity import is_sign_in_configured, require_safe_address
    from app.settings import Settings

    is_sign_in = is_sign_in_configured()
    require_safe_address(address, is_sign_in=is_sign_in)
    url = store or Settings().store_url
    shown = _checked_store(url)
    _require_free(address, port)
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": "true",
        "server.enableAgentApi": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        # A traceback belongs on the terminal: it may hold what nobody who looks at a page should read.
        "client.showErrorDetails": "type",
    }
    page = Path(__file__).parents[1] / "pages" / "main.py"
    command = [sys.executable, "-m", "streamlit", "run", str(page)]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    host = f"[{address}]" if ":" in address else address
    console.print(f"Gradus on http://{escape(host)}:{port}. Ctrl-C ends it.")
    if not is_sign_in:
        console.print("[bold]Single-user:[/] nobody signs in, and everyone on this machine is the same reviewer.")
    console.print(f"[dim]{escape(shown)}[/]")
    sys.stdout.flush()
    # The server takes this process' place: whatever ends `gradus app` ends the server, and no child is left behind.
    os.execve(sys.executable, command, {**os.environ, "GRADUS_STORE": url})


def _checked_store(url: str) -> str:
    """The store's URL without its password, once the store has been opened: pages cannot tell a person in one line."""
    from pathlib import Path

    from db.store import Store, shown_url

    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.is_file():
        raise AppError(f"no store at {file}: run 'gradus demo' or 'gradus import' first, or name one with --store")
    opened = Store.open(url)
    opened.close()
    return shown_url(opened.engine.url)


def _require_free(address: str, port: int) -> None:
    import socket

    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except socket.gaierror as error:
            raise AppError(f"--address {address}: no such address on this machine") from error
        except OSError as error:
            raise AppError(f"port {port} cannot be used ({error.strerror}): choose another with --port") from error
