"""The outermost layer: an id, a line in the access log and metrics for each request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems
from .metrics import Metrics
from .record import RequestRecord

ACCESS_LOG = logging.getLogger("yolov5_client.api.access")
ERROR_LOG = logging.getLogger("yolov5_client.api")

REQUEST_ID = "X-Request-Id"
HUNG_UP = 499  # as nginx logs it

ErrorResponse = Callable[[problems.ProblemError, str], Response]

_USABLE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
QUIET = ("/live", "/ready", "/metrics")  # asked every few seconds, and of no interest


@dataclass
class _Exchange:
    """Passes one answer on, and counts it."""

    send: Send
    request_id: str
    status: int = 0
    bytes_out: int = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = self.request_id
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self.send(message)


class Observe:
    """ASGI middleware. It answers for every error that a layer within it raises.

    Args:
        app: the layers within.
        metrics: in which the requests are counted.
        errors: how to answer an error under a path that begins so; the others get problem details.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, errors: Mapping[str, ErrorResponse]) -> None:
        self._app = app
        self._metrics = metrics
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(Headers(scope=scope)))
        record.attach(scope)
        exchange = _Exchange(send, record.request_id)
        started = time.perf_counter()
        self._metrics.in_progress.inc()
        try:
            await self._answer(scope, receive, exchange, record)
        finally:
            self._metrics.in_progress.dec()
            self._note(scope, exchange, record, time.perf_counter() - started)

    async def _answer(
        self, scope: Scope, receive: Receive, exchange: _Exchange, record: RequestRecord
    ) -> None:
        try:
            await self._app(scope, receive, exchange)
        except ClientDisconnect:
            exchange.status = HUNG_UP
        except (Exception, asyncio.CancelledError) as error:
            problem = _problem(error, record)
            record.facts["problem"] = str(problem)
            if exchange.status:  # the caller sees an answer that ends too early
                if isinstance(error, asyncio.CancelledError):
                    return  # uvicorn would write a traceback
                raise
            form = next(
                (form for path, form in self._errors.items() if scope["path"].startswith(path)),
                problems.response,
            )
            answer = form(problem, record.request_id)
            await answer(scope, receive, exchange)

    def _note(
        self, scope: Scope, exchange: _Exchange, record: RequestRecord, seconds: float
    ) -> None:
        status = exchange.status or HUNG_UP  # nothing could be answered
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if scope["path"] not in QUIET:
            ACCESS_LOG.info(_line(scope, exchange, record, status, seconds))


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex


def _problem(error: BaseException, record: RequestRecord) -> problems.ProblemError:
    if isinstance(error, problems.ProblemError):
        return error
    if isinstance(error, asyncio.CancelledError):  # only at the end of the time for draining
        return problems.ProblemError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the service is being stopped; try again later",
            {**problems.RETRY_AFTER, **problems.CLOSE},
        )
    ERROR_LOG.error("request %s failed", record.request_id, exc_info=error)
    return problems.ProblemError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"an internal fault, which the log of the service has as request {record.request_id}",
    )


def _line(
    scope: Scope, exchange: _Exchange, record: RequestRecord, status: int, seconds: float
) -> str:
    # Without the query, which may hold a secret.
    line: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "address": (scope.get("client") or ("",))[0],
        "caller": record.caller,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "milliseconds": round(1000 * seconds, 1),
        "bytes_out": exchange.bytes_out,
    }
    return json.dumps(line | record.facts)
