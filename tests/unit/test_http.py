"""Requests over HTTP: what is sent, and what is made of each answer and each failure."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
import trustme
from hostile import Tensor, http_server, over_http, tensors

from yolov5_client import (
    TLS,
    AsyncClient,
    Client,
    DeniedError,
    Detections,
    ServerError,
    ServerStatus,
    TimedOutError,
    UnavailableError,
)
from yolov5_client import _http as transport
from yolov5_client._connection import Call, Connection

ANSWER = over_http([*tensors().values()])
VERSION = b'{"version": "2.51.0"}'


class Recorder(ThreadingHTTPServer):
    """Answers as Triton does, and records the requests.

    Attributes:
        refused: paths that are answered with the status 400.
        seen: method, path, headers and body of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refused: set[str] = set()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers, body))
        if self.path in self.server.refused:
            self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        elif self.command == "POST":
            self.wfile.write(ANSWER)
        else:
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(VERSION), VERSION)
            )

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Not."""


@contextmanager
def serving(server: Recorder) -> Iterator[str]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def recorder() -> Iterator[tuple[str, Recorder]]:
    server = Recorder()
    with serving(server) as address:
        yield f"http://{address}", server


def detect(address: str, **options: Any) -> Detections:
    with Client(address, timeout=10, **options) as client:
        return client.detect(b"an image", conf_thres=0.5)


def detect_async(address: str, **options: Any) -> Detections:
    async def asking() -> Detections:
        async with AsyncClient(address, timeout=10, **options) as client:
            return await client.detect(b"an image", conf_thres=0.5)

    return asyncio.run(asking())


def status(address: str) -> ServerStatus:
    with Client(address, timeout=10) as client:
        return client.status()


def status_async(address: str) -> ServerStatus:
    async def asking() -> ServerStatus:
        async with AsyncClient(address, timeout=10) as client:
            return await client.status()

    return asyncio.run(asking())


BOTH = pytest.mark.parametrize("asking", [detect, detect_async])
STATUS = pytest.mark.parametrize("asking", [status, status_async])


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_named_network_is_asked_at_its_own_endpoint(
    recorder: tuple[str, Recorder], kind: type[Client] | type[AsyncClient]
) -> None:
    address, server = recorder

    async def asking() -> ServerStatus:
        async with AsyncClient(address, model="plates") as client:
            await client.detect(b"an image")
            return await client.status()

    if kind is AsyncClient:
        found = asyncio.run(asking())
    else:
        with Client(address, model="plates") as client:
            client.detect(b"an image")
            found = client.status()
    assert found.models == {"plates_ensemble": True}
    paths = [path for _, path, _, _ in server.seen if "/models/" in path]
    assert paths == ["/v2/models/plates_ensemble/infer", "/v2/models/plates_ensemble/ready"]


@BOTH
def test_image_is_the_body_and_parameters_are_headers(
    recorder: tuple[str, Recorder], asking: Callable[..., Detections]
) -> None:
    address, server = recorder
    assert asking(f"{address}/", headers={"X-Api-Key": "a key"}).labels == ("RBC", "WBC")
    ((method, path, headers, body),) = server.seen
    assert (method, path, body) == ("POST", "/v2/models/yolov5_ensemble/infer", b"an image")
    assert headers["x-yolo-conf-thres"] == "0.5"
    assert headers["x-api-key"] == "a key"
    assert headers["inference-header-content-length"] == "0"
    assert headers["accept-encoding"] == "identity"


@BOTH
def test_proxy_of_the_environment_is_not_used_for_this_machine(
    recorder: tuple[str, Recorder],
    asking: Callable[..., Detections],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert len(asking(recorder[0])) == 2


@STATUS
def test_status_is_asked_of_the_server_and_the_endpoint(
    recorder: tuple[str, Recorder], asking: Callable[[str], ServerStatus]
) -> None:
    address, server = recorder
    model, whole = "/v2/models/yolov5_ensemble/ready", "/v2/health/ready"
    for refused, ready, models in (
        (set(), True, True),
        ({whole}, False, True),
        ({model}, True, False),
    ):
        server.refused = refused
        wanted = ServerStatus(
            address=address, version="2.51.0", ready=ready, models={"yolov5_ensemble": models}
        )
        assert asking(address) == wanted
    server.refused = {"/v2"}
    with pytest.raises(Exception, match="HTTP 400 Bad Request"):
        asking(address)


def test_closed_client_asks_nothing(recorder: tuple[str, Recorder]) -> None:
    closed = transport.HttpTransport(connection(recorder[0]))
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.infer(b"", Call(endpoint="x", parameters={}, request_id=""))

    async def closing() -> None:
        closed = transport.AsyncHttpTransport(connection(recorder[0]))
        await closed.close()
        with pytest.raises(RuntimeError, match="closed"):
            await closed.infer(b"", Call(endpoint="x", parameters={}, request_id=""))

    asyncio.run(closing())
    assert not recorder[1].seen


# -- encryption ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An authority, a certificate of this machine with its key, and another authority."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    files = {
        "authority": authority.cert_pem,
        "other": trustme.CA().cert_pem,
        "own": own.private_key_and_cert_chain_pem,
    }
    for name, pem in files.items():
        pem.write_to_path(folder / name)
    return {name: folder / name for name in files}


@BOTH
def test_server_is_checked_against_the_authorities_that_were_given(
    asking: Callable[..., Detections],
    certificates: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Recorder()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates["own"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setattr(server, "handle_error", lambda *_: None)
    with serving(server) as address:
        url = f"https://{address}"
        assert len(asking(url, tls=TLS(ca=certificates["authority"]))) == 2
        for tls in (TLS(ca=certificates["other"]), None, True):
            with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                asking(url, tls=tls)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates["authority"]))
        assert len(asking(url)) == 2


# -- answers ---------------------------------------------------------------------------------


def connection(address: str = "http://127.0.0.1:8000") -> Connection:
    return Connection(
        address=address, timeout=5, retry_for=0, in_flight=1, tls=None, keepalive=None
    )


def receiver(**headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return transport._Receiver(httpx.Response(203, headers=sent))


def test_answer_is_limited_to_16_mib() -> None:
    limit = 16 << 20
    too_large = pytest.raises(ServerError, match=r"^the answer is larger than 16 MiB\.$")
    receiver(Content_Length=str(limit))
    receiver(Content_Length="so many")
    for declared in (str(limit + 1), "9" * 5000):
        with too_large:
            receiver(Content_Length=declared)
    one = receiver()
    one.add(bytes(10 << 20))
    one.add(bytes(6 << 20))
    with too_large:
        one.add(b"x")
    found = one.answer()
    assert (found.status, found.reason) == (203, "Non-Authoritative Information")
    assert found.body == bytes(limit)


def test_compressed_answer_is_refused() -> None:
    receiver(Content_Encoding="identity")
    with pytest.raises(ServerError, match="the answer is compressed as gzip, against the request"):
        receiver(Content_Encoding="gzip")


@pytest.mark.parametrize("length", ["", "x", "-1", "1" * 10, "1 ", "\u0661"])
def test_answer_without_a_valid_length_is_not_tritons(length: str) -> None:
    answer = transport._Response(200, "OK", {"Inference-Header-Content-Length": length}, b"")
    with pytest.raises(ServerError, match="it has no valid Inference-Header-Content-Length"):
        transport._outputs(answer)


@STATUS
def test_other_server_is_not_triton(asking: Callable[[str], ServerStatus]) -> None:
    with (
        http_server(over_http([Tensor("x", "INT32", [0], b"")])) as address,
        pytest.raises(ServerError, match=r"^the server at this address is not Triton\.$"),
    ):
        asking(address)


# -- failures --------------------------------------------------------------------------------

LATE = "no answer within the timeout"
NOT_HTTP = "the server at this address does not speak HTTP: "
FAILURES: list[tuple[Exception, type[Exception], str]] = [
    (httpx.ReadTimeout("x"), TimedOutError, f"{LATE}."),
    (httpcore.PoolTimeout("x"), TimedOutError, f"{LATE}."),
    (TimeoutError("x"), TimedOutError, f"{LATE}."),
    (httpx.RemoteProtocolError("Server disconnected at once"), UnavailableError, "Server disc"),
    (httpcore.RemoteProtocolError("peer closed connection"), UnavailableError, "peer closed"),
    (httpx.RemoteProtocolError("illegal status line"), ServerError, f"{NOT_HTTP}illegal status"),
    (httpcore.RemoteProtocolError("illegal line"), ServerError, f"{NOT_HTTP}illegal line"),
    (httpx.ProxyError("407 Who are you"), DeniedError, "407 Who are you"),
    (httpcore.ProxyError("407 Who"), DeniedError, "407 Who"),
    (httpx.ProxyError("502 Bad Gateway"), UnavailableError, "502 Bad Gateway"),
    (httpx.ConnectError("407 is no proxy's"), UnavailableError, "407 is no proxy's"),
    (ConnectionResetError(), UnavailableError, "ConnectionResetError"),
]


@pytest.mark.parametrize(("failure", "kind", "sentence"), FAILURES)
def test_failure_on_the_way_becomes_an_error(
    failure: Exception, kind: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = transport._error(failure, connection())
    assert type(error) is kind
    assert str(error).startswith(sentence)
    assert "proxy)" not in str(error)
    monkeypatch.setenv("http_proxy", "http://between:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    error = transport._error(failure, connection("http://there.example"))
    assert "(through the proxy http://between:3128 that http_proxy names)" in str(error)


def test_socks_proxy_is_used_if_socksio_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "socks5://between:1080")
    there = connection("http://there.example")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    proxy = transport._proxy(there)
    assert proxy is not None
    assert str(proxy.url) == "socks5://between:1080"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="speaks SOCKS, which needs socksio"):
        transport._proxy(there)
    monkeypatch.setenv("http_proxy", "http://between:3128")
    assert transport._proxy(connection("http://there.example")) is not None
    assert transport._proxy(connection()) is None


def test_unusable_address_is_named() -> None:
    with pytest.raises(ValueError, match="is no address"):
        transport.HttpTransport(connection("http://there:99999999"))


def test_slow_work_ends_with_the_timeout() -> None:
    async def waiting() -> None:
        one = transport.AsyncHttpTransport(connection())
        slow: Awaitable[None] = asyncio.sleep(5)
        with pytest.raises(TimedOutError, match=r"^no answer within the timeout\.$"):
            await one._within(0.02, slow)  # type: ignore[arg-type]
        await one.close()

    asyncio.run(waiting())
