"""The quality of detections, measured against labels: mAP, precision, recall, confusion.

Needs the extra `eval` (pycocotools, PyYAML). Average precisions are computed by pycocotools, with
up to `MAX_DET` detections for an image. YOLOv5's own figures differ in the third digit and are in
`Evaluation.val`.

Example:
    >>> label = np.array([[0, 0.5, 0.5, 0.5, 0.5]])  # class, centre x and y, width, height
    >>> split = Split(photos=[Path("photo.jpg")], labels=[label])
    >>> predictions = Predictions(
    ...     boxes=np.array([[160.0, 120, 480, 360]]),
    ...     scores=np.array([0.9]),
    ...     classes=np.array([0]),
    ...     size=(480, 640),
    ... )
    >>> round(evaluate([predictions], split, classes=1).map50, 3)
    1.0
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ._boxes import overlaps
from ._dataset import Split, read_names, read_split
from ._errors import DataError
from ._val_defaults import CONF_THRES, IOU_THRES, MAX_DET
from ._val_metrics import ValFigures, match, val_figures

__all__ = ["CONF_THRES", "IOU_THRES", "MAX_DET", "Evaluation", "Predictions", "Split"]
__all__ += ["ValFigures", "evaluate", "read_names", "read_split"]

# The least score of a detection in the confusion matrix, and the least IoU with a label.
CONFUSION_CONF, CONFUSION_IOU = 0.25, 0.45

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The detections in one photo that are to be measured.

    Example:
        >>> Predictions(
        ...     boxes=np.zeros((0, 4)),
        ...     scores=np.zeros(0),
        ...     classes=np.zeros(0),
        ...     size=(480, 640),
        ... ).size
        (480, 640)

    Attributes:
        boxes: [n, 4]: x1, y1, x2, y2 in pixels of the photo, as displayed.
        scores: [n] confidence, 0 to 1.
        classes: [n] class index.
        size: height and width of the photo in pixels.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    classes: NDArray[Any]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of `evaluate` for each of C classes; NaN for a class without labels.

    Example:
        >>> label = np.array([[1, 0.5, 0.5, 0.5, 0.5]])
        >>> split = Split(photos=[Path("photo.jpg")], labels=[label])
        >>> nothing = Predictions(
        ...     boxes=np.zeros((0, 4)), scores=np.zeros(0), classes=np.zeros(0), size=(480, 640)
        ... )
        >>> result = evaluate([nothing], split, classes=2)
        >>> print(result.labels, result.recall, result.confusion[-1])
        [0 1] [nan  0.] [0 1 0]

    Attributes:
        labels: [C] number of labels.
        precision, recall: [C] at IoU 0.5 and at the score `confidence`.
        confidence: the score at which the mean F1 of the classes is best.
        ap50, ap50_95: [C] average precision at IoU 0.5, and over 0.5 to 0.95 in steps of 0.05.
        curve: [C, 101] precision at IoU 0.5 for each recall in 0, 0.01, ..., 1.
        confusion: [C + 1, C + 1] number of detections by their own class (row) and by the class of
            the label that they match (column), at score 0.25 and IoU 0.45. The last row and column
            are the background.
        val: the figures of the same detections, computed as YOLOv5's validation does.
    """

    labels: NDArray[np.int64]
    precision: Floats
    recall: Floats
    confidence: float
    ap50: Floats
    ap50_95: Floats
    curve: Floats
    confusion: NDArray[np.int64]
    val: ValFigures

    @property
    def map50(self) -> float:
        """Mean of `ap50` over the classes with labels."""
        return float(np.nanmean(self.ap50))

    @property
    def map50_95(self) -> float:
        """Mean of `ap50_95` over the classes with labels."""
        return float(np.nanmean(self.ap50_95))


def evaluate(predictions: Sequence[Predictions], split: Split, *, classes: int) -> Evaluation:
    """Compare detections with the labels of the same photos.

    Example:
        >>> label = np.array([[0, 0.5, 0.5, 0.5, 0.5]])
        >>> split = Split(photos=[Path("photo.jpg")], labels=[label])
        >>> predictions = Predictions(
        ...     boxes=np.array([[160.0, 120, 480, 330]]),  # IoU with the label: 0.875
        ...     scores=np.array([0.9]),
        ...     classes=np.array([0]),
        ...     size=(480, 640),
        ... )
        >>> result = evaluate([predictions], split, classes=1)
        >>> round(result.map50, 3), round(result.map50_95, 3)
        (1.0, 0.8)

    Args:
        predictions: for each photo of `split`, the detections at a confidence threshold near 0.
        classes: number of classes of the network.

    Raises:
        DataError: the data set has no labels, or labels of a class beyond `classes`.
    """
    indices = np.concatenate([labels[:, 0] for labels in split.labels]).astype(np.int64)
    if not len(indices):
        raise DataError("the data set has no labels to measure with.")
    if indices.min() < 0 or indices.max() >= classes:
        raise DataError(f"the data set has labels beyond the network's {classes} classes.")
    truths = [_corners(labels, one.size) for labels, one in zip(split.labels, predictions)]
    counts = np.bincount(indices, minlength=classes)
    result = _coco(predictions, split.labels, truths, classes)
    precision = _precision_by_recall(result, counts)
    grid = np.linspace(0, 1, 1001)
    p, r = np.stack(
        [_precision_recall(result, index, int(n), grid) for index, n in enumerate(counts)], axis=1
    )
    f1 = np.nanmean(2 * p * r / np.maximum(p + r, 1e-16), axis=0)
    best = int(f1.argmax())
    return Evaluation(
        labels=counts,
        precision=p[:, best],
        recall=r[:, best],
        confidence=float(grid[best]),
        ap50=precision[0].mean(0),
        ap50_95=precision.mean((0, 1)),
        curve=precision[0].T,
        confusion=_confusion(predictions, split.labels, truths, classes),
        val=_val(predictions, split.labels, truths, counts),
    )


