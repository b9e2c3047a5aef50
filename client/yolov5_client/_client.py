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
from ._connection import TLS, Backoff, Call, Connection
from ._contract import NETWORK
from ._detections import Detections
from ._errors import UnavailableError, YoloClientError
from ._grpc import GrpcTransport
from ._status import ServerStatus
from ._wire import Image

STATUS_TIMEOUT = 10.0  # seconds for the whole of `status`
# A source that needs longer for an image is given its answers as soon as they are there.
_SLOW_SOURCE_SECONDS = 0.02


def http_module() -> Any:
    """Import the module for HTTP, which needs the extra `http`."""
    try:
        from . import _http
    except ImportError as error:
        if error.name != "httpx":
            raise
        sentence = "HTTP needs httpx; pip install 'yolov5-client[http]' brings it."
        raise ImportError(sentence, name=error.name) from None
    return _http


class _Transport(Protocol):
    def infer(self, image: bytes, call: Call) -> _wire.Outputs: ...

    def status(self, timeout: float) -> ServerStatus: ...

    def close(self) -> None: ...


class Client:
    """A blocking client of one network of a server. Threads may share one.

    Each image is sent in a request of its own, and a bad image fails alone. The server combines
    requests that arrive together into batches.

    Example:
        >>> with Client("127.0.0.1:8001") as client:
        ...     result = client.detect("photo.jpg", conf_thres=0.7)
        >>> result.labels
        ('WBC', 'Platelets')

    Args:
        address: `host:port` of the server's gRPC side, or any gRPC target, such as
            `dns:///yolo.internal:8001` (its addresses take turns) or
            `ipv4:10.0.0.1:8001,10.0.0.2:8001`. `http://host:8000` or `https://host` use HTTP,
            which needs the extra `http`.
        model: the name of the network, `plates` for the endpoint `plates_ensemble`.
        timeout: seconds for one request, from the look-up of the server's name to the last byte
            of its answer.
        retry_for: seconds for which a request is sent again, with growing pauses, while the
            server cannot be reached or is saturated. 0 does not retry.
        in_flight: most requests that are sent at the same time, counted over all threads; further
            ones wait.
        headers: sent with every request, such as an API key.
        tls: encrypt gRPC; True trusts the system's certificate authorities. `https://` is always
            encrypted.
        keepalive: seconds of silence after which gRPC pings a server that owes an answer. If the
            ping is not answered within as many seconds, the connection is given up. Choose more
            than the slowest answer takes: Triton disconnects clients that ping too often. None
            does not ping.

    Raises:
        ValueError: an argument, or the proxy that the environment names, cannot be used.
        OSError: a file of `tls` cannot be read.
        ImportError: httpx is missing for an HTTP address, or socksio for a SOCKS proxy.
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
        self._transport: _Transport
        if self._connection.http:
            self._transport = http_module().HttpTransport(self._connection)
        else:
            self._transport = GrpcTransport(self._connection)
        self._slots = threading.Semaphore(in_flight)
        self._workers = ThreadPoolExecutor(in_flight, thread_name_prefix="yolov5-client")
        self._closed = threading.Event()

    @overload
    def detect(
        self,
        image: Image,
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Detections: ...

    @overload
    def detect(
        self,
        image: Iterable[Image],
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> list[Detections]: ...

    def detect(
        self,
        image: Image | Iterable[Image],
        *,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in each of several.

        Example:
            >>> with Client("127.0.0.1:8001") as client:
            ...     result = client.detect("photo.jpg", conf_thres=0.7, classes=["WBC"])
            ...     several = client.detect(["photo.jpg", "other.jpg"], max_det=1)
            >>> for label, box in zip(result.labels, result.boxes):
            ...     print(label, box.round())
            WBC [194. 94. 398. 287.]
            >>> [one.labels for one in several]
            [('WBC',), ('WBC',)]

        Args:
            image: an encoded image (JPEG, PNG, WebP, BMP or TIFF) as the path of a file, a `data:`
                URI, its bytes (bytes, bytearray, memoryview or a one-dimensional array of uint8),
                a file open for reading bytes, or a function that returns its bytes; or an
                iterable of these.
            model: the name of another network than the client's own.
            request_id: the id under which Triton logs and traces the request; over gRPC only.
            parameters: `conf_thres`, `iou_thres` (0 to 1), `max_det` (1 to 1000), `classes` (a
                list of indices or names, or the string "0,2"), `agnostic_nms`, `multi_label`
                (bool), `class_conf_thres` (a dict of indices or names with numbers from 0 to 1,
                or the string "0:0.6,2:0.3"; the other classes keep `conf_thres`). The server has
                a default for each.

        Returns:
            The detections of the image, with boxes in pixels of the image as it is displayed; for
            several images a list in their order.

        Raises:
            OSError: a file cannot be read.
            ValueError: no network can have the name `model`.
            ImageTypeError: an image is of another type.
            InvalidRequestError, UnavailableError, TimedOutError, DeniedError, ServerError: the
                request failed. For several images the message names the first that failed; the
                remaining ones are abandoned.
        """
        if _wire.is_one_image(image):
            return self._answer(
                cast(Image, image), self._connection.call(model, request_id, parameters)
            )
        results: list[Detections] = []
        try:
            several = cast(Iterable[Image], image)
            results.extend(
                self.detect_stream(several, model=model, request_id=request_id, **parameters)
            )
        except YoloClientError as error:
            raise _wire.for_list_position(error, len(results) + 1) from error.__cause__
        return results

    @overload
    def detect_stream(
        self,
        images: Iterable[Image],
        *,
        return_exceptions: Literal[False] = False,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Iterator[Detections]: ...

    @overload
    def detect_stream(
        self,
        images: Iterable[Image],
        *,
        return_exceptions: Literal[True],
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Iterator[Detections | YoloClientError | OSError]: ...

    def detect_stream(
        self,
        images: Iterable[Image],
        *,
        return_exceptions: bool = False,
        model: str | None = None,
        request_id: str = "",
        **parameters: Any,
    ) -> Iterator[Detections | YoloClientError | OSError]:
        """Find objects in any number of images, with `in_flight` requests under way.

        Images are taken from `images` only as answers are taken from here; at most twice
        `in_flight` images are held at a time.

        Example:
            >>> with Client("127.0.0.1:8001") as client:
            ...     for result in client.detect_stream(["photo.jpg", "other.jpg"], conf_thres=0.7):
            ...         print(result.summary())
            1 WBC, 1 Platelets
            1 WBC, 1 RBC

        Args:
            images: as `detect` takes them, from a list or from a generator, which may be endless.
            return_exceptions: yield the error of an image in its place, and continue. Otherwise
                the first error is raised, and the remaining images are abandoned.
            model, request_id, parameters: as for `detect`.

        Yields:
            The detections, in the order of the images.

        Raises:
            YoloClientError, OSError: as `detect` raises them.
        """
        call = self._connection.call(model, request_id, parameters)
        pending: deque[Future[Detections]] = deque()
        source = iter(images)
        try:
            while True:
                asked = time.monotonic()
                for image in source:
                    slow = time.monotonic() - asked > _SLOW_SOURCE_SECONDS
                    pending.append(self._workers.submit(self._answer, image, call))
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

    def _answer(self, image: Image, call: Call) -> Detections:
        with self._slots:
            encoded = _wire.read(image)  # once: a file cannot be read twice
            backoff = iter(Backoff(self._connection.retry_for))
            while True:
                try:
                    return _wire.detections(self._transport.infer(encoded, call))
                except UnavailableError:
                    delay = next(backoff, None)
                    if delay is None or self._closed.wait(delay):
                        raise

    def status(self) -> ServerStatus:
        """Ask the server whether it and its endpoint are ready. The request is not retried.

        Example:
            >>> with Client("127.0.0.1:8001") as client:
            ...     status = client.status()
            >>> status.ready, status.models
            (True, {'yolov5_ensemble': True})

        Raises:
            UnavailableError, TimedOutError, DeniedError, ServerError: the server does not answer
                this question.
        """
        return self._transport.status(min(self._connection.timeout, STATUS_TIMEOUT))

    def close(self) -> None:
        """Close the connection. Requests in flight fail."""
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
