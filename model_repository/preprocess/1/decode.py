"""Encoded bytes -> a picture, or one sentence about why not."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

FORMATS = "JPEG, PNG, WebP, BMP, TIFF"

# How the files of the allowed formats begin. OpenCV would take others too, by content as well.
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|BM|II\*\x00|MM\x00\*", re.DOTALL
)
_DATA_URI = re.compile(rb"data:image/[\w.+-]*;base64,", re.IGNORECASE)
_WHITE_SPACE = b" \t\r\n"


REASONS = ("empty", "format", "undecodable", "bytes", "pixels")


class ImageError(ValueError):
    """The image is refused; the message goes on after "image 2 of 4: ".

    Attributes:
        reason: one of `REASONS`, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ImageLimits:
    """What one image may be: `bytes` of the encoded file, `pixels` of the decoded picture."""

    bytes: int
    pixels: int


class Decoder:
    """Decodes within limits.

    OpenCV reads its own pixel limit from the environment when it is first imported, so it is
    imported here, after the limit is known.
    """

    def __init__(self, limits: ImageLimits) -> None:
        os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(limits.pixels)
        os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # a damaged file is no event
        import cv2

        cv2.setNumThreads(1)  # what runs in parallel is the images of a batch
        self._cv2 = cv2
        self._limits = limits

    def decode(self, element: bytes) -> NDArray[np.uint8]:
        """Decode one element of the input: an image file, base64 text of one, or its data URI.

        Returns:
            BGR picture as it is displayed (EXIF orientation applied), uint8 [H, W, 3].

        Raises:
            ImageError: not an image of an allowed format, damaged, or over a limit.
        """
        data = self._unwrap(element)
        if len(data) > self._limits.bytes:
            raise self._too_many_bytes()
        if not _SIGNATURES.match(data):
            raise ImageError("format", f"not an image of a supported format; allowed: {FORMATS}")
        cv2 = self._cv2
        try:
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            # OpenCV holds the size in the header against its limit before it allocates anything.
            if "CV_IO_MAX_IMAGE" in str(error):
                raise self._too_many_pixels() from None
            picture = None
        if picture is None or picture.size == 0:
            raise ImageError(
                "undecodable",
                "cannot be decoded, as the file is damaged or cut off; allowed: whole files",
            )
        if picture.shape[0] * picture.shape[1] > self._limits.pixels:
            raise self._too_many_pixels()
        return cast("NDArray[np.uint8]", picture)

    def _unwrap(self, element: bytes) -> bytes:
        """The file's own bytes, out of base64 where they came as text."""
        if not element:
            raise ImageError(
                "empty", f"no bytes at all; allowed: {FORMATS}, or one of them as base64"
            )
        if len(element) > self._limits.bytes * 3 // 2:  # 4/3 for base64, and its line breaks
            raise self._too_many_bytes()
        if _SIGNATURES.match(element):
            return element
        prefix = _DATA_URI.match(element)
        text = element[prefix.end() :] if prefix else element
        try:
            return base64.b64decode(text.translate(None, _WHITE_SPACE), validate=True)
        except binascii.Error:
            if prefix:
                raise ImageError(
                    "undecodable", "a data URI whose base64 is damaged; allowed: whole base64"
                ) from None
            return element

    def _too_many_bytes(self) -> ImageError:
        return ImageError("bytes", f"over the limit of {self._limits.bytes} bytes")

    def _too_many_pixels(self) -> ImageError:
        return ImageError(
            "pixels", f"over the limit of {self._limits.pixels} pixels (width times height)"
        )
