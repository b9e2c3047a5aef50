"""One row for each photo of a part, whatever is wrong with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from .._async_client import AsyncClient
from .._connection import RETRY_FAULTS_AFTER, Backoff
from .._detections import Detections
from .._errors import InvalidRequestError, ServerError, TimedOutError
from .fetch import ContainerError, Fetcher, Load, UnreadableError
from .rows import Row
from .settings import BatchSettings
from .sources import Container, Photo
from .storage import FINAL

T = TypeVar("T")

_FAULTS = 3  # attempts after which a fault that others do not have is the photo's own


class SourceAwayError(Exception):
    """The photos cannot be read for longer than a job waits."""


class _Sources:
    """Knows of each place whether it answers at all."""

    def __init__(self) -> None:
        self._read: dict[str, float] = {}

    def note_read(self, url: str) -> None:
        self._read[_place(url)] = time.monotonic()

    def has_read_since(self, url: str, moment: float) -> bool:
        return self._read.get(_place(url), 0.0) > moment


class Questions:
    """Asks about photos, some at a time.

    Args:
        client: its `retry_for` waits for a server that is away or sheds.
    """

    def __init__(self, settings: BatchSettings, client: AsyncClient) -> None:
        self._settings = settings
        self._client = client
        self._sources = _Sources()
        # Some are read while others are with the server.
        self._at_a_time = 2 * settings.in_flight
        self._fetcher = Fetcher(self._at_a_time)

    async def rows(self, part: list[Photo] | Container) -> list[Row]:
        """Return the rows of a part, in its order.

        Raises:
            SourceAwayError, UnavailableError: it is to be done again later.
        """
        backoff = iter(Backoff(self._settings.retry_for))
        while True:
            try:
                return await self._rows(part)
            except ContainerError as error:
                if (pause := next(backoff, None)) is None:
                    raise SourceAwayError(str(error)) from error
            await asyncio.sleep(pause)

    async def _rows(self, part: list[Photo] | Container) -> list[Row]:
        free = asyncio.Semaphore(self._at_a_time)
        tasks: list[asyncio.Task[Row]] = []

        async def row(key: str, url: str, load: Load) -> Row:
            try:
                return await self._row(key, url, load)
            finally:
                free.release()

        damaged: list[Row] = []
        try:
            try:
                async for key, url, load in self._fetcher.photos(part):
                    await free.acquire()
                    tasks.append(asyncio.ensure_future(row(key, url, load)))
                    if tasks[0].done() and tasks[0].exception():
                        break
            except UnreadableError as error:  # what came before it is good
                damaged = [Row(key=error.url, reason="unreadable", error=str(error))]
            return [*await asyncio.gather(*tasks), *damaged]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, key: str, url: str, load: Load) -> Row:
        try:
            data = await self._read(url, load)
        except FileNotFoundError:
            return Row(key=key, reason="missing", error=f"{key} does not exist.")
        except OSError as error:
            return Row(key=key, reason="unreadable", error=f"{key} cannot be read: {error}")
        started = time.perf_counter()

        def row(**what: object) -> Row:
            milliseconds = 1000 * (time.perf_counter() - started)
            return Row(key=key, milliseconds=milliseconds, **what)  # type: ignore[arg-type]

        try:
            return row(found=await self._ask(data))
        except InvalidRequestError as error:
            return row(reason="refused", error=str(error).removeprefix("image 1 of 1: "))
        except TimedOutError as error:
            return row(reason="timeout", error=str(error))
        except ServerError as error:
            return row(reason="failed", error=str(error))

    async def _read(self, url: str, load: Load) -> bytes:
        """Read a photo, again and again if its place does not answer at all.

        Raises:
            OSError: this photo cannot be read, while others of its place can.
            SourceAwayError: none can.
        """
        began = time.monotonic()
        backoff = iter(Backoff(self._settings.retry_for))
        attempt = 0
        while True:
            attempt += 1
            try:
                data = await load()
            except FINAL:
                raise
            except Exception as error:  # file systems pass on what their libraries raise
                if attempt >= _FAULTS and self._sources.has_read_since(url, began):
                    raise OSError(f"{type(error).__name__}: {error}") from error
                if (pause := next(backoff, None)) is None:
                    raise SourceAwayError(
                        f"{_place(url)} could not be read for {self._settings.retry_for:g} s:"
                        f" {error}"
                    ) from error
            else:
                self._sources.note_read(url)
                return data
            await asyncio.sleep(pause)

    async def _ask(self, data: bytes) -> Detections:
        async def ask() -> Detections:
            return await self._client.detect(
                data, model=self._settings.model, **self._settings.parameters
            )

        return await _repeated(ask)


async def _repeated(ask: Callable[[], Awaitable[T]]) -> T:
    """Repeat what failed on the server, and not by the photo's fault as far as is known."""
    pauses = iter(RETRY_FAULTS_AFTER)
    while True:
        try:
            return await ask()
        except (ServerError, TimedOutError):
            if (pause := next(pauses, None)) is None:
                raise
        await asyncio.sleep(pause)


def _place(url: str) -> str:
    """Return what fails as one: a bucket, a host, or this machine's files."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme else "the file system"
