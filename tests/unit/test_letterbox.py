from __future__ import annotations

import numpy as np
import pytest
from letterbox import PAD_VALUE, letterbox
from normalise import HostNormaliser

# Height, width; then where the picture lies in 640x640: top, left, height, width; then the exact
# padding of the way back, which is not the rounded one. Worked out by hand from the formula.
CASES = [
    ((480, 640), (80, 0, 480, 640), (80.0, 0.0)),
    ((427, 640), (106, 0, 427, 640), (106.5, 0.0)),
    ((640, 427), (0, 106, 640, 427), (0.0, 106.5)),
    ((1080, 810), (0, 80, 640, 480), (0.0, 80.0)),
    ((333, 500), (107, 0, 426, 640), (106.88, 0.0)),
    ((1, 1), (0, 0, 640, 640), (0.0, 0.0)),
    ((2000, 1), (0, 319, 640, 1), (0.0, 319.84)),
]


@pytest.mark.parametrize("size, place, pad", CASES)
def test_where_the_picture_lies(
    size: tuple[int, int], place: tuple[int, int, int, int], pad: tuple[float, float]
) -> None:
    canvas, placement = letterbox(np.full((*size, 3), 200, np.uint8), 640, 640)
    top, left, height, width = place
    expected = np.full((640, 640, 3), PAD_VALUE, np.uint8)
    expected[top : top + height, left : left + width] = 200
    np.testing.assert_array_equal(canvas, expected)
    gain = min(640 / size[0], 640 / size[1])
    assert placement.as_row() == pytest.approx((gain, gain, pad[1], pad[0], *size), abs=1e-9)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    canvas, _ = letterbox(picture, 640, 640)
    np.testing.assert_array_equal(canvas, picture)


def test_stretch_has_no_padding_and_a_gain_for_each_axis() -> None:
    canvas, placement = letterbox(np.full((320, 1280, 3), 9, np.uint8), 640, 640, "stretch")
    assert (canvas == 9).all()
    assert placement.as_row() == (0.5, 2.0, 0, 0, 320, 1280)


def test_normalise_swaps_the_channels_and_divides_exactly() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    normaliser = HostNormaliser(32, 48)
    batch = normaliser.allocate(2)
    normaliser.put(picture, batch, 1)
    expected = picture[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch[1], expected)
