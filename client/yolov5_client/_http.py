"""Requests over HTTP, for networks that gRPC does not pass: blocking, and for asyncio.

The body is the image itself; the parameters are headers. With `_deadline` the only module that
needs httpx (the extra `http`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import ssl
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpcore
import httpx

from . import _deadline, _wire
from ._connection import LARGEST_ANSWER, Call, Connection
from ._errors import (
    DeniedError,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)
from ._status import ServerStatus

T = TypeVar("T")
_BINARY = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
_LENGTH = "Inference-Header-Content-Length"
# httpx's messages for a connection that ends early, for example when a server restarts.
_CUT_OFF = re.compile("Server disconnected|peer closed connection")


@dataclass(frozen=True)
class _Response:
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


def _options(connection: Connection) -> dict[str, Any]:
    """Return the arguments for either of httpx's clients."""
    return {
        "base_url": connection.address.rstrip("/"),
        # Accept no compression: a small answer could unpack to far more than the limit.
        "headers": {**connection.headers, "Accept-Encoding": "identity"},
        "timeout": None,  # the transports limit the whole request instead
        "trust_env": False,  # _proxy.py chooses the proxy
    }


def _context(connection: Connection) -> ssl.SSLContext | None:
    if tls := connection.encryption:
        return tls.context()
    if connection.address.startswith("https:"):
        return httpx.create_ssl_context()  # reads the authorities from the environment
    return None


def _proxy(connection: Connection) -> httpx.Proxy | None:
    if connection.proxy is None:
        return None
    if connection.proxy.url.startswith("socks") and not importlib.util.find_spec("socksio"):
        raise ImportError(
            f"{connection.proxy} speaks SOCKS, which needs socksio: pip install 'httpx[socks]';"
            " or name the server in NO_PROXY."
        )
    return httpx.Proxy(connection.proxy.url)


def _construct(make: Callable[[], T], connection: Connection) -> T:
    try:
        return make()
    except httpx.InvalidURL as error:
        raise ValueError(f"{connection.address} is no address: {error}.") from None


def _request(image: bytes, call: Call) -> dict[str, Any]:
    # A body that is the image alone has no place for the request's id.
    return {
        "method": "POST",
        "url": f"/v2/models/{call.endpoint}/infer",
        "content": image,
        "headers": {**_BINARY, **_wire.headers_for_http(call.parameters), **call.trace},
    }


class _Receiver:
    """Collects the body of a response up to the limit.

    Raises:
        ServerError: the response is too large, or compressed.
    """

    def __init__(self, answer: httpx.Response) -> None:
        self._answer = answer
        self._body = bytearray()
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise ServerError(
                f"the answer is compressed as {_wire.one_line(encoding)}, against the request."
            )
        declared = answer.headers.get("Content-Length", "0")
        if declared.isdecimal():
            self._check(int(declared[:20]))

    @staticmethod
    def _check(size: int) -> None:
        if size > LARGEST_ANSWER:
            raise ServerError(f"the answer is larger than {LARGEST_ANSWER >> 20} MiB.")

    def add(self, chunk: bytes) -> None:
        self._check(len(self._body) + len(chunk))
        self._body += chunk

    def answer(self) -> _Response:
        answer = self._answer
        return _Response(
            answer.status_code, answer.reason_phrase, answer.headers, bytes(self._body)
        )


def _outputs(answer: _Response) -> _wire.Outputs:
    length = answer.headers.get(_LENGTH, "")
    if not re.fullmatch(r"\d{1,9}", length, re.ASCII):
        raise ServerError(f"the answer is not one of Triton's: it has no valid {_LENGTH}.")
    try:
        return _wire.outputs_from_http(answer.body, int(length))
    except ValueError as error:
        raise ServerError(f"the answer is not one of Triton's: {error}.") from error


def _version(answer: _Response) -> str:
    try:
        return _wire.version_from_json(answer.body)
    except ValueError:
        raise ServerError("the server at this address is not Triton.") from None


def _check(answer: _Response, connection: Connection) -> _Response:
    if answer.status != 200:
        raise _wire.error_from_http(answer.status, answer.reason, answer.body, via=connection.via)
    return answer


