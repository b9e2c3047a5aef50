"""Where a picture lies in the network's input: the tensor `placement`, written and read.

`preprocess` computes it in `letterbox.py`. `postprocess` uses it in `nms.py`, to bring boxes back
to pixels of the image. Both have this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Model pixel = image pixel * gain + pad.

    Attributes:
        height, width: of the image as it is displayed, in pixels.
    """

    gain_x: float
    gain_y: float
    pad_x: float
    pad_y: float
    height: int
    width: int

    @classmethod
    def from_row(cls, row: Sequence[float]) -> Placement:
        """Read one row of the tensor."""
        gain_x, gain_y, pad_x, pad_y, height, width = row
        return cls(
            gain_x=gain_x,
            gain_y=gain_y,
            pad_x=pad_x,
            pad_y=pad_y,
            height=int(height),
            width=int(width),
        )

    def as_row(self) -> tuple[float, ...]:
        """One row of the tensor."""
        return (self.gain_x, self.gain_y, self.pad_x, self.pad_y, self.height, self.width)
