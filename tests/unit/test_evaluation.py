"""Figures of detections against labels, compared with values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from yolov5_client import DataError
from yolov5_client.evaluation import Predictions, Split, evaluate

SIZE = (100, 200)


def found(*rows: tuple[float, float, float, float, float, int]) -> Predictions:
    """Make predictions for an image of `SIZE` from rows of x1, y1, x2, y2, score, class."""
    array = np.array(rows, float).reshape(-1, 6)
    return Predictions(
        boxes=array[:, :4], scores=array[:, 4], classes=array[:, 5].astype(int), size=SIZE
    )


def split(*images: list[tuple[int, float, float, float, float]]) -> Split:
    """Make a split from rows of class, x1, y1, x2, y2 in pixels."""
    labels = []
    for rows in images:
        array = np.array(rows, float).reshape(-1, 5)
        x1, y1, x2, y2 = array[:, 1:].T
        height, width = SIZE
        parts = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height)
        sides = ((x2 - x1) / width, (y2 - y1) / height)
        labels.append(np.column_stack((array[:, 0], *parts, *sides)))
    return Split(photos=[], labels=labels)


def test_average_precision_is_interpolated_as_in_yolov5() -> None:
    """By score: correct, wrong, correct; two labels. Precision is 1 to recall 0.5, then 2/3."""
    result = evaluate(
        [
            found(
                (10, 10, 50, 50, 0.9, 0),
                (150, 50, 190, 90, 0.6, 0),
                (60, 10, 90, 40, 0.5, 0),
            )
        ],
        split([(0, 10, 10, 50, 50), (0, 60, 10, 90, 40)]),
        classes=1,
    )
    # Between the points 0.49 and 0.50 it falls in a line; COCO has a step. The last point is 0.
    assert result.ap50[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.val.ap50[0] == pytest.approx(0.49 + 0.01 * 5 / 6 + 0.49 * 2 / 3 + 0.01 / 3)


def test_label_is_matched_with_the_most_confident_overlapping_detection() -> None:
    """The first detection overlaps the second label more and leaves the first to the other."""
    labels = [(0, 10.0, 10.0, 50.0, 50.0), (0, 10.0, 20.0, 50.0, 60.0)]
    right = found((10, 16, 50, 56, 0.9, 0), (10, 10, 50, 50, 0.8, 0))
    assert evaluate([right], split(labels), classes=1).val.recall[0] == pytest.approx(1)
    # Both overlap the second label most: COCO gives the first label to one of them, YOLOv5 none.
    both = found((10, 16, 50, 56, 0.9, 0), (10, 18, 50, 58, 0.8, 0))
    result = evaluate([both], split(labels), classes=1)
    assert result.map50 == pytest.approx(1)
    # 1 up to recall 0.5, and from there a line from 1/2 down to 0.
    assert result.val.ap50[0] == pytest.approx(0.5 + 0.5 / 4, abs=0.003)


def test_class_without_detections_counts_as_zero() -> None:
    result = evaluate([found()], split([(0, 10, 10, 50, 50)]), classes=2)
    assert (result.val.ap50[0], result.val.recall[0]) == (0, 0)
    assert np.isnan(result.val.ap50[1])


def test_perfect_detections_score_one() -> None:
    result = evaluate(
        [found((10, 10, 50, 50, 0.9, 0), (60, 10, 90, 40, 0.8, 1))],
        split([(0, 10, 10, 50, 50), (1, 60, 10, 90, 40)]),
        classes=3,
    )
    assert [result.map50, result.map50_95] == pytest.approx([1, 1])
    assert result.labels.tolist() == [1, 1, 0]
    assert result.precision[:2].tolist() == result.recall[:2].tolist() == [1, 1]
    assert np.isnan([result.ap50[2], result.precision[2], result.recall[2]]).all()
    assert result.confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]


def test_missed_label_and_false_positive_lower_the_figures() -> None:
    """By score: correct, wrong. Precision is 1 up to recall 0.5, which are 51 points."""
    result = evaluate(
        [found((10, 10, 50, 50, 0.9, 0), (150, 50, 190, 90, 0.6, 0))],
        split([(0, 10, 10, 50, 50), (0, 60, 10, 90, 40)]),
        classes=1,
    )
    assert result.ap50[0] == pytest.approx(51 / 101)
    assert result.curve[0].tolist() == pytest.approx([1] * 51 + [0] * 50)
    assert (result.precision[0], result.recall[0]) == (1, 0.5)
    assert 0.6 < result.confidence <= 0.9
    # Background: a detection without a label, and a label without a detection.
    assert result.confusion.tolist() == [[1, 1], [1, 0]]


def test_a_loose_box_counts_only_at_low_iou() -> None:
    result = evaluate(
        [found((10, 10, 50, 40, 0.9, 0))], split([(0, 10, 10, 50, 50)]), classes=1
    )  # IoU 0.75
    assert result.map50 == pytest.approx(1)
    assert result.map50_95 == pytest.approx(0.6)  # 0.5, 0.55, ..., 0.75 of ten


def test_wrong_class_on_a_label_counts_as_confusion() -> None:
    result = evaluate([found((10, 10, 50, 50, 0.9, 1))], split([(0, 10, 10, 50, 50)]), classes=2)
    assert result.map50 == 0
    assert result.confusion.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert result.recall[0] == 0


def test_confusion_ignores_detections_below_its_confidence() -> None:
    result = evaluate([found((10, 10, 50, 50, 0.2, 0))], split([(0, 10, 10, 50, 50)]), classes=1)
    assert result.map50 == pytest.approx(1)
    assert result.confusion.tolist() == [[0, 0], [1, 0]]


def test_a_label_counts_once() -> None:
    twice = found((10, 10, 50, 50, 0.9, 0), (10, 10, 50, 49, 0.8, 0))
    result = evaluate([twice], split([(0, 10, 10, 50, 50)]), classes=1)
    assert result.confusion.tolist() == [[1, 1], [0, 0]]
    assert result.precision[0] == 1


def test_no_detections_at_all_score_zero() -> None:
    result = evaluate([found(), found()], split([(0, 10, 10, 50, 50)], []), classes=1)
    assert (result.map50, result.map50_95, result.recall[0]) == (0, 0, 0)
    assert result.confusion.tolist() == [[0, 0], [1, 0]]


def test_unusable_labels_are_refused() -> None:
    with pytest.raises(DataError, match="no labels to measure with"):
        evaluate([found()], split([]), classes=1)
    with pytest.raises(DataError, match="labels beyond the network's 1 classes"):
        evaluate([found()], split([(1, 0, 0, 9, 9)]), classes=1)
