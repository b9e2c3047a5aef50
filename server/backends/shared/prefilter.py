"""Serve a network in full under the configuration of its prefiltered variant.

`make model` puts two forms of a network into a version. The configuration describes `served.onnx`:
it takes `pixels` (UINT8, 0..255) and `nms`, and answers with the rows over the confidence.
`model.onnx` takes `images` (FP32, 0..1) and answers with all rows. On a GPU and with OpenVINO the
second one runs, and the rest is done beside it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from config_check import dims
from executor import Run
from numpy.typing import NDArray

IMAGES, PIXELS, NMS, ROWS = "images", "pixels", "nms", "output0"
_OBJECTNESS = 4  # column of a row


def config_of_full(config: Mapping[str, Any], outputs: Sequence[Any]) -> Mapping[str, Any]:
    """The configuration that the network in full must fit.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        outputs: tensors of the graph in full: objects with `name` and `shape`.
    """
    if {tensor["name"] for tensor in config["input"]} != {PIXELS, NMS}:
        return config
    (pixels,) = (tensor for tensor in config["input"] if tensor["name"] == PIXELS)
    shapes = {output.name: dims(output.shape) for output in outputs}

    def with_all_rows(output: Mapping[str, Any]) -> Mapping[str, Any]:
        shape = shapes.get(output["name"], [])
        return output if len(shape) < 2 else {**output, "dims": [shape[1], *output["dims"][1:]]}

    return {
        **config,
        "input": [{**pixels, "name": IMAGES, "data_type": "TYPE_FP32"}],
        "output": [with_all_rows(output) for output in config["output"]],
    }


def has_full_head(config: Mapping[str, Any]) -> bool:
    """Whether the network's rows have a score for each class after the objectness."""
    head = config.get("parameters", {}).get("head", {}).get("string_value")
    return bool(head == "full")


def with_prefilter(run: Run, *, full_head: bool = False) -> Run:
    """Let a network in full take `pixels` and `nms`, one image at a time.

    Rows whose objectness is not over the confidence are left out, or if a network without anchors
    has an objectness of 1 everywhere, those whose largest score is not over it. The step after the
    network would drop them first anyway.

    Args:
        run: the network.
        full_head: a row has a score for each class after the objectness.
    """
    local = threading.local()

    def images_from(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale to 0..1, in memory that the next image on this thread overwrites."""
        if not hasattr(local, "memory") or local.memory.size < pixels.size:
            local.memory = np.empty(pixels.size, np.float32)
        out: NDArray[np.float32] = local.memory[: pixels.size].reshape(pixels.shape)
        return np.divide(pixels, np.float32(255), out=out, dtype=np.float32)

    def run_and_filter(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        rest = dict(inputs)
        nms = rest.pop(NMS, None)
        if PIXELS in rest:
            rest[IMAGES] = images_from(rest.pop(PIXELS))
        outputs = run(rest)
        if nms is None:
            return outputs
        rows = outputs[ROWS][0]
        objectness, confidence = rows[:, _OBJECTNESS], nms[0, 0]
        over = objectness > confidence
        if full_head and (objectness == 1).all():
            over &= rows[:, _OBJECTNESS + 1 :].max(1) > confidence
        return {**outputs, ROWS: rows[over][None]}

    return run_and_filter
