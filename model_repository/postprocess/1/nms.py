"""Turn the network's rows into detections, in pixels of their images, a whole batch in one pass.

`candidates.py` says which rows count, by the rules of YOLOv5 (v7.0). Non-maximum suppression runs
per class, or over all classes with agnostic_nms. Boxes that an end-to-end network has chosen are
not suppressed.

The work is done on the device of the rows; the result is moved to the host once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from batch_suppression import suppress_batch
from batch_thresholds import BatchThresholds
from candidates import Candidates, InputError, find_candidates, portions, select_rows
from numpy.typing import NDArray
from placement import GAIN, PAD, SIZE
from torch import Tensor

__all__ = ["Detections", "InputError", "check_lowest", "detect"]


@dataclass(frozen=True)
class Detections:
    """The detections of B images, one image after the other, and best first in each.

    Attributes:
        boxes: [K, 4] float32: x1, y1, x2, y2 in pixels of the image, clipped to it.
        scores: [K] float32.
        classes: [K] int64.
        counts: how many are of each image, at most its max_det.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    counts: list[int]


def check_lowest(conf_thres: NDArray[np.float32], class_conf_thres: NDArray[np.float32]) -> None:
    """Check that no class needs rows that the network may have left out.

    Args:
        conf_thres: [B], the confidence that the network was given with each image.
        class_conf_thres: [B, C].

    Raises:
        InputError: it is not the lowest of the classes.
    """
    if not np.array_equal(conf_thres, class_conf_thres.min(1)):
        raise InputError("conf_thres is not the lowest of class_conf_thres; allowed: the lowest")


def detect(
    outputs: Sequence[Tensor],
    thresholds: BatchThresholds,
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> Detections:
    """Find the detections of each image, best first.

    Args:
        outputs: `output0` of each request: [b, n, 5 + C] or [b, n, 6] float, as the head has them,
            on one device. The number of rows n may differ.
        thresholds: of the images of all requests, on the same device.
        best_class_only, end_to_end: of the head. With the latter, `iou_thres` has no effect.

    Raises:
        InputError: multi_label is requested of rows [N, 6], or a class index is out of range.
    """
    images = len(thresholds.by_image)
    rows = select_rows(outputs, thresholds.conf_thres)
    found = []
    for first, end, part in portions(rows, images):
        asked = thresholds if end - first == images else thresholds.part(first, end)
        candidates = find_candidates(part, asked, reduced=best_class_only or end_to_end)
        found.append(_sort(_choose(candidates, asked, suppressing=not end_to_end), asked))
    return found[0] if len(found) == 1 else _join(found)


def _join(found: Sequence[Detections]) -> Detections:
    return Detections(
        np.concatenate([one.boxes for one in found]),
        np.concatenate([one.scores for one in found]),
        np.concatenate([one.classes for one in found]),
        [count for one in found for count in one.counts],
    )


def _choose(
    candidates: Candidates, thresholds: BatchThresholds, *, suppressing: bool
) -> NDArray[np.float32]:
    """The boxes that are reported, and perhaps more of an image than its max_det, on the host.

    Returns:
        [K, 7]: x1, y1, x2, y2 in model pixels, score, class, index of the image. Of each image the
        best are first.
    """
    if suppressing:
        candidates = candidates._replace(boxes=corners(candidates.boxes))
        kept = suppress_batch(candidates, thresholds)
    else:
        kept = candidates.scores.sort(descending=True, stable=True).indices
    chosen: NDArray[np.float32] = as_columns(candidates)[kept].cpu().numpy()  # one copy
    return chosen


def _sort(chosen: NDArray[np.float32], thresholds: BatchThresholds) -> Detections:
    """Put the boxes of each image together, and leave out what is over its max_det."""
    images = chosen[:, 6].astype(np.int64)
    if len(thresholds.by_image) > 1:
        order = images.argsort(kind="stable")
        chosen, images = chosen[order], images[order]
    counts = np.bincount(images, minlength=len(thresholds.by_image))
    most = np.array([one.max_det for one in thresholds.by_image])
    if (counts > most).any():
        place = np.arange(len(images)) - (counts.cumsum() - counts)[images]
        is_kept = place < most[images]
        chosen, images = chosen[is_kept], images[is_kept]
        counts = np.minimum(counts, most)
    return Detections(
        _to_image(chosen[:, :4], thresholds.placement[images]),
        np.ascontiguousarray(chosen[:, 4]),
        chosen[:, 5].astype(np.int64),
        counts.tolist(),
    )


def corners(boxes: Tensor) -> Tensor:
    """cx, cy, w, h -> x1, y1, x2, y2."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat((centre - half, centre + half), 1)


def as_columns(candidates: Candidates) -> Tensor:
    """The candidates as one tensor [N, 7], as `_choose` returns it."""
    boxes, scores, classes, images = candidates
    return torch.cat((boxes, scores[:, None], classes[:, None], images[:, None]), 1)


def _to_image(boxes: NDArray[np.float32], placement: NDArray[np.float32]) -> NDArray[np.float32]:
    """Model pixels -> pixels of the image, clipped to it; for each box the row of its image."""
    gain, pad, size = (placement[:, None, columns] for columns in (GAIN, PAD, SIZE))
    moved = (boxes.reshape(-1, 2, 2) - pad) / gain
    clipped: NDArray[np.float32] = np.clip(moved, 0, size[..., ::-1])  # width first, as x is
    return clipped.reshape(-1, 4)
