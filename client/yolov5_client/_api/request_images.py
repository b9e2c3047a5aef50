"""From a request to the images in it and what is asked of them."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .limits import BodyReader
from .problems import CLOSE, ProblemError
from .settings import MAX_BODY_BYTES, MAX_IMAGES

_MAX_FIELDS = 64
# Lists, objects and members of a JSON body. Each takes up to 100 bytes once it is parsed: 48 MiB of
# empty lists would take 1.2 GB and hold up every other request for seconds.
_MAX_PARTS = 65536
# Python knows some that take minutes for a megabyte, such as punycode.
_CHARSETS = ("utf-8", "ascii", "iso8859-1")
_DATA_URI = re.compile(rb"data:[^,]*,", re.IGNORECASE)


@dataclass
class ImageRequest:
    """What a caller asks.

    Attributes:
        images: encoded, or as base64 text or a data URI, which the server decodes.
        urls: from which images are to be fetched, in place of `images`.
        parameters: of the contract, unchecked, as the caller wrote them.
        model: the network, if one is named.
    """

    images: list[bytes] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    model: str | None = None

    def add(self, name: str, value: Any) -> None:
        """Take over one parameter.

        Raises:
            ProblemError: it is there already.
        """
        if name in self.parameters or (name == "model" and self.model is not None):
            raise _bad(f"{name[:60]!a} is given twice; allowed: once, in the query or in the body")
        if name == "model":
            self.model = value
        else:
            self.parameters[name] = value


async def read(request: Request, reader: BodyReader) -> ImageRequest:
    """Read a request: a raw image, a form, or JSON, with parameters in the query or the body.

    Raises:
        ProblemError: it cannot be understood, or is over a limit.
        ClientDisconnect: the caller hung up.
    """
    asked = ImageRequest()
    for name, value in request.query_params.multi_items():
        asked.add(name, value)
    kind = media_type(request.headers)
    if kind == "multipart/form-data":
        form = await read_form(request, reader)
        asked.images = await form_images(form)
        for name, field_value in form.multi_items():
            if name != "image":
                asked.add(name, _text(name, field_value))
    elif kind == "application/json":
        _add_json(asked, await _body(request, reader))
    else:
        asked.images = [image] if (image := await _body(request, reader)) else []
    if not asked.images and not asked.urls:
        raise _bad("there is no image; allowed: 1 to 8, as the body or in the field image")
    if (count := len(asked.images) + len(asked.urls)) > MAX_IMAGES:
        raise _bad(f"there are {count} images; allowed: at most {MAX_IMAGES}")
    return asked


def media_type(headers: Headers) -> str:
    """Return the media type of a body, without its parameters."""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


async def read_form(request: Request, reader: BodyReader) -> FormData:
    """Parse a multipart form, all of it in memory.

    Raises:
        ProblemError: it cannot be parsed, or is over a limit.
        ClientDisconnect: the caller hung up.
    """
    _check_charset(request.headers)
    body = await _body(request, reader)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        whole(),
        max_files=MAX_IMAGES,
        max_fields=_MAX_FIELDS,
        max_part_size=MAX_BODY_BYTES,
    )
    parser.spool_max_size = MAX_BODY_BYTES  # never on disk; the reader limits the whole
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise _bad(f"the form cannot be read: {error.message.rstrip('.')}") from None
    except (ValueError, KeyError, LookupError):
        raise _bad("the form cannot be read: its header fields are not valid") from None


def _check_charset(headers: Headers) -> None:
    _, options = parse_options_header(headers["Content-Type"])
    given = options.get(b"charset", b"utf-8").decode("latin-1")
    try:
        usable = codecs.lookup(given).name in _CHARSETS
    except (LookupError, ValueError):
        usable = False
    if not usable:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            f"the form's charset is {given[:60]!a}; allowed: utf-8, us-ascii, iso-8859-1",
            CLOSE,
        )


async def form_images(form: FormData) -> list[bytes]:
    """Return the images of the form's field `image`, whether files or text."""
    return [
        await value.read() if isinstance(value, UploadFile) else value.encode("utf-8", "replace")
        for value in form.getlist("image")
    ]


def encoded(image: bytes) -> bytes:
    """Return the bytes of an image file that may have come as base64 text or as a data URI."""
    if not (prefix := _DATA_URI.match(image)) and not re.match(rb"\s*[\w+/-]{16}", image):
        return image
    try:
        text = image[prefix.end() :] if prefix else image
        return base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"==")
    except (binascii.Error, ValueError):
        return image


async def _body(request: Request, reader: BodyReader) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is compressed as {encoding[:60]!a}; allowed: uncompressed",
            {"Accept-Encoding": "identity", **CLOSE},
        )
    return await reader.read(request.stream())


def _text(name: str, value: UploadFile | str) -> str:
    if isinstance(value, UploadFile):
        raise _bad(f"{name[:60]!a} is a file; allowed: a file only in the field image")
    return value


def _add_json(asked: ImageRequest, body: bytes) -> None:
    if sum(body.count(mark) for mark in (b"[", b"{", b",")) > _MAX_PARTS:
        raise _bad(f"the JSON has too many parts; allowed: {_MAX_PARTS}")
    try:
        data = json.loads(body, object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        raise _bad("the body is not valid JSON") from None
    if not isinstance(data, dict):
        raise _bad('the JSON is not an object; allowed: one such as {"image": "<base64>"}')
    images = _strings("image", data.pop("image", []))
    asked.images = [text.encode("utf-8", "replace") for text in images]
    asked.urls = [*_strings("url", data.pop("url", []))]
    if asked.images and asked.urls:
        raise _bad("image and url are both given; allowed: one of them")
    for name, value in data.items():
        asked.add(name, value)


def _each_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, from which no member must be lost."""
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise _bad(f"{twice[:60]!a} is given twice; allowed: once")
    return found


def _strings(name: str, value: Any) -> Iterable[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        raise _bad(f"{name} is not text; allowed: a string, or a list of at most {MAX_IMAGES}")
    return values


def _bad(sentence: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, sentence)
