"""Runs the service on uvicorn until it is told to end."""

from __future__ import annotations

import logging
import resource
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from typing import TextIO

import uvicorn

from .app import create_app
from .observe import ACCESS_LOG, ERROR_LOG
from .settings import ApiSettings

_OPEN_FILES = 65536  # a connection is one
_MOST_CONNECTIONS = 8192  # beyond them uvicorn itself answers with 503
_KEEP_ALIVE = 75  # seconds; longer than nginx keeps a connection, so that it is the one to end it


def serve(settings: ApiSettings, *, open_page: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in progress are then answered.

    Raises:
        OSError: the port cannot be bound.
    """
    _log_to(ACCESS_LOG, sys.stdout, "%(message)s")
    _log_to(ERROR_LOG, sys.stderr, "%(levelname)s %(message)s")
    _log_to(logging.getLogger("uvicorn.error"), sys.stderr, "%(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    _raise_open_files()
    listening = _listen(settings.host, settings.port)
    config = uvicorn.Config(
        create_app(settings),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a caller could write what it likes there
        backlog=2048,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
    )
    with listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        print(f"Serving {url} (server {settings.server})", flush=True)
        if open_page:
            # A browser in a terminal would wait for the page, which is served only afterwards.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    return listening


def _log_to(logger: logging.Logger, stream: TextIO, form: str) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        with suppress(ValueError, OSError):  # then fewer connections are possible
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
