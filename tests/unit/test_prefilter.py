"""Pixels into a network in place of floats, and few rows out of it in place of all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from config_check import ConfigError, check_config
from image_gather import Tensors
from prefilter import config_of_full, with_prefilter
from support import GraphTensor

INPUTS = [GraphTensor("images", "tensor(float)", ["batch", 3, 640, 640])]
OUTPUTS = [GraphTensor("output0", "tensor(float)", ["batch", 25200, 8])]
IMAGES = {"name": "images", "data_type": "TYPE_FP32", "dims": [3, 640, 640]}
PIXELS = {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [3, 640, 640]}
NMS = {"name": "nms", "data_type": "TYPE_FP32", "dims": [5]}


def config(*inputs: Any, rows: int = -1, columns: int = 8) -> dict[str, Any]:
    output = {"name": "output0", "data_type": "TYPE_FP32", "dims": [rows, columns]}
    return {"name": "m", "max_batch_size": 8, "input": [*inputs], "output": [output]}


def check(stated: dict[str, Any]) -> None:
    check_config(config_of_full(stated, OUTPUTS), INPUTS, OUTPUTS)


def test_configuration_of_the_variant_fits_the_network_in_full() -> None:
    check(config(PIXELS, NMS))
    check(config(IMAGES, rows=25200))


@pytest.mark.parametrize(
    "stated",
    [
        config(PIXELS),
        config(IMAGES),  # a dynamic number of rows needs nms
        config(IMAGES, PIXELS, NMS),
        config(PIXELS, NMS, columns=9),
        config(PIXELS, NMS, {**NMS, "name": "other"}),
        config({**PIXELS, "dims": [3, 320, 320]}, NMS),
    ],
)
def test_other_inputs_and_outputs_must_fit_the_graph(stated: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        check(stated)


def test_pixels_are_scaled_as_preprocess_scales_images() -> None:
    seen = []

    def run(inputs: Tensors) -> dict[str, Any]:
        seen.append(inputs["images"].copy())
        return {"output0": np.zeros((1, 4, 8), np.float32)}

    network = with_prefilter(run)
    random = np.random.default_rng(1)
    for shape in ((1, 3, 32, 64), (1, 3, 64, 64), (1, 3, 32, 32)):  # larger, then smaller
        pixels = random.integers(0, 256, shape, np.uint8)
        network({"pixels": pixels})
        expected = pixels.astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(seen[-1], expected)
        network({"images": expected})
        np.testing.assert_array_equal(seen[-1], expected)


def test_rows_not_over_the_confidence_are_left_out() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(1, 5, 8)
    rows[0, :, 4] = [0.2, 0.5, 0.25, np.nan, 0.26]
    network = with_prefilter(lambda _: {"output0": rows})
    images = np.zeros((1, 3, 8, 8), np.float32)
    nms = np.array([[0.25, 0.45, 300, 0, 0]], np.float32)
    np.testing.assert_array_equal(
        network({"images": images, "nms": nms})["output0"], rows[:, [1, 4]]
    )
    nms[0, 0] = 0.9
    assert network({"images": images, "nms": nms})["output0"].shape == (1, 0, 8)
    np.testing.assert_array_equal(network({"images": images})["output0"], rows)


def test_largest_score_counts_if_every_objectness_is_one() -> None:
    rows = np.full((1, 4, 8), 0.1, np.float32)
    rows[0, :, 4] = 1
    rows[0, 1, 5], rows[0, 2, 7] = 0.26, 0.25
    nms = np.array([[0.25, 0.45, 300, 0, 0]], np.float32)

    def found(*, full_head: bool) -> Any:
        network = with_prefilter(lambda _: {"output0": rows}, full_head=full_head)
        return network({"images": np.zeros((1, 3, 8, 8), np.float32), "nms": nms})["output0"]

    np.testing.assert_array_equal(found(full_head=True), rows[:, [1]])
    np.testing.assert_array_equal(found(full_head=False), rows)  # column 5 is a class
    rows[0, 3, 4] = 0.999
    np.testing.assert_array_equal(found(full_head=True), rows)
    rows = rows[:, :0]
    assert found(full_head=True).shape == (1, 0, 8)
