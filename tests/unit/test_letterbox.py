from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import normalise
import numpy as np
import pytest
import torch
from batch_builder import BatchBuilder
from letterbox import PAD_VALUE, enlarge, letterbox, reduction
from normalise import HostNormaliser, PlaneSplitter, make_normaliser
from placement import Placement

# Height and width of the picture; its place in 640x640: top, left, height, width; the exact padding
# of its placement, which is not rounded. Worked out by hand from the formula.
CASES = [
    ((480, 640), (80, 0, 480, 640), (80.0, 0.0)),
    ((427, 640), (106, 0, 427, 640), (106.5, 0.0)),
    ((640, 427), (0, 106, 640, 427), (0.0, 106.5)),
    ((1080, 810), (0, 80, 640, 480), (0.0, 80.0)),
    ((333, 500), (107, 0, 426, 640), (106.88, 0.0)),
    ((1, 1), (0, 0, 640, 640), (0.0, 0.0)),
    ((2000, 1), (0, 319, 640, 1), (0.0, 319.84)),
    ((1, 2000), (319, 0, 1, 640), (319.84, 0.0)),
]


@pytest.mark.parametrize("size, place, pad", CASES)
def test_square_centres_the_picture(
    size: tuple[int, int], place: tuple[int, int, int, int], pad: tuple[float, float]
) -> None:
    canvas, placement = letterbox(np.full((*size, 3), 200, np.uint8), 640, 640)
    top, left, height, width = place
    expected = np.full((640, 640, 3), PAD_VALUE, np.uint8)
    expected[top : top + height, left : left + width] = 200
    np.testing.assert_array_equal(canvas, expected)
    gain = min(640 / size[0], 640 / size[1])
    assert placement.as_row() == pytest.approx((gain, gain, pad[1], pad[0], *size), abs=1e-9)


# Those of the cases above whose padding is not whole, and others: the worked example of
# https://github.com/ultralytics/ultralytics/pull/23967 in a quarter of its size, where the scaled
# picture is rounded up.
WHOLE_CASES = [
    ((480, 640), (80, 0)),
    ((427, 640), (106, 0)),
    ((640, 427), (0, 106)),
    ((333, 500), (107, 0)),
    ((2000, 1), (0, 319)),
    ((1571, 3775), (187, 0)),
]


@pytest.mark.parametrize("size, place", WHOLE_CASES)
def test_whole_padding_is_where_the_picture_is(
    size: tuple[int, int], place: tuple[int, int]
) -> None:
    picture = np.full((*size, 3), 200, np.uint8)
    canvas, placement = letterbox(picture, 640, 640, whole_padding=True)
    assert (placement.pad_y, placement.pad_x) == place
    assert tuple(np.argwhere(canvas != PAD_VALUE)[0][:2]) == place
    exact_canvas, exact = letterbox(picture, 640, 640)
    np.testing.assert_array_equal(canvas, exact_canvas)
    assert replace(placement, pad_x=0, pad_y=0) == replace(exact, pad_x=0, pad_y=0)


def test_whole_padding_of_rect_is_where_the_picture_is() -> None:
    for size, place in (((427, 640), (10, 0)), ((720, 1280), (12, 0)), ((2000, 1), (0, 15))):
        canvas, placement = letterbox(
            np.full((*size, 3), 200, np.uint8), 640, 640, "rect", 32, whole_padding=True
        )
        assert (placement.pad_y, placement.pad_x) == place
        assert tuple(np.argwhere(canvas != PAD_VALUE)[0][:2]) == place


def test_picture_of_the_right_size_is_unchanged() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)
    canvas, _ = letterbox(picture, 640, 640)
    np.testing.assert_array_equal(canvas, picture)


@pytest.mark.parametrize(
    "size", [(480, 641), (641, 480), (1280, 960), (97, 1000), (1000, 3), (3, 5)]
)
@pytest.mark.parametrize("mode", ["square", "rect"])
def test_picture_is_scaled_into_its_place_as_it_is_apart(size: tuple[int, int], mode: str) -> None:
    picture = np.random.default_rng(0).integers(0, 100, (*size, 3), np.uint8)
    canvas, _ = letterbox(picture, 640, 640, mode)
    gain = 640 / max(size)
    height, width = (max(1, round(side * gain)) for side in size)
    top, left = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    apart = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(canvas[top : top + height, left : left + width], apart)
    assert (canvas == PAD_VALUE).sum() == canvas.size - apart.size  # which has no grey


def test_stretch_has_no_padding_and_a_gain_for_each_axis() -> None:
    canvas, placement = letterbox(np.full((320, 1280, 3), 9, np.uint8), 640, 640, "stretch")
    assert (canvas == 9).all()
    assert placement.as_row() == (0.5, 2.0, 0, 0, 320, 1280)


