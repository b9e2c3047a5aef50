"""Parameters, answers and errors as they travel, shared by gRPC and HTTP."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
from array import array
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _contract as names
from ._detections import Detections
from ._errors import (
    DeniedError,
    ImageTypeError,
    InvalidRequestError,
    ServerError,
    TimedOutError,
    UnavailableError,
    UnknownModelError,
    YoloClientError,
)

T = TypeVar("T")
Image = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | NDArray[np.uint8]
    | BinaryIO
    | Callable[[], bytes]
)
"""One encoded image: the path of a file, a `data:` URI, its bytes (also as a memoryview or a
one-dimensional array), a file open for reading bytes, or a function that returns its bytes. Files
are read and functions are called just before the image is sent.

Example:
    >>> photo = Path("photo.jpg")
    >>> with Client("127.0.0.1:8001") as client, photo.open("rb") as file:
    ...     results = client.detect([photo, photo.read_bytes(), file, photo.read_bytes])
    >>> [len(result) for result in results]
    [11, 11, 11, 11]
"""

Outputs = Mapping[str, NDArray[Any]]


_PREFIX = re.compile(r"^in ensemble '[\w-]+', ", re.ASCII)
_GRPC_ERRORS: dict[str, type[YoloClientError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "RESOURCE_EXHAUSTED": InvalidRequestError,  # larger than gRPC allows on this connection
    "UNAVAILABLE": UnavailableError,
    "NOT_FOUND": UnavailableError,  # the server does not have the model, or not yet
    "CANCELLED": UnavailableError,  # by the server, which is about to end
    "DEADLINE_EXCEEDED": TimedOutError,
    "UNAUTHENTICATED": DeniedError,
    "PERMISSION_DENIED": DeniedError,
}
# What Triton says of a model that it does not have, or for a moment while it loads another one.
_NO_MODEL = re.compile(r"Request for unknown model(?:: '([\w-]+)' is not found)?", re.ASCII)
# The messages of gRPC's own client about an answer that is too large.
_ANSWER_TOO_LARGE = re.compile("CLIENT: .*larger than max|Decompressed message larger than max")
_HTTP_ERRORS: dict[int, type[YoloClientError]] = {
    400: InvalidRequestError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    401: DeniedError,
    403: DeniedError,
    407: DeniedError,
    404: UnavailableError,
    429: UnavailableError,
    502: UnavailableError,
    503: UnavailableError,
    504: TimedOutError,
}
_NUMPY = {"INT32": np.dtype("<i4"), "FP32": np.dtype("<f4")}

_DATA_URI = re.compile("data:", re.IGNORECASE)
_LONGEST_PARAMETER = 4096  # bytes
_LONGEST_SENTENCE = 2000  # characters
_NAME = re.compile(r"\w{1,100}", re.ASCII)
_DIGITS = re.compile(r"\d+", re.ASCII)
_ALLOWED_IMAGES = (
    "allowed: the path of a file, a data: URI, bytes, a file opened with 'rb', or a function that"
    " returns bytes."
)


def is_one_image(image: object) -> bool:
    """Whether an argument stands for one image, sendable or not, rather than for several.

    Raises:
        ImageTypeError: it is neither one image nor an iterable.
    """
    if isinstance(image, np.ndarray):
        return image.dtype.kind not in "OUS"  # an array of paths
    if isinstance(image, (str, bytes, bytearray, memoryview, os.PathLike, array, mmap)):
        return True
    if callable(image) or hasattr(image, "read"):
        return True
    if isinstance(image, (Iterable, AsyncIterable)):
        return False
    raise ImageTypeError(
        f"an image is a value of the type {type(image).__name__}; {_ALLOWED_IMAGES}"
    )


def read(image: Any) -> bytes:
    """Return the image's bytes.

    Raises:
        OSError: a file cannot be read.
        ImageTypeError: the argument has a type that cannot be sent.
    """
    if isinstance(image, str) and _DATA_URI.match(image):
        return image.encode("utf-8", "replace")  # the server decodes and checks it
    if isinstance(image, (str, os.PathLike)):
        return read_file(image)
    if callable(image):
        return image_bytes(image(), "a function returned")
    if hasattr(image, "read"):
        return image_bytes(image.read(), "a file gave")
    return image_bytes(image, "an image is")


def image_bytes(data: Any, what: str) -> bytes:
    """Return the bytes of a bytes-like object.

    Args:
        what: the origin of the data, for the message.

    Raises:
        ImageTypeError: the object is not bytes-like, or holds decoded pixels.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        raise ImageTypeError(f"{what} text, not bytes; a file is to be opened with 'rb'.")
    try:
        view = memoryview(data)
    except (TypeError, ValueError, BufferError):
        sentence = f"{what} a value of the type {type(data).__name__}; {_ALLOWED_IMAGES}"
        raise ImageTypeError(sentence) from None
    shape = view.shape or ()
    # Old versions of OpenCV's imencode return a column, new ones a row.
    if view.itemsize != 1 or view.format not in "bBc" or max(shape, default=0) != view.nbytes:
        size = "x".join(map(str, shape))
        raise ImageTypeError(
            f"{what} an array of {size} values, as decoded pixels are; allowed: the encoded image,"
            " such as of cv2.imencode."
        )
    return view.tobytes()


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file.

    Raises:
        OSError: the file cannot be read, or its name is not one that a file can have.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # The original message would hold the whole path.
        text = os.fspath(path)
        raise OSError(
            errno.ENAMETOOLONG,
            f"a path has {len(text)} characters, beginning with {text[:20]!r}; base64 text is to be"
            " given as bytes",
        ) from None
    except ValueError as error:
        raise OSError(f"{error}: {path!r}") from None


