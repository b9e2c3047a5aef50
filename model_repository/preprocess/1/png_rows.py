"""Decompress the rows of a PNG, to keep decompression bombs from its decoder.

libpng decompresses everything that follows the rows, 1 GB for each MB of the file, and only
decompression shows where the rows end. As this is most of the work of decoding a PNG, it is done
only once, here: the decoder gets the rows uncompressed, and nothing after them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from containers import PNG_SIGNATURE, png_chunks

MAX_TRAILING = 1 << 16  # tolerated after the rows, and dropped; encoders write none

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour
# Passes of an interlaced PNG: first column, first row, steps between columns and between rows.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_PIECE = 1 << 14  # bytes decompressed at a time
_BLOCK = 65535  # the most that DEFLATE stores in a block
_ZLIB_HEADER = b"\x78\x01"


class TrailingDataError(ValueError):
    """The compressed data continue after the picture."""


def inflate_rows(data: bytes) -> bytes | bytearray:
    """Return the PNG with its rows uncompressed, and nothing after them.

    Args:
        data: a whole PNG whose width and height are within limits; the result takes up to 8 bytes
            for each pixel.

    Returns:
        The PNG; unchanged if its data are damaged or too short: the decoder then fails at the same
        place.

    Raises:
        TrailingDataError: more than `MAX_TRAILING` bytes follow the rows.
    """
    chunks = [*png_chunks(data)]
    parts = [(body, end - 4) for kind, _, body, end in chunks if kind == b"IDAT"]
    length = _length(data)
    if not parts or not length:
        return data
    others = [(start, end) for kind, start, _, end in chunks if kind != b"IDAT"]
    first = parts[0][0]
    before = data[:PNG_SIGNATURE] + b"".join(data[a:b] for a, b in others if b < first)
    after = b"".join(data[a:b] for a, b in others if a > first)
    try:
        return _stored(_pieces(data, parts), length, before, after) or data
    except zlib.error:
        return data


def _pieces(data: bytes, parts: list[tuple[int, int]]) -> Iterator[memoryview]:
    view = memoryview(data)
    for start, end in parts:
        for position in range(start, end, _PIECE):
            yield view[position : min(position + _PIECE, end)]


def _length(data: bytes) -> int:
    """Bytes of the rows, each preceded by one byte that names its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS.get(colour, 0)
    total = 0
    for left, top, right, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total if bits else 0


def _stored(
    pieces: Iterator[memoryview], length: int, before: bytes, after: bytes
) -> bytearray | None:
    """Build a PNG with `length` bytes of rows, in one IDAT chunk of stored blocks.

    None if the pieces hold fewer bytes. `before` and `after` are the file around the chunk.
    """
    size = len(_ZLIB_HEADER) + 5 * -(-length // _BLOCK) + length + 4
    begin = len(before)
    file = bytearray(begin + 8 + size + 4 + len(after))
    file[:begin] = before
    file[len(file) - len(after) :] = after
    struct.pack_into(">I4s2s", file, begin, size, b"IDAT", _ZLIB_HEADER)
    position, check = begin + 10, 1
    for block in _blocks(pieces, length):
        length -= len(block)
        struct.pack_into("<BHH", file, position, length == 0, len(block), len(block) ^ 0xFFFF)
        position += 5
        file[position : position + len(block)] = block
        position += len(block)
        check = zlib.adler32(block, check)
    if length:
        return None
    struct.pack_into(">I", file, position, check)
    position += 4
    struct.pack_into(">I", file, position, zlib.crc32(memoryview(file)[begin + 4 : position]))
    return file


def _blocks(pieces: Iterator[memoryview], length: int) -> Iterator[bytes]:
    """Decompress `length` bytes, in blocks; all but the last are full."""
    inflater = zlib.decompressobj()
    block = b""
    spare = MAX_TRAILING
    for piece in pieces:
        left: bytes | memoryview = piece
        # The inflater may still hold output after it has read the whole piece.
        while not inflater.eof:
            wanted = min(_BLOCK, length) - len(block) if length else spare + 1
            more = inflater.decompress(left, wanted)
            left = inflater.unconsumed_tail
            if length:
                block += more
                if len(block) == min(_BLOCK, length):
                    yield block
                    length -= len(block)
                    block = b""
            else:
                spare -= len(more)
                if spare < 0:
                    raise TrailingDataError
            if not left and len(more) < wanted:
                break