# Height and width of the picture; of the canvas with stride 32; the picture's place in it; gain and
# padding of its placement.
RECT_CASES = [
    ((480, 640), (480, 640), (0, 0, 480, 640), (1.0, 0.0, 0.0)),
    ((427, 640), (448, 640), (10, 0, 427, 640), (1.0, 10.5, 0.0)),
    ((1080, 810), (640, 480), (0, 0, 640, 480), (640 / 1080, 0.0, 0.0)),
    ((720, 1280), (384, 640), (12, 0, 360, 640), (0.5, 12.0, 0.0)),
    # 640 / 641 * 481 = 480.25 pixels are rounded to 480: the width determines the gain.
    ((641, 481), (640, 480), (0, 0, 640, 480), (480 / 481, (640 - 641 * 480 / 481) / 2, 0.0)),
    ((2000, 1), (640, 32), (0, 15, 640, 1), (0.32, 0.0, 15.84)),
]


@pytest.mark.parametrize("size, canvas_size, place, back", RECT_CASES)
def test_rect_pads_to_the_next_multiple_of_the_stride(
    size: tuple[int, int],
    canvas_size: tuple[int, int],
    place: tuple[int, int, int, int],
    back: tuple[float, float, float],
) -> None:
    canvas, placement = letterbox(np.full((*size, 3), 200, np.uint8), 640, 640, "rect", 32)
    top, left, height, width = place
    expected = np.full((*canvas_size, 3), PAD_VALUE, np.uint8)
    expected[top : top + height, left : left + width] = 200
    np.testing.assert_array_equal(canvas, expected)
    gain, pad_y, pad_x = back
    assert placement.as_row() == pytest.approx((gain, gain, pad_x, pad_y, *size), abs=1e-9)


def test_canvases_of_two_sizes_are_padded_to_one_batch() -> None:
    wide, tall = np.full((96, 160, 3), 7, np.uint8), np.full((160, 64, 3), 9, np.uint8)
    placements = [letterbox(picture, 160, 160, "rect")[1] for picture in (wide, tall)]
    batch = BatchBuilder({"images": HostNormaliser(), "pixels": PlaneSplitter()}, 2, None)
    for index, picture in enumerate((wide, tall)):
        batch.add(index, picture)
    tensors, moved = batch.build(placements)
    images, pixels = tensors["images"], tensors["pixels"]
    np.testing.assert_array_equal(pixels.astype(np.float32) / np.float32(255), images)
    assert images.shape == (2, 3, 160, 160)
    grey = np.float32(PAD_VALUE) / np.float32(255)
    assert (images[0, :, 32:128] == np.float32(7) / np.float32(255)).all()
    assert (images[0, :, :32] == grey).all() and (images[0, :, 128:] == grey).all()
    assert (images[1, :, :, 48:112] == np.float32(9) / np.float32(255)).all()
    assert (moved[0].pad_x, moved[0].pad_y) == (0, 32)
    assert (moved[1].pad_x, moved[1].pad_y) == (48, 0)


def test_batch_is_as_high_and_as_wide_as_the_largest_canvases() -> None:
    batch = BatchBuilder({"pixels": PlaneSplitter()}, 2, None)
    for index, size in enumerate(((64, 32), (32, 96))):
        batch.add(index, np.full((*size, 3), 7, np.uint8))
    placement = Placement(gain_x=1, gain_y=1, pad_x=0, pad_y=0, height=9, width=9)
    tensors, _ = batch.build([placement] * 2)
    assert tensors["pixels"].shape == (2, 3, 64, 96)


def test_canvas_is_padded_evenly_with_the_odd_pixel_at_the_end() -> None:
    canvas = np.full((2, 3, 3), 7, np.uint8)
    placement = Placement(gain_x=1, gain_y=1, pad_x=0.25, pad_y=0.5, height=2, width=3)
    larger, moved = enlarge(canvas, placement, 5, 8)
    assert (larger[1:3, 2:5] == 7).all()
    assert (larger == 7).sum() == canvas.size
    assert (larger == PAD_VALUE).sum() == larger.size - canvas.size
    assert (moved.pad_x, moved.pad_y) == (2.25, 1.5)
    assert (moved.gain_x, moved.height, moved.width) == (1, 2, 3)
    for height, width in ((2, 8), (5, 3)):  # one side alone
        larger, moved = enlarge(canvas, placement, height, width)
        assert larger.shape == (height, width, 3)
        assert (moved.pad_x > 1, moved.pad_y > 1) == (width == 8, height == 5)