def parameters_for_grpc(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parameters to Python's own numbers; class lists and class thresholds become text.

    Raises:
        InvalidRequestError: a parameter cannot be sent.
    """
    return {
        _checked_name(name): _checked(name, _to_wire(name, value, printable=False))
        for name, value in parameters.items()
    }


def headers_for_http(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Convert parameters to headers: `conf_thres=0.4` becomes `X-Yolo-Conf-Thres: 0.4`.

    Raises:
        InvalidRequestError: a value cannot be sent in a header.
    """
    headers = {}
    for name, value in parameters.items():
        value = _checked(name, _to_wire(_checked_name(name), value, printable=True))
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if not (text.isascii() and text.isprintable()):
            raise InvalidRequestError(f"{name} has letters that only gRPC can send.")
        headers[f"X-Yolo-{name.replace('_', '-').title()}"] = _checked(name, text)
    return headers


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"parameter {name[:60]!a} is unknown.")
    return name


def _checked(name: str, value: T) -> T:
    if isinstance(value, str):
        # The length first: of 40 MB each letter would be looked at.
        if (size := len(value.encode("utf-8", "surrogatepass"))) > _LONGEST_PARAMETER:
            raise InvalidRequestError(
                f"{name} is {size} bytes long; allowed: at most {_LONGEST_PARAMETER}."
            )
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InvalidRequestError(
                f"{name} has halves of surrogate pairs, which are no letters."
            )
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequestError(f"{name} is a number of more than 64 bits.")
    return value


def _to_wire(name: str, value: Any, *, printable: bool) -> bool | int | float | str:
    """Convert a parameter to the type in which it is sent.

    Args:
        printable: text must be printable ASCII, as in a header.
    """
    if name == "classes" and not isinstance(value, (str, np.generic)):
        if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
            raise InvalidRequestError(
                f"classes is {_abbreviated(value)}; allowed: a list, or text."
            )
        return _class_list([_class_item(name, item) for item in value], printable)
    if name == "class_conf_thres" and not isinstance(value, (str, np.generic)):
        if not isinstance(value, Mapping):
            raise InvalidRequestError(
                f"class_conf_thres is {_abbreviated(value)}; allowed: a dict, or text."
            )
        return _class_thresholds(name, value, printable)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return _class_text(name, value) if printable and not _is_plain(value) else value
    if value is None:
        raise InvalidRequestError(f"{name} is None; leave it out for what the server has.")
    if not isinstance(value, (bool, int, float)):
        raise InvalidRequestError(
            f"{name} is {_abbreviated(value)}; allowed: a number, text or a bool."
        )
    return value


def _class_item(name: str, item: Any) -> int | str:
    """Return the index or the name of a class; text of digits is an index, as on a command line."""
    if isinstance(item, np.generic):
        item = item.item()
    if isinstance(item, str):
        # Python refuses to convert thousands of digits.
        return int(item) if _DIGITS.fullmatch(item) and len(item) < 10 else item
    if not isinstance(item, int) or isinstance(item, bool):
        raise InvalidRequestError(
            f"{name} has {_abbreviated(item)}; allowed: indices, and names of classes as text."
        )
    return item