# Failures on the way. httpx passes on what TLS reports instead of an answer, such as a missing
# certificate, as an OSError.
_FAILURES = (httpx.HTTPError, *_deadline.ERRORS, OSError)


def _error(error: Exception, connection: Connection) -> YoloClientError:
    via = connection.via
    if isinstance(error, (httpx.TimeoutException, httpcore.TimeoutException, TimeoutError)):
        return TimedOutError(f"no answer within the timeout{via}.")
    reason = _wire.one_line(str(error)) or type(error).__name__
    if isinstance(error, (httpx.RemoteProtocolError, httpcore.RemoteProtocolError)):
        if not _CUT_OFF.match(reason):
            return ServerError(f"the server at this address does not speak HTTP: {reason}{via}")
    elif isinstance(error, (httpx.ProxyError, httpcore.ProxyError)) and reason.startswith("407"):
        return DeniedError(f"{reason}{via}")
    return UnavailableError(f"{reason}{via}")


class HttpTransport:
    """The blocking transport. Threads may share one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._deadline = _deadline.Deadline()
        transport = _deadline.Transport(
            self._deadline,
            connections=connection.in_flight,
            context=_context(connection),
            proxy=_proxy(connection),
        )
        self._http = _construct(
            lambda: httpx.Client(**_options(connection), transport=transport), connection
        )

    def infer(self, image: bytes, call: Call) -> _wire.Outputs:
        request = _request(image, call)
        with self._deadline.within(self._connection.timeout):
            return _outputs(_check(self._send(**request), self._connection))

    def status(self, timeout: float) -> ServerStatus:
        endpoint = self._connection.endpoint

        def ready(path: str) -> bool:
            return self._send(method="GET", url=path).status == 200

        with self._deadline.within(timeout):
            return ServerStatus(
                address=self._connection.address,
                version=_version(_check(self._send(method="GET", url="/v2"), self._connection)),
                ready=ready("/v2/health/ready"),
                models={endpoint: ready(f"/v2/models/{endpoint}/ready")},
            )

    def _send(self, **request: Any) -> _Response:
        try:
            with self._http.stream(**request) as answer:
                receiver = _Receiver(answer)
                for chunk in answer.iter_raw():
                    receiver.add(chunk)
                return receiver.answer()
        except _FAILURES as error:
            raise _error(error, self._connection) from error

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport:
    """The transport for asyncio."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        limits = httpx.Limits(
            max_connections=connection.in_flight, max_keepalive_connections=connection.in_flight
        )
        options = {**_options(connection), "limits": limits, "proxy": _proxy(connection)}
        if context := _context(connection):
            options["verify"] = context
        self._http = _construct(lambda: httpx.AsyncClient(**options), connection)

    async def infer(self, image: bytes, call: Call) -> _wire.Outputs:
        request = _request(image, call)
        answer = await self._within(self._connection.timeout, self._send(**request))
        return _outputs(_check(answer, self._connection))

    async def status(self, timeout: float) -> ServerStatus:
        return await self._within(timeout, self._status())

    async def _status(self) -> ServerStatus:
        endpoint = self._connection.endpoint

        async def ready(path: str) -> bool:
            return (await self._send(method="GET", url=path)).status == 200

        return ServerStatus(
            address=self._connection.address,
            version=_version(_check(await self._send(method="GET", url="/v2"), self._connection)),
            ready=await ready("/v2/health/ready"),
            models={endpoint: await ready(f"/v2/models/{endpoint}/ready")},
        )

    async def _within(self, timeout: float, work: Coroutine[Any, Any, T]) -> T:
        """Limit the time of the whole work, however slowly bytes arrive."""
        try:
            return await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError:  # an alias of the builtin only since Python 3.11
            raise TimedOutError(f"no answer within the timeout{self._connection.via}.") from None

    async def _send(self, **request: Any) -> _Response:
        try:
            async with self._http.stream(**request) as answer:
                receiver = _Receiver(answer)
                async for chunk in answer.aiter_raw():
                    receiver.add(chunk)
                return receiver.answer()
        except _FAILURES as error:
            raise _error(error, self._connection) from error

    async def close(self) -> None:
        await self._http.aclose()