def test_canvas_that_is_large_enough_is_not_copied() -> None:
    canvas, placement = letterbox(np.zeros((64, 64, 3), np.uint8), 64, 64, "rect")
    assert enlarge(canvas, placement, 64, 64)[0] is canvas


def test_normaliser_swaps_the_channels_and_divides_exactly() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    normaliser = HostNormaliser()
    batch = normaliser.allocate(2, 32, 48)
    normaliser.put(picture, batch, 1)
    expected = picture[..., ::-1].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch[1], expected)


def test_without_a_gpu_the_host_normalises_and_torch_is_not_imported() -> None:
    assert isinstance(make_normaliser(None), HostNormaliser)
    script = (
        "import sys, normalise; normalise.make_normaliser(None); sys.exit('torch' in sys.modules)"
    )
    folder = Path(normalise.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)


@pytest.mark.skipif(torch.cuda.is_available(), reason="an NVIDIA GPU is here")
def test_host_normalises_if_torch_cannot_use_the_gpu() -> None:
    assert isinstance(make_normaliser(0), HostNormaliser)


def test_pixels_are_the_values_before_the_division() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
    batch = BatchBuilder({"pixels": PlaneSplitter()}, 2, (32, 48))
    for index, canvas in enumerate((picture, np.invert(picture))):
        batch.add(index, canvas)
    tensors, _ = batch.build([])
    assert [*tensors] == ["pixels"] and tensors["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(tensors["pixels"][0], picture[..., ::-1].transpose(2, 0, 1))
    np.testing.assert_array_equal(tensors["pixels"][1], np.invert(tensors["pixels"][0]))


@pytest.mark.parametrize(
    "size, mode, expected",
    [
        ((480, 640), "square", 1),
        ((720, 1280), "square", 2),
        ((1280, 719), "square", 2),
        ((719, 1279), "square", 1),
        ((3000, 4000), "square", 4),
        ((3000, 4000), "rect", 4),
        ((3000, 4000), "stretch", 4),
        ((1279, 4000), "stretch", 1),
        ((9000, 9000), "square", 8),
    ],
)
def test_reduction_leaves_nothing_to_enlarge(
    size: tuple[int, int], mode: str, expected: int
) -> None:
    assert reduction(*size, height=640, width=640, mode=mode) == expected


def test_reduction_allows_for_a_picture_that_is_turned() -> None:
    assert reduction(960, 1280, height=480, width=640) == 2
    assert reduction(1280, 960, height=480, width=640) == 2
    assert reduction(959, 1000, height=480, width=640) == 1  # if turned, it could be reduced by 2


@pytest.mark.parametrize("size", [(960, 1280), (1280, 960)])
@pytest.mark.parametrize("input_size", [(480, 640), (640, 480)])
@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("mode", ["square", "rect", "stretch"])
def test_reduction_is_exactly_what_fits_both_ways(
    size: tuple[int, int], input_size: tuple[int, int], factor: int, mode: str
) -> None:
    scale = factor // 2
    # With stretch, a side would be enlarged if the picture were turned.
    h, w = (side * scale * 4 // 3 if mode == "stretch" else side * scale for side in size)
    height, width = input_size
    assert reduction(h, w, height=height, width=width, mode=mode) == factor
    if mode == "stretch":
        shorter = (h - scale * 2, w) if h < w else (h, w - scale * 2)
        assert reduction(*shorter, height=height, width=width, mode=mode) == factor // 2
    else:
        assert reduction(h - 2, w - 2, height=height, width=width, mode=mode) == factor // 2


@pytest.mark.parametrize("size", [(10, 9000), (9000, 10)])
def test_long_picture_is_not_reduced_if_that_depends_on_how_it_is_turned(
    size: tuple[int, int],
) -> None:
    assert reduction(*size, height=640, width=640) == 8
    assert reduction(*size, height=640, width=640, mode="stretch") == 1
    assert reduction(*size, height=640, width=4600) == 1


@pytest.mark.parametrize("mode", ["square", "rect", "stretch"])
def test_smaller_copy_is_placed_like_the_original(mode: str) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (721, 1281, 3), np.uint8)
    canvas, placement = letterbox(picture, 640, 640, mode)
    copy = cv2.resize(picture, (641, 361), interpolation=cv2.INTER_AREA).astype(np.uint8)
    other, same = letterbox(copy, 640, 640, mode, size=(721, 1281))
    assert same == placement
    assert other.shape == canvas.shape
    padding = (canvas == PAD_VALUE).all(2)
    assert padding.sum() == pytest.approx((other == PAD_VALUE).all(2).sum(), abs=5)
