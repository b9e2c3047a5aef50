"""The client over gRPC."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from . import _contract as names
from ._detections import Detections
from ._errors import (
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)

Image = str | os.PathLike[str] | bytes
"""One encoded image: the path of a file, or the file's bytes."""

_ERRORS: dict[str, type[YoloClientError]] = {
    "StatusCode.INVALID_ARGUMENT": InvalidRequestError,
    "StatusCode.UNAVAILABLE": UnavailableError,
    "StatusCode.DEADLINE_EXCEEDED": TimedOutError,
}
_PREFIX = f"in ensemble '{names.MODEL}', "
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """What the server says of itself.

    Attributes:
        models: the endpoint and its steps, and whether each is ready.
    """

    address: str
    version: str
    ready: bool
    models: dict[str, bool]


class Client:
    """Sends images to the endpoint `yolov5_ensemble`. Threads may share it.

    Args:
        address: `host:port` of the server's gRPC side.
        timeout: seconds for one request, from sending it to having its answer.
        in_flight: images of a list that are under way at the same time. The server puts those that
            meet into one batch.
    """

    def __init__(
        self, address: str = "127.0.0.1:8001", *, timeout: float = 60.0, in_flight: int = 16
    ) -> None:
        self._address = address
        self._timeout = timeout
        self._in_flight = in_flight
        self._triton = triton.InferenceServerClient(address)

    @overload
    def detect(self, image: Image, **parameters: Any) -> Detections: ...

    @overload
    def detect(self, image: Iterable[Image], **parameters: Any) -> list[Detections]: ...

    def detect(
        self, image: Image | Iterable[Image], **parameters: Any
    ) -> Detections | list[Detections]:
        """Find objects in one image, or in each of several.

        Args:
            image: the path of a file, its bytes, or a list of these; JPEG, PNG, WebP, BMP or TIFF.
            parameters: `conf_thres`, `iou_thres`, `max_det`, `classes` (a list of indices or
                names, or the string "0,2"), `agnostic_nms`, `multi_label`; what is not given is
                as the server has it.

        Returns:
            The image's detections, or for several images a list in their order.

        Raises:
            OSError: a file cannot be read.
            InvalidRequestError, UnavailableError, TimedOutError, ServerError: see there; of
                several images the first that failed is named, and the rest are given up.
        """
        if isinstance(image, (str, bytes, os.PathLike)):
            return self._send(image, parameters).result()
        results: list[Detections] = []
        pending: deque[Future[Detections]] = deque()
        try:
            for one in image:
                if len(pending) == self._in_flight:
                    results.append(pending.popleft().result())
                pending.append(self._send(one, parameters))
            results.extend(future.result() for future in pending)
        except YoloClientError as error:
            # The server counts within a request, and each of these was one of its own.
            reason = str(error).removeprefix("image 1 of 1: ")
            message = f"image {len(results) + 1} of the list: {reason}"
            raise type(error)(message) from error.__cause__
        return results

    def _send(self, image: Image, parameters: dict[str, Any]) -> Future[Detections]:
        tensor = triton.InferInput(names.IMAGE, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[_read(image)]], np.object_))
        future: Future[Detections] = Future()

        def on_answer(result: Any, error: InferenceServerException | None) -> None:
            try:
                if error is not None:
                    raise _translated(error)
                future.set_result(_detections(result))
            except Exception as failure:
                future.set_exception(failure)

        self._call(
            self._triton.async_infer,
            names.MODEL,
            [tensor],
            on_answer,
            parameters=_wire_parameters(parameters),
            client_timeout=self._timeout,
        )
        return future

    def status(self) -> ServerStatus:
        """Ask the server whether it and its models are ready.

        Raises:
            UnavailableError, TimedOutError, ServerError: it does not say.
        """
        timeout = {"client_timeout": min(self._timeout, 10.0)}
        ask = self._triton
        return ServerStatus(
            address=self._address,
            version=self._call(ask.get_server_metadata, **timeout).version,
            ready=self._call(ask.is_server_ready, **timeout),
            models={
                model: self._call(ask.is_model_ready, model, **timeout)
                for model in (names.MODEL, *names.STEPS)
            },
        )

    def _call(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return function(*arguments, **options)
        except InferenceServerException as error:
            raise _translated(error) from None

    def close(self) -> None:
        """Close the connection; answers under way are lost."""
        self._triton.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    return Path(image).read_bytes()


def _wire_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """What a gRPC parameter can carry: numbers of Python's own, and a list of classes as text."""
    wire = {}
    for name, value in parameters.items():
        if name == "classes" and not isinstance(value, str):
            value = ",".join(str(item) for item in value)
        elif isinstance(value, np.generic):
            value = value.item()
        wire[name] = value
    return wire


def _detections(result: triton.InferResult) -> Detections:
    outputs = {name: result.as_numpy(name) for name in names.OUTPUTS}
    missing = [name for name, array in outputs.items() if array is None]
    if missing:
        raise ServerError(f"the answer has no output {missing[0]!r}")
    try:
        return Detections.from_outputs(outputs)
    except (ValueError, IndexError) as error:
        raise ServerError(f"the answer does not follow the contract: {error}") from error


def _translated(error: InferenceServerException) -> YoloClientError:
    kind = _ERRORS.get(str(error.status()), ServerError)
    return kind(str(error.message()).removeprefix(_PREFIX))
