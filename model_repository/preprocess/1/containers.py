"""Walk the parts of image files: segments of a JPEG, chunks of a PNG or WebP, the first directory
of a TIFF.

Each function walks a file as the decoder of its format does. All raise `struct.error` for a file
that ends too early, and `ValueError` for a file of more parts than any real one has.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# A marker of a JPEG, except those without a segment, which occur within and between scans.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
_LENGTH = struct.Struct(">H")
_JPEG_SEGMENTS = 4096  # allowed before the frame; 64 KiB each, so that no camera writes as many
JPEG_SCAN = 0xDA
_JPEG_LAST = frozenset((0xD8, 0xD9, JPEG_SCAN))  # no segments can be found after these

PNG_SIGNATURE = 8  # bytes
_PNG_CHUNKS = 1 << 17  # in the largest file allowed, that is 256 bytes for each

RIFF_HEADER = 12  # bytes
_RIFF_CHUNKS = 4096

# Kind, and offsets in the file: of the start, of the data, of the end.
Segment = tuple[int, int, int, int]
Chunk = tuple[bytes, int, int, int]


class TiffDirectory(NamedTuple):
    """The first directory of a TIFF.

    Attributes:
        order: byte order, as a character of `struct`.
        big: whether it is a BigTIFF.
        first: offset of the first entry.
        entries: their number.
        each: bytes of an entry.
    """

    order: str
    big: bool
    first: int
    entries: int
    each: int

    @property
    def offset(self) -> int:
        """Bytes of an offset."""
        return 8 if self.big else 4

    @property
    def link(self) -> int:
        """Offset of the link to the next directory, which is itself an offset."""
        return self.first + self.entries * self.each


def jpeg_segments(data: bytes, start: int = 0) -> Iterator[Segment]:
    """Yield the segments before the first scan, or before another marker that ends the header.

    Args:
        start: offset of the JPEG, if the file holds it among other data.
    """
    position = start + 2
    for _ in range(_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(data, position)
        if marker is None:
            raise struct.error
        begin, body = marker.span()
        kind = data[body - 1]
        if kind in _JPEG_LAST:
            return
        (length,) = _LENGTH.unpack_from(data, body)
        position = body + max(length, 2)
        yield kind, begin, body + 2, position
    raise ValueError


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks up to IEND, or to the end of the file if that is missing."""
    position = PNG_SIGNATURE
    for _ in range(_PNG_CHUNKS):
        if position == len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind == b"IEND":
            yield kind, position, position + 8, min(end, len(data))
            return
        if end > len(data):  # OpenCV would allocate the whole of it, up to 4 GB
            raise struct.error
        yield kind, position, position + 8, end
        position = end
    raise ValueError


def riff_chunks(data: bytes, start: int, stop: int) -> Iterator[Chunk]:
    """Yield the chunks between two offsets; one byte of padding follows a chunk of odd length."""
    position = start
    for _ in range(_RIFF_CHUNKS):
        if stop - position < 8:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        if end > stop:
            raise struct.error
        yield kind, position, position + 8, min(end + length % 2, stop)
        position = end + length % 2
    raise ValueError


def tiff_directory(data: bytes) -> TiffDirectory:
    """Find the first directory of a TIFF or BigTIFF; its entries may be missing."""
    order = "<" if data.startswith(b"II") else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    big = version == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    count_kind, each = ("Q", 20) if big else ("H", 12)
    (count,) = struct.unpack_from(order + count_kind, data, start)
    first = start + struct.calcsize(order + count_kind)
    return TiffDirectory(order, big, first, count, each)
