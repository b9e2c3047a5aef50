"""What an image file says of itself, read before anything is decoded: what decoding will cost.

Each format is read as its decoder reads it, so that no file can be small here and large there.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

# What may follow 0xFF in a JPEG, but for the markers that stand alone within and between scans.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = b"\xff\xda"
_JPEG_SEGMENTS = 4096  # before the frame; 64 KiB each, so that no file of a camera has so many

_PNG_CHUNKS = 1 << 17  # in the largest file, so many have 256 bytes each

_TIFF_TYPES = {1: "B", 3: "H", 4: "I"}
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_SEGMENTS = ((273, 279), (324, 325))  # offsets and lengths, of strips and of tiles
_TIFF_JPEG = (6, 7)


@dataclass(frozen=True)
class Header:
    """
    Attributes:
        pixels: of the picture; of a tiled TIFF those of its tiles, which may be larger.
        scans: passes over the picture that a JPEG makes, at most; 1 for other formats.
        sides: of a JPEG, height and width as it is stored, before it is turned for display.
    """

    pixels: int
    scans: int = 1
    sides: tuple[int, int] | None = None


def read_header(data: bytes) -> Header | None:
    """Read the beginning of a JPEG, PNG, WebP, BMP or TIFF; None if it is damaged."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG"):
            return _png(data)
        if data.startswith(b"RIFF"):
            return _webp(data)
        if data.startswith(b"BM"):
            return _bmp(data)
        return _tiff(data)
    except struct.error:  # it ends too early
        return None


def _jpeg(data: bytes) -> Header | None:
    position = 2
    for _ in range(_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            return None
        kind, position = marker[1][0], marker.end()
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            # A scan's data cannot hold its marker, so that these are all, and perhaps some more.
            return Header(width * height, data.count(_JPEG_SCAN), (height, width))
        (length,) = struct.unpack_from(">H", data, position)
        position += length
    return None


def _png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    position = 8
    for _ in range(_PNG_CHUNKS):
        if data[position + 4 : position + 8] in (b"IEND", b""):
            return Header(width * height)
        (length,) = struct.unpack_from(">I", data, position)
        position += 12 + length
        if position > len(data):  # OpenCV would allocate the whole of it, up to 4 GB
            return None
    return None


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8X":
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", data, 24)
        return Header(((high_w << 16 | low_w) + 1) * ((high_h << 16 | low_h) + 1))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header((width & 0x3FFF) * (height & 0x3FFF))
    if kind == b"VP8L":
        (sides,) = struct.unpack_from("<I", data, 21)
        return Header(((sides & 0x3FFF) + 1) * ((sides >> 14 & 0x3FFF) + 1))
    return None


def _bmp(data: bytes) -> Header:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", data, 18)
    return Header(abs(width * height))


def _tiff(data: bytes) -> Header | None:
    order = "<" if data.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    fields: dict[int, tuple[str, int, int]] = {}
    values: dict[int, int] = {}
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, length, place = struct.unpack_from(f"{order}HHII", data, entry)
        letter = _TIFF_TYPES.get(kind)
        if letter is None:
            continue
        size = length * struct.calcsize(letter)
        fields[tag] = (order + letter, length, entry + 8 if size <= 4 else place)
        if length == 1:
            (value,) = struct.unpack_from(order + letter, data, entry + 8)
            values[tag] = max(value, values.get(tag, 0))  # of a tag that comes twice, the worse
    if _WIDTH not in values or _HEIGHT not in values:
        return None
    width, height = (
        _up_to(values.get(tile, 0), values[side])
        for side, tile in ((_WIDTH, _TILE_WIDTH), (_HEIGHT, _TILE_HEIGHT))
    )
    scans = _tiff_scans(data, fields) if values.get(_COMPRESSION) in _TIFF_JPEG else 1
    return None if scans is None else Header(width * height, scans)


def _up_to(tile: int, side: int) -> int:
    return -(-side // tile) * tile if tile else side


def _tiff_scans(data: bytes, fields: dict[int, tuple[str, int, int]]) -> int | None:
    """The most scans of any JPEG among the strips or tiles."""
    everything = np.frombuffer(data, np.uint8)
    first, second = _JPEG_SCAN
    scans = np.flatnonzero((everything[:-1] == first) & (everything[1:] == second))
    most = None
    for offsets_tag, lengths_tag in _SEGMENTS:
        if offsets_tag not in fields or lengths_tag not in fields:
            continue
        starts, lengths = (_array(data, *fields[tag]) for tag in (offsets_tag, lengths_tag))
        count = min(len(starts), len(lengths))
        starts, lengths = starts[:count], lengths[:count]
        ends = np.where(lengths > 0, starts + lengths, len(data))
        each = np.searchsorted(scans, ends) - np.searchsorted(scans, starts)
        most = max(most or 1, int(each.max(initial=0)))
    return most


def _array(
    data: bytes, kind: str, count: int, position: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if position + count * struct.calcsize(kind) > len(data):
        raise struct.error
    return np.frombuffer(data, np.dtype(kind), count, position).astype(np.int64)
