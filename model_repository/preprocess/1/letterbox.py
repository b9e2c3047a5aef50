"""Fit a picture of any size into the network's input.

The arithmetic is that of YOLOv5 (v7.0, `detect.py` with an exported model), including the rounding,
since answers are compared with it: the picture is scaled to fit, centred, and padded with grey 114.
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
    whole_padding: bool = False,
) -> tuple[NDArray[np.uint8], Placement]:
    """Fit `picture` [h, w, 3] into [height, width, 3].

    Args:
        mode: `square` keeps the proportions and pads to the whole input; `rect` pads only to the
            next multiple of `stride`, and the result may be smaller; `stretch` does neither.
        size: of the original, if `picture` is a smaller copy; the placement is in its pixels.
        whole_padding: of the placement; not rounded otherwise.
    """
    h, w = size or picture.shape[:2]
    if mode == "stretch":
        return _resize(picture, height, width), _place_stretched(h, w, height, width)
    gain = min(height / h, width / w)
    # A picture 1 pixel wide and very high must keep a pixel.
    scaled_h, scaled_w = max(1, round(h * gain)), max(1, round(w * gain))
    if mode == "rect":
        height, width = _up_to(stride, scaled_h), _up_to(stride, scaled_w)
        # The reference takes the gain from the padded size, which rounding may have made smaller.
        gain = min(height / h, width / w)
    canvas = _draw(picture, scaled_h, scaled_w, height, width)
    return canvas, _place_centred(h, w, height, width, gain, whole_padding)


def _place_stretched(h: int, w: int, height: int, width: int) -> Placement:
    return Placement(gain_x=width / w, gain_y=height / h, pad_x=0.0, pad_y=0.0, height=h, width=w)


def _place_centred(h: int, w: int, height: int, width: int, gain: float, whole: bool) -> Placement:
    """Without `whole`, the padding is exact: YOLOv5 rounds that of the pixels, not of the boxes.

    The `ultralytics` package rounds both (https://github.com/ultralytics/ultralytics/pull/23967),
    and the answers of its networks are compared with its own.
    """
    pad_x, pad_y = (width - w * gain) / 2, (height - h * gain) / 2
    if whole:
        pad_x = (width - max(1, round(w * gain))) // 2
        pad_y = (height - max(1, round(h * gain))) // 2
    return Placement(gain_x=gain, gain_y=gain, pad_x=pad_x, pad_y=pad_y, height=h, width=w)


def _draw(picture: NDArray[np.uint8], h: int, w: int, height: int, width: int) -> NDArray[np.uint8]:
    """Scale to [h, w], and pad on all sides; an odd pixel goes to the bottom or the right.

    The picture is scaled into its place: to make it apart and copy it takes longer.
    """
    if (h, w) == (height, width):
        return _resize(picture, h, w)
    top, left = (height - h) // 2, (width - w) // 2
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:top] = canvas[top + h :] = PAD_VALUE
    rows = canvas[top : top + h]
    rows[:, :left] = rows[:, left + w :] = PAD_VALUE
    place = rows[:, left : left + w]
    if picture.shape[:2] == (h, w):
        place[...] = picture
    else:
        cv2.resize(picture, (w, h), place, interpolation=cv2.INTER_LINEAR)
    return canvas


def reduction(h: int, w: int, *, height: int, width: int, mode: str = "square") -> int:
    """How many times smaller a picture may be decoded, without `letterbox` enlarging it again.

    Args:
        h, w: size of the picture, which EXIF may still turn by 90 degrees.

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
    pad_x, pad_y = placement.pad_x + (width - w) // 2, placement.pad_y + (height - h) // 2
    return _draw(canvas, h, w, height, width), replace(placement, pad_x=pad_x, pad_y=pad_y)


def _up_to(stride: int, side: int) -> int:
    return -(-side // stride) * stride


def _resize(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if picture.shape[:2] == (height, width):
        return picture
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8, copy=False)
