"""Photos are prepared as YOLOv5's validation does."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from yolov5_client._val_canvas import encode, place, rectangles


def test_large_photo_shrinks_by_averaging_and_is_centred() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (1000, 1280, 3), np.uint8)
    canvas, placement = place(photo, 640, (640, 640))
    assert canvas.shape == (640, 640, 3)
    inner = cv2.resize(photo, (640, 500), interpolation=cv2.INTER_AREA)
    assert (canvas[70:570] == inner).all()
    assert (canvas[:70] == 114).all() and (canvas[570:] == 114).all()
    assert placement.size == (1000, 1280)


def test_photo_of_the_models_size_is_unchanged_after_the_png() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    canvas, _ = place(photo, 640, (512, 672))
    assert (canvas[16:496, 16:656] == photo).all()
    decoded = cv2.imdecode(np.frombuffer(encode(canvas), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None and (decoded == canvas).all()


def test_boxes_are_mapped_back_to_the_photo() -> None:
    photo = np.zeros((333, 999, 3), np.uint8)
    _, placement = place(photo, 640, (640, 640))
    # The sides are rounded down: 213 of 213.3.
    gain, top = np.array([640 / 999, 213 / 333] * 2), np.array([0, 213.5] * 2)
    wanted = np.array([[10, 20, 500, 300], [0, 0, 999, 333]], np.float32)
    boxes = (wanted * gain + top).astype(np.float32)
    assert placement.to_photo(boxes) == pytest.approx(wanted, abs=1e-3)
    outside = np.array([[-5, 0, 700, 640]], np.float32)
    assert placement.to_photo(outside).tolist() == [[0, 0, 999, 333]]


def test_rectangle_is_shared_by_photos_of_similar_proportions() -> None:
    assert rectangles(640, [(480, 640)]) == [(512, 672)]
    assert rectangles(640, [(640, 480)]) == [(672, 512)]
    assert rectangles(640, [(480, 640), (320, 640)]) == [(512, 672)] * 2
    wide, high = [(320, 640)] * 32, [(640, 320)] * 32
    assert rectangles(640, [*high, *wide]) == [(672, 352)] * 32 + [(352, 672)] * 32
