"""The IoU of boxes, against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from yolov5_client._boxes import overlaps

ONE = (0.0, 0.0, 4.0, 2.0)


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        (ONE, 1.0),
        ((2.0, 1.0, 6.0, 3.0), 2 / 14),
        ((1.0, 0.5, 2.0, 1.5), 1 / 8),
        ((3.5, 1.5, 4.5, 2.5), 0.25 / 8.75),
        ((4.0, 0.0, 8.0, 2.0), 0.0),  # side by side
        ((5.0, 3.0, 9.0, 5.0), 0.0),  # apart in both directions
        ((5.0, 0.0, 9.0, 2.0), 0.0),
        ((0.0, 2.5, 4.0, 4.5), 0.0),
        ((1.0, 1.0, 1.0, 1.0), 0.0),  # without area
    ],
)
def test_iou_is_the_shared_area_of_the_whole(
    other: tuple[float, float, float, float], iou: float
) -> None:
    pair = np.array([ONE]), np.array([other])
    assert overlaps(*pair) == pytest.approx(np.array([[iou]]))
    assert overlaps(*reversed(pair)) == pytest.approx(np.array([[iou]]))


def test_boxes_without_area_and_no_boxes_have_no_overlap() -> None:
    point = np.array([[1.0, 1.0, 1.0, 1.0]])
    assert overlaps(point, point).tolist() == [[0.0]]
    assert overlaps(np.zeros((0, 4)), point).shape == (0, 1)
    assert overlaps(np.array([ONE, ONE]), np.zeros((0, 4))).shape == (2, 0)


def test_small_boxes_count_as_large_ones_do() -> None:
    assert overlaps(np.array([ONE]) / 1000, np.array([ONE]) / 500) == pytest.approx(0.25)
