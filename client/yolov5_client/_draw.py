"""Annotated pictures. The only module that needs OpenCV (the extra `draw`)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ._detections import Detections

# BGR. Neighbours in the list differ in hue and lightness; the text on them is black or white.
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


def draw(source: Path, detections: Detections, target: Path) -> None:
    """Write a copy of the picture `source` with the detections drawn in.

    Raises:
        OSError: it cannot be decoded here, or not be written.
    """
    # IMREAD_COLOR applies the EXIF orientation, as the server does.
    picture = cv2.imdecode(np.fromfile(source, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise OSError(f"{source} cannot be decoded for drawing")
    height, width = picture.shape[:2]
    line = max(2, round((height + width) / 2 * 0.003))
    scale = line / 3
    # Weakest first, so that the surest end up on top.
    for box, score, index, label in reversed(
        list(zip(detections.boxes, detections.scores, detections.classes, detections.labels))
    ):
        colour = _COLOURS[int(index) % len(_COLOURS)]
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, line, cv2.LINE_AA)
        text = f"{label} {score:.2f}".encode("ascii", "replace").decode()
        (w, h), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, max(1, line - 1))
        # Above the box where there is room, else inside it; never beyond the picture's edge.
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
            max(1, line - 1),
            cv2.LINE_AA,
        )
    if not cv2.imwrite(str(target), picture):
        raise OSError(f"{target} cannot be written")


def _text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    blue, green, red = background
    luminance = 0.114 * blue + 0.587 * green + 0.299 * red  # ITU-R BT.601
    return (0, 0, 0) if luminance > 127 else (255, 255, 255)
