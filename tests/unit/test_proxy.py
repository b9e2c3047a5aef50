"""Proxies of the environment: which one is used, and how errors name it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hostile import (
    Send,
    grpc_server,
    http,
    http_recorder,
    http_server,
    over_grpc,
    over_http,
    tcp_server,
    tensors,
)
from support import free_ports

from yolov5_client import AsyncClient, Client, DeniedError, UnavailableError
from yolov5_client._cli import main
from yolov5_client._proxy import is_loopback, proxy_for_grpc, proxy_for_http
from yolov5_client._sources import Source

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy", "no_grpc_proxy")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def ask(address: str) -> Any:
    with Client(address, timeout=10) as client:
        return client.detect(b"x")


def ask_async(address: str) -> Any:
    async def asking() -> Any:
        async with AsyncClient(address, timeout=10) as client:
            return await client.detect(b"x")

    return asyncio.run(asking())


BOTH = pytest.mark.parametrize("asking", [ask, ask_async])
Asking = Callable[[str], Any]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("yolo.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", True),
        ("128.0.0.1", False),
        ("localhost.example.org", False),
        ("notlocalhost", False),
        ("10.0.0.1", False),
        ("2001:db8::1", False),
    ],
)
def test_loopback_addresses_are_recognised(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    ("address", "environment", "variable"),
    [
        ("http://yolo:8000", {"http_proxy": "p:1"}, "http_proxy"),
        ("http://yolo:8000", {"HTTP_PROXY": "http://p:1"}, "HTTP_PROXY"),
        ("http://yolo:8000", {"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, None),
        ("http://yolo:8000", {"http_proxy": "", "HTTP_PROXY": "http://p:1"}, None),
        ("http://yolo:8000", {"https_proxy": "http://p:1"}, None),
        ("https://yolo", {"HTTPS_PROXY": "http://p:1", "http_proxy": "http://q:1"}, "HTTPS_PROXY"),
        ("https://yolo", {"ALL_PROXY": "socks5://p:1"}, "ALL_PROXY"),
        ("http://yolo:8000", {"all_proxy": "http://p:1", "http_proxy": "http://q:1"}, "http_proxy"),
        ("http://yolo:8000", {"http_proxy": "p:1", "no_proxy": "*"}, None),
        ("http://yolo.a.org", {"http_proxy": "p:1", "no_proxy": "b.org, .a.org"}, None),
        ("http://yolo.a.org", {"http_proxy": "p:1", "NO_PROXY": "a.org"}, None),
        ("http://yolo.aa.org", {"http_proxy": "p:1", "NO_PROXY": "a.org"}, "http_proxy"),
        ("http://yolo.a.org:81", {"http_proxy": "p:1", "NO_PROXY": "a.org:80"}, "http_proxy"),
        ("http://10.1.2.3:8000", {"http_proxy": "p:1", "no_proxy": "10.0.0.0/8"}, None),
        ("http://11.1.2.3:8000", {"http_proxy": "p:1", "no_proxy": "10.0.0.0/8"}, "http_proxy"),
        ("http://[2001:db8::1]:80", {"http_proxy": "p:1", "no_proxy": "[2001:db8::1]"}, None),
        ("http://127.0.0.1:8000", {"http_proxy": "p:1", "all_proxy": "p:1"}, None),
        ("https://localhost", {"https_proxy": "p:1"}, None),
        ("http://[::1]:8000", {"http_proxy": "p:1"}, None),
        ("yolo:8001", {"grpc_proxy": "p:1", "http_proxy": "q:1"}, "grpc_proxy"),
        ("yolo:8001", {"http_proxy": "q:1", "https_proxy": "p:1"}, "https_proxy"),
        ("dns:///yolo:8001", {"http_proxy": "p:1"}, "http_proxy"),
        ("dns://1.1.1.1/yolo:8001", {"http_proxy": "p:1", "no_proxy": "yolo"}, None),
        ("yolo:8001", {"http_proxy": "p:1", "no_grpc_proxy": "yolo"}, None),
        ("127.0.0.1:8001", {"grpc_proxy": "p:1"}, None),
        ("dns:///localhost:8001", {"grpc_proxy": "p:1"}, None),
        ("ipv6:[::1]:8001", {"grpc_proxy": "p:1"}, None),
        ("ipv4:10.0.0.1:8001,10.0.0.2:8001", {"grpc_proxy": "p:1"}, None),
        ("unix:/tmp/socket", {"grpc_proxy": "p:1"}, None),
    ],
)
def test_proxy_variables_are_chosen_as_curl_and_grpc_do(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    environment: dict[str, str],
    variable: str | None,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    proxy = (proxy_for_http if "http" in address else proxy_for_grpc)(address)
    assert (proxy and proxy.variable) == variable


@BOTH
def test_loopback_address_uses_no_proxy(
    monkeypatch: pytest.MonkeyPatch, asking: Asking, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name in VARIABLES[:4]:
        monkeypatch.setenv(name, dead)
        monkeypatch.setenv(name.upper(), dead)
    with http_recorder() as (by_http, _), grpc_server(over_grpc([*tensors().values()])) as by_grpc:
        for address in (by_http, by_grpc):
            for name in ("127.0.0.1", "localhost"):
                assert len(asking(address.replace("127.0.0.1", name))) == 2
    for name in VARIABLES[:4]:
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "socks5://127.0.0.1:1")
    with http_server(http(b'{"version": "2.0"}', {"Connection": "close"})) as by_http:
        assert main(["status", "--server", by_http]) == 0


@BOTH
def test_other_address_uses_the_proxy(monkeypatch: pytest.MonkeyPatch, asking: Asking) -> None:
    heads: list[bytes] = []

    def proxy(request: bytes, send: Send) -> None:
        heads.append(request)
        send(over_http([*tensors().values()]))

    with tcp_server(proxy) as address:
        monkeypatch.setenv("http_proxy", f"http://me:secret@{address}")
        assert len(asking("http://yolo.invalid:8000")) == 2
    assert heads[0].startswith(b"POST http://yolo.invalid:8000/v2/models/yolov5_ensemble/infer ")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0" in heads[0]


@BOTH
def test_grpc_uses_the_proxy(monkeypatch: pytest.MonkeyPatch, asking: Asking) -> None:
    asked: list[bytes] = []
    with grpc_server(over_grpc([*tensors().values()])) as target, tunnel(target, asked) as address:
        monkeypatch.setenv("grpc_proxy", f"http://{address}")
        assert len(asking("yolo.invalid:8001")) == 2
    assert asked[0].startswith(b"CONNECT yolo.invalid:8001 ")


@contextlib.contextmanager
def tunnel(target: str, asked: list[bytes]) -> Any:
    """Return a proxy that connects every CONNECT to the target."""
    host, _, port = target.partition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                near, _ = listener.accept()
                with near, socket.create_connection((host, int(port))) as far:
                    asked.append(near.recv(65536))
                    near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while True:
                        for one in select.select([near, far], [], [], 10)[0]:
                            if not (data := one.recv(65536)):
                                return
                            (far if one is near else near).sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@BOTH
def test_error_names_the_proxy_and_its_variable_but_not_the_password(
    monkeypatch: pytest.MonkeyPatch, asking: Asking, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_ports(1)[0]
    for variable, server in (
        ("http_proxy", "http://yolo.invalid:8000"),
        ("https_proxy", "https://yolo.invalid"),
        ("ALL_PROXY", "http://yolo.invalid"),
        ("grpc_proxy", "yolo.invalid:8001"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(variable, f"http://me:secret@127.0.0.1:{port}")
            with pytest.raises(UnavailableError) as caught:
                asking(server)
            assert f"(through the proxy http://127.0.0.1:{port} that {variable} names)" in str(
                caught.value
            )
            assert main(["status", "--server", server]) == 3
            error = capsys.readouterr().err
            assert variable in error
            assert "secret" not in str(caught.value) + error


@BOTH
def test_refusing_proxy_is_named(monkeypatch: pytest.MonkeyPatch, asking: Asking) -> None:
    with http_server(http(b"", status="407 Proxy Authentication Required")) as address:
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("https_proxy", address)
        for server in ("http://yolo.invalid", "https://yolo.invalid"):
            with pytest.raises(DeniedError, match="407 Proxy Auth.*that https?_proxy names"):
                asking(server)


@pytest.mark.parametrize(
    "value", ["ftp://p:1", "http://", "http://p:port", "http://p:secret@", "http://p q:secret@h"]
)
def test_variable_with_an_unusable_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="HTTP_PROXY does not name a proxy") as caught:
            kind("http://yolo.invalid")
        assert "secret" not in str(caught.value)
    assert main(["status", "--server", "http://yolo.invalid"]) == 2
    assert "HTTP_PROXY does not name a proxy" in capsys.readouterr().err


def test_missing_socksio_for_a_socks_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@proxy:1080")
    assert main(["status", "--server", "http://yolo.invalid"]) == 2
    error = capsys.readouterr().err
    assert "the proxy socks5://proxy:1080 that ALL_PROXY names speaks SOCKS" in error
    assert "socksio" in error
    assert "secret" not in error
    with http_recorder() as (address, _):
        assert len(ask(address)) == 2


def test_download_from_loopback_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(http(b"picture")) as direct, http_server(http(b"proxied")) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert Source(f"{direct}/photo.jpg").read() == b"picture"
        assert Source("http://photos.invalid/photo.jpg").read() == b"proxied"
