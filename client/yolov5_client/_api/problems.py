"""Errors as the service answers them: problem details, RFC 9457."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from .._errors import (
    DeniedError,
    ImageTypeError,
    InvalidRequestError,
    TimedOutError,
    UnavailableError,
    UnknownModelError,
    YoloClientError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = {"Retry-After": "1"}  # seconds; the server's queue holds about as much
# A request that is refused before its body has been read.
CLOSE = {"Connection": "close"}

# In this order: the first kind that fits.
_STATUS: tuple[tuple[type[YoloClientError], HTTPStatus], ...] = (
    (InvalidRequestError, HTTPStatus.BAD_REQUEST),
    (ImageTypeError, HTTPStatus.BAD_REQUEST),
    (UnknownModelError, HTTPStatus.NOT_FOUND),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (TimedOutError, HTTPStatus.GATEWAY_TIMEOUT),
    (DeniedError, HTTPStatus.BAD_GATEWAY),  # the service's own credentials, not the caller's
)


class ProblemError(Exception):
    """A request that is not answered as it was meant. The message is one sentence.

    Attributes:
        status: the HTTP status.
        headers: of the answer.
    """

    def __init__(
        self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = dict(headers or {})


def from_client_error(error: YoloClientError) -> ProblemError:
    """Return the problem for an error of `AsyncClient`."""
    status = next(
        (status for kind, status in _STATUS if isinstance(error, kind)),
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    headers = RETRY_AFTER if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return ProblemError(status, str(error), headers)


def details(problem: ProblemError, request_id: str) -> dict[str, Any]:
    """Return the members of the problem, for JSON."""
    return {
        "type": "about:blank",
        "title": problem.status.phrase,
        "status": problem.status.value,
        "detail": str(problem),
        "request_id": request_id,
    }


def response(problem: ProblemError, request_id: str) -> JSONResponse:
    """Return the answer that tells the problem."""
    return JSONResponse(
        details(problem, request_id),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )
