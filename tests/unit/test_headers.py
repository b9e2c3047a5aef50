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


TAGS = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262}
TAGS.update({"offset": 273, "samples": 277, "rows": 278, "length": 279, "planar": 284})
TAGS.update({"tile_width": 322, "tile_height": 323, "tile_offset": 324, "tile_length": 325})
TAGS.update({"format": 339, "software": 305})
KINDS = {"B": 1, "H": 3, "I": 4, "h": 8, "Q": 16}
Entry = tuple[str, str, "int | Sequence[int]"]  # tag, kind, value or values


def tiff(order: str, entries: Sequence[Entry], data: bytes = b"", *, big: bool = False) -> bytes:
    """A TIFF whose data begin at byte 8, or 16 of a BigTIFF; its directory is at the end."""
    start, offset, inside = (16, "Q", 8) if big else (8, "I", 4)
    directory = struct.pack(order + ("Q" if big else "H"), len(entries))
    for name, kind, value in entries:
        values = [value] if isinstance(value, int) else value
        field = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(field) > inside:
            data, field = data + field, struct.pack(order + offset, start + len(data))
        directory += struct.pack(f"{order}HH{offset}", TAGS[name], KINDS[kind], len(values))
        directory += field.ljust(inside, b"\0")
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHH", 43, 8, 0) if big else struct.pack(f"{order}H", 42)
    return head + struct.pack(order + offset, start + len(data)) + data + directory + bytes(inside)


SIDES: list[Entry] = [("width", "H", 10), ("height", "H", 10)]
JPEG: list[Entry] = [*SIDES, ("compression", "H", 7)]


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", [b"", b"\xff", b"\xda", b"\xff\xd9"])
def test_scans_are_counted_wherever_they_begin_and_end(before: int, after: bytes) -> None:
    data = jpeg(2) + b"\0" * before + b"\xff\xda" * 3 + b"\xff\xff\xda\xda" + after
    header = read_header(data)
    assert header is not None and header.scans == data.count(b"\xff\xda")


def jpeg(scans: int, height: int = 10, width: int = 10) -> bytes:
    """What a decoder reads of a JPEG before it decodes."""
    frame = b"\xff\xd8\xff\xc2" + struct.pack(">HBHH", 17, 8, height, width) + bytes(10)
    return frame + b"\xff\xda" * scans + b"\xda\0\xff\0"


def strips(*files: bytes, compression: int = 7, kind: str = "") -> bytes:
    """A TIFF with these files as its strips, or as its tiles."""
    places = [8 + sum(map(len, files[:index])) for index in range(len(files))]
    return tiff(
        "<",
        [
            *SIDES,
            ("compression", "H", compression),
            (f"{kind}offset", "I", places),
            (f"{kind}length", "I", [*map(len, files)]),
        ],
        b"".join(files),
    )


@pytest.mark.parametrize("order", "<>")
def test_tiff_is_as_large_as_its_tiles(order: str) -> None:
    picture: list[Entry] = [("width", "H", 10), ("height", "I", 70_000)]
    assert read_header(tiff(order, picture)) == Header(700_000)
    tiles: list[Entry] = [("tile_width", "H", 16), ("tile_height", "H", 60_000)]
    assert read_header(tiff(order, [*picture, *tiles])) == Header(16 * 120_000)


@pytest.mark.parametrize("order", "<>")
def test_bigtiff_is_as_large_as_its_tiles(order: str) -> None:
    picture: list[Entry] = [("width", "Q", 10), ("height", "I", 70_000)]
    data = tiff(order, picture, big=True)
    assert read_header(data) == Header(700_000)
    tiles: list[Entry] = [("tile_width", "H", 16), ("tile_height", "Q", 60_000)]
    assert read_header(tiff(order, [*picture, *tiles], big=True)) == Header(16 * 120_000)
    for offset_size, zero in ((4, 0), (8, 1)):
        sizes = struct.pack(f"{order}HH", offset_size, zero)
        assert read_header(data[:4] + sizes + data[8:]) is None


def test_side_that_is_a_multiple_of_the_tile_is_not_rounded_up() -> None:
    tiles: list[Entry] = [("tile_width", "H", 5), ("tile_height", "H", 10)]
    assert read_header(tiff("<", [*SIDES, *tiles])) == Header(100)


