"""Photos prepared the way YOLOv5's validation does it, so that the server has nothing left to do.

Needs OpenCV (the extra `draw`). Against `detect.py`, validation shrinks by averaging in place of
bilinear interpolation, and rounds the sides down. It puts the photo into the middle of a square for
an exported network; for PyTorch weights into a rectangle that is up to two strides larger than
needed, and the same for 32 photos of similar proportions.
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
    """Where a photo lies on its canvas: canvas pixel = photo pixel * gain + pad, in x and in y.

    Attributes:
        size: the photo's height and width.
    """

    gain: tuple[float, float]
    pad: tuple[float, float]
    size: tuple[int, int]

    def to_photo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes [n, 4], x1 y1 x2 y2 on the canvas, in pixels of the photo and clipped to it."""
        height, width = self.size
        moved = (boxes - np.tile(self.pad, 2)) / np.tile(self.gain, 2)
        clipped: NDArray[np.float32] = moved.clip(0, np.tile((width, height), 2)).astype(np.float32)
        return clipped


def place(photo: Picture, imgsz: int, canvas: tuple[int, int]) -> tuple[Picture, Placement]:
    """The photo on its canvas of height and width, its longest side `imgsz` pixels."""
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
    """As a PNG, which loses nothing."""
    return cv2.imencode(".png", canvas)[1].tobytes()


def rectangles(imgsz: int, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Height and width of the canvas for each photo, of these heights and widths, with PyTorch."""
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
