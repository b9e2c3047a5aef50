"""Runs the service on uvicorn until it is told to end."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import stat
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import uvicorn

from .app import create_app
from .observe import ACCESS_LOG, ERROR_LOG
from .protocol import BoundedProtocol
from .settings import ApiSettings

_BACKLOG = 2048
_OPEN_FILES = 65536  # a connection is one
_MOST_CONNECTIONS = 8192  # beyond them uvicorn itself answers with 503
_UNREAD = 60  # seconds for a caller who takes nothing of its answer; then its connection ends
_KEEP_ALIVE = 75  # seconds; longer than nginx keeps a connection, so that it is the one to end it


def serve(settings: ApiSettings, *, open_page: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in progress are then answered.

    Raises:
        OSError: the port or the socket cannot be bound.
    """
    _log_to(ACCESS_LOG, sys.stdout, "%(message)s")
    _log_to(ERROR_LOG, sys.stderr, "%(levelname)s %(message)s")
    _log_to(logging.getLogger("uvicorn.error"), sys.stderr, "%(levelname)s %(message)s")
    # Of requests that are no HTTP it would write a line each.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # It warns of forms that it cannot read; their callers get the sentence.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    _raise_open_files()
    config = uvicorn.Config(
        create_app(settings),
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a caller could write what it likes there
        backlog=_BACKLOG,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(settings.drain)),
    )
    with _listening(settings) as (listening, url):
        print(f"Serving {url} (server {settings.server})", flush=True)
        if open_page:
            # A browser in a terminal would wait for the page, which is served only afterwards.
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _listening(settings: ApiSettings) -> Iterator[tuple[socket.socket, str]]:
    """Listen; give the socket and its address."""
    if settings.socket is not None:
        with _listen_unix(settings.socket) as listening:
            try:
                yield listening, f"unix:{settings.socket}"
            finally:
                settings.socket.unlink(missing_ok=True)
        return
    with _listen(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        yield listening, f"http://{shown}:{port}"


def _listen_unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_behind(path)
        before = os.umask(0o177)  # this user alone, from the first moment on
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _remove_left_behind(path: Path) -> None:
    """Remove the socket of a service that was killed, and nothing else.

    Raises:
        OSError: somebody listens there, or the path is not that of a socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))


def _listen(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # the connections inherit it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD)
        listening.bind(address)
        listening.listen(_BACKLOG)
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
