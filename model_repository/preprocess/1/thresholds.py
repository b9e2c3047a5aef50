"""How detections are chosen: the tensor `nms`, written and read.

`preprocess` writes it, `postprocess` reads it; both have this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONF_THRES = 0  # the column
MAX_DET = 1000  # the largest `max_det` allowed


class ThresholdsError(ValueError):
    """A row is out of range; `preprocess` never writes such."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Meanings and ranges are those of the request parameters of the same names."""

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
