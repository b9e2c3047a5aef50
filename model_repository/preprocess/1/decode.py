"""Decode encoded bytes into a picture, or refuse them with one sentence.

To allow a further format, add its name to `FORMATS`, its first bytes to `_SIGNATURES`, a reader of
its size to `headers.py`, and to `strip.py` what a still picture does not need. If OpenCV does not
decode it, `Decoder._imdecode` has to call what does. The client looks for the endings in
`IMAGE_SUFFIXES` of `client/yolov5_client/_sources.py`.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import struct
from collections.abc import Callable
from copy import copy
from typing import cast

import numpy as np
from headers import Header, read_header
from image_limits import ImageLimits
from numpy.typing import NDArray
from pixel_budget import PixelBudget
from png_rows import MAX_TRAILING, TrailingDataError, inflate_rows
from strip import strip_to_still

FORMATS = "JPEG, PNG, WebP, BMP, TIFF"

# First bytes of the allowed formats. OpenCV would recognise further formats by their content.
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM|II[*+]\x00|MM\x00[*+]", re.DOTALL
)
# By RFC 2397 the type and all parameters are optional. The type is ignored.
_DATA_URI = re.compile(
    rb"""data:(?:[\w.+-]+/[\w.+-]+)?(?:;[^;,="]+=(?:"[^"]*"|[^;,"]*))*;base64,""", re.IGNORECASE
)
_DATA_URI_LENGTH = 4096  # bytes before the data, at most
_WHITE_SPACE = b" \t\r\n"
# Escapes of base64 characters in a URI. (`unquote` takes 80 bytes of memory for each escape.)
_ESCAPED = (
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%2F", b"/"),
    (b"%2f", b"/"),
    (b"%3D", b"="),
    (b"%3d", b"="),
)
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")


REASONS = ("empty", "format", "undecodable", "bytes", "pixels", "scans")

# Scans, which are passes over the picture, allowed for a JPEG at the pixel limit; a smaller one may
# have more. A progressive JPEG of a camera or an editor has about 10, a hostile one thousands, in
# few bytes.
MAX_SCANS = 16


class ImageError(ValueError):
    """The image is refused; the message continues "image 2 of 4: ".

    Attributes:
        reason: one of `REASONS`, for the metrics.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Decoder:
    """Decodes within limits, in several threads at the same time.

    OpenCV reads its own pixel limit from the environment when it is first imported. It is therefore
    imported here, where the limit is known.
    """

    def __init__(self, limits: ImageLimits) -> None:
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(limits.pixels)
        os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # a damaged file is the caller's business
        import cv2

        cv2.setNumThreads(1)  # the images of a batch already run in parallel
        self._cv2 = cv2
        self._flags = {
            1: cv2.IMREAD_COLOR,
            2: cv2.IMREAD_REDUCED_COLOR_2,
            4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8,
        }
        self._limits = limits
        # Decoding takes up to 15 bytes for each pixel: large pictures on all of many cores at the
        # same time would take more memory than there is.
        self._budget = PixelBudget(limits.pixels)

    def limited_to(self, limits: ImageLimits) -> Decoder:
        """A decoder with lower limits, which shares what is decoded at the same time."""
        decoder = copy(self)
        decoder._limits = limits
        return decoder

    def decode(self, element: bytes) -> NDArray[np.uint8]:
        """Decode in full size: BGR uint8 [H, W, 3]; otherwise as `decode_scaled`."""
        return self.decode_scaled(element, full_size)[0]

    def decode_scaled(
        self, element: bytes, reduction: Callable[[int, int], int]
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decode one element of the input: an image file, its base64 text, or its data URI.

        Args:
            reduction: given height and width, returns how many times smaller the picture may be:
                1, 2, 4 or 8. Only a JPEG is decoded smaller, which saves work; other formats
                have no such short cut.

        Returns:
            The BGR picture as it is displayed (EXIF orientation applied), uint8 [h, w, 3]; and its
            height and width in full size.

        Raises:
            ImageError: not an image of an allowed format, damaged, or over a limit.
        """
        data, header = self._check(self._unwrap(element))
        factor = _safe_factor(header, reduction)
        picture = self._imdecode(data, header.pixels, factor)
        height, width = picture.shape[:2]
        if factor > 1 and header.sides is not None:
            upright = (height, width) == _reduced(header.sides, factor)
            height, width = header.sides if upright else header.sides[::-1]
        return picture, (height, width)

    def _imdecode(self, data: bytes, pixels: int, factor: int) -> NDArray[np.uint8]:
        self._budget.acquire(pixels)
        try:
            file = _inflate_png(data) if data.startswith(b"\x89PNG") else data
            picture = self._cv2.imdecode(np.frombuffer(file, np.uint8), self._flags[factor])
        except self._cv2.error:
            raise self._undecodable() from None
        finally:
            self._budget.release(pixels)
        if picture is None or picture.size == 0:
            raise self._undecodable()
        return cast("NDArray[np.uint8]", picture)

    def _check(self, data: bytes) -> tuple[bytes, Header]:
        """Return the file for the decoder, and its header; refuse a file that costs too much."""
        if len(data) > self._limits.bytes:
            raise self._too_many_bytes()
        if not _SIGNATURES.match(data):
            raise ImageError("format", f"not an image of a supported format; allowed: {FORMATS}")
        try:
            data = strip_to_still(data)
        except (struct.error, ValueError, OverflowError):
            raise self._undecodable() from None
        header = read_header(data)
        if header is None:
            raise self._undecodable()
        if header.pixels > self._limits.pixels:
            raise ImageError(
                "pixels", f"over the limit of {self._limits.pixels} pixels (width times height)"
            )
        if header.pixels * header.scans > MAX_SCANS * self._limits.pixels:
            raise ImageError(
                "scans",
                f"a JPEG of {header.scans} scans; allowed: {MAX_SCANS * self._limits.pixels}"
                " pixels in all scans together",
            )
        return data, header

    def _unwrap(self, element: bytes) -> bytes:
        """The bytes of the file; decoded if they came as base64."""
        if not element:
            raise ImageError(
                "empty", f"no bytes at all; allowed: {FORMATS}, or one of them as base64"
            )
        if len(element) > self._limits.bytes * 3 // 2:  # 4/3 for base64, and its line breaks
            raise self._too_many_bytes()
        if _SIGNATURES.match(element):
            return element
        if element[:5].lower() == b"data:":
            return _from_uri(element)
        try:
            return _from_base64(element)
        except binascii.Error:
            return element

    def _too_many_bytes(self) -> ImageError:
        return ImageError("bytes", f"over the limit of {self._limits.bytes} bytes")

    def _undecodable(self) -> ImageError:
        return ImageError(
            "undecodable",
            "cannot be decoded, as the file is damaged or cut off; allowed: whole files",
        )


def _inflate_png(png: bytes) -> bytes | bytearray:
    """The PNG with uncompressed rows and nothing after them."""
    try:
        return inflate_rows(png)
    except TrailingDataError:
        raise ImageError(
            "undecodable",
            f"a PNG whose data go on after its picture; allowed: {MAX_TRAILING} bytes more",
        ) from None


def _from_uri(uri: bytes) -> bytes:
    prefix = _DATA_URI.match(uri[:_DATA_URI_LENGTH])
    if prefix is None:
        raise ImageError(
            "undecodable", "a data URI without base64; allowed: data:image/...;base64,..."
        )
    text = uri[prefix.end() :]
    if b"%" in text:
        for escape, character in _ESCAPED:
            text = text.replace(escape, character)
    try:
        return _from_base64(text)
    except binascii.Error:
        raise ImageError(
            "undecodable", "a data URI whose base64 is damaged; allowed: whole base64"
        ) from None


def _from_base64(text: bytes) -> bytes:
    """Decode base64 in its usual or URL-safe alphabet, with or without padding.

    Raises:
        binascii.Error: it is something else.
    """
    text = text.translate(_FROM_URL_SAFE, _WHITE_SPACE)
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def full_size(height: int, width: int) -> int:
    """A `reduction` for `decode_scaled` that reduces nothing."""
    return 1


def _safe_factor(header: Header, reduction: Callable[[int, int], int]) -> int:
    if header.sides is None:
        return 1
    factor = reduction(*header.sides)
    height, width = _reduced(header.sides, factor)
    # The reduced sides must differ, or else the result does not show whether EXIF turned it.
    return factor if height != width or header.sides[0] == header.sides[1] else 1


def _reduced(sides: tuple[int, int], factor: int) -> tuple[int, int]:
    """Height and width of the smaller picture, rounded up as the decoder does."""
    height, width = sides
    return -(-height // factor), -(-width // factor)
