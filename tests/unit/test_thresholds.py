from __future__ import annotations

import numpy as np
import pytest
from thresholds import Thresholds, ThresholdsError


def test_thresholds_cross_between_the_steps_as_float32() -> None:
    written = Thresholds(
        conf_thres=0.25, iou_thres=0.5, max_det=300, agnostic_nms=False, multi_label=True
    )
    (row,) = np.array([written.as_row()], np.float32).tolist()
    assert Thresholds.from_row(row) == written


@pytest.mark.parametrize(
    "change", [{"conf_thres": -0.1}, {"iou_thres": 1.1}, {"max_det": 0}, {"max_det": float("nan")}]
)
def test_thresholds_out_of_range_are_refused(change: dict[str, float]) -> None:
    row = {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 300, "agnostic_nms": 0}
    with pytest.raises(ThresholdsError, match="allowed: conf_thres and iou_thres from 0 to 1"):
        Thresholds.from_row([*{**row, **change}.values(), 0])


@pytest.mark.parametrize(
    "row",
    [
        [0, 0.45, 300, 0, 0],
        [1, 0.45, 300, 0, 0],
        [0.25, 0, 300, 0, 0],
        [0.25, 1, 300, 0, 0],
        [0.25, 0.45, 1, 0, 0],
        [0.25, 0.45, 1000, 0, 0],
    ],
)
def test_bounds_are_in_the_range(row: list[float]) -> None:
    assert [*Thresholds.from_row(row).as_row()] == row


@pytest.mark.parametrize("max_det", [0.99, 1001])
def test_more_boxes_than_allowed_are_refused(max_det: float) -> None:
    with pytest.raises(ThresholdsError, match="max_det from 1 to 1000"):
        Thresholds.from_row([0.25, 0.45, max_det, 0, 0])
