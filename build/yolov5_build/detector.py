"""What `postprocess` finds in the rows of one image, without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .steps import step_module


class Detector:
    """Calls the functions of `postprocess` with the same thresholds for each image.

    Args:
        classes: how many the network has.
        best_class_only, end_to_end: of its head.
    """

    def __init__(
        self,
        *,
        classes: int,
        conf_thres: float,
        iou_thres: float,
        max_det: int,
        multi_label: bool = False,
        best_class_only: bool = False,
        end_to_end: bool = False,
    ) -> None:
        self._detect = step_module("postprocess", "nms").detect
        self._batch = step_module("postprocess", "batch_thresholds").BatchThresholds
        self._nms = np.array([[conf_thres, iou_thres, max_det, False, multi_label]], np.float32)
        self._class_conf_thres = np.full((1, classes), conf_thres, np.float32)
        self._head = {"best_class_only": best_class_only, "end_to_end": end_to_end}

    def __call__(
        self, rows: NDArray[np.float32], placement: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Boxes [K, 4] in pixels of the image, scores [K], classes [K], best first.

        Args:
            rows: [N, 5 + C] or [N, 6].
            placement: of the image, as `letterbox` returns it.
        """
        row = np.array([placement.as_row()], np.float32)
        asked = self._batch.from_arrays(self._nms, self._class_conf_thres, row)
        found = self._detect([torch.from_numpy(rows)[None]], asked, **self._head)
        return found.boxes, found.scores, found.classes
