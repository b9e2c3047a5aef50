"""The detections of one image, as the batch of `postprocess` finds them."""

from __future__ import annotations

from collections.abc import Sequence

import nms
import numpy as np
import torch
from batch_thresholds import BatchThresholds
from placement import GAIN, PAD, SIZE, Placement
from thresholds import Thresholds
from torch import Tensor


def placement_of(row: Sequence[float]) -> Placement:
    """Read a row of the tensor `placement`."""
    (gain_x, gain_y), (pad_x, pad_y), (height, width) = (row[part] for part in (GAIN, PAD, SIZE))
    return Placement(
        gain_x=gain_x,
        gain_y=gain_y,
        pad_x=pad_x,
        pad_y=pad_y,
        height=int(height),
        width=int(width),
    )


def asked(
    thresholds: Thresholds, class_conf_thres: Tensor, placement: Placement
) -> BatchThresholds:
    """The thresholds of a batch of one image, on the device of `class_conf_thres` [C]."""
    return BatchThresholds.from_arrays(
        np.array([thresholds.as_row()], np.float32),
        class_conf_thres[None].float().cpu().numpy(),
        np.array([placement.as_row()], np.float32),
        class_conf_thres.device,
    )


def detect(
    rows: Tensor,
    thresholds: Thresholds,
    class_conf_thres: Tensor,
    placement: Placement,
    *,
    best_class_only: bool = False,
    end_to_end: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the detections in the rows [N, 5 + C] or [N, 6] of one image.

    Returns:
        Boxes [K, 4], scores [K], classes [K], best first.
    """
    found = nms.detect(
        [rows[None]],
        asked(thresholds, class_conf_thres, placement),
        best_class_only=best_class_only,
        end_to_end=end_to_end,
    )
    assert found.counts == [len(found.scores)]
    return (
        torch.from_numpy(found.boxes),
        torch.from_numpy(found.scores),
        torch.from_numpy(found.classes),
    )
