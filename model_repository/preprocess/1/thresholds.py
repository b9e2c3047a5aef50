"""How detections are chosen: the tensors `nms` and `class_conf_thres`, written and read.

`preprocess` writes them, `postprocess` reads them; both have this module. `class_conf_thres` holds
the confidence that a detection of each class must exceed. The lowest of these is in `nms`, from
which the network learns which rows nobody needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONF_THRES, AGNOSTIC_NMS, MULTI_LABEL = 0, 3, 4  # columns of `nms`
COLUMNS = 5  # how many it has
MAX_DET = 1000  # the largest `max_det` allowed
NOT_REPORTED = math.inf  # in `class_conf_thres`: no detection of this class is wanted


class ThresholdsError(ValueError):
    """A row is out of range; `preprocess` never writes such."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Meanings and ranges are those of the request parameters of the same names.

    Between the steps, `conf_thres` is the lowest of all classes.
    """

    conf_thres: float
    iou_thres: float
    max_det: int
    agnostic_nms: bool
    multi_label: bool

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Thresholds:
        """Read one row of the tensor.

        Raises:
            ThresholdsError: a threshold is outside 0 to 1, or max_det outside 1 to 1000.
        """
        conf_thres, iou_thres, max_det, agnostic_nms, multi_label = row
        if not (0 <= conf_thres <= 1 and 0 <= iou_thres <= 1 and 1 <= max_det <= MAX_DET):
            raise ThresholdsError(
                f"nms is {row}; allowed: conf_thres and iou_thres from 0 to 1,"
                f" max_det from 1 to {MAX_DET}"
            )
        return cls(
            conf_thres=conf_thres,
            iou_thres=iou_thres,
            max_det=int(max_det),
            agnostic_nms=bool(agnostic_nms),
            multi_label=bool(multi_label),
        )

    def as_row(self) -> tuple[float, ...]:
        """One row of the tensor."""
        return (
            self.conf_thres,
            self.iou_thres,
            self.max_det,
            self.agnostic_nms,
            self.multi_label,
        )
