"""Requests to the REST service whose head does not end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
import uvicorn
from api_service import RunningApi, running_api

from yolov5_client._api import protocol
from yolov5_client._api.app import create_app
from yolov5_client._api.settings import ApiSettings

HEAD = b"GET /live HTTP/1.1\r\nHost: localhost\r\n"
ENDLESS = {
    "address": (b"GET /", b"v" * 4096),
    "one header": (HEAD + b"X: ", b"v" * 4096),
    "headers": (HEAD, b"X: y\r\n" * 700),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"v" * 4096),
}


@pytest.fixture(scope="module")
def api() -> Iterator[RunningApi]:
    with running_api("127.0.0.1:1") as running:
        yield running


@pytest.mark.parametrize("kind", ENDLESS)
def test_head_that_does_not_end_is_refused_before_it_fills_the_memory(
    api: RunningApi, kind: str
) -> None:
    begin, more = ENDLESS[kind]
    before = psutil.Process(api.process.pid).memory_info().rss
    sent = 0
    with socket.create_connection(("127.0.0.1", api.port), 30) as caller:
        caller.sendall(begin)
        with suppress(OSError):
            while sent < 32 << 20:
                sent += caller.send(more)
        assert sent < 32 << 20, "the service reads on"
    assert psutil.Process(api.process.pid).memory_info().rss < before + (8 << 20)


def test_refusal_of_a_long_head_is_a_sentence(api: RunningApi) -> None:
    with socket.create_connection(("127.0.0.1", api.port), 30) as caller:
        caller.sendall(HEAD)
        time.sleep(0.2)
        for _ in range(17):
            caller.sendall(b"X: " + b"v" * 4091 + b"\r\n")
            time.sleep(0.02)
        with caller.makefile("rb") as file:
            answer = file.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"The head of the request is too long; allowed: 64 KiB.")


def test_long_head_within_the_limit_is_answered(api: RunningApi) -> None:
    with socket.create_connection(("127.0.0.1", api.port), 30) as caller:
        for _ in range(2):  # on the same connection
            caller.sendall(HEAD)
            for _ in range(15):
                time.sleep(0.01)
                caller.sendall(b"X: " + b"v" * 4000 + b"\r\n")
            caller.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b'{"live":true}'):
                answer += (part := caller.recv(4096))
                assert part
            assert answer.startswith(b"HTTP/1.1 200 ")


def test_connection_without_a_whole_head_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(ApiSettings(server="127.0.0.1:1"))
        server = uvicorn.Server(
            uvicorn.Config(app, http=protocol.BoundedProtocol, ws="none", log_config=None)
        )
        serving = threading.Thread(target=asyncio.run, args=(server.serve([listening]),))
        serving.start()
        try:
            for begin in (b"", HEAD, HEAD + b"\r\n" + HEAD):
                with socket.create_connection(listening.getsockname(), 20) as caller:
                    caller.sendall(begin)
                    with caller.makefile("rb") as file:
                        assert file.read().count(b"200 OK") == begin.count(b"\r\n\r\n")
        finally:
            server.should_exit = True
            serving.join(20)