@pytest.mark.parametrize("name", ["width", "height", "tile_width", "compression", "length"])
def test_tiff_with_a_tag_twice_is_damaged(name: str) -> None:
    entries: list[Entry] = [*SIDES, (name, "H", 10), (name, "H", 1000)]
    assert read_header(tiff("<", entries)) is None


STRICT = [name for name in TAGS if name != "software"]


@pytest.mark.parametrize("name", STRICT)
@pytest.mark.parametrize("kind", ["h", "Q"])
def test_tiff_with_a_signed_or_too_long_field_is_damaged(name: str, kind: str) -> None:
    entries = [entry for entry in SIDES if entry[0] != name]
    assert read_header(tiff("<", [*entries, (name, "H", 1)])) is not None
    assert read_header(tiff("<", [*entries, (name, kind, 1)])) is None


def test_tiff_fields_that_do_not_determine_the_size_are_ignored() -> None:
    others: list[Entry] = [("software", kind, 1) for kind in ("h", "Q", "B", "B")]
    assert read_header(tiff("<", [*others, *SIDES])) == Header(100)


@pytest.mark.parametrize("name", STRICT)
def test_tiff_field_has_at_least_one_value_and_may_have_one_for_each_channel(name: str) -> None:
    entries = [entry for entry in SIDES if entry[0] != name]
    assert read_header(tiff("<", [*entries, (name, "H", [])])) is None
    for values in ([8, 8], [8, 8, 8]):  # within the field, and elsewhere
        header = read_header(tiff("<", [*entries, (name, "H", values)]))
        several = name in ("bits", "format", "offset", "length", "tile_offset", "tile_length")
        assert header == (Header(100) if several else None)


@pytest.mark.parametrize("kind", "BHI")
def test_tiff_field_of_any_unsigned_kind_is_read(kind: str) -> None:
    sides: list[Entry] = [("width", kind, 200), ("height", kind, 100), ("bits", kind, [8] * 3)]
    assert read_header(tiff("<", sides)) == Header(20_000)
    assert read_header(tiff(">", sides)) == Header(20_000)


def test_tiff_without_a_side_is_damaged() -> None:
    assert read_header(tiff("<", SIDES[:1])) is None
    assert read_header(tiff("<", SIDES[1:])) is None


def test_tiff_may_end_with_its_directory_but_not_within_it() -> None:
    data = tiff("<", SIDES)[:-4]
    assert read_header(data) == Header(100)
    assert read_header(data[:-1]) is None


def test_tiff_of_more_fields_than_bytes_is_damaged() -> None:
    """Even if all that a decoder wants is among the first ones."""
    data = b"II*\0\x08\0\0\0\xff\xff" + tiff("<", SIDES)[10:]
    assert read_header(data + bytes(12 * 0xFFFF - len(data) - 1)) is None
    assert read_header(data + bytes(12 * 0xFFFF + 10 - len(data))) == Header(100)


@pytest.mark.parametrize("length", [0, 70])
def test_scans_of_jpegs_in_a_tiff_are_counted(length: int) -> None:
    place: list[Entry] = [("offset", "I", 8), ("length", "I", length)]
    data = jpeg(20)
    assert read_header(tiff("<", [*JPEG, *place], data)) == Header(100, 20)
    assert read_header(tiff("<", JPEG, data)) is None
    for one in place:
        assert read_header(tiff("<", [*JPEG, one], data)) is None


@pytest.mark.parametrize("kind", ["", "tile_"])
def test_most_scans_of_any_strip_or_tile_count(kind: str) -> None:
    assert read_header(strips(jpeg(3), jpeg(5), jpeg(1), kind=kind)) == Header(100, 5)
    assert read_header(strips(jpeg(0), bytes(9), kind=kind)) == Header(100, 1)


def test_scans_in_strips_and_in_tiles_are_counted() -> None:
    data = jpeg(4) + jpeg(6)
    first, second = [8, len(jpeg(4))], [8 + len(jpeg(4)), len(jpeg(6))]
    for strip, tile in ((first, second), (second, first)):
        entries: list[Entry] = [
            ("offset", "I", strip[0]),
            ("length", "I", strip[1]),
            ("tile_offset", "I", tile[0]),
            ("tile_length", "I", tile[1]),
        ]
        assert read_header(tiff("<", [*JPEG, *entries], data)) == Header(100, 6)


