"""The client for asyncio."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from types import TracebackType
from typing import Any, Literal, Protocol, cast, overload

from . import _wire
from ._client import STATUS_TIMEOUT, http_module
from ._connection import TLS, Backoff, Call, Connection
from ._contract import NETWORK
from ._detections import Detections
from ._errors import UnavailableError, YoloClientError
from ._status import ServerStatus
from ._wire import Image

AsyncImage = Image | Callable[[], Awaitable[bytes]]
"""One encoded image: an `Image`, or an async function that returns its bytes.

Example:
    >>> import asyncio
    >>> async def photo() -> bytes:
    ...     return await asyncio.to_thread(Path("photo.jpg").read_bytes)
    >>> async def main() -> None:
    ...     async with AsyncClient("127.0.0.1:8001") as client:
    ...         print((await client.detect(photo, conf_thres=0.7)).labels)
    >>> asyncio.run(main())
    ('WBC', 'Platelets')
"""


class _Transport(Protocol):
    async def infer(self, image: bytes, call: Call) -> _wire.Outputs: ...

    async def status(self, timeout: float) -> ServerStatus: ...

    async def close(self) -> None: ...


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors, for use in one event loop.

    Over gRPC a cancelled call is cancelled on the server too. Over HTTP the server finishes the
    request, and its answer is lost.

    Example:
        >>> import asyncio
        >>> async def main() -> None:
        ...     async with AsyncClient("127.0.0.1:8001", timeout=10) as client:
        ...         first, second = await asyncio.gather(
        ...             client.detect("photo.jpg", conf_thres=0.7),
        ...             client.detect("other.jpg", conf_thres=0.7),
        ...         )
        ...     print(first.labels, second.labels)
        >>> asyncio.run(main())
        ('WBC', 'Platelets') ('WBC', 'RBC')
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        model: str = NETWORK,
        timeout: float = 60.0,
        retry_for: float = 0.0,
        in_flight: int = 16,
        headers: Mapping[str, str] | None = None,
        tls: TLS | bool = False,
        keepalive: float | None = None,
    ) -> None:
        self._connection = Connection(
            address=address,
            timeout=timeout,
            retry_for=retry_for,
            in_flight=in_flight,
            headers=headers or {},
            tls=tls,
            keepalive=keepalive,
            model=model,
        )
        self._slots = asyncio.Semaphore(in_flight)
        self._opened: _Transport | None = None

    @property
    def _transport(self) -> _Transport:
        # Made on first use: a connection belongs to the event loop in which it was made.
        if self._opened is None:
            if self._connection.http:
                self._opened = http_module().AsyncHttpTransport(self._connection)
            else:
                from ._grpc import AsyncGrpcTransport

                self._opened = AsyncGrpcTransport(self._connection)
        return self._opened

    @overload
    async def detect(
        self,
        image: AsyncImage,
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Detections: ...

    @overload
    async def detect(
        self,
        image: Iterable[AsyncImage] | AsyncIterable[AsyncImage],
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> list[Detections]: ...

    async def detect(
        self,
        image: AsyncImage | Iterable[AsyncImage] | AsyncIterable[AsyncImage],
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in each of several; see `Client.detect`.

        Example:
            >>> import asyncio
            >>> async def main() -> None:
            ...     async with AsyncClient("127.0.0.1:8001") as client:
            ...         result = await client.detect("photo.jpg", conf_thres=0.7)
            ...     print(result.image_size, result.summary())
            >>> asyncio.run(main())
            (480, 640) 1 WBC, 1 Platelets
        """
        if _wire.is_one_image(image):
            call = self._connection.call(model, request_id, parameters)
            return await self._answer(cast(AsyncImage, image), call)
        results: list[Detections] = []
        try:
            several = cast(Iterable[AsyncImage], image)
            async for detections in self.detect_stream(
                several, model=model, request_id=request_id, **parameters
            ):
                results.append(detections)
        except YoloClientError as error:
            raise _wire.for_list_position(error, len(results) + 1) from error.__cause__
        return results

    @overload
    def detect_stream(
        self,
        images: Iterable[AsyncImage] | AsyncIterable[AsyncImage],
        *,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> AsyncGenerator[Detections, None]: ...

    @overload
    def detect_stream(
        self,
        images: Iterable[AsyncImage] | AsyncIterable[AsyncImage],
        *,
        return_exceptions: Literal[True],
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> AsyncGenerator[Detections | YoloClientError | OSError, None]: ...

    async def detect_stream(
        self,
        images: Iterable[AsyncImage] | AsyncIterable[AsyncImage],
        *,
        return_exceptions: bool = False,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> AsyncGenerator[Detections | YoloClientError | OSError, None]:
        """Find objects in any number of images; see `Client.detect_stream`.

        Example:
            >>> import asyncio
            >>> async def main() -> None:
            ...     async with AsyncClient("127.0.0.1:8001") as client:
            ...         async for result in client.detect_stream(["photo.jpg"] * 2, max_det=1):
            ...             print(result.labels)
            >>> asyncio.run(main())
            ('WBC',)
            ('WBC',)
        """
        call = self._connection.call(model, request_id, parameters)
        pending: deque[asyncio.Task[Detections]] = deque()
        source = _iterate(images)
        next_image: asyncio.Task[AsyncImage] | None = asyncio.ensure_future(_next(source))
        try:
            while next_image or pending:
                awaited: set[asyncio.Task[Any]] = set(itertools.islice(pending, 1))
                if next_image and len(pending) < 2 * self._connection.in_flight:
                    awaited.add(next_image)
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if next_image and next_image in awaited and next_image.done():
                    try:
                        pending.append(
                            asyncio.ensure_future(self._answer(next_image.result(), call))
                        )
                        next_image = asyncio.ensure_future(_next(source))
                    except _ExhaustedError:
                        next_image = None
                    continue
                try:
                    yield pending[0].result()
                except (YoloClientError, OSError) as error:
                    if not return_exceptions:
                        raise
                    yield error
                pending.popleft()
        finally:
            left = [*pending, next_image] if next_image else [*pending]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await source.aclose()

    async def _answer(self, image: AsyncImage, call: Call) -> Detections:
        async with self._slots:
            encoded = await _read(image)
            backoff = iter(Backoff(self._connection.retry_for))
            while True:
                try:
                    return _wire.detections(await self._transport.infer(encoded, call))
                except UnavailableError:
                    delay = next(backoff, None)
                    if delay is None:
                        raise
                    await asyncio.sleep(delay)

    async def status(self) -> ServerStatus:
        """Ask the server whether it and its endpoint are ready; see `Client.status`.

        Example:
            >>> import asyncio
            >>> async def main() -> None:
            ...     async with AsyncClient("127.0.0.1:8001") as client:
            ...         print((await client.status()).ready)
            >>> asyncio.run(main())
            True
        """
        return await self._transport.status(min(self._connection.timeout, STATUS_TIMEOUT))

    async def close(self) -> None:
        """Close the connection. Requests in flight fail."""
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


class _ExhaustedError(Exception):
    """There is no further image. A task cannot raise StopAsyncIteration."""


async def _next(source: AsyncIterator[AsyncImage]) -> AsyncImage:
    try:
        return await source.__anext__()
    except StopAsyncIteration:
        raise _ExhaustedError from None


async def _iterate(
    images: Iterable[AsyncImage] | AsyncIterable[AsyncImage],
) -> AsyncGenerator[AsyncImage, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _read(image: AsyncImage) -> bytes:
    """Read the image's bytes without blocking the event loop."""
    if isinstance(image, bytes):
        return image
    if inspect.iscoroutinefunction(image):
        return _wire.image_bytes(await image(), "a function returned")
    if isinstance(image, str | os.PathLike):
        return await asyncio.to_thread(_wire.read, image)
    if callable(image) or hasattr(image, "read"):
        data = await asyncio.to_thread(image if callable(image) else image.read)
        # A plain function may return an awaitable, and so may `read` of an asynchronous file.
        data = await data if inspect.isawaitable(data) else data
        return _wire.image_bytes(data, "a function or a file gave")
    return _wire.read(image)
