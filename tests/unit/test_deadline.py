"""One deadline for a whole request, whatever a name look-up or a server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpcore
import httpx
import pytest
from hostile import Send, http, tcp_server

from yolov5_client import _deadline
from yolov5_client._deadline import Deadline, Transport


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(time, "monotonic", one)
    return one


def test_time_left_shrinks_until_nothing_is_left(clock: Clock) -> None:
    deadline = Deadline()
    assert deadline.left() is None
    with deadline.within(2.0):
        assert deadline.left() == 2.0
        clock.now += 1.5
        assert deadline.left() == 0.5
        clock.now += 0.5
        with pytest.raises(httpcore.ReadTimeout):
            deadline.left()
    assert deadline.left() is None


def test_failed_request_leaves_no_deadline_behind(clock: Clock) -> None:
    deadline = Deadline()
    with pytest.raises(KeyError), deadline.within(1.0):
        raise KeyError
    clock.now += 5
    assert deadline.left() is None


def test_each_thread_has_its_own_deadline() -> None:
    deadline = Deadline()
    found: list[float | None] = []
    with deadline.within(1.0):
        thread = threading.Thread(target=lambda: found.append(deadline.left()))
        thread.start()
        thread.join()
    assert found == [None]


# -- connections -----------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as one:
        one.settimeout(5)
        yield one


def look_up(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Have every name stand for these addresses."""

    def found(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host in addresses:
            return original(host, port, *_, **__)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", found)


def backend(seconds: float = 5.0) -> Any:
    deadline = Deadline()
    deadline._at = time.monotonic() + seconds
    return _deadline._Backend(deadline)


@pytest.mark.parametrize("host", ["localhost", "a.host.example"])
def test_first_address_that_accepts_is_used(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket, host: str
) -> None:
    look_up(monkeypatch, "127.0.0.2", "127.0.0.1")
    stream = backend().connect_tcp(host, listener.getsockname()[1])
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(5)
        stream.write(b"hello")
        assert accepted.recv(100) == b"hello"
        accepted.sendall(b"and back")
        assert stream.read(100) == b"and back"
        stream.close()
        assert accepted.recv(100) == b""


def test_first_refusal_is_the_one_that_is_reported(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    port = listener.getsockname()[1]
    refusals = {"127.0.0.2": "first", "127.0.0.3": "second"}

    def refuse(self: object, host: str, *_: object) -> None:
        raise httpcore.ConnectError(refusals[host])

    look_up(monkeypatch, *refusals)
    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", refuse)
    with pytest.raises(httpcore.ConnectError, match="^first$"):
        backend().connect_tcp("a.host.example", port)
    look_up(monkeypatch)
    with pytest.raises(httpcore.ConnectError, match=r"^a\.host\.example has no address$"):
        backend().connect_tcp("a.host.example", port)


def test_addresses_of_a_name_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up(monkeypatch, "192.0.2.1", "192.0.2.2", "192.0.2.1")
    assert _deadline._addresses("a.host.example", 80, 5) == ["192.0.2.1", "192.0.2.2"]
    assert _deadline._addresses("::1", 80, 5) == ["::1"]


def test_name_that_cannot_be_looked_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(httpcore.ConnectError, match="is no name"):
        _deadline._addresses(f"{'a' * 70}.example", 80, 5)

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(httpcore.ConnectError, match="Name or service not known"):
        _deadline._addresses("a.host.example", 80, 5)


def test_look_up_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    looking: list[threading.Thread] = []

    def hang(*_: object, **__: object) -> list[Any]:
        looking.append(threading.current_thread())
        release.wait(5)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    with pytest.raises(httpcore.ConnectTimeout, match=r"a\.host\.example was not looked up in"):
        _deadline._addresses("a.host.example", 80, 0.05)
    assert time.monotonic() - started < 2
    assert looking[0].daemon, "it must not keep the program from ending"
    release.set()
    looking[0].join(5)


class Chunks(httpcore.NetworkStream):
    """Records what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)


def test_large_request_is_written_in_parts() -> None:
    data = bytes(range(256)) * 400
    stream = Chunks()
    _deadline._Stream(stream, Deadline()).write(data)
    assert b"".join(stream.written) == data
    assert [len(one) for one in stream.written] == [32768] * 3 + [4096]


def test_backend_can_sleep() -> None:
    started = time.monotonic()
    backend().sleep(0.02)
    assert time.monotonic() - started >= 0.02


# -- the transport ---------------------------------------------------------------------------


def client(deadline: Deadline, proxy: str | None = None) -> httpx.Client:
    transport = Transport(
        deadline, connections=1, context=None, proxy=httpx.Proxy(proxy) if proxy else None
    )
    return httpx.Client(transport=transport, trust_env=False, timeout=None)


def echo(request: bytes, send: Send) -> None:
    """Answer with the first line of the request."""
    send(http(request.partition(b"\r\n")[0], {"X-Seen": "yes"}, "201 Made"))


def test_request_and_answer_pass_unchanged() -> None:
    with tcp_server(echo) as address, client(Deadline()) as one:
        answer = one.get(f"http://{address}/a%20b?c=d")
        assert (answer.status_code, answer.reason_phrase) == (201, "Made")
        assert answer.headers["X-Seen"] == "yes"
        assert answer.content == b"GET /a%20b?c=d HTTP/1.1"


def test_request_goes_through_a_proxy() -> None:
    with tcp_server(echo) as address:
        with client(Deadline(), f"http://{address}") as one:
            answer = one.get("http://there.example:81/a?b=c")
        assert answer.content == b"GET http://there.example:81/a?b=c HTTP/1.1"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("socks5://user:word@between:1080", "SOCKSProxy"),
        ("socks5h://user:word@between:1080", "SOCKSProxy"),
        ("http://user:word@between:1080", "HTTPProxy"),
    ],
)
def test_kind_of_proxy_follows_its_scheme(
    monkeypatch: pytest.MonkeyPatch, url: str, kind: str
) -> None:
    made: dict[str, dict[str, Any]] = {}
    for name in ("SOCKSProxy", "HTTPProxy"):
        monkeypatch.setattr(httpcore, name, lambda name=name, **given: made.update({name: given}))
    Transport(Deadline(), connections=7, context=None, proxy=httpx.Proxy(url))
    assert made.keys() == {kind}
    given = made[kind]
    assert (given["proxy_url"].host, given["proxy_url"].port) == (b"between", 1080)
    assert given["proxy_auth"] == (b"user", b"word")
    assert (given["max_connections"], given["max_keepalive_connections"]) == (7, 7)


def test_connection_of_an_answer_that_is_not_read_is_given_back() -> None:
    deadline = Deadline()
    with tcp_server(echo) as address, client(deadline) as one:
        for _ in range(2):
            with deadline.within(5), one.stream("GET", f"http://{address}/") as answer:
                assert answer.status_code == 201


def test_wait_for_a_free_connection_ends_with_the_deadline() -> None:
    deadline = Deadline()
    with (
        tcp_server(echo) as address,
        client(deadline) as one,
        one.stream("GET", f"http://{address}/"),
    ):
        started = time.monotonic()
        with pytest.raises(httpcore.PoolTimeout), deadline.within(0.1):
            one.get(f"http://{address}/")
        assert time.monotonic() - started < 2


def test_closed_transport_leaves_no_connection(listener: socket.socket) -> None:
    host = f"http://127.0.0.1:{listener.getsockname()[1]}"
    one = client(Deadline())
    found: list[bytes] = []

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            accepted.recv(65536)
            accepted.sendall(http(b"kept alive"))
            found.append(accepted.recv(65536))

    thread = threading.Thread(target=serve)
    thread.start()
    assert one.get(host).content == b"kept alive"
    assert not found
    one.close()
    thread.join(10)
    assert found == [b""]
