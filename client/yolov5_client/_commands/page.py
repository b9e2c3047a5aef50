"""`yolov5-client page`: serves the try-it page for a browser."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from .._contract import check_network
from .._page import PageServer, Upstream
from . import OK, UsageError, model_flag, read_headers, server_flags


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    # Not the shared flags, which default to gRPC: a browser's requests are passed on over HTTP.
    server = server_flags(
        "http://127.0.0.1:8000", "the http:// or https:// address of Triton's HTTP port"
    )
    page = commands.add_parser(
        "page", parents=[server], help="serve a page to try images on, in a browser"
    )
    page.set_defaults(run=run)
    model_flag(page)
    page.add_argument("--host", default="127.0.0.1", help="address to bind to (%(default)s)")
    page.add_argument("--port", type=_port, default=8080, help="port to bind to (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Serve the page until the process is ended.

    Raises:
        UsageError: a flag cannot be used, or the port is taken.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(OK))
    try:
        check_network(options.model, "--model")
        upstream = Upstream(
            address=options.server,
            timeout=options.timeout,
            headers=read_headers(options.header),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        server = PageServer(options.host, options.port, upstream, model=options.model)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {options.host}, port {options.port}: {error.strerror};"
            " choose others with --host and --port."
        ) from None
    with server:
        print(f"Page: {server.url} (server {options.server})", flush=True)
        server.serve_forever()
    return OK


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"is {port}; allowed: 0 to 65535")
    return port
