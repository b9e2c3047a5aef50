"""Pictures with the detections drawn into them. Needs OpenCV, which is imported on first use."""

from __future__ import annotations

from http import HTTPStatus

from .. import Detections
from .problems import ProblemError
from .request_images import encoded

# Decoded, such a picture takes 120 MB.
MAX_PIXELS = 40_000_000


def draw_jpeg(image: bytes, found: Detections) -> bytes:
    """Draw the detections and return the picture as JPEG.

    Args:
        image: as the caller sent it.
        found: its detections.

    Raises:
        ProblemError: the picture is too large, or cannot be decoded here.
    """
    import cv2

    from .._draw import decode, draw

    height, width = found.image_size
    if height * width > MAX_PIXELS:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST,
            f"the image has {width}x{height} pixels; allowed: at most {MAX_PIXELS} in all, if the"
            " answer is a picture",
        )
    try:
        picture = decode(encoded(image))
    except ValueError as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"the image {error}") from None
    draw(picture, found)
    return cv2.imencode(".jpg", picture)[1].tobytes()
