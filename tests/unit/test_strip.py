"""Of a file of any format, only a still picture reaches the decoder."""

from __future__ import annotations

import struct
import time
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import pytest
from decode import Decoder, ImageError
from image_limits import ImageLimits
from numpy.typing import NDArray
from png_rows import MAX_TRAILING, TrailingDataError, inflate_rows
from strip import strip_to_still
from support import PHOTO

LIMITS = ImageLimits(bytes=32 << 20, pixels=64_000_000)
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
EXIF = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)  # turned by 90°


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(LIMITS)


def encode(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, PICTURE, options)[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*more: bytes, rows: bytes | None = None, after: bytes = b"", interlaced: int = 0) -> bytes:
    """A PNG of `PICTURE`, or of other rows, with chunks before and after its data."""
    height, width = PICTURE.shape[:2]
    if rows is None:
        rows = b"".join(b"\0" + row.tobytes() for row in PICTURE[..., ::-1])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), after)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def frame(number: int, width: int, height: int, x: int, y: int) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, x, y, 1, 10, 0, 0))


ANIMATION = chunk(b"acTL", struct.pack(">II", 2, 0))
LAST = frame(1, 30, 20, 0, 0) + chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(bytes(20 * 91)))


@pytest.mark.parametrize(
    "first",
    [
        frame(0, 30, 20, 0, 0),
        frame(0, 30, 20, 25, 15),
        frame(0, 30, 20, 0, 1),
        frame(0, 9, 9, 9, 9),
    ],
    ids=["in place", "beyond both sides", "one row too low", "smaller"],
)
def test_animated_png_is_stripped_to_its_still_picture(decoder: Decoder, first: bytes) -> None:
    data = png(ANIMATION, first, after=LAST)
    np.testing.assert_array_equal(decoder.decode(data), PICTURE)
    assert strip_to_still(data) == png()


def test_animated_png_with_an_unknown_filter_is_refused(decoder: Decoder) -> None:
    data = png(ANIMATION, frame(0, 30, 20, 0, 0), rows=b"\x09" * 20 * 91, after=LAST)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoder.decode(data)


def test_texts_and_profiles_of_a_png_are_stripped(decoder: Decoder) -> None:
    bomb = zlib.compress(bytes(10 << 20))
    extras = [
        chunk(b"iCCP", b"x\0\0" + bomb),
        chunk(b"zTXt", b"x\0\0" + bomb),
        chunk(b"iTXt", b"x\0\1\0\0\0" + bomb),
        chunk(b"tEXt", b"x\0y"),
        chunk(b"gAMA", struct.pack(">I", 22000)),
        chunk(b"sRGB", b"\0"),
        chunk(b"tRNS", bytes(6)),
        chunk(b"zzZz", b"of somebody's own"),
    ]
    data = png(*extras, after=b"".join(extras))
    assert strip_to_still(data) == png()
    np.testing.assert_array_equal(decoder.decode(data), PICTURE)


@pytest.mark.parametrize("behind", [False, True])
def test_exif_orientation_of_a_png_is_applied(decoder: Decoder, behind: bool) -> None:
    exif = chunk(b"eXIf", EXIF)
    data = png(after=exif) if behind else png(exif)
    np.testing.assert_array_equal(decoder.decode(data), np.rot90(PICTURE, -1))


def test_critical_chunks_of_a_png_stay(decoder: Decoder) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoder.decode(png(chunk(b"CgBI", bytes(4))))


def segment(kind: int, data: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data


def test_only_three_application_segments_of_a_jpeg_stay(decoder: Decoder) -> None:
    plain = PHOTO.read_bytes()
    exif = segment(0xE1, b"Exif\0\0" + EXIF)
    extras = [segment(kind, b"of somebody's own") for kind in range(0xE0, 0xF0)]
    extras += [segment(0xFE, b"a comment"), segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))]
    data = plain[:2] + extras[0] + exif + b"".join(extras[1:]) + b"noise" + plain[2:]
    assert strip_to_still(data) == plain[:2] + exif + plain[2:]
    expected = np.rot90(decoder.decode(plain), -1)
    np.testing.assert_array_equal(decoder.decode(data), expected)


