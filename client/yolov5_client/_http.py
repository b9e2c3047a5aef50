"""Requests over HTTP, for where gRPC does not get through: blocking, and for asyncio.

The body is the image itself, the parameters are headers, as in the contract's curl line.
The only module that needs httpx (the extra `http`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx

from . import _contract as names
from . import _wire
from ._connection import Connection
from ._errors import ServerError, TimedOutError, UnavailableError, YoloClientError
from ._status import ServerStatus

T = TypeVar("T")
_INFER = f"/v2/models/{names.MODEL}/infer"
_BINARY = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
_LENGTH = "Inference-Header-Content-Length"


def _options(connection: Connection) -> dict[str, Any]:
    """Arguments for either of httpx's clients."""
    options: dict[str, Any] = {
        "base_url": connection.address.rstrip("/"),
        "headers": dict(connection.headers),
        "timeout": connection.timeout,
        "limits": httpx.Limits(
            max_connections=connection.in_flight,
            max_keepalive_connections=connection.in_flight,
        ),
    }
    if tls := connection.encryption:
        options["verify"] = tls.context()
    return options


def _made(kind: Callable[..., T], connection: Connection) -> T:
    try:
        return kind(**_options(connection))
    except httpx.InvalidURL as error:
        raise ValueError(f"{connection.address} is no address: {error}.") from None


def _request(image: bytes, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": "POST",
        "url": _INFER,
        "content": image,
        "headers": {**_BINARY, **_wire.headers_for_http(parameters)},
    }


def _outputs(answer: httpx.Response) -> _wire.Outputs:
    _check(answer)
    try:
        return _wire.outputs_of_http(answer.content, int(answer.headers[_LENGTH]))
    except (ValueError, KeyError) as error:
        raise ServerError(f"the answer is not one of Triton's: {error!r}") from error


def _check(answer: httpx.Response) -> httpx.Response:
    if answer.status_code != 200:
        raise _wire.error_of_http(answer.status_code, answer.reason_phrase, answer.content)
    return answer


def _version(answer: httpx.Response) -> str:
    try:
        return str(_check(answer).json()["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServerError("what answers there is no Triton server.") from None


# What goes wrong on the way. httpx lets through what TLS says in place of an answer, such as that a
# certificate is missing.
_FAILURES = (httpx.HTTPError, OSError)


def _error(error: Exception) -> YoloClientError:
    if isinstance(error, httpx.TimeoutException):
        return TimedOutError("no answer within the timeout.")
    return UnavailableError(str(error) or type(error).__name__)


class HttpTransport:
    """Blocking; threads may share it."""

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self._http = _made(httpx.Client, connection)

    def infer(self, image: bytes, parameters: Mapping[str, Any]) -> _wire.Outputs:
        return _outputs(self._send(**_request(image, parameters)))

    def status(self, timeout: float) -> ServerStatus:
        def ready(path: str) -> bool:
            return self._send(method="GET", url=f"{path}/ready", timeout=timeout).status_code == 200

        return ServerStatus(
            address=self._address,
            version=_version(self._send(method="GET", url="/v2", timeout=timeout)),
            ready=ready("/v2/health"),
            models={names.MODEL: ready(f"/v2/models/{names.MODEL}")},
        )

    def _send(self, **request: Any) -> httpx.Response:
        try:
            return self._http.request(**request)
        except _FAILURES as error:
            raise _error(error) from error

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport:
    """The same for asyncio."""

    def __init__(self, connection: Connection) -> None:
        self._address = connection.address
        self._http = _made(httpx.AsyncClient, connection)

    async def infer(self, image: bytes, parameters: Mapping[str, Any]) -> _wire.Outputs:
        return _outputs(await self._send(**_request(image, parameters)))

    async def status(self, timeout: float) -> ServerStatus:
        async def ready(path: str) -> bool:
            answer = await self._send(method="GET", url=f"{path}/ready", timeout=timeout)
            return answer.status_code == 200

        return ServerStatus(
            address=self._address,
            version=_version(await self._send(method="GET", url="/v2", timeout=timeout)),
            ready=await ready("/v2/health"),
            models={names.MODEL: await ready(f"/v2/models/{names.MODEL}")},
        )

    async def _send(self, **request: Any) -> httpx.Response:
        try:
            return await self._http.request(**request)
        except _FAILURES as error:
            raise _error(error) from error

    async def close(self) -> None:
        await self._http.aclose()
