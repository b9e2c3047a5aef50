"""A picture of what two networks find differently in one photo. Needs OpenCV."""

from __future__ import annotations

import cv2
import numpy as np

from ._agreement import Indices, PhotoAgreement
from ._detections import Detections
from ._draw import Picture, draw

Colour = tuple[int, int, int]  # BGR

# Of Okabe and Ito's palette, which people with any colour vision can tell apart.
_AGREED: Colour = (115, 158, 0)
_OTHER_CLASS: Colour = (66, 228, 240)
_ALONE: Colour = (0, 94, 213)
_LEGEND = ((_AGREED, "both"), (_OTHER_CLASS, "other class"), (_ALONE, "only here"))
_GROUND, _INK = (255, 255, 255), (32, 32, 32)
_LEAST, _MOST = 480, 1280  # pixels of a photo's longest side in the picture
_NARROWEST = 320  # pixels of one side, for its title
_BAR, _GAP, _SQUARE = 36, 8, 16  # pixels
_FONT, _SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.55


def side_by_side(picture: Picture, photo: PhotoAgreement, titles: tuple[str, str]) -> Picture:
    """Draw the detections of A on the left and those of B on the right, with a legend.

    The labels of agreed boxes are left out, unless nothing else is different than the scores.

    Args:
        picture: [height, width, 3] BGR; it is not changed.
        titles: of A and B.

    Returns:
        The picture, with the photo at 480 to 1280 pixels on its longest side.
    """
    longest = max(picture.shape[:2])
    scale = min(max(longest, _LEAST), _MOST) / longest
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    scaled = cv2.resize(picture, (width, height), interpolation=way)
    panels = []
    for found, pairs, only, title in (
        (photo.a, photo.pairs_a, photo.only_a, titles[0]),
        (photo.b, photo.pairs_b, photo.only_b, titles[1]),
    ):
        panel = scaled.astype(np.uint8)
        agreed, differing = pairs[photo.same], pairs[~photo.same]
        _draw(panel, found, scale, agreed, _AGREED, labels=not photo.differing)
        _draw(panel, found, scale, only, _ALONE)
        _draw(panel, found, scale, differing, _OTHER_CLASS)
        if (missing := _NARROWEST - width) > 0:
            panel = np.hstack((panel, np.full((height, missing, 3), _GROUND, np.uint8)))
        bar = np.full((_BAR, panel.shape[1], 3), _GROUND, np.uint8)
        _write(bar, f"{title}: {len(found)} found", _GAP)
        panels.append(np.vstack((bar, panel)))
    gap = np.full((len(panels[0]), _GAP, 3), _GROUND, np.uint8)
    both = np.hstack((panels[0], gap, panels[1]))
    result: Picture = np.vstack((both, _legend(both.shape[1])))
    return result


def _draw(
    panel: Picture,
    found: Detections,
    scale: float,
    indices: Indices,
    colour: Colour,
    *,
    labels: bool = True,
) -> None:
    height, width = panel.shape[:2]
    chosen = Detections(
        boxes=found.boxes[indices] * np.float32(scale),
        scores=found.scores[indices],
        classes=found.classes[indices],
        labels=tuple(found.labels[index] for index in indices.tolist()),
        image_size=(height, width),
    )
    draw(panel, chosen, line=2, labels=labels, colours=[colour] * len(chosen))


def _legend(width: int) -> Picture:
    bar = np.full((_BAR, width, 3), _GROUND, np.uint8)
    left = _GAP
    for colour, text in _LEGEND:
        top = (_BAR - _SQUARE) // 2
        cv2.rectangle(bar, (left, top), (left + _SQUARE, top + _SQUARE), colour, cv2.FILLED)
        left = _write(bar, text, left + _SQUARE + _GAP) + 3 * _GAP
    return bar


def _write(bar: Picture, text: str, left: int) -> int:
    """Write a line into a bar, and return where it ends."""
    text = text.encode("ascii", "replace").decode()
    (width, height), _ = cv2.getTextSize(text, _FONT, _SCALE, 1)
    place = (left, (_BAR + height) // 2)
    cv2.putText(bar, text, place, _FONT, _SCALE, _INK, 1, cv2.LINE_AA)
    return left + width
