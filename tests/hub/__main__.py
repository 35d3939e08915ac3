"""A Hub of data sets and models on this machine, for tests and without internet: `python tests/hub FOLDER`."""

import argparse
import os
import socket
from pathlib import Path

import uvicorn
from hub_faults import Faults
from hub_routes import build_hub


def main() -> None:
    """Serve FOLDER until stopped; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(prog="python tests/hub", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the repositories are kept")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8800, help="0 for a free one")
    parser.add_argument("--user", default="loopback", help="the name that whoami tells")
    parser.add_argument("--page-size", type=int, default=1_000, help="entries a page of a listing")
    parser.add_argument("--faults", action="store_true", help="let anyone switch faults on at /_faults (tests only)")
    arguments = parser.parse_args()
    # From the environment, because command lines are for every user of the machine to read.
    token = os.environ.get("LOOPBACK_HUB_TOKEN") or None
    hub = build_hub(arguments.folder, token=token, user=arguments.user, page_size=arguments.page_size)
    application = Faults(hub, hub.state.repositories) if arguments.faults else hub
    listening = socket.create_server((arguments.host, arguments.port))
    host, port = listening.getsockname()[:2]
    print(f"http://{host}:{port}", flush=True)
    # h11: its request cycle is what the faults know how to cut.
    uvicorn.Server(uvicorn.Config(application, log_level="warning", http="h11")).run(sockets=[listening])


if __name__ == "__main__":
    main()
