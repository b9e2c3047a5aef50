"""The kinds of arguments for an image, and what the server then receives."""

from __future__ import annotations

import array
import asyncio
import io
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hostile import http_recorder
from support import PHOTO

from yolov5_client import AsyncClient, Client, ImageTypeError, YoloClientError

DATA = PHOTO.read_bytes()
URI = "data:image/jpeg;base64,/9j/4AAQ"


@pytest.fixture(scope="module")
def recorder() -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers every image and records it."""
    with http_recorder() as running:
        yield running


def ask(address: str, image: Any) -> Any:
    with Client(address, timeout=10) as client:
        return client.detect(image)


def ask_async(address: str, image: Any) -> Any:
    async def asking() -> Any:
        async with AsyncClient(address, timeout=10) as client:
            return await client.detect(image)

    return asyncio.run(asking())


BOTH = pytest.mark.parametrize("asking", [ask, ask_async])
Asking = Callable[[str, Any], Any]


def mapped() -> mmap.mmap:
    with PHOTO.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class AsyncFile:
    """An upload, as web frameworks pass it on."""

    async def read(self) -> bytes:
        return DATA


KINDS: dict[str, Callable[[], Any]] = {
    "str": lambda: str(PHOTO),
    "path": lambda: PHOTO,
    "bytes": lambda: DATA,
    "bytearray": lambda: bytearray(DATA),
    "memoryview": lambda: memoryview(DATA),
    "reversed_memoryview": lambda: memoryview(DATA[::-1])[::-1],
    "array": lambda: array.array("B", DATA),
    "mmap": mapped,
    "numpy": lambda: np.frombuffer(DATA, np.uint8),
    "column_of_old_imencode": lambda: np.frombuffer(DATA, np.uint8).reshape(-1, 1),
    "file": lambda: PHOTO.open("rb"),
    "bytes_io": lambda: io.BytesIO(DATA),
    "function": lambda: PHOTO.read_bytes,
    "function_of_a_bytearray": lambda: lambda: bytearray(DATA),
}


@BOTH
def test_every_kind_of_image_argument_is_sent_whole(
    recorder: tuple[str, list[bytes]], asking: Asking
) -> None:
    address, received = recorder
    for name, make in KINDS.items():
        received.clear()
        assert not isinstance(asking(address, make()), list), name
        assert received == [DATA], name
    received.clear()
    assert len(asking(address, [make() for make in KINDS.values()])) == len(KINDS)
    assert received == [DATA] * len(KINDS)


def test_asyncio_file_is_awaited(recorder: tuple[str, list[bytes]]) -> None:
    address, received = recorder
    received.clear()
    ask_async(address, AsyncFile())
    assert received == [DATA]


@BOTH
def test_data_uri_is_sent_unchanged(recorder: tuple[str, list[bytes]], asking: Asking) -> None:
    address, received = recorder
    received.clear()
    asking(address, URI)
    asking(address, ["DATA:" + URI[5:]])
    assert received == [URI.encode(), b"DATA:" + URI[5:].encode()]


@BOTH
def test_argument_that_is_not_an_image_is_refused_before_sending(
    recorder: tuple[str, list[bytes]], asking: Asking, tmp_path: Path
) -> None:
    address, received = recorder
    received.clear()
    text = tmp_path / "text"
    text.write_text("text")
    odd: list[tuple[Any, str]] = [
        (3, "an image is a value of the type int; allowed: the path of a file"),
        (None, "of the type NoneType; allowed"),
        (text.open(), "a file.* gave text, not bytes; a file is to be opened with 'rb'"),
        (io.StringIO("text"), "gave text, not bytes"),
        (cv2.imread(str(PHOTO)), "an array of 480x640x3 values, as decoded pixels are"),
        (np.zeros(3, np.float32), "an array of 3 values"),
        (lambda: "text", "a function.* text, not bytes"),
        (lambda: None, "of the type NoneType"),
    ]
    for image, sentence in odd:
        for given in (image, [image]):
            with pytest.raises(ImageTypeError, match=sentence) as caught:
                asking(address, given)
            assert isinstance(caught.value, YoloClientError)
            assert isinstance(caught.value, TypeError)
            assert str(caught.value).startswith("image 1 of the list: ") == isinstance(given, list)
    assert not received


@BOTH
def test_base64_given_as_a_path_is_abbreviated_in_the_error(
    recorder: tuple[str, list[bytes]], asking: Asking
) -> None:
    with pytest.raises(OSError, match="base64 text is to be given as bytes") as caught:
        asking(recorder[0], "/9j/4AAQ" * 5000)
    assert len(str(caught.value)) < 200


def test_unusable_image_of_a_stream_is_an_error_in_its_place(
    recorder: tuple[str, list[bytes]],
) -> None:
    odd: list[Any] = [PHOTO, 3, PHOTO]
    with Client(recorder[0]) as client:
        found = [*client.detect_stream(odd, return_exceptions=True)]
    assert [isinstance(one, ImageTypeError) for one in found] == [False, True, False]