def _class_list(classes: Sequence[int | str], printable: bool) -> str:
    """Return `0,2,bus`, which every server reads, or JSON if a name cannot be written that way."""
    if any(_needs_json(name, printable) for name in classes if isinstance(name, str)):
        return json.dumps([*classes])
    return ",".join(map(str, classes))


def _class_thresholds(name: str, thresholds: Mapping[Any, Any], printable: bool) -> str:
    """Return `bus:0.6,0:0.3`, or JSON if a name cannot be written that way."""
    items = [str(_class_item(name, item)) for item in thresholds]
    values = [v.item() if isinstance(v, np.generic) else v for v in thresholds.values()]
    for item, value in zip(items, values):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InvalidRequestError(
                f"{name} has {_abbreviated(value)} for {_abbreviated(item)}; allowed: a number."
            )
    pairs = _pairs_of_different_names(name, [*zip(items, values)])
    if any(item.startswith("{") or ":" in item or _needs_json(item, printable) for item in items):
        return json.dumps(pairs)
    return ",".join(f"{item}:{value}" for item, value in pairs.items())


def _pairs_of_different_names(name: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict, from which none of them must be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequestError(f"{name} has a class twice; allowed: one number for each class.")
    return found


def _class_text(name: str, text: str) -> str:
    """Convert text that names classes, and does not fit into a header, to JSON in ASCII."""
    if text.lstrip()[:1] in ("[", "{"):
        different_names = partial(_pairs_of_different_names, name)
        try:
            return json.dumps(json.loads(text, object_pairs_hook=different_names))
        except (ValueError, RecursionError):
            raise InvalidRequestError(f"{name} begins like JSON but is not valid JSON.") from None
    if name == "classes":
        return json.dumps([_class_item(name, item.strip()) for item in text.split(",")])
    if name == "class_conf_thres":
        parts = [part.rpartition(":") for part in text.split(",")]
        pairs = [(item.strip(), number) for item, _, number in parts]
        # In JSON, digits would be the name of a class first.
        if all(colon for _, colon, _ in parts) and not any(_DIGITS.fullmatch(i) for i, _ in pairs):
            return json.dumps(_pairs_of_different_names(name, pairs))
    return text


def _needs_json(name: str, printable: bool) -> bool:
    plain = name and name == name.strip() and "," not in name and not name.startswith("[")
    return not plain or (printable and not _is_plain(name))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _abbreviated(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


def one_line(text: str) -> str:
    """Make foreign text fit for a message: one line, printable, of limited length."""
    text = " ".join(text[: 2 * _LONGEST_SENTENCE].split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_SENTENCE else f"{text[: _LONGEST_SENTENCE - 3]}..."


def version_from_json(body: bytes) -> str:
    """Return Triton's version from the metadata of the server.

    Raises:
        ValueError: the body is not such metadata.
    """
    try:
        return one_line(str(json.loads(body)["version"]))
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(repr(error)) from None


def outputs_from_http(body: bytes, json_length: int) -> dict[str, NDArray[Any]]:
    """Parse an answer in Triton's binary form: JSON, then the bytes of its tensors in order.

    Raises:
        ValueError: the body is not such an answer.
    """
    if not 0 <= json_length <= len(body):
        raise ValueError(f"it claims {json_length} bytes of JSON, and has {len(body)} bytes in all")
    try:
        described = json.loads(body[:json_length])["outputs"]
        sizes = [output["parameters"]["binary_data_size"] for output in described]
        parts = [(one["name"], one["datatype"], one["shape"]) for one in described]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("its JSON does not describe outputs in the binary form") from None
    if not all(type(size) is int and 0 <= size <= len(body) for size in sizes):
        raise ValueError("the size of an output is not a number of bytes in it")
    if json_length + sum(sizes) != len(body):
        raise ValueError(
            f"{sum(sizes)} bytes of outputs are described, and {len(body) - json_length} came"
        )
    starts = itertools.accumulate(sizes, initial=json_length)
    return tensors(
        (*part, body[start : start + size]) for part, start, size in zip(parts, starts, sizes)
    )


def tensors(described: Iterable[tuple[Any, Any, Any, bytes]]) -> dict[str, NDArray[Any]]:
    """Convert the outputs of the contract, given as name, type, shape and bytes, to arrays.

    Raises:
        ValueError: an output occurs twice, or its bytes do not fit its shape.
    """
    outputs: dict[str, NDArray[Any]] = {}
    for name, datatype, shape, data in described:
        if name not in names.OUTPUTS:
            continue  # an output of a later version
        if name in outputs:
            raise ValueError(f"{name} is there twice")
        outputs[name] = _tensor(name, datatype, shape, data)
    return outputs


def _tensor(name: str, datatype: Any, shape: Any, data: bytes) -> NDArray[Any]:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise ValueError(f"{name} has no shape")
    count = math.prod(shape)
    values: NDArray[Any] | None = None
    if datatype == "BYTES":
        strings = [*itertools.islice(_strings(name, data), min(count, len(data)) + 1)]
        if len(strings) == count:
            values = np.empty(count, np.object_)
            values[:] = strings
    elif isinstance(datatype, str) and datatype in _NUMPY:
        if len(data) == count * _NUMPY[datatype].itemsize:
            values = np.frombuffer(data, _NUMPY[datatype])
    else:
        raise ValueError(f"{name} is of the type {_abbreviated(datatype)}")
    if values is None:
        raise ValueError(
            f"{name} has {len(data)} bytes, which do not make {_abbreviated(shape)} values"
        )
    return values.reshape(shape)


def _strings(name: str, data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise ValueError(f"{name} has a string that is longer than its bytes")
        yield data[start + 4 : end]
        start = end


def detections(outputs: Outputs) -> Detections:
    """Return the detections of the one image in an answer.

    Raises:
        ServerError: an output is missing, or breaks the contract.
    """
    missing = [name for name in names.OUTPUTS if outputs.get(name) is None]
    if missing:
        raise ServerError(f"the answer has no output {missing[0]!r}.")
    try:
        found = Detections.from_outputs(outputs)
    except ValueError as error:
        raise ServerError(f"the answer does not follow the contract: {error}.") from error
    if (images := len(outputs[names.NUM_DETS])) != 1:
        raise ServerError(f"the answer is for {images} images; one was sent.")
    return found


def error_from_grpc(status: str, message: str, *, via: str = "") -> YoloClientError:
    """Return the error for a gRPC status such as `StatusCode.UNAVAILABLE`.

    Args:
        via: added to the message of an error that a proxy may have caused.
    """
    status = status.removeprefix("StatusCode.")
    kind = _GRPC_ERRORS.get(status, ServerError)
    if missing := _NO_MODEL.match(message):
        return _no_model(missing, message, via)
    sentence = one_line(_PREFIX.sub("", message, 1)) or f"the server answers with {status}."
    if status == "RESOURCE_EXHAUSTED" and _ANSWER_TOO_LARGE.search(message):
        return ServerError(f"the answer is larger than this client takes: {sentence}")
    return kind(sentence + via * (kind in (UnavailableError, TimedOutError)))


def error_from_http(status: int, reason: str, body: bytes, *, via: str = "") -> YoloClientError:
    """Return the error for an HTTP status; Triton and the gateway send a sentence in JSON.

    Args:
        via: added to the message of an error that a proxy may have caused.
    """
    kind = _HTTP_ERRORS.get(status, ServerError)
    try:
        sentence = one_line(_PREFIX.sub("", str(json.loads(body)["error"]), 1))
    except (ValueError, KeyError, TypeError, RecursionError):
        return kind(one_line(f"HTTP {status} {reason}") + via)
    if missing := _NO_MODEL.match(sentence):
        return _no_model(missing, sentence, "")
    return kind(sentence or f"HTTP {status}")


def _no_model(match: re.Match[str], message: str, via: str) -> UnavailableError:
    """Return the error for a model that Triton does not have, or has not loaded."""
    if match[1] is None:
        return UnavailableError(one_line(message) + via)
    return UnknownModelError(
        f"the server has no endpoint {match[1]!r}, or has not loaded it yet{via}."
    )


def for_list_position(error: YoloClientError, number: int) -> YoloClientError:
    """Name an image by its position in a list; the server saw it as the only one of a request."""
    reason = str(error).removeprefix("image 1 of 1: ")
    return type(error)(f"image {number} of the list: {reason}")
