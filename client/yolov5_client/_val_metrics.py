"""Figures computed as YOLOv5's validation does, comparable with its training log.

This differs from COCO in two points. The area under the precision-recall curve is integrated
between interpolated points, where COCO takes a mean over steps. A detection is matched with the
label that it overlaps most before confidences are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

IOUS = np.linspace(0.5, 0.95, 10)
_CONFIDENCES = np.linspace(0, 1, 1000)
_SMOOTH_OVER = 101  # confidences, before the best is chosen


@dataclass(frozen=True, kw_only=True)
class ValFigures:
    """Figures of YOLOv5's validation for each of C classes; NaN for a class without labels.

    Example:
        >>> label = np.array([[0, 0.5, 0.5, 0.5, 0.5]])
        >>> split = Split(photos=[Path("photo.jpg")], labels=[label])
        >>> predictions = Predictions(
        ...     boxes=np.array([[160.0, 120, 480, 360]]),
        ...     scores=np.array([0.9]),
        ...     classes=np.array([0]),
        ...     size=(480, 640),
        ... )
        >>> evaluate([predictions], split, classes=1).val.ap50.round(3)
        array([0.995])

    Attributes:
        precision, recall: [C] at IoU 0.5 and at the score `confidence`.
        confidence: the score at which the smoothed mean F1 of the classes is best.
        ap50, ap50_95: [C] average precision at IoU 0.5, and over 0.5 to 0.95 in steps of 0.05.
    """

    precision: Floats
    recall: Floats
    confidence: float
    ap50: Floats
    ap50_95: Floats


def match(overlaps: Floats, same_class: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Decide whether each of n detections is correct at each of `IOUS`.

    Args:
        overlaps: [n, m] IoU of detections, best first, with labels.
        same_class: [n, m] whether the classes agree.

    Returns:
        bool [n, 10].
    """
    right = np.zeros((len(overlaps), len(IOUS)), bool)
    if not overlaps.size:
        return right
    allowed = np.where(same_class, overlaps, 0.0)
    # A detection takes the label that it overlaps most, then a label its most confident detection.
    # The label that a detection overlaps most is the same at every threshold.
    label, largest = allowed.argmax(1), allowed.max(1)
    for column, iou in enumerate(IOUS):
        candidates = np.flatnonzero(largest >= iou)
        _, first = np.unique(label[candidates], return_index=True)
        right[candidates[first], column] = True
    return right


def val_figures(
    right: Sequence[NDArray[np.bool_]],
    scores: Sequence[NDArray[np.float64]],
    classes: Sequence[NDArray[np.int64]],
    labels: NDArray[np.int64],
) -> ValFigures:
    """Compute the figures from the matches of all images.

    Args:
        right: for each image, the result of `match` for its detections.
        scores, classes: for each image, [n] of the same detections.
        labels: [C] number of labels of each class.
    """
    count = len(labels)
    hits = np.concatenate([np.empty((0, len(IOUS)), bool), *right])
    confidences = np.concatenate([np.empty(0), *scores])
    indices = np.concatenate([np.empty(0, np.int64), *classes])
    order = np.argsort(-confidences, kind="stable")
    hits, confidences, indices = hits[order], confidences[order], indices[order]
    precision, recall = np.full((2, count, len(_CONFIDENCES)), np.nan)
    ap = np.full((count, len(IOUS)), np.nan)
    for index in np.flatnonzero(labels):
        mine = indices == index
        true = hits[mine].cumsum(0)
        if not len(true):
            precision[index], recall[index], ap[index] = 0.0, 0.0, 0.0
            continue
        taken = np.arange(1, len(true) + 1)[:, None]
        p, r = true / taken, true / labels[index]
        ap[index] = [_area(r[:, column], p[:, column]) for column in range(len(IOUS))]
        at = -_CONFIDENCES, -confidences[mine]
        precision[index] = np.interp(*at, p[:, 0], left=1)
        recall[index] = np.interp(*at, r[:, 0], left=0)
    f1 = np.nanmean(2 * precision * recall / np.maximum(precision + recall, 1e-16), axis=0)
    best = int(_smooth(f1).argmax())
    return ValFigures(
        precision=precision[:, best],
        recall=recall[:, best],
        confidence=float(_CONFIDENCES[best]),
        ap50=ap[:, 0],
        ap50_95=ap.mean(1),
    )


def _area(recall: Floats, precision: Floats) -> float:
    """Integrate the envelope of the curve, sampled at 101 points joined by straight lines."""
    recall = np.concatenate(([0.0], recall, [1.0]))
    precision = np.concatenate(([1.0], precision, [0.0]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    points = np.linspace(0, 1, 101)
    heights = np.interp(points, recall, envelope)
    return float(((heights[1:] + heights[:-1]) / 2 * np.diff(points)).sum())


def _smooth(values: Floats) -> Floats:
    """Average over a window around each value; the ends are repeated."""
    padded = np.pad(values, _SMOOTH_OVER // 2, mode="edge")
    smoothed: Floats = np.convolve(padded, np.full(_SMOOTH_OVER, 1 / _SMOOTH_OVER), mode="valid")
    return smoothed
