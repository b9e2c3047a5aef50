"""Read the headers of an image file, to know what decoding costs before anything is decoded.

Each format is read as its decoder reads it: no file can look small here and be large there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from containers import JPEG_SCAN, jpeg_segments, png_chunks, tiff_directory

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN = bytes((0xFF, JPEG_SCAN))  # the marker
_SCAN_PAIR = np.frombuffer(_SCAN, np.uint16)[0]

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_LONG8 = 16
_WIDTH, _HEIGHT, _COMPRESSION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 322, 323
_SEGMENTS = ((273, 279), (324, 325))  # tags of offsets and lengths, for strips and for tiles
# Tags that determine memory and work. LibTIFF accepts them with other types as well, and the first
# of two entries of the same tag; no real file needs either. BitsPerSample (258) and SampleFormat
# (339) have one value for each channel.
_TIFF_SINGLE = frozenset(
    (_WIDTH, _HEIGHT, _COMPRESSION, 262, 277, 278, 284, _TILE_WIDTH, _TILE_HEIGHT)
)
_TIFF_STRICT = _TIFF_SINGLE.union((258, 339), *_SEGMENTS)
_TIFF_OLD_JPEG, _TIFF_JPEG = 6, 7
_TIFF_SEVERAL = 4096  # strips or tiles allowed whose JPEG has several scans; no writer makes any


@dataclass(frozen=True)
class Header:
    """What decoding a file costs.

    Attributes:
        pixels: of the picture; for a tiled TIFF of all its tiles, which may be more.
        scans: upper bound on the passes over the picture of a JPEG; 1 for other formats.
        sides: height and width of a JPEG as it is stored, before EXIF turns it; None for other
            formats.
    """

    pixels: int
    scans: int = 1
    sides: tuple[int, int] | None = None


def read_header(data: bytes) -> Header | None:
    """Read the header of a JPEG, PNG, WebP, BMP or TIFF; None if it is damaged."""
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
    except (struct.error, ValueError, OverflowError):  # cut off, or of too many parts
        return None


def _jpeg(data: bytes) -> Header | None:
    sides = _jpeg_sides(data, 0)
    if sides is None:
        return None
    return Header(sides[0] * sides[1], _count_scans(data), sides)


def _count_scans(data: bytes) -> int:
    """How often the marker of a scan occurs.

    The data of a scan cannot contain it, but other segments can: this is an upper bound. `count` of
    bytes takes several times as long, and holds the interpreter's lock meanwhile.
    """
    pairs = (np.frombuffer(data, np.uint16, (len(data) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(values == _SCAN_PAIR)) for values in pairs)


def _jpeg_sides(data: bytes, start: int) -> tuple[int, int] | None:
    """Height and width of the JPEG at offset `start`."""
    for kind, _, body, _ in jpeg_segments(data, start):
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, body + 1)
            return height, width
    return None


def _png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    # All chunks must be complete. Without data OpenCV reads on, and allocates 2 GB for a false
    # length.
    kinds = {kind for kind, *_ in png_chunks(data)}
    return Header(width * height) if b"IDAT" in kinds else None


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
    fields = _tiff_fields(data)
    if fields is None or _WIDTH not in fields or _HEIGHT not in fields:
        return None
    values = {tag: int(_array(data, *fields[tag])[0]) for tag in _TIFF_SINGLE & fields.keys()}
    width, height = (
        _up_to(values.get(tile, 0), values[side])
        for side, tile in ((_WIDTH, _TILE_WIDTH), (_HEIGHT, _TILE_HEIGHT))
    )
    pixels = width * height
    compression = values.get(_COMPRESSION)
    if compression not in (_TIFF_OLD_JPEG, _TIFF_JPEG):
        return Header(pixels)
    scans = _tiff_scans(data, fields)
    if scans is None:
        return None
    most, several = scans
    if compression == _TIFF_JPEG and len(several):
        pixels = max(pixels, _largest_jpeg(data, several))
    return Header(pixels, most)


def _tiff_fields(data: bytes) -> dict[int, tuple[str, int, int]] | None:
    """Type, count and offset of the fields that determine the size; None if they are ambiguous."""
    directory = tiff_directory(data)
    order, big, first, count, each = directory
    if big and struct.unpack_from(f"{order}HH", data, 4) != (8, 0):
        return None
    inside = directory.offset  # a value that is no longer than an offset is stored in its place
    fields: dict[int, tuple[str, int, int]] = {}
    if count > len(data) // each:
        return None
    for entry in range(first, first + each * count, each):
        tag, kind, length, place = struct.unpack_from(
            order + ("HHQQ" if big else "HHII"), data, entry
        )
        if tag not in _TIFF_STRICT:
            continue
        letter = None if kind == _TIFF_LONG8 and not big else _TIFF_TYPES.get(kind)
        if letter is None or tag in fields or length < 1 or (tag in _TIFF_SINGLE and length > 1):
            return None
        size = length * struct.calcsize("=" + letter)
        fields[tag] = (order + letter, length, entry + each - inside if size <= inside else place)
    return fields


def _up_to(tile: int, side: int) -> int:
    return -(-side // tile) * tile if tile else side


def _tiff_scans(
    data: bytes, fields: dict[int, tuple[str, int, int]]
) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]] | None:
    """The most scans of any JPEG in a strip or tile; and the offsets of all with several scans."""
    everything = np.frombuffer(data, np.uint8)
    first, second = _SCAN
    scans = np.flatnonzero((everything[:-1] == first) & (everything[1:] == second))
    most, several = 0, np.empty(0, np.int64)
    for offsets_tag, lengths_tag in _SEGMENTS:
        if offsets_tag not in fields or lengths_tag not in fields:
            continue
        starts, lengths = (_array(data, *fields[tag]) for tag in (offsets_tag, lengths_tag))
        count = min(len(starts), len(lengths))
        starts, lengths = starts[:count], lengths[:count]
        ends = np.where(lengths > 0, starts + lengths, len(data))
        each = np.searchsorted(scans, ends) - np.searchsorted(scans, starts)
        most = max(most, 1, int(each.max(initial=0)))
        several = np.union1d(several, starts[each > 1])
    return (most, several) if most else None


def _largest_jpeg(data: bytes, starts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """Pixels of the largest JPEG at these offsets.

    It may be larger than its strip: the decoder reads a JPEG of several scans as a whole.
    """
    if len(starts) > _TIFF_SEVERAL:
        raise ValueError
    largest = 0
    for start in starts.tolist():
        sides = _jpeg_sides(data, start)
        if sides is None:
            raise ValueError
        largest = max(largest, sides[0] * sides[1])
    return largest


def _array(
    data: bytes, kind: str, count: int, position: int
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if position + count * struct.calcsize(kind) > len(data):
        raise struct.error
    return np.frombuffer(data, np.dtype(kind), count, position).astype(np.int64)
