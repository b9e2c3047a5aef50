"""All transports: gRPC, HTTP and TLS, also through proxies that cut or hold connections."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from proxy import Proxy
from support import PHOTO, PHOTOS, RunningServer, find_triton, free_ports

from yolov5_client import (
    TLS,
    AsyncClient,
    Client,
    DeniedError,
    Detections,
    InvalidRequestError,
    TimedOutError,
    UnavailableError,
)


def ask_async(address: str, tls: TLS | bool = False, **parameters: Any) -> Detections:
    async def ask() -> Detections:
        async with AsyncClient(address, tls=tls) as client:
            return await client.detect(PHOTO, **parameters)

    return asyncio.run(ask())


def ask(address: str, tls: TLS | bool = False, **parameters: Any) -> Detections:
    with Client(address, tls=tls) as client:
        return client.detect(PHOTO, **parameters)


@pytest.fixture(params=[ask, ask_async], ids=["blocking", "asyncio"])
def asking(request: pytest.FixtureRequest) -> Callable[..., Detections]:
    function: Callable[..., Detections] = request.param
    return function


def assert_same(one: Detections, other: Detections) -> None:
    assert one.to_dict() == other.to_dict()


def test_http_gives_the_same_answers_as_grpc(
    server: RunningServer, asking: Callable[..., Detections]
) -> None:
    given: list[dict[str, object]] = [
        {},
        {"conf_thres": 0.4, "classes": ["RBC", "0"], "agnostic_nms": True},
        {"conf_thres": 0.7, "class_conf_thres": {"RBC": 0.3}},
        {"conf_thres": 0.7, "class_conf_thres": '{"RBC": 0.3}'},
    ]
    for parameters in given:
        one = asking(server.grpc, **parameters)
        assert len(one) > 3
        assert_same(asking(server.http, **parameters), one)
    assert len(asking(server.http, conf_thres=1)) == 0
    with pytest.raises(InvalidRequestError, match="^max_det is '0'; allowed: a whole number"):
        asking(server.http, max_det=0)
    with pytest.raises(InvalidRequestError, match="^classes names "):
        asking(server.http, classes=["Löwe"])
    for thresholds in ({"Löwe": 0.5}, "Löwe:0.5"):
        for address in (server.http, server.grpc):
            with pytest.raises(InvalidRequestError, match=r"^class_conf_thres names 'L\\xf6we'; "):
                asking(address, class_conf_thres=thresholds)


def test_status_over_http(server: RunningServer) -> None:
    async def ask() -> object:
        async with AsyncClient(server.http) as client:
            return await client.status()

    with Client(server.http) as client:
        status = client.status()
        assert status.ready
        assert status.version.startswith("2.")
        assert list(status.models) == ["yolov5_ensemble"]
        assert all(status.models.values())
    assert asyncio.run(ask()) == status


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pem(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    """Write the authority's certificate, and a client's own certificate and key."""
    mine = authority.issue_cert("client.example")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "certificate", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    mine.cert_chain_pems[0].write_to_path(str(files["certificate"]))
    mine.private_key_pem.write_to_path(str(files["key"]))
    return files


def encrypted(authority: trustme.CA, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


@pytest.mark.parametrize("scheme", ["grpc", "https"])
def test_tls_and_mutual_tls_are_accepted(
    server: RunningServer,
    authority: trustme.CA,
    pem: dict[str, Path],
    asking: Callable[..., Detections],
    scheme: str,
) -> None:
    target = server.grpc if scheme == "grpc" else server.http
    prefix = "" if scheme == "grpc" else "https://"
    plain = asking(server.grpc)
    with Proxy(target, context=encrypted(authority, mutual=False)) as proxy:
        assert_same(asking(prefix + proxy.address, tls=TLS(ca=pem["ca"])), plain)
        with pytest.raises(
            UnavailableError
        ):  # the certificate is not from the system's authorities
            asking(prefix + proxy.address, tls=True)
    with Proxy(target, context=encrypted(authority, mutual=True)) as proxy:
        assert_same(asking(prefix + proxy.address, tls=TLS(**pem)), plain)
        with pytest.raises(UnavailableError):
            asking(prefix + proxy.address, tls=TLS(ca=pem["ca"]))


def test_addresses_take_turns_and_one_may_fail(server: RunningServer) -> None:
    with Proxy(server.grpc) as one, Proxy(server.grpc) as other:
        address = f"ipv4:{one.address},{other.address}"
        with Client(address, retry_for=20) as client:
            wanted = client.detect(PHOTO)
            # The client connects to both in the background.
            deadline = time.monotonic() + 20
            while min(one.sent, other.sent) < PHOTO.stat().st_size:
                assert time.monotonic() < deadline
                client.detect(PHOTO)
            before = one.sent, other.sent
            for found in client.detect_stream([PHOTO] * 8):
                assert_same(found, wanted)
            size = PHOTO.stat().st_size
            shares = (one.sent - before[0]) // size, (other.sent - before[1]) // size
            assert shares == (4, 4)
            one.close()
            for found in client.detect_stream([PHOTO] * 4):
                assert_same(found, wanted)


@pytest.fixture
def lost_server(server: RunningServer) -> Iterator[tuple[Proxy, Callable[[], None]]]:
    """A proxy to the server, and a function that cuts it for a second."""
    proxy = Proxy(server.grpc)
    again: list[Proxy] = []

    def cut() -> None:
        proxy.close()
        time.sleep(1)
        again.append(Proxy(server.grpc, port=proxy.port))

    yield proxy, cut
    for one in [proxy, *again]:
        one.close()


def test_client_reconnects_to_a_lost_server(lost_server: tuple[Proxy, Callable[[], None]]) -> None:
    proxy, cut = lost_server
    photos = [*sorted(PHOTOS.iterdir()) * 3]
    with Client(proxy.address, retry_for=30, in_flight=4) as client:
        wanted = [len(found) for found in client.detect(photos[:8])]
        results = []
        cutting = threading.Thread(target=cut)
        for found in client.detect_stream(photos):
            results.append(len(found))
            if len(results) == 4:
                cutting.start()
        cutting.join()
        assert results == wanted * 3


def test_async_client_reconnects_to_a_lost_server(
    lost_server: tuple[Proxy, Callable[[], None]],
) -> None:
    proxy, cut = lost_server
    photos = [*sorted(PHOTOS.iterdir()) * 3]

    async def ask() -> tuple[list[int], list[int]]:
        async with AsyncClient(proxy.address, retry_for=30, in_flight=4) as client:
            wanted = [len(found) for found in await client.detect(photos[:8])]
            results = []
            cutting = None
            async for found in client.detect_stream(photos):
                results.append(len(found))
                if len(results) == 4:
                    cutting = asyncio.ensure_future(asyncio.to_thread(cut))
            assert cutting is not None
            await cutting
            return results, wanted

    results, wanted = asyncio.run(ask())
    assert results == wanted * 3


def test_lost_server_is_an_error_at_once_without_retries() -> None:
    port = free_ports(1)[0]
    for address in (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
        started = time.monotonic()
        with Client(address) as client, pytest.raises(UnavailableError):
            client.detect(PHOTO)
        assert time.monotonic() - started < 5
        with Client(address, retry_for=1) as client, pytest.raises(UnavailableError):
            client.detect(PHOTO)
        assert 1 < time.monotonic() - started < 10


def test_timeout_limits_each_request(server: RunningServer) -> None:
    for target, prefix in ((server.grpc, ""), (server.http, "http://")):
        with Proxy(target) as proxy, Client(prefix + proxy.address, timeout=1) as client:
            client.status()
            proxy.hold()
            with pytest.raises(TimedOutError):
                client.detect(PHOTO)


def test_keepalive_notices_a_dead_connection(server: RunningServer) -> None:
    """The peer vanishes silently, as if a cable were unplugged; long before the timeout."""
    with (
        Proxy(server.grpc) as proxy,
        Client(proxy.address, keepalive=1, retry_for=30, timeout=120) as client,
    ):
        wanted = client.detect(PHOTO)
        proxy.hold()
        started = time.monotonic()
        assert_same(client.detect(PHOTO), wanted)
        assert time.monotonic() - started < 30
        assert proxy.connections == 2


def test_close_ends_requests_in_flight(server: RunningServer) -> None:
    errors: list[BaseException] = []

    def ask(client: Client) -> None:
        try:
            client.detect(PHOTO)
        except Exception as error:
            errors.append(error)

    with Proxy(server.grpc) as proxy:
        client = Client(proxy.address, retry_for=100, timeout=100)
        client.detect(PHOTO)
        proxy.hold()
        sent = proxy.sent
        waiting = threading.Thread(target=ask, args=(client,))
        waiting.start()
        client.close()
        waiting.join(10)
        assert not waiting.is_alive()
        assert errors
        assert proxy.sent == sent


def test_image_may_be_a_function(server: RunningServer) -> None:
    async def read() -> bytes:
        await asyncio.sleep(0)
        return PHOTO.read_bytes()

    async def ask() -> list[Detections]:
        async with AsyncClient(server.grpc) as client:
            return [await client.detect(PHOTO.read_bytes), *await client.detect([read, PHOTO])]

    with Client(server.grpc) as client:
        wanted = client.detect(PHOTO.read_bytes)
    for found in asyncio.run(ask()):
        np.testing.assert_array_equal(found.boxes, wanted.boxes)


def test_headers_reach_the_server(tmp_path: Path) -> None:
    """A Triton without models requires a key for its metadata."""
    (tmp_path / "models").mkdir()
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3)))
    command = [
        str(find_triton(tmp_path)[0]),
        f"--model-repository={tmp_path}/models",
    ]
    command += [f"--{name}-port={port}" for name, port in ports.items()]
    command += [f"--{name}-address=127.0.0.1" for name in ports]
    command += ["--http-restricted-api=metadata:x-api-key=secret"]
    command += ["--grpc-restricted-protocol=metadata:x-api-key=secret"]
    keys = {
        f"http://127.0.0.1:{ports['http']}": "X-Api-Key",
        f"127.0.0.1:{ports['grpc']}": "Triton-Grpc-Protocol-X-Api-Key",
    }
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for address, name in keys.items():
            with Client(address, headers={name: "secret"}) as client:
                deadline = time.monotonic() + 30
                while True:
                    try:
                        assert client.status().version.startswith("2.")
                        break
                    except UnavailableError:
                        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                        time.sleep(0.1)
            with (
                Client(address, headers={name: "wrong"}) as client,
                pytest.raises((DeniedError, UnavailableError), match="restricted"),
            ):
                client.status()
    finally:
        process.kill()
        process.wait()
