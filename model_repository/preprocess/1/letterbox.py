"""A picture of any size -> the network's input, and the way back.

The arithmetic is YOLOv5's (v7.0, `detect.py` with an exported model), down to the rounding, since
answers are compared with it: the picture is scaled to fit, centred, and padded with grey 114.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from placement import Placement

PAD_VALUE = 114


def letterbox(
    picture: NDArray[np.uint8],
    height: int,
    width: int,
    mode: str = "square",
    stride: int = 32,
    *,
    size: tuple[int, int] | None = None,
) -> tuple[NDArray[np.uint8], Placement]:
    """Fit `picture` [h, w, 3] into [height, width, 3].

    Args:
        size: height and width of the picture that this one is a smaller copy of, in whose pixels
            it is to be placed.
        mode: `square` keeps the picture's proportions and pads to the whole of the input; `rect`
            pads only to the next multiple of `stride`, so that the result may be smaller;
            `stretch` keeps no proportions and pads nothing.
    """
    h, w = size or picture.shape[:2]
    if mode == "stretch":
        placement = Placement(
            gain_x=width / w, gain_y=height / h, pad_x=0.0, pad_y=0.0, height=h, width=w
        )
        return _resize(picture, height, width), placement

    gain = min(height / h, width / w)
    # A picture 1 pixel wide and very high must not vanish.
    scaled_h, scaled_w = max(1, round(h * gain)), max(1, round(w * gain))
    if mode == "rect":
        height, width = _up_to(stride, scaled_h), _up_to(stride, scaled_w)
        # The reference finds its way back from the padded size, which rounding may have made a
        # little smaller than the exact one.
        gain = min(height / h, width / w)
    # The padding that the pixels get is a whole number; the way back uses the exact one, as the
    # reference does. The 0.1 decides which side gets the odd pixel.
    top = round((height - scaled_h) / 2 - 0.1)
    left = round((width - scaled_w) / 2 - 0.1)
    canvas = np.full((height, width, 3), PAD_VALUE, np.uint8)
    canvas[top : top + scaled_h, left : left + scaled_w] = _resize(picture, scaled_h, scaled_w)
    placement = Placement(
        gain_x=gain,
        gain_y=gain,
        pad_x=(width - w * gain) / 2,
        pad_y=(height - h * gain) / 2,
        height=h,
        width=w,
    )
    return canvas, placement


def reduction(h: int, w: int, *, height: int, width: int, mode: str = "square") -> int:
    """How many times smaller a picture may arrive at `letterbox` so that it is not enlarged there.

    Args:
        h, w: of the picture, which may still be turned by a quarter.

    Returns:
        1, 2, 4 or 8.
    """
    widest = min if mode == "stretch" else max
    fits = min(widest(h / height, w / width), widest(w / height, h / width))
    return next((factor for factor in (8, 4, 2) if factor <= fits), 1)


def enlarge(
    canvas: NDArray[np.uint8], placement: Placement, height: int, width: int
) -> tuple[NDArray[np.uint8], Placement]:
    """Pad a canvas on all sides to [height, width, 3], which is at least as large."""
    h, w = canvas.shape[:2]
    if (h, w) == (height, width):
        return canvas, placement
    top, left = (height - h) // 2, (width - w) // 2
    larger = np.full((height, width, 3), PAD_VALUE, np.uint8)
    larger[top : top + h, left : left + w] = canvas
    return larger, replace(placement, pad_x=placement.pad_x + left, pad_y=placement.pad_y + top)


def _up_to(stride: int, side: int) -> int:
    return -(-side // stride) * stride


def _resize(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)
