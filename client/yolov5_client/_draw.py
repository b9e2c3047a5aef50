"""Annotated pictures and crops. Needs OpenCV (the extra `draw`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ._detections import Detections

# Silence OpenCV's own messages; our errors report the same failures.
if hasattr(cv2, "setLogLevel"):
    cv2.setLogLevel(0)
else:  # since OpenCV 4.13
    cv2.utils.logging.setLogLevel(0)

Picture = NDArray[np.uint8]
"""[height, width, 3], BGR."""

# BGR. Neighbours in the list differ in hue and lightness; labels are black or white.
_COLOURS = (
    (56, 56, 255),
    (49, 210, 207),
    (255, 115, 100),
    (23, 204, 146),
    (31, 112, 255),
    (168, 153, 44),
    (236, 24, 0),
    (29, 178, 255),
    (187, 212, 0),
    (199, 55, 255),
)
_CROP_SCALE, _CROP_MARGIN = 1.02, 10  # factor and pixels by which YOLOv5 enlarges a crop


def decode(data: bytes) -> Picture:
    """Decode an image as it is displayed.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    try:
        # IMREAD_COLOR applies the EXIF orientation, as the server does.
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise ValueError("cannot be decoded for drawing")
    return picture.astype(np.uint8, copy=False)


def write(picture: Picture, target: Path) -> None:
    """Write a picture in the format of the target's suffix.

    Raises:
        ValueError: the picture is too large for the format.
        OSError: the file cannot be written.
    """
    try:
        fits, encoded = cv2.imencode(target.suffix, picture)
    except cv2.error:
        fits = False
    if not fits:
        height, width = picture.shape[:2]
        raise ValueError(f"{width}x{height} is too large for a {target.suffix} file")
    target.write_bytes(encoded.tobytes())


def draw(
    picture: Picture,
    detections: Detections,
    *,
    line: int | None = None,
    labels: bool = True,
    confidences: bool = True,
    colours: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Draw the detections into the picture, in place.

    Args:
        line: thickness in pixels; None chooses it by the picture's size.
        labels: draw the class names.
        confidences: draw the scores beside the class names.
        colours: BGR of each detection; None gives each class its own.
    """
    if colours is None:
        colours = [_COLOURS[index % len(_COLOURS)] for index in detections.classes.tolist()]
    height, width = picture.shape[:2]
    line = line or max(2, round((height + width) / 2 * 0.003))
    scale, stroke = line / 3, max(1, line - 1)
    # Draw the best detections last, on top.
    for box, score, colour, label in reversed(
        list(zip(detections.boxes, detections.scores, colours, detections.labels))
    ):
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line, cv2.LINE_AA)
        if not labels:
            continue
        text = f"{label} {score:.2f}" if confidences else label
        text = text.encode("ascii", "replace").decode()
        (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, stroke)
        # Above the box if there is space, otherwise inside; never beyond the picture's edge.
        left = max(0, min(x1, width - w))
        bottom = y1 if y1 - h - below >= 0 else min(height, y1 + h + below)
        cv2.rectangle(picture, (left, bottom - h - below), (left + w, bottom), colour, cv2.FILLED)
        cv2.putText(
            picture,
            text,
            (left, bottom - below // 2),
            cv2.FONT_HERSHEY_SIMPLEX,
            scale,
            _text_colour(colour),
            stroke,
            cv2.LINE_AA,
        )


def crop(picture: Picture, box: NDArray[np.float32]) -> Picture:
    """Cut out a box with a margin, as YOLOv5 does.

    Args:
        box: float32 [4]: x1, y1, x2, y2 in pixels of the picture.
    """
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = (float(side) for side in box)
    half_w = ((x2 - x1) * _CROP_SCALE + _CROP_MARGIN) / 2
    half_h = ((y2 - y1) * _CROP_SCALE + _CROP_MARGIN) / 2
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    left, right = max(0, int(centre_x - half_w)), min(width, int(centre_x + half_w))
    top, bottom = max(0, int(centre_y - half_h)), min(height, int(centre_y + half_h))
    return picture[top:bottom, left:right]


def _text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    blue, green, red = background
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red  # ITU-R BT.601
    return (0, 0, 0) if luminance > 127 else (255, 255, 255)
