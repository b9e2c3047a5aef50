"""Where a picture lies in the network's input: the tensor `placement`, written and read.

`preprocess` computes it in `letterbox.py`. `postprocess` uses it in `nms.py`, to bring boxes back
to pixels of the image. Both have this module.
"""

from __future__ import annotations

from dataclasses import dataclass

GAIN, PAD = slice(0, 2), slice(2, 4)  # columns, x before y
SIZE = slice(4, 6)  # columns, height before width


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

    def as_row(self) -> tuple[float, ...]:
        """One row of the tensor."""
        return (self.gain_x, self.gain_y, self.pad_x, self.pad_y, self.height, self.width)