def _corners(labels: Floats, size: tuple[int, int]) -> Floats:
    """Convert labels [n, 5] to boxes [n, 4]: x1, y1, x2, y2 in pixels."""
    height, width = size
    centre, half = labels[:, 1:3], labels[:, 3:5] / 2
    sides = np.array([width, height, width, height], np.float64)
    return np.hstack((centre - half, centre + half)) * sides


def _coco(
    predictions: Sequence[Predictions],
    labels: Sequence[Floats],
    truths: Sequence[Floats],
    classes: int,
) -> Any:
    """Run pycocotools' evaluation; None if there is no detection at all."""
    annotations = [
        {
            "image_id": image,
            "category_id": int(index),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for image, (rows, boxes) in enumerate(zip(labels, truths))
        for index, (x1, y1, x2, y2) in zip(rows[:, 0], boxes.tolist())
    ]
    answers = [
        {
            "image_id": image,
            "category_id": int(index),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(score),
        }
        for image, one in enumerate(predictions)
        for (x1, y1, x2, y2), score, index in zip(one.boxes.tolist(), one.scores, one.classes)
    ]
    if not answers:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(predictions))],
            "categories": [{"id": index} for index in range(classes)],
            "annotations": [{"id": n, **one} for n, one in enumerate(annotations, 1)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(answers), "bbox")
        evaluation.params.maxDets = [MAX_DET]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _precision_by_recall(result: Any, counts: NDArray[np.int64]) -> Floats:
    """Return the precision for each IoU, recall and class: [10, 101, C]; NaN without labels."""
    precision = np.full((10, 101, len(counts)), np.nan)
    precision[:, :, counts > 0] = 0.0
    if result is not None:
        precision[:, :, counts > 0] = result.eval["precision"][:, :, counts > 0, 0, 0]
    return precision


def _precision_recall(result: Any, index: int, labels: int, grid: Floats) -> Floats:
    """Compute precision and recall of a class at IoU 0.5 for each score: [2, len(grid)]."""
    if not labels:
        return np.full((2, len(grid)), np.nan)
    images = [] if result is None else result.evalImgs
    count = len(images) and len(images) // len(result.params.catIds)
    mine = [one for one in images[index * count : (index + 1) * count] if one]
    scores = np.concatenate([np.empty(0), *(one["dtScores"] for one in mine)])
    hits = np.concatenate([np.empty(0), *(one["dtMatches"][0] > 0 for one in mine)])
    order = np.argsort(-scores, kind="stable")
    right = np.concatenate([[0], hits[order].cumsum()])
    taken = np.searchsorted(-scores[order], -grid, side="right")  # with at least this score
    precision = np.where(taken, right[taken] / np.maximum(taken, 1), 1.0)
    return np.stack([precision, right[taken] / labels])


def _val(
    predictions: Sequence[Predictions],
    labels: Sequence[Floats],
    truths: Sequence[Floats],
    counts: NDArray[np.int64],
) -> ValFigures:
    right, scores, indices = [], [], []
    for one, rows, boxes in zip(predictions, labels, truths):
        order = np.argsort(-np.asarray(one.scores, float), kind="stable")
        mine = np.asarray(one.classes, np.int64)[order]
        ious = overlaps(np.asarray(one.boxes, float).reshape(-1, 4)[order], boxes)
        right.append(match(ious, mine[:, None] == rows[None, :, 0]))
        scores.append(np.asarray(one.scores, float)[order])
        indices.append(mine)
    return val_figures(right, scores, indices, counts)


def _confusion(
    predictions: Sequence[Predictions],
    labels: Sequence[Floats],
    truths: Sequence[Floats],
    classes: int,
) -> NDArray[np.int64]:
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for one, rows, boxes in zip(predictions, labels, truths):
        sure = one.scores > CONFUSION_CONF
        mine, theirs = one.classes[sure].astype(int), rows[:, 0].astype(int)
        ious = overlaps(np.asarray(one.boxes, float)[sure], boxes)
        free_mine, free_theirs = set(range(len(mine))), set(range(len(theirs)))
        # Match by descending overlap; each detection and each label counts once.
        for flat in np.argsort(-ious, axis=None):
            i, j = divmod(int(flat), len(theirs))
            if ious[i, j] <= CONFUSION_IOU:
                break
            if i in free_mine and j in free_theirs:
                matrix[mine[i], theirs[j]] += 1
                free_mine.remove(i)
                free_theirs.remove(j)
        for i in free_mine:
            matrix[mine[i], classes] += 1
        for j in free_theirs:
            matrix[classes, theirs[j]] += 1
    return matrix
