"""What travels, whichever way it goes: parameters, answers, errors."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _contract as names
from ._detections import Detections
from ._errors import (
    DeniedError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)

Image = str | os.PathLike[str] | bytes | Callable[[], bytes]
"""One encoded image: the path of a file, its bytes, or a function that returns them, which is
called when it is the image's turn."""

Outputs = Mapping[str, NDArray[Any]]

_PREFIX = f"in ensemble '{names.MODEL}', "
_GRPC_ERRORS: dict[str, type[YoloClientError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "RESOURCE_EXHAUSTED": InvalidRequestError,  # larger than gRPC allows on this connection
    "UNAVAILABLE": UnavailableError,
    "NOT_FOUND": UnavailableError,  # it does not have the model, or not yet
    "CANCELLED": UnavailableError,  # by the server: it is about to end
    "DEADLINE_EXCEEDED": TimedOutError,
    "UNAUTHENTICATED": DeniedError,
    "PERMISSION_DENIED": DeniedError,
}
_HTTP_ERRORS: dict[int, type[YoloClientError]] = {
    400: InvalidRequestError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    401: DeniedError,
    403: DeniedError,
    404: UnavailableError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: TimedOutError,
}
_NUMPY = {"INT32": np.int32, "FP32": np.float32}


def read(image: Image) -> bytes:
    """The image's bytes.

    Raises:
        OSError: a file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    return image() if callable(image) else read_file(image)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """
    Raises:
        OSError: it cannot be read, be it for a name that no file can have.
    """
    try:
        return Path(path).read_bytes()
    except ValueError as error:
        raise OSError(f"{error}: {path!r}") from None


def parameters_for_grpc(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of Python's own, and a list of classes as text."""
    wire = {}
    for name, value in parameters.items():
        if name == "classes" and not isinstance(value, str):
            if not isinstance(value, Iterable):
                raise InvalidRequestError(f"classes is {value!r}; allowed: a list, or text.")
            value = ",".join(str(item) for item in value)
        elif value is None:
            raise InvalidRequestError(f"{name} is None; leave it out for what the server has.")
        elif isinstance(value, np.generic):
            value = value.item()
        wire[name] = value
    return wire


def headers_for_http(parameters: Mapping[str, Any]) -> dict[str, str]:
    """`conf_thres=0.4` as `X-Yolo-Conf-Thres: 0.4`.

    Raises:
        InvalidRequestError: a value cannot stand in a header.
    """
    headers = {}
    for name, value in parameters_for_grpc(parameters).items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not (text.isascii() and text.isprintable()):
            raise InvalidRequestError(f"{name} has letters that only gRPC can send.")
        headers[f"X-Yolo-{name.replace('_', '-').title()}"] = text
    return headers


def outputs_of_http(body: bytes, json_length: int) -> dict[str, NDArray[Any]]:
    """The tensors of an answer in Triton's binary form: JSON, then their bytes in its order.

    Raises:
        ValueError: it is not one.
    """
    try:
        return _tensors(body, json_length)
    except (KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise ValueError(repr(error)) from error


def _tensors(body: bytes, json_length: int) -> dict[str, NDArray[Any]]:
    outputs: dict[str, NDArray[Any]] = {}
    start = json_length
    for output in json.loads(body[:json_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data = body[start : start + size]
        start += size
        array: NDArray[Any]
        if output["datatype"] == "BYTES":
            array = np.array([*_strings(data)], np.object_)
        else:
            array = np.frombuffer(data, _NUMPY[output["datatype"]])
        outputs[output["name"]] = array.reshape(output["shape"])
    return outputs


def _strings(data: bytes) -> list[bytes]:
    strings, start = [], 0
    while start < len(data):
        (size,) = struct.unpack_from("<I", data, start)
        strings.append(data[start + 4 : start + 4 + size])
        start += 4 + size
    return strings


def detections(outputs: Outputs) -> Detections:
    """The only image's.

    Raises:
        ServerError: an output is missing, or they do not fit each other.
    """
    missing = [name for name in names.OUTPUTS if outputs.get(name) is None]
    if missing:
        raise ServerError(f"the answer has no output {missing[0]!r}.")
    try:
        return Detections.from_outputs(outputs)
    # Of another type or shape than the contract's.
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise ServerError(f"the answer does not follow the contract: {error}") from error


def error_of_grpc(status: str, message: str) -> YoloClientError:
    """What a gRPC status such as `StatusCode.UNAVAILABLE` means to a caller."""
    kind = _GRPC_ERRORS.get(status.removeprefix("StatusCode."), ServerError)
    return kind(message.removeprefix(_PREFIX))


def error_of_http(status: int, reason: str, body: bytes) -> YoloClientError:
    """What an HTTP status other than 200 means; Triton and our gateway explain it in JSON."""
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"HTTP {status} {reason}"
    return _HTTP_ERRORS.get(status, ServerError)(message.removeprefix(_PREFIX))


def of_the_list(error: YoloClientError, number: int) -> YoloClientError:
    """The server counts within a request, and each of a list was a request of its own."""
    reason = str(error).removeprefix("image 1 of 1: ")
    return type(error)(f"image {number} of the list: {reason}")
