"""One deadline for a whole blocking HTTP request, in a transport for httpx.

A blocking socket's timeout restarts with every byte, and name look-ups have none. Here every step
gets the time that is left of the request's.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from ._proxy import is_loopback

ERRORS = (
    httpcore.ConnectionNotAvailable,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
# A single large write could outlast the deadline if the peer reads slowly.
_WRITE_CHUNK = 32 << 10  # bytes


class Deadline(threading.local):
    """The deadline of the request that the current thread makes."""

    def __init__(self) -> None:
        self._at = float("inf")

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Set the deadline for the calls in the block."""
        self._at = time.monotonic() + seconds
        try:
            yield
        finally:
            self._at = float("inf")

    def left(self) -> float | None:
        """Return the seconds that are left; None without a deadline.

        Raises:
            httpcore.ReadTimeout: the deadline has passed.
        """
        if self._at == float("inf"):
            return None
        if (left := self._at - time.monotonic()) <= 0:
            raise httpcore.ReadTimeout("no time is left")
        return left


class Transport(httpx.BaseTransport):
    """A transport for `httpx.Client` that keeps the deadline; raises httpcore's own `ERRORS`.

    Args:
        connections: most connections at a time.
        context: for HTTPS; None for httpcore's default.
    """

    def __init__(
        self,
        deadline: Deadline,
        *,
        connections: int,
        context: ssl.SSLContext | None,
        proxy: httpx.Proxy | None,
    ) -> None:
        options: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": connections,
            "max_keepalive_connections": connections,
            "network_backend": _Backend(deadline),
        }
        self._deadline = deadline
        self._pool: httpcore.ConnectionPool
        if proxy is None:
            self._pool = httpcore.ConnectionPool(**options)
        else:
            url = httpcore.URL(
                scheme=proxy.url.raw_scheme,
                host=proxy.url.raw_host,
                port=proxy.url.port,
                target=proxy.url.raw_path,
            )
            kind = httpcore.SOCKSProxy if proxy.url.scheme[:5] == "socks" else httpcore.HTTPProxy
            self._pool = kind(proxy_url=url, proxy_auth=proxy.raw_auth, **options)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.SyncByteStream)
        answer = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=request.headers.raw,
                content=request.stream,
                # The pool waits until another thread's request ends.
                extensions={"timeout": {"pool": self._deadline.left()}},
            )
        )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of the host that accepts."""
        failure: Exception | None = None
        for address in _addresses(host, port, self._deadline.left()):
            try:
                stream = self._backend.connect_tcp(
                    address, port, self._deadline.left(), local_address, socket_options
                )
                return _Stream(stream, self._deadline)
            except httpcore.ConnectError as error:
                failure = failure or error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.NetworkStream:
        raise NotImplementedError

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_CHUNK):
            self._stream.write(buffer[start : start + _WRITE_CHUNK], self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.left()
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int, left: float | None) -> list[str]:
    """Look up the host's addresses, in the system's order."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            kinds = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.put([*dict.fromkeys(str(address[0]) for *_, address in kinds)])
        except (OSError, UnicodeError) as error:
            found.put(error if isinstance(error, OSError) else OSError(f"{host} is no name"))

    if is_loopback(host):
        look_up()
    else:
        # The system's resolver has no timeout; a thread that hangs in it is abandoned.
        threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = found.get(timeout=left)
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"{host} was not looked up in time") from None
    if isinstance(answer, OSError):
        raise httpcore.ConnectError(str(answer))
    return answer