SOI, SCAN = b"\xff\xd8", b"\xff\xda"


@pytest.mark.parametrize("kind", [*range(0xE0, 0xF0), 0xFE, 0xDB, 0xC0, 0xC4, 0xDD, 0xDF, 0xF0])
def test_segment_of_a_jpeg_stays_if_it_changes_the_picture(kind: int) -> None:
    kept = {0xE0: b"JFIF\0", 0xE1: b"Exif\0\0", 0xEE: b"Adobe"}
    for name in (*kept.values(), b"JFIFX", b"Exif\0x", b"adobe", b""):
        one = segment(kind, name + b"...")
        stays = not (0xE0 <= kind <= 0xEF or kind == 0xFE) or kept.get(kind) == name
        data = SOI + one + SCAN
        assert strip_to_still(data) == (data if stays else SOI + SCAN)


def test_what_follows_a_stripped_segment_of_a_jpeg_is_stripped_up_to_the_next() -> None:
    first, second = segment(0xDB, b"1"), segment(0xC0, b"2")
    comment = segment(0xFE, b"x")
    data = SOI + first + b"noise" + comment + b"noise" + second + b"noise" + SCAN + comment
    assert strip_to_still(data) == SOI + first + b"noise" + second + b"noise" + SCAN + comment
    data = SOI + comment + b"a" + comment + b"b" + first + comment + b"c" + SCAN
    assert strip_to_still(data) == SOI + first + b"c" + SCAN


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extended(flags: int) -> tuple[bytes, bytes]:
    height, width = PICTURE.shape[:2]
    return b"VP8X", struct.pack("<IHBHB", flags, width - 1, 0, height - 1, 0)


LOSSLESS = (b"VP8L", encode(".webp", cv2.IMWRITE_WEBP_QUALITY, 101)[20:])


