"""Limits that keep the service's memory bounded, whatever callers send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus

from prometheus_client import Gauge

from .problems import CLOSE, RETRY_AFTER, ProblemError
from .settings import MAX_BODY_BYTES


class ByteBudget:
    """Bytes of request bodies that may be in memory at a time.

    Args:
        capacity: in bytes.
        gauge: shows what is in use.
    """

    def __init__(self, capacity: int, gauge: Gauge) -> None:
        self._free = capacity
        self._gauge = gauge

    def acquire(self, count: int) -> None:
        """Take so many bytes.

        Raises:
            ProblemError: there are not enough.
        """
        if count > self._free:
            raise ProblemError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "saturated: the requests in progress fill the memory for images; try again later",
                {**RETRY_AFTER, **CLOSE},
            )
        self._free -= count
        self._gauge.inc(count)

    def release(self, count: int) -> None:
        """Give back what was taken."""
        self._free += count
        self._gauge.dec(count)


class BodyReader:
    """Reads the body of one request within the limits on size, memory and time.

    Use it as a context manager: at the end the memory is given back.

    Args:
        declared: the header Content-Length, if there is one.
        seconds: for the whole body.
    """

    def __init__(self, budget: ByteBudget, declared: str | None, seconds: float) -> None:
        self._budget = budget
        self._seconds = seconds
        self._taken = 0
        if declared is not None and declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
            raise _too_large()

    def __enter__(self) -> BodyReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.give_back()

    async def read(self, stream: AsyncIterator[bytes]) -> bytes:
        """Return the whole body.

        Raises:
            ProblemError: a limit is exceeded.
        """
        try:
            return await asyncio.wait_for(self._read(stream), self._seconds)
        except asyncio.TimeoutError:  # an alias of the builtin only since Python 3.11
            raise ProblemError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the request's body did not come within {self._seconds:g} seconds",
                CLOSE,
            ) from None

    async def _read(self, stream: AsyncIterator[bytes]) -> bytes:
        parts, size = [], 0
        async for part in stream:
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            self.take(len(part))
            parts.append(part)
        return b"".join(parts)

    def take(self, count: int) -> None:
        """Count further bytes that the request holds in memory.

        Raises:
            ProblemError: there is no memory for them.
        """
        self._budget.acquire(count)
        self._taken += count

    def give_back(self) -> None:
        """Give back what was taken so far; the request needs its images no longer."""
        self._budget.release(self._taken)
        self._taken = 0


def _too_large() -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request is too large; allowed: at most {MAX_BODY_BYTES >> 20} MiB",
        CLOSE,
    )
