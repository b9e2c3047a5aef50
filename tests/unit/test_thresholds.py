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
