from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from decode import REASONS, Decoder, ImageError
from image_limits import ImageLimits
from numpy.typing import NDArray
from support import PHOTO

LIMITS = ImageLimits(bytes=200_000, pixels=1_000_000)
PICTURE = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)


@pytest.fixture
def decode() -> Callable[[bytes], NDArray[np.uint8]]:
    return Decoder(LIMITS).decode


Decode = Callable[[bytes], NDArray[np.uint8]]


def encode(suffix: str, picture: NDArray[np.uint8] = PICTURE) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_formats_are_decoded_exactly(decode: Decode, suffix: str) -> None:
    np.testing.assert_array_equal(decode(encode(suffix)), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_are_decoded_as_by_opencv(decode: Decode, suffix: str) -> None:
    data = encode(suffix)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert expected is not None
    np.testing.assert_array_equal(decode(data), expected)


def test_grey_alpha_and_16_bits_become_three_channels_of_8(decode: Decode) -> None:
    grey = PICTURE[..., 0]
    np.testing.assert_array_equal(decode(encode(".png", grey)), np.dstack([grey] * 3))
    alpha = np.dstack([PICTURE, grey])
    np.testing.assert_array_equal(decode(encode(".png", alpha)), PICTURE)
    deep = (PICTURE.astype(np.uint16) * 257).astype(np.uint16)
    np.testing.assert_array_equal(decode(encode(".png", deep)), PICTURE)  # type: ignore[arg-type]


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Add an EXIF segment that holds only the orientation."""
    tiff = b"MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize(
    "orientation, undo",
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_exif_orientation_is_applied(
    decode: Decode, orientation: int, undo: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    plain = PHOTO.read_bytes()
    rotated = decode(with_orientation(plain, orientation))
    np.testing.assert_array_equal(rotated, undo(decode(plain)))


def test_base64_is_decoded_with_or_without_a_data_uri(decode: Decode) -> None:
    data = encode(".png") + bytes(1)
    assert len(data) % 3
    text = base64.b64encode(data)
    wrapped = base64.encodebytes(data)  # with line breaks
    for element in (
        text,
        wrapped,
        b"data:image/png;base64," + text,
        b"DATA:image/x;base64," + text,
        b"data:image/png;charset=utf-8;base64," + text,
        b"data:;base64," + text,
        b"data:;name=x;base64," + text,
        b'data:image/png;name="a,b;c.png";x=;base64,' + text,
        b"data:application/octet-stream;base64," + text,
        b"data:image/png;base64," + text.replace(b"+", b"%2B").replace(b"=", b"%3d"),
        base64.urlsafe_b64encode(data),
        base64.urlsafe_b64encode(data).rstrip(b"="),
        b"data:image/png;base64," + base64.urlsafe_b64encode(data).rstrip(b"="),
    ):
        np.testing.assert_array_equal(decode(element), PICTURE)
    assert {*b"+/="} <= {*text}


@pytest.mark.parametrize(
    "uri",
    [
        b"data:image/png,abc",
        b"data:base64,iVBORw0KGgo",
        b"data:image/png;base64",
        b"data:image/png;x;base64,iVBORw0KGgo",
        b"data:image/png;" + b"a=b;" * 2000 + b"base64,iVBORw0KGgo",
        b"data:",
    ],
)
def test_data_uri_without_base64_is_refused(decode: Decode, uri: bytes) -> None:
    with pytest.raises(
        ImageError, match="a data URI without base64; allowed: data:image"
    ) as caught:
        decode(uri)
    assert caught.value.reason == "undecodable"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "element, reason",
    [
        (b"", "empty"),
        (b"hello", "format"),
        (b"GIF89a" + bytes(20), "format"),
        (b"%PDF-1.4", "format"),
        (base64.b64encode(b"GIF89a" + bytes(20)), "format"),
        (b"data:image/png;base64,$$$", "undecodable"),
        (b"data:image/png;base64,abcde", "undecodable"),
        (b"data:;base64,ab=c", "undecodable"),
        (b"\xff\xd8\xff", "undecodable"),
        (PHOTO.read_bytes()[:700], "undecodable"),
        (encode(".png")[:40], "undecodable"),
        (png_of(0, 5), "undecodable"),
        (PHOTO.read_bytes() + bytes(200_000), "bytes"),
        (base64.b64encode(PHOTO.read_bytes() + bytes(200_000)), "bytes"),
        (b"x" * 400_000, "bytes"),
    ],
)
def test_element_that_is_no_image_is_refused_with_a_reason(
    decode: Decode, element: bytes, reason: str
) -> None:
    with pytest.raises(ImageError) as caught:
        decode(element)
    assert caught.value.reason == reason
    assert reason in REASONS
    assert caught.value.args == (str(caught.value),)  # the sentence alone


@pytest.mark.parametrize("size", [(60_000, 60_000), (1001, 1000), (1, 1_000_001)])
def test_too_many_pixels_are_refused_before_decoding(decode: Decode, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="over the limit of 1000000 pixels") as caught:
        decode(png_of(*size))
    assert caught.value.reason == "pixels"


def progressive(picture: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()


def with_scans(jpeg: bytes, more: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * more + jpeg[-2:]


def test_jpeg_of_too_many_scans_is_refused(decode: Decode) -> None:
    picture = np.zeros((500, 1000, 3), np.uint8)
    jpeg = progressive(picture)
    scans = jpeg.count(b"\xff\xda")
    np.testing.assert_array_equal(decode(with_scans(jpeg, 32 - scans)), picture)
    bomb = with_scans(jpeg, 33 - scans)
    for element in (bomb, base64.b64encode(bomb)):
        with pytest.raises(ImageError, match="a JPEG of 33 scans; allowed: 16000000 pix") as caught:
            decode(element)
        assert caught.value.reason == "scans"


def test_ordinary_progressive_jpeg_may_reach_the_pixel_limit(decode: Decode) -> None:
    assert decode(progressive(np.zeros((1000, 1000, 3), np.uint8))).shape == (1000, 1000, 3)


_READ = cv2.imread(str(PHOTO))
assert _READ is not None
_RESIZED = cv2.resize(_READ, (901, 600), interpolation=cv2.INTER_CUBIC)
LARGE = _RESIZED.astype(np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_jpeg_is_decoded_smaller_and_its_full_size_is_returned(factor: int) -> None:
    asked = []

    def reduction(height: int, width: int) -> int:
        asked.append((height, width))
        return factor

    picture, size = Decoder(LIMITS).decode_scaled(encode(".jpg", LARGE), reduction)
    assert asked == [(600, 901)]
    assert size == (600, 901)
    assert picture.shape[:2] == (-(-600 // factor), -(-901 // factor))
    smaller = cv2.resize(LARGE, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - smaller).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_smaller_picture_is_turned_like_the_full_one(orientation: int) -> None:
    decoder = Decoder(LIMITS)
    data = with_orientation(encode(".jpg", LARGE), orientation)
    whole = decoder.decode(data)
    picture, size = decoder.decode_scaled(data, lambda height, width: 4)
    assert size == whole.shape[:2]
    smaller = cv2.resize(whole, picture.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(picture.astype(int) - smaller).mean() < 3


def test_jpeg_is_not_reduced_if_the_result_is_ambiguous() -> None:
    nearly = LARGE[:599, :600]  # 300x300 at half the size, turned or not
    picture, size = Decoder(LIMITS).decode_scaled(encode(".jpg", nearly), lambda *_: 2)
    assert picture.shape[:2] == size == (599, 600)
    square = LARGE[:600, :600]
    picture, size = Decoder(LIMITS).decode_scaled(encode(".jpg", square), lambda *_: 2)
    assert (picture.shape[:2], size) == ((300, 300), (600, 600))


def test_other_formats_are_decoded_in_full_size() -> None:
    small = encode(".png", LARGE[:60, :90])
    picture, size = Decoder(LIMITS).decode_scaled(small, lambda *_: 8)
    assert picture.shape[:2] == size == (60, 90)


def test_file_may_be_exactly_as_large_as_allowed() -> None:
    data = encode(".png")
    for element in (data, base64.b64encode(data)):
        np.testing.assert_array_equal(
            Decoder(ImageLimits(bytes=len(data), pixels=77)).decode(element), PICTURE
        )
        with pytest.raises(ImageError, match=f"over the limit of {len(data) - 1} bytes"):
            Decoder(ImageLimits(bytes=len(data) - 1, pixels=77)).decode(element)
    with pytest.raises(ImageError, match="over the limit of 76 pixels"):
        Decoder(ImageLimits(bytes=len(data), pixels=76)).decode(data)


def test_base64_may_be_half_as_long_again_as_the_file_allowed() -> None:
    data = encode(".png")
    text = base64.b64encode(data)
    decoder = Decoder(ImageLimits(bytes=len(data), pixels=77))
    longest = text + b"\n" * (len(data) * 3 // 2 - len(text))
    np.testing.assert_array_equal(decoder.decode(longest), PICTURE)
    with pytest.raises(ImageError) as caught:
        decoder.decode(longest + b"\n")
    assert caught.value.reason == "bytes"


@pytest.mark.parametrize("length", [4096, 4097])
def test_data_before_those_of_a_data_uri_are_limited(decode: Decode, length: int) -> None:
    start, end = b"data:image/png;name=", b";base64,"
    uri = start + b"x" * (length - len(start) - len(end)) + end + base64.b64encode(encode(".png"))
    if length <= 4096:
        np.testing.assert_array_equal(decode(uri), PICTURE)
    else:
        with pytest.raises(ImageError, match="a data URI without base64"):
            decode(uri)


def test_pixels_of_every_file_are_given_back() -> None:
    decoder = Decoder(ImageLimits(bytes=200_000, pixels=100))
    damaged = encode(".png")[:-20] + bytes(20)
    for _ in range(2):
        np.testing.assert_array_equal(decoder.decode(encode(".png")), PICTURE)
        with pytest.raises(ImageError):
            decoder.decode(damaged)
        with pytest.raises(ImageError, match="data go on after its picture"):
            rows = zlib.compress(bytes(7 * 34 + (1 << 16) + 1))
            header = chunk(b"IHDR", struct.pack(">IIBBBBB", 11, 7, 8, 2, 0, 0, 0))
            decoder.decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows))
    decoder._budget.acquire(100)  # all of them, and no more
    assert decoder._budget._free == 0


def test_decoder_tells_opencv_the_pixel_limit_and_to_use_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1")
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        Decoder(ImageLimits(bytes=1, pixels=123))
        assert os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] == "123"
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)
