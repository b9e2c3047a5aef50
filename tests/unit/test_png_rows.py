"""The rows of a PNG are the same after they have been uncompressed, and nothing follows them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from png_rows import MAX_TRAILING, TrailingDataError, inflate_rows

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOISE = np.random.default_rng(0).integers(0, 256, 1 << 18, np.uint8).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    content = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return chunk(b"IHDR", content)


def split(data: bytes | bytearray) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG, each checked."""
    assert data[:8] == SIGNATURE
    position = 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = bytes(data[position + 8 : position + 8 + length])
        assert data[position : position + 12 + length] == chunk(kind, content)
        yield kind, content
        position += 12 + length


def assert_rows(data: bytes, rows: bytes) -> None:
    """Uncompress them: they are these, in stored blocks."""
    (content,) = (content for kind, content in split(inflate_rows(data)) if kind == b"IDAT")
    inflater = zlib.decompressobj()
    assert inflater.decompress(content) == rows
    assert inflater.eof and not inflater.unused_data
    blocks = -(-len(rows) // 65535)
    assert len(content) == len(rows) + 5 * blocks + 6


@pytest.mark.parametrize("length", [2, 3, 1000, 65534, 65535, 65536, 131070, 131071, 200_001])
@pytest.mark.parametrize("level", [0, 9])
def test_rows_of_any_length_stay_the_same(length: int, level: int) -> None:
    rows = NOISE[: length // 2] + bytes(length - length // 2)
    compressed = zlib.compress(rows, level)
    data = SIGNATURE + header(length - 1, 1) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    assert_rows(data, rows)
    assert_rows(data[:-12], rows)


@pytest.mark.parametrize("size", [1, 7, (1 << 14) - 1, 1 << 14, (1 << 14) + 1])
def test_rows_in_several_chunks_become_one(size: int) -> None:
    rows = NOISE[:3001] if size < 10 else NOISE[:100_001]
    compressed = zlib.compress(rows)
    parts = [chunk(b"IDAT", compressed[at : at + size]) for at in range(0, len(compressed), size)]
    before, after = chunk(b"eXIf", b"a"), chunk(b"tEXt", b"b") + chunk(b"IEND", b"")
    data = SIGNATURE + header(len(rows) - 1, 1) + before + b"".join(parts) + after
    assert_rows(data, rows)
    kinds = [kind for kind, _ in split(inflate_rows(data))]
    assert kinds == [b"IHDR", b"eXIf", b"IDAT", b"tEXt", b"IEND"]


# Bytes of the rows, of 5 x 3 pixels, worked out by hand from the specification.
LENGTHS = {
    (1, 0): 3 * (1 + 1),
    (2, 0): 3 * (1 + 2),
    (4, 3): 3 * (1 + 3),
    (8, 3): 3 * (1 + 5),
    (8, 0): 3 * (1 + 5),
    (16, 0): 3 * (1 + 10),
    (8, 4): 3 * (1 + 10),
    (16, 4): 3 * (1 + 20),
    (8, 2): 3 * (1 + 15),
    (16, 2): 3 * (1 + 30),
    (8, 6): 3 * (1 + 20),
    (16, 6): 3 * (1 + 40),
}


@pytest.mark.parametrize("kind, length", LENGTHS.items())
def test_length_of_the_rows_follows_from_depth_and_colours(
    kind: tuple[int, int], length: int
) -> None:
    check_length(header(5, 3, *kind), length)


def check_length(start: bytes, length: int) -> None:
    def png(count: int) -> bytes:
        return SIGNATURE + start + chunk(b"IDAT", zlib.compress(NOISE[:count]))

    assert_rows(png(length), NOISE[:length])
    assert_rows(png(length + 9), NOISE[:length])
    if length:
        assert inflate_rows(png(length - 1)) == png(length - 1)


# The pixels of a square of 8 x 8 in the order of the passes (the picture in the specification).
PASSES = (
    "16462646",
    "77777777",
    "56565656",
    "77777777",
    "36463646",
    "77777777",
    "56565656",
    "77777777",
)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 8, 9, 13, 17])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 17])
def test_length_of_interlaced_rows_is_that_of_seven_smaller_pictures(
    width: int, height: int
) -> None:
    length = 0
    for number in "1234567":
        rows = [sum(PASSES[y % 8][x % 8] == number for x in range(width)) for y in range(height)]
        length += sum(1 + count for count in rows if count)
    check_length(header(width, height, interlaced=1), length)


@pytest.mark.parametrize(
    "start", [header(5, 3, 8, 1), header(5, 3, 0, 2), header(0, 3), header(5, 0)]
)
def test_png_of_an_unknown_kind_or_without_pixels_is_left_to_the_decoder(start: bytes) -> None:
    data = SIGNATURE + start + chunk(b"IDAT", zlib.compress(bytes(100)))
    result = inflate_rows(data)
    assert result == data or len([*split(result)]) == 2


def test_damaged_data_are_left_to_the_decoder() -> None:
    compressed = bytearray(zlib.compress(NOISE[:1000]))
    for damaged in (b"", b"x" * 500, compressed[:900], compressed[:500] + b"\xff" * 500):
        data = SIGNATURE + header(999, 1) + chunk(b"IDAT", bytes(damaged))
        assert inflate_rows(data) == data
    data = SIGNATURE + header(999, 1) + chunk(b"IEND", b"")
    assert inflate_rows(data) == data


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("noise", [False, True])
def test_data_after_the_rows_are_tolerated_up_to_the_limit(count: int, noise: bool) -> None:
    """However many chunks they come in, and however well they compress."""
    assert MAX_TRAILING == 65_536
    rows = NOISE[:1000]
    trailing = NOISE[1000 : 1001 + MAX_TRAILING] if noise else bytes(MAX_TRAILING + 1)

    def png(more: int) -> bytes:
        compressed = zlib.compress(rows + trailing[:more])
        size = -(-len(compressed) // count)
        parts = [compressed[at : at + size] for at in range(0, len(compressed), size)]
        return SIGNATURE + header(999, 1) + b"".join(chunk(b"IDAT", part) for part in parts)

    for more in (0, 1, MAX_TRAILING - 1, MAX_TRAILING):
        assert_rows(png(more), rows)
    with pytest.raises(TrailingDataError):
        inflate_rows(png(MAX_TRAILING + 1))


def test_bomb_behind_the_rows_is_not_decompressed() -> None:
    bomb = zlib.compress(bytes(1 << 25))
    for length in (1000, MAX_TRAILING - 1000):
        data = SIGNATURE + header(length - 1, 1) + chunk(b"IDAT", bomb)
        tracemalloc.start()
        try:
            with pytest.raises(TrailingDataError):
                inflate_rows(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1 << 20
