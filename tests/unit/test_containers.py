"""Files are walked as their decoders walk them, and only so far."""

from __future__ import annotations

import struct

import pytest
from containers import (
    PNG_SIGNATURE,
    RIFF_HEADER,
    TiffDirectory,
    jpeg_segments,
    png_chunks,
    riff_chunks,
    tiff_directory,
)

SOI = b"\xff\xd8"
SCAN = b"\xff\xda"


def segment(kind: int, content: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content


def test_jpeg_segments_end_at_the_first_scan() -> None:
    first, second = segment(0xE0, b"JFIF"), segment(0xC0, b"")
    data = SOI + first + second + SCAN + first
    assert [*jpeg_segments(data)] == [(0xE0, 2, 6, 10), (0xC0, 10, 14, 14)]


@pytest.mark.parametrize("last", [b"\xff\xd8", b"\xff\xd9", SCAN])
def test_jpeg_segments_end_at_a_marker_after_which_none_can_be_found(last: bytes) -> None:
    assert [*jpeg_segments(SOI + last + segment(0xC0, b""))] == []


def test_what_lies_between_jpeg_segments_is_passed_over() -> None:
    noise = b"\x00\xff\x00\xff\x01" + bytes(b for n in range(0xD0, 0xD8) for b in (0xFF, n))
    data = SOI + noise + b"\xff\xff" + segment(0xE0, b"a") + noise + segment(0xE1, b"") + SCAN
    begin = 2 + len(noise) + 2
    assert [*jpeg_segments(data)] == [
        (0xE0, begin, begin + 4, begin + 5),
        (0xE1, begin + 5 + len(noise), begin + 9 + len(noise), begin + 9 + len(noise)),
    ]


def test_jpeg_among_other_data_is_walked_from_its_start() -> None:
    data = segment(0xE7, b"") + SOI + segment(0xE0, b"") + SCAN
    assert [*jpeg_segments(data, 4)] == [(0xE0, 6, 10, 10)]


@pytest.mark.parametrize("length", [0, 1])
def test_jpeg_segment_holds_at_least_its_own_length(length: int) -> None:
    data = SOI + b"\xff\xe0" + struct.pack(">H", length) + segment(0xE1, b"") + SCAN
    assert [*jpeg_segments(data)] == [(0xE0, 2, 6, 6), (0xE1, 6, 10, 10)]


@pytest.mark.parametrize("data", [b"", SOI, SOI + segment(0xE0, b"a"), SOI + b"\xff\xe0\0"])
def test_jpeg_that_ends_before_its_scan_is_cut_off(data: bytes) -> None:
    with pytest.raises(struct.error):
        [*jpeg_segments(data)]


def test_jpeg_segments_are_limited() -> None:
    assert len([*jpeg_segments(SOI + segment(0xFE, b"") * 4095 + SCAN)]) == 4095
    with pytest.raises(ValueError):
        [*jpeg_segments(SOI + segment(0xFE, b"") * 4096 + SCAN)]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + b"crc."


PNG = bytes(PNG_SIGNATURE)
END = chunk(b"IEND", b"")


def test_png_chunks_end_with_the_last() -> None:
    data = PNG + chunk(b"IHDR", b"abc") + END + chunk(b"tEXt", b"")
    assert [*png_chunks(data)] == [(b"IHDR", 8, 16, 23), (b"IEND", 23, 31, 35)]


def test_png_whose_last_chunk_is_missing_or_cut_off_is_walked() -> None:
    data = PNG + chunk(b"IDAT", b"abc")
    assert [*png_chunks(data)] == [(b"IDAT", 8, 16, 23)]
    assert [*png_chunks(data + END[:9])] == [(b"IDAT", 8, 16, 23), (b"IEND", 23, 31, 32)]
    assert [*png_chunks(PNG)] == []


@pytest.mark.parametrize("length", range(1, 15))
def test_png_whose_chunk_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(struct.error):
        [*png_chunks(PNG + chunk(b"IDAT", b"abc")[:length])]


def test_png_chunks_are_limited() -> None:
    most = 1 << 17
    assert sum(1 for _ in png_chunks(PNG + chunk(b"tEXt", b"") * (most - 1) + END)) == most
    with pytest.raises(ValueError):
        sum(1 for _ in png_chunks(PNG + chunk(b"tEXt", b"") * most + END))


def riff_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def test_riff_chunks_of_odd_length_are_padded() -> None:
    chunks = (b"VP8X", b"abc"), (b"VP8 ", b"abcd"), (b"EXIF", b"")
    data = bytes(RIFF_HEADER) + b"".join(riff_chunk(*one) for one in chunks)
    assert [*riff_chunks(data, RIFF_HEADER, len(data))] == [
        (b"VP8X", 12, 20, 24),
        (b"VP8 ", 24, 32, 36),
        (b"EXIF", 36, 44, 44),
    ]


def test_riff_chunks_stop_at_the_end_given() -> None:
    data = riff_chunk(b"VP8X", b"abc") + riff_chunk(b"VP8 ", b"")
    assert [*riff_chunks(data, 0, 19)] == [(b"VP8X", 0, 8, 12)]
    assert [*riff_chunks(data, 0, 11)] == [(b"VP8X", 0, 8, 11)]  # the padding is missing
    assert [one[0] for one in riff_chunks(data, 0, 20)] == [b"VP8X", b"VP8 "]
    assert [*riff_chunks(data, 0, 7)] == []
    with pytest.raises(struct.error):
        [*riff_chunks(data, 0, 10)]


def test_riff_chunks_are_limited() -> None:
    data = riff_chunk(b"XMP ", b"") * 4096
    assert len([*riff_chunks(data, 0, 8 * 4095)]) == 4095
    with pytest.raises(ValueError):
        [*riff_chunks(data, 0, 8 * 4096)]


@pytest.mark.parametrize("order, mark", [("<", b"II"), (">", b"MM")])
def test_directory_of_a_tiff_is_found(order: str, mark: bytes) -> None:
    data = mark + struct.pack(f"{order}HI", 42, 11) + b"..." + struct.pack(f"{order}H", 7)
    found = tiff_directory(data)
    assert found == TiffDirectory(order, False, 13, 7, 12)
    assert (found.offset, found.link) == (4, 13 + 7 * 12)


@pytest.mark.parametrize("order, mark", [("<", b"II"), (">", b"MM")])
def test_directory_of_a_bigtiff_is_found(order: str, mark: bytes) -> None:
    data = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 17) + b"." + struct.pack(f"{order}Q", 7)
    found = tiff_directory(data)
    assert found == TiffDirectory(order, True, 25, 7, 20)
    assert (found.offset, found.link) == (8, 25 + 7 * 20)


@pytest.mark.parametrize("length", [2, 7, 9])
def test_tiff_that_ends_before_its_directory_is_cut_off(length: int) -> None:
    with pytest.raises(struct.error):
        tiff_directory((b"II*\0\x08\0\0\0" + bytes(2))[:length])