def test_strips_without_a_length_or_an_offset_are_left_out() -> None:
    data = jpeg(2) + jpeg(9)
    ends = [len(jpeg(2)), len(jpeg(9))]
    places = [8, 8 + ends[0]]
    for offsets, lengths in ((places[:1], ends), (places, ends[:1])):
        entries: list[Entry] = [("offset", "I", offsets), ("length", "I", lengths)]
        assert read_header(tiff("<", [*JPEG, *entries], data)) == Header(100, 2)


def test_jpeg_of_several_scans_counts_whole_though_its_strip_is_smaller() -> None:
    large = (300, 200)
    assert read_header(strips(jpeg(2, *large), jpeg(2, 5, 5))) == Header(60_000, 2)
    assert read_header(strips(jpeg(2, 5, 5), jpeg(3, *large))) == Header(60_000, 3)
    assert read_header(strips(jpeg(2, 5, 5))) == Header(100, 2)
    assert read_header(strips(jpeg(1, *large))) == Header(100, 1)  # is read row by row
    assert read_header(strips(jpeg(2, *large), compression=6)) == Header(100, 2)


def test_tiff_of_another_compression_has_one_scan() -> None:
    for compression in (1, 5, 8):
        assert read_header(strips(jpeg(9, 300, 200), compression=compression)) == Header(100)


def test_strip_of_several_scans_without_a_frame_is_damaged() -> None:
    assert read_header(strips(b"\xff\xd8" + b"\xff\xda" * 2)) is None


def test_strips_of_several_scans_are_limited() -> None:
    assert read_header(strips(*[jpeg(2)] * 4096)) == Header(100, 2)
    assert read_header(strips(*[jpeg(2)] * 4097)) is None
    assert read_header(strips(*[jpeg(1)] * 4097)) == Header(100, 1)


def test_strip_beyond_the_end_of_the_file_is_damaged() -> None:
    entries: list[Entry] = [("offset", "I", [8, 8]), ("length", "I", [9, 9])]
    data = tiff("<", [*JPEG, *entries])
    assert read_header(data) is not None
    place = struct.pack("<I", 16)  # of the lengths
    assert data.count(place) == 1
    assert read_header(data.replace(place, struct.pack("<I", len(data) - 8))) is not None
    assert read_header(data.replace(place, struct.pack("<I", len(data) - 7))) is None


@pytest.mark.parametrize("kind", range(0xBF, 0xD0))
def test_every_kind_of_jpeg_frame_is_read(kind: int) -> None:
    frame = struct.pack(">HBHH", 17, 8, 300, 200) + bytes(10)
    data = b"\xff\xd8\xff" + bytes([kind]) + frame + b"\xff\xda"
    is_frame = kind not in (0xBF, 0xC4, 0xC8, 0xCC)  # tables, reserved, arithmetic coding
    assert read_header(data) == (Header(60_000, 1, (300, 200)) if is_frame else None)


@pytest.mark.parametrize("width, height", [(1, 1), (16_384, 1), (300, 16_383), (1 << 24, 70_000)])
def test_every_size_of_a_webp_is_read(width: int, height: int) -> None:
    def riff(kind: bytes, content: bytes) -> bytes:
        return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + content

    extended = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    assert read_header(riff(b"VP8X", extended)) == Header(width * height)
    if width <= 1 << 14 and height <= 1 << 14:
        sides = (width - 1) | (height - 1) << 14 | 1 << 28  # with alpha
        lossless = riff(b"VP8L", b"\x2f" + struct.pack("<I", sides))
        assert read_header(lossless) == Header(width * height)
    if width < 1 << 14:
        # The two upper bits ask the caller to enlarge the picture, which no decoder does.
        lossy = riff(b"VP8 ", bytes(6) + struct.pack("<HH", width | 1 << 14, height | 2 << 14))
        assert read_header(lossy) == Header(width * height)
    assert read_header(riff(b"VP9 ", bytes(30))) is None


def test_png_without_data_is_damaged() -> None:
    data = FILES["PNG"]
    assert read_header(data[:33] + data[-12:]) is None
    assert read_header(data.replace(b"IHDR", b"IHDX")) is None


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