def animated(x: int, y: int, width: int, height: int, picture: tuple[bytes, bytes]) -> bytes:
    sides = [number.to_bytes(3, "little") for number in (x // 2, y // 2, width - 1, height - 1, 40)]
    content = b"".join(sides) + b"\0" + riff(picture)[12:]
    second = b"".join(sides) + b"\0" + riff(LOSSLESS)[12:]
    return riff(extended(0x3E), (b"ICCP", b"profile"), (b"ANIM", bytes(6)), (b"ANMF", content),
                (b"ANMF", second), (b"XMP ", b"<x/>"), (b"EXIF", EXIF))  # fmt: skip


def test_picture_and_exif_data_of_an_extended_webp_stay(decoder: Decoder) -> None:
    data = riff(
        extended(0x2C), (b"ICCP", b"profile"), LOSSLESS, (b"EXIF", EXIF), (b"XMP ", b"<x/>")
    )
    assert strip_to_still(data) == riff(extended(0x08), LOSSLESS, (b"EXIF", EXIF))
    np.testing.assert_array_equal(decoder.decode(data), np.rot90(PICTURE, -1))


def test_flags_of_a_webp_are_those_of_what_stays() -> None:
    data = riff(extended(0xFD), (b"ICCP", b"profile!"), LOSSLESS)
    assert strip_to_still(data) == riff(extended(0x18), LOSSLESS)


def test_animated_webp_is_stripped_to_its_first_frame(decoder: Decoder) -> None:
    data = animated(0, 0, 30, 20, LOSSLESS)
    assert strip_to_still(data) == riff(extended(0x18), LOSSLESS, (b"EXIF", EXIF))
    np.testing.assert_array_equal(decoder.decode(data), np.rot90(PICTURE, -1))


def test_first_frame_that_is_smaller_keeps_its_place(decoder: Decoder) -> None:
    part = cv2.imencode(".webp", PICTURE[:8, :10], (cv2.IMWRITE_WEBP_QUALITY, 101))[1].tobytes()
    data = animated(4, 2, 10, 8, (b"VP8L", part[20:]))
    assert strip_to_still(data).count(b"ANMF") == 1
    expected = np.zeros_like(PICTURE)
    expected[2:10, 4:14] = PICTURE[:8, :10]
    np.testing.assert_array_equal(decoder.decode(data), np.rot90(expected, -1))


def test_chunks_of_a_webp_after_its_end_do_not_count() -> None:
    data = riff(extended(0x2C), (b"ICCP", b"profile!"), LOSSLESS)
    following = riff((b"EXIF", EXIF))[12:]
    assert strip_to_still(data + following) == riff(extended(0x08), LOSSLESS)


@pytest.mark.parametrize("length", [10, 12])
def test_header_of_an_extended_webp_may_be_longer(length: int) -> None:
    kind, content = extended(0x2C)
    more = b".." * (length > 10)
    data = riff((kind, content + more), (b"ICCP", b"profile!"), LOSSLESS)
    assert strip_to_still(data) == riff((kind, extended(0x08)[1] + more), LOSSLESS)


def without_padding(data: bytes) -> bytes:
    """The file, whose last chunk is of odd length, ends with it."""
    return data[:4] + struct.pack("<I", len(data) - 9) + data[8:-1]


def test_extended_webp_that_ends_in_its_header_is_damaged() -> None:
    data = riff(extended(0))
    assert strip_to_still(data) is data
    with pytest.raises(struct.error):
        strip_to_still(without_padding(riff((b"VP8X", extended(0)[1][:9]))))


def test_extended_webp_without_chunks_is_damaged() -> None:
    empty = riff(extended(0))
    with pytest.raises(struct.error):
        strip_to_still(empty[:4] + struct.pack("<I", 4) + empty[8:])


@pytest.mark.parametrize("kind", [b"ALPH", b"VP8 ", b"VP8L", b"EXIF"])
def test_parts_of_the_picture_of_a_webp_stay(kind: bytes) -> None:
    data = riff(extended(0x18), (b"XMP ", b"<x/>"), (kind, b"abc"), (b"ZZZZ", b"?"))
    assert strip_to_still(data) == riff(extended(0x18), (kind, b"abc"))
    data = riff(extended(0x18), (kind, b"abc"))
    assert strip_to_still(data) is data


def anmf(place: bytes, sides: bytes, *chunks: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    return b"ANMF", place + sides + b"\x28\0\0\x03" + riff(*chunks)[12:]


ORIGIN, WHOLE = bytes(6), extended(0)[1][4:]
ALPHA = (b"ALPH", b"abcd")


def test_first_frame_as_large_as_the_canvas_becomes_a_still_picture() -> None:
    first = anmf(ORIGIN, WHOLE, ALPHA, (b"XMP ", b"<x/>"), LOSSLESS)
    second = anmf(ORIGIN, WHOLE, LOSSLESS)
    data = riff(extended(0x3E), (b"ANIM", b"123456"), first, second, (b"EXIF", EXIF))
    assert strip_to_still(data) == riff(extended(0x18), ALPHA, LOSSLESS, (b"EXIF", EXIF))


@pytest.mark.parametrize("at", range(12))
def test_first_frame_elsewhere_on_the_canvas_stays_an_animation(at: int) -> None:
    place = bytearray(ORIGIN + WHOLE)
    place[at] ^= 1
    first = anmf(bytes(place[:6]), bytes(place[6:]), ALPHA, (b"XMP ", b"<x/>"), LOSSLESS)
    control, other = (b"ANIM", b"123456"), (b"ANIM", b"654321")
    data = riff(extended(0x2E), control, other, first, anmf(ORIGIN, WHOLE, LOSSLESS))
    left = anmf(bytes(place[:6]), bytes(place[6:]), ALPHA, LOSSLESS)
    assert strip_to_still(data) == riff(extended(0x0A), control, left)


def test_animation_that_ends_in_the_header_of_its_frame_is_damaged() -> None:
    kind, header = anmf(ORIGIN, WHOLE)
    assert strip_to_still(riff(extended(0x02), (kind, header))) == riff(extended(0))
    with pytest.raises(struct.error):
        strip_to_still(without_padding(riff(extended(0x02), (kind, header[:15]))))


def test_animation_without_a_frame_is_damaged() -> None:
    with pytest.raises(ValueError):
        strip_to_still(riff(extended(0x02), (b"ANIM", b"123456"), LOSSLESS))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_link_to_the_next_page_of_a_tiff_is_zeroed(big: bool, cut: int) -> None:
    if big:
        data = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1) + bytes(20)
    else:
        data = b"II*\0" + struct.pack("<IH", 8, 1) + bytes(12)
    link = b"\x09" * (8 if big else 4)
    zeroed = bytes(len(link))
    assert strip_to_still(data + link + b"rest") == data + zeroed + b"rest"
    assert strip_to_still(data + link[cut:]) == data + zeroed[cut:]
    still = data + zeroed + b"rest"
    assert strip_to_still(still) is still


def test_tiff_of_many_pages_is_stripped_to_the_first(decoder: Decoder) -> None:
    data = cv2.imencodemulti(".tiff", [PICTURE, PICTURE[::-1], PICTURE[:5]])[1].tobytes()
    assert cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[0]
    left = np.frombuffer(strip_to_still(data), np.uint8)
    assert len(cv2.imdecodemulti(left, cv2.IMREAD_COLOR)[1]) == 1
    np.testing.assert_array_equal(decoder.decode(data), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_ordinary_file_is_not_copied(suffix: str) -> None:
    data = encode(suffix)
    assert strip_to_still(data) is data


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("depth, colour", [(1, 0), (8, 0), (8, 2), (4, 3), (16, 4), (16, 6)])
def test_rows_of_a_png_are_as_long_as_its_decoder_reads(
    interlaced: int, depth: int, colour: int
) -> None:
    header = struct.pack(">IIBBBBB", 50, 37, depth, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""

    def of_length(length: int) -> bytes:
        data = chunk(b"IDAT", zlib.compress(bytes(length))) + chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data

    def is_enough(length: int) -> bool:
        file = np.frombuffer(of_length(length), np.uint8)
        return cv2.imdecode(file, cv2.IMREAD_COLOR) is not None

    length = bisect_left(range(1 << 15), True, key=is_enough)
    assert inflate_rows(of_length(length - 1)) == of_length(length - 1)
    for more in (0, MAX_TRAILING):
        plain = inflate_rows(of_length(length + more))
        assert length < len(plain) < length + 200
        assert cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR) is not None
    with pytest.raises(TrailingDataError):
        inflate_rows(of_length(length + MAX_TRAILING + 1))


def test_few_data_after_the_rows_of_a_png_are_dropped_and_more_refused(decoder: Decoder) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PICTURE[..., ::-1])
    np.testing.assert_array_equal(decoder.decode(png(rows=rows + bytes(MAX_TRAILING))), PICTURE)
    with pytest.raises(
        ImageError, match=f"data go on after its picture; allowed: {MAX_TRAILING} bytes"
    ):
        decoder.decode(png(rows=rows + bytes(MAX_TRAILING + 1)))


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def tiff(fields: Sequence[tuple[int, int, bytes]], data: bytes = b"") -> bytes:
    """Fields are tag, type, value; all of one value."""
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHI", tag, kind, 1) + value.ljust(4, b"\0") for tag, kind, value in fields
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def short(value: int) -> bytes:
    return struct.pack("<H", value)


BYTE, SHORT, LONG, RATIONAL, SSHORT, FLOAT = 1, 3, 4, 5, 8, 11
GREY = [
    (258, SHORT, short(8)), (259, SHORT, short(1)), (262, SHORT, short(1)), (273, LONG, short(8)),
    (277, SHORT, short(1)), (278, SHORT, short(8000)), (279, LONG, short(256)),
]  # fmt: skip
SMALL = [(256, SHORT, short(16)), (257, SHORT, short(16))]
LARGE = [(256, SSHORT, short(8000)), (257, SSHORT, short(8000))]
TILES = [(322, SSHORT, short(8000)), (323, SSHORT, short(8000)), (324, LONG, short(8)),
         (325, LONG, short(256))]  # fmt: skip
BOMBS: dict[str, Callable[[], bytes]] = {
    "WebP of no length": lambda: (
        riff(extended(0))[:4] + struct.pack("<I", 1) + riff(extended(0))[8:]
    ),
    "PNG without data": lambda: png()[:33] + chunk(b"IEND", b""),
    "PNG whose data have another name": lambda: png().replace(b"IDAT", b"IDCT"),
    "PNG": lambda: png(rows=bytes(1 << 27)),
    "interlaced PNG": lambda: png(rows=bytes(1 << 27), interlaced=1),
    "TIFF of two widths": lambda: tiff(LARGE + SMALL + GREY, bytes(256)),
    "TIFF of signed sides": lambda: tiff(LARGE + GREY, bytes(256)),
    "TIFF of fractions": lambda: tiff(
        [(256, RATIONAL, short(8)), (257, RATIONAL, short(8)), *GREY],
        struct.pack("<II", 8000, 1) + bytes(256),
    ),
    "TIFF of floating point": lambda: tiff(
        [(256, FLOAT, struct.pack("<f", 8000)), (257, FLOAT, struct.pack("<f", 8000)), *GREY],
        bytes(256),
    ),
    "TIFF of signed tiles": lambda: tiff(SMALL + GREY[:3] + GREY[4:5] + TILES, bytes(256)),
    "BigTIFF that points nowhere": lambda: b"II+\0\x08\0\0\0" + struct.pack("<Q", 1 << 63),
    "BigTIFF of countless fields": lambda: b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60),
    "data URI of escapes": lambda: b"data:image/png;base64," + b"%41" * (10 << 20),
    "data URI of parameters": lambda: b"data:" + b";a=b" * (10 << 20),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_bomb_is_refused_at_once(decoder: Decoder, make: Callable[[], bytes]) -> None:
    data = make()

    def refused() -> None:
        with pytest.raises(ImageError) as caught:
            decoder.decode(data)
        assert caught.value.reason in ("undecodable", "pixels")

    assert cpu_seconds(refused) < 1


def test_tiff_with_a_jpeg_larger_than_its_strip_is_refused(decoder: Decoder) -> None:
    large = cv2.imencode(
        ".jpg", np.zeros((16_000, 1000, 3), np.uint8), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    )[1].tobytes()
    last = large.rindex(b"\xff\xda")
    large = large[:-2] + large[last:-2] * 80 + large[-2:]
    depths = struct.pack("<I", 8 + len(large))
    fields = [
        (256, SHORT, short(1000)), (257, SHORT, short(16)), (259, SHORT, short(7)),
        (262, SHORT, short(6)), (273, LONG, short(8)), (277, SHORT, short(3)),
        (278, SHORT, short(16)), (279, LONG, depths),
    ]  # fmt: skip
    with pytest.raises(ImageError, match="scans; allowed"):
        decoder.decode(tiff(fields, large))


Array = NDArray[np.uint8]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind, letter", [(3, "H"), (4, "I"), (16, "Q")])
def test_bigtiff_is_read(decoder: Decoder, order: str, kind: int, letter: str) -> None:
    grey: Array = PICTURE[:16, :16, 0].copy()
    values = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 16, 279: 256}
    directory = struct.pack(f"{order}Q", len(values))
    for tag, value in values.items():
        code, field = (kind, letter) if tag in (256, 257, 273, 279) else (3, "H")
        directory += struct.pack(f"{order}HHQ", tag, code, 1)
        directory += struct.pack(order + field, value).ljust(8, b"\0")
    head = b"II+\0" if order == "<" else b"MM\0+"
    head += struct.pack(f"{order}HHQ", 8, 0, 16 + 256)
    data = head + grey.tobytes() + directory + bytes(8)
    np.testing.assert_array_equal(decoder.decode(data), np.dstack([grey] * 3))
    with pytest.raises(ImageError, match="pixels"):
        Decoder(ImageLimits(bytes=10_000, pixels=255)).decode(data)
