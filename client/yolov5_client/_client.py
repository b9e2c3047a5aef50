"""The blocking client."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Protocol, cast, overload

from . import _wire
from ._connection import TLS, Backoff, Connection
from ._detections import Detections
from ._errors import UnavailableError, YoloClientError
from ._grpc import GrpcTransport
from ._status import ServerStatus
from ._wire import Image

STATUS_TIMEOUT = 10.0  # seconds that a server has to say how it is
_SLOW_SOURCE_SECONDS = (
    0.02  # seconds for an image: a source that takes longer gets its answers at once
)


def http_module() -> Any:
    """The module for HTTP, which needs the extra `http`."""
    try:
        from . import _http
    except ImportError as error:
        if error.name != "httpx":
            raise
        sentence = "HTTP needs httpx; pip install 'yolov5-client[http]' brings it."
        raise ImportError(sentence, name=error.name) from None
    return _http


class _Transport(Protocol):
    def infer(self, image: bytes, parameters: Mapping[str, Any]) -> _wire.Outputs: ...

    def status(self, timeout: float) -> ServerStatus: ...

    def close(self) -> None: ...


class Client:
    """Sends images to the endpoint `yolov5_ensemble`. Threads may share it.

    Each image is a request of its own, so that a bad one harms no other; the server puts those
    that meet into one batch.

    Args:
        address: `host:port` of the server's gRPC side, or any gRPC target, such as
            `dns:///yolo.internal:8001` (its addresses take turns) or
            `ipv4:10.0.0.1:8001,10.0.0.2:8001`; or `http://host:8000` or `https://host` for HTTP,
            which needs the extra `http`.
        timeout: seconds for one request, from looking up the server to having the whole answer,
            however slowly it comes.
        retry_for: seconds for which a request that finds no server, or a saturated one, is tried
            again, with growing pauses; 0 gives up at once.
        in_flight: requests that are under way at the same time, of all threads together; more
            wait for their turn.
        headers: sent with every request, such as an API key.
        tls: encrypt gRPC; True trusts the system's authorities. `https://` always is encrypted.
        keepalive: seconds of silence after which gRPC asks a server whose answer is awaited for a
            sign of life, and then waits for as long before it gives the connection up; longer than
            the slowest answer takes, as Triton cuts off who asks too often. None asks never.

    Raises:
        ValueError, OSError: an argument cannot be used, or the proxy that the environment names.
        ImportError: the address is HTTP, and httpx is missing; or socksio, for a SOCKS proxy.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
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
        )
        self._transport: _Transport
        if self._connection.http:
            self._transport = http_module().HttpTransport(self._connection)
        else:
            self._transport = GrpcTransport(self._connection)
        self._slots = threading.Semaphore(in_flight)
        self._workers = ThreadPoolExecutor(in_flight, thread_name_prefix="yolov5-client")
        self._closed = threading.Event()

    @overload
    def detect(self, image: Image, **parameters: Any) -> Detections: ...

    @overload
    def detect(self, image: Iterable[Image], **parameters: Any) -> list[Detections]: ...

    def detect(
        self, image: Image | Iterable[Image], **parameters: Any
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in each of several.

        Args:
            image: the path of a file, a `data:` URI, its bytes (as bytes, bytearray, memoryview or
                a one-dimensional array of uint8), a file open for reading bytes, a function that
                returns its bytes, or a list of these; JPEG, PNG, WebP, BMP or TIFF.
            parameters: `conf_thres`, `iou_thres`, `max_det`, `classes` (a list of indices or
                names, or the string "0,2"), `agnostic_nms`, `multi_label`; what is not given is
                as the server has it.

        Returns:
            The image's detections, or for several images a list in their order.

        Raises:
            OSError: a file cannot be read.
            ImageTypeError: an image is of no such type.
            InvalidRequestError, UnavailableError, TimedOutError, DeniedError, ServerError: see
                there; of several images the first that failed is named, and the rest are given up.
        """
        if _wire.is_one_image(image):
            return self._answer(cast(Image, image), parameters)
        results: list[Detections] = []
        try:
            results.extend(self.detect_stream(cast(Iterable[Image], image), **parameters))
        except YoloClientError as error:
            raise _wire.for_list_position(error, len(results) + 1) from error.__cause__
        return results

    @overload
    def detect_stream(
        self,
        images: Iterable[Image],
        *,
        return_exceptions: Literal[False] = False,
        **parameters: Any,
    ) -> Iterator[Detections]: ...

    @overload
    def detect_stream(
        self, images: Iterable[Image], *, return_exceptions: Literal[True], **parameters: Any
    ) -> Iterator[Detections | YoloClientError | OSError]: ...

    def detect_stream(
        self, images: Iterable[Image], *, return_exceptions: bool = False, **parameters: Any
    ) -> Iterator[Detections | YoloClientError | OSError]:
        """Find objects in any number of images, and keep the server busy with them.

        Images are taken from `images` only as answers are taken from here: never more than twice
        `in_flight` are held.

        Args:
            images: as `detect` takes them, from a list or a generator without end.
            return_exceptions: yield an image's error in its place and go on, do not raise it.
            parameters: as for `detect`.

        Yields:
            The detections, in the order of the images.

        Raises:
            As `detect`; the images after the one that failed are given up.
        """
        pending: deque[Future[Detections]] = deque()
        source = iter(images)
        try:
            while True:
                asked = time.monotonic()
                for image in source:
                    slow = time.monotonic() - asked > _SLOW_SOURCE_SECONDS
                    pending.append(self._workers.submit(self._answer, image, parameters))
                    full = len(pending) >= 2 * self._connection.in_flight
                    if full or (slow and pending[0].done()):
                        break
                    asked = time.monotonic()
                if not pending:
                    return
                try:
                    yield pending.popleft().result()
                except (YoloClientError, OSError) as error:
                    if not return_exceptions:
                        raise
                    yield error
        finally:
            for future in pending:
                future.cancel()

    def _answer(self, image: Image, parameters: Mapping[str, Any]) -> Detections:
        with self._slots:
            encoded = _wire.read(image)  # once: a file has no second time
            backoff = iter(Backoff(self._connection.retry_for))
            while True:
                try:
                    return _wire.detections(self._transport.infer(encoded, parameters))
                except UnavailableError:
                    delay = next(backoff, None)
                    if delay is None or self._closed.wait(delay):
                        raise

    def status(self) -> ServerStatus:
        """Ask the server whether it and its models are ready; not tried again.

        Raises:
            UnavailableError, TimedOutError, DeniedError, ServerError: it does not say.
        """
        return self._transport.status(min(self._connection.timeout, STATUS_TIMEOUT))

    def close(self) -> None:
        """Close the connection; answers under way are lost."""
        self._closed.set()
        self._transport.close()
        self._workers.shutdown(cancel_futures=True)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
