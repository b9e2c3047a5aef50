from __future__ import annotations

import numpy as np
from one_image import placement_of
from placement import Placement


def test_placement_crosses_between_the_steps_as_float32() -> None:
    written = Placement(gain_x=0.5, gain_y=2.0, pad_x=106.5, pad_y=0.25, height=427, width=1 << 20)
    (row,) = np.array([written.as_row()], np.float32).tolist()
    assert placement_of(row) == written
