"""Photos prepared as YOLOv5's validation does, which the server then leaves unchanged.

Needs OpenCV (the extra `draw`). Unlike `detect.py`, validation shrinks by averaging instead of
bilinear interpolation, and rounds the sides down. For an exported network it centres the photo in a
square. For PyTorch weights it uses a rectangle that is up to two strides larger than needed, and is
shared by 32 photos of similar proportions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ._draw import Picture

_GREY = 114
_STRIDE = 32
_BATCH = 32  # val.py's default


@dataclass(frozen=True)
class Placement:
    """The place of a photo on its canvas: canvas pixel = photo pixel * gain + pad.

    Attributes:
        gain: factors in x and y.
        pad: canvas pixels in x and y.
        size: height and width of the photo in pixels.
    """

    gain: tuple[float, float]
    pad: tuple[float, float]
    size: tuple[int, int]

    def to_photo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes [n, 4], x1 y1 x2 y2, from canvas to photo pixels, clipped to the photo."""
        height, width = self.size
        moved = (boxes - np.tile(self.pad, 2)) / np.tile(self.gain, 2)
        clipped: NDArray[np.float32] = moved.clip(0, np.tile((width, height), 2)).astype(np.float32)
        return clipped


def place(photo: Picture, imgsz: int, canvas: tuple[int, int]) -> tuple[Picture, Placement]:
    """Scale a photo to a longest side of `imgsz` pixels and centre it on a canvas.

    Args:
        canvas: height and width in pixels.
    """
    h0, w0 = photo.shape[:2]
    ratio = imgsz / max(h0, w0)
    if ratio != 1:
        sides = max(1, int(w0 * ratio)), max(1, int(h0 * ratio))
        method = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        photo = cv2.resize(photo, sides, interpolation=method).astype(np.uint8, copy=False)
    h, w = photo.shape[:2]
    height, width = canvas
    top, left = round((height - h) / 2 - 0.1), round((width - w) / 2 - 0.1)
    result = np.full((height, width, 3), _GREY, np.uint8)
    result[top : top + h, left : left + w] = photo
    pad = (width - w) / 2, (height - h) / 2
    return result, Placement((w / w0, h / h0), pad, (h0, w0))


def encode(canvas: Picture) -> bytes:
    """Encode as PNG, which is lossless."""
    return cv2.imencode(".png", canvas)[1].tobytes()


def rectangles(imgsz: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return height and width of the canvas for each photo, as chosen for PyTorch weights.

    Args:
        sizes: height and width of each photo in pixels.
    """
    ratios = np.array([h / w for h, w in sizes])
    order = ratios.argsort()
    result = [(0, 0)] * len(sizes)
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        highest, widest = ratios[batch].max(), ratios[batch].min()
        parts = (highest, 1.0) if highest < 1 else (1.0, 1 / widest) if widest > 1 else (1.0, 1.0)
        height, width = (math.ceil(part * imgsz / _STRIDE + 0.5) * _STRIDE for part in parts)
        for index in batch.tolist():
            result[index] = (height, width)
    return result
