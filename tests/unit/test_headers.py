"""Size and scans of a file are known before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from headers import Header, read_header
from support import PHOTO, SHARED

HEIGHT, WIDTH = 37, 53
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def encode(suffix: str, channels: int = 3, *options: int) -> bytes:
    return cv2.imencode(suffix, PICTURE[..., :channels], options)[1].tobytes()


FILES = {
    "JPEG": encode(".jpg"),
    "PNG": encode(".png"),
    "BMP": encode(".bmp"),
    "TIFF": encode(".tiff"),
    "TIFF of strips": encode(".tiff", 3, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8),
    "TIFF of JPEG": encode(".tiff", 3, cv2.IMWRITE_TIFF_COMPRESSION, 7),
    "lossy WebP": encode(".webp", 3, cv2.IMWRITE_WEBP_QUALITY, 80),
    "lossless WebP": encode(".webp", 3, cv2.IMWRITE_WEBP_QUALITY, 101),
    "extended WebP": encode(".webp", 4, cv2.IMWRITE_WEBP_QUALITY, 80),
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_size_of_ordinary_files_is_read(data: bytes) -> None:
    sides = (HEIGHT, WIDTH) if data.startswith(b"\xff\xd8") else None
    assert read_header(data) == Header(HEIGHT * WIDTH, 1, sides)


def test_ordinary_files_include_all_three_kinds_of_webp() -> None:
    kinds = {data[12:16] for name, data in FILES.items() if "WebP" in name}
    assert kinds == {b"VP8 ", b"VP8L", b"VP8X"}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_file_that_ends_in_its_header_is_damaged(data: bytes) -> None:
    for length in (3, 8, 12, 15, 20):
        assert read_header(data[:length]) is None


def test_oldest_and_top_down_bitmaps_are_read() -> None:
    assert read_header(b"BM" + bytes(12) + struct.pack("<IHH", 12, 7, 9)) == Header(63)
    assert read_header(b"BM" + bytes(12) + struct.pack("<Iii", 40, 7, -9)) == Header(63)


def test_all_scans_of_a_jpeg_are_counted() -> None:
    progressive = encode(".jpg", 3, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    header = read_header(progressive)
    assert header is not None
    assert 6 < header.scans < 13


def test_frame_is_found_behind_segments_that_contain_markers() -> None:
    jpeg = PHOTO.read_bytes()
    thumbnail = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01" + bytes(10)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    assert (
        read_header(jpeg[:2] + segment + jpeg[2:])
        == read_header(jpeg)
        == Header(640 * 480, 1, (480, 640))
    )
    assert read_header(jpeg[:2] + b"\xff\xfe\x00\x02" * 100_000 + jpeg[2:]) is None


TAGS = {"width": 256, "height": 257, "compression": 259, "offset": 273, "length": 279}
TAGS.update({"tile_width": 322, "tile_height": 323})


def tiff(order: str, entries: Sequence[tuple[str, str, int]], data: bytes = b"") -> bytes:
    """A TIFF with its directory at the end; entries are tag, H or I, value."""
    kinds = {"H": 3, "I": 4, "Q": 16}
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    directory = struct.pack(f"{order}H", len(entries))
    for name, kind, value in entries:
        field = struct.pack(order + kind, value)[:4].ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", TAGS[name], kinds[kind], 1) + field
    return head + data + directory + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_tiff_is_as_large_as_its_tiles(order: str) -> None:
    picture = [("width", "H", 10), ("height", "I", 70_000)]
    assert read_header(tiff(order, picture)) == Header(700_000)
    tiles = [("tile_width", "H", 16), ("tile_height", "H", 60_000)]
    assert read_header(tiff(order, [*picture, *tiles])) == Header(16 * 120_000)


@pytest.mark.parametrize("name", ["width", "height", "tile_width", "compression", "length"])
def test_tiff_with_a_tag_twice_is_damaged(name: str) -> None:
    entries = [("width", "H", 10), ("height", "H", 10), (name, "H", 10), (name, "H", 1000)]
    assert read_header(tiff("<", entries)) is None


def test_tiff_with_an_unusual_size_tag_is_damaged() -> None:
    assert read_header(tiff("<", [("width", "H", 10)])) is None
    assert read_header(tiff("<", [("width", "H", 10), ("height", "Q", 10)])) is None


@pytest.mark.parametrize("length", [0, 70])
def test_scans_of_jpegs_in_a_tiff_are_counted(length: int) -> None:
    entries = [("width", "H", 10), ("height", "H", 10), ("compression", "H", 7)]
    place = [("offset", "I", 8), ("length", "I", length)]
    frame = b"\xff\xd8\xff\xc2" + struct.pack(">HBHH", 17, 8, 10, 10) + bytes(10)
    data = frame + b"\xff\xda" * 20 + bytes(10)
    assert read_header(tiff("<", [*entries, *place], data)) == Header(100, 20)
    assert read_header(tiff("<", entries, data)) is None


@pytest.mark.skipif(not SHARED.exists(), reason="the hostile files are not at hand")
def test_decoded_picture_is_never_larger_than_its_header() -> None:
    checked = 0
    for path in sorted((SHARED / "nasty").rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        if not data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*", b"MM")):
            continue
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            continue
        if picture is not None:
            header = read_header(data)
            assert header is not None, path.name
            assert header.pixels == picture.shape[0] * picture.shape[1], path.name
            checked += 1
    assert checked > 100
