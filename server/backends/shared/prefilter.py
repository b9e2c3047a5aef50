"""Fewer bytes into a detection network and out of it, by two inputs that its graph does not have.

Between two steps Triton copies every tensor three times. The pictures as float32 are four times as
large as they were, and of the rows that a network answers with nearly all say that nothing is
there. A configuration may therefore state, beside `images` and `output0`:

- `pixels`, UINT8, in place of `images`: the same as 0..255, divided by 255 here.
- `nms`, FP32, whose first number is a confidence: rows whose objectness is not over it are left
  out, as the step after the network would do first of all.

The network may have a prefiltered variant of its own for those who bring both, which does less.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from config_check import check_config, dims
from executor import Run
from numpy.typing import NDArray

IMAGES, PIXELS, NMS, ROWS = "images", "pixels", "nms", "output0"
_OBJECTNESS = 4  # the column


class InputError(ValueError):
    """The inputs of a request do not fit each other; one sentence."""


def without_own_inputs(config: Mapping[str, Any], outputs: Sequence[Any]) -> Mapping[str, Any]:
    """The configuration as the graph has to fit it.

    Args:
        config: Triton's, as it hands it to a backend.
        outputs: of the graph: objects with `name` and `shape`.
    """
    stated = {tensor["name"] for tensor in config["input"]}
    if IMAGES not in stated or not stated & {PIXELS, NMS}:
        return config
    shapes = {output.name: dims(output.shape) for output in outputs}

    def whole(output: Mapping[str, Any]) -> Mapping[str, Any]:
        """With the number of rows that the graph has, where some may be left out."""
        if NMS not in stated or output["name"] != ROWS or ROWS not in shapes:
            return output
        return {**output, "dims": [shapes[ROWS][1], *output["dims"][1:]]}

    return {
        **config,
        "input": [tensor for tensor in config["input"] if tensor["name"] not in (PIXELS, NMS)],
        "output": [whole(output) for output in config["output"]],
    }


def check_inputs(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """
    Args:
        names: that the configuration states.
        given: the inputs of a request, by name.

    Raises:
        InputError: a request must bring one of `images` and `pixels`.
    """
    if PIXELS in names and (IMAGES in given) == (PIXELS in given):
        raise InputError(f"one of the inputs '{IMAGES}' and '{PIXELS}' is needed, and only one")


def check_prefiltered(
    config: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Compare the configuration with the network's prefiltered variant.

    The variant takes `pixels` and `nms` of one image and answers with the rows of `output0` whose
    objectness is over the first number of `nms`.

    Raises:
        ConfigError: they do not fit.
    """

    def of_one_image(tensors: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
        return [{**t, "dims": [1, *t["dims"]]} for t in tensors if t["name"] in names]

    stated = {
        **config,
        "max_batch_size": 0,
        "input": of_one_image(config["input"], PIXELS, NMS),
        "output": of_one_image(config["output"], ROWS),
    }
    check_config(stated, inputs, outputs)


def with_prefilter(run: Run, prefiltered: Run | None = None) -> Run:
    """A network that takes these inputs too, for one image at a time.

    Args:
        prefiltered: its prefiltered variant.
    """
    local = threading.local()

    def images(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """0..1, in memory that the next image on this thread takes again."""
        if not hasattr(local, "memory") or local.memory.size < pixels.size:
            local.memory = np.empty(pixels.size, np.float32)
        out: NDArray[np.float32] = local.memory[: pixels.size].reshape(pixels.shape)
        return np.divide(pixels, np.float32(255), out=out, dtype=np.float32)

    def run_prefiltered(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if prefiltered and PIXELS in inputs and NMS in inputs:
            return prefiltered(inputs)
        rest = dict(inputs)
        nms = rest.pop(NMS, None)
        if PIXELS in rest:
            rest[IMAGES] = images(rest.pop(PIXELS))
        outputs = run(rest)
        if nms is None:
            return outputs
        rows = outputs[ROWS][0]
        return {**outputs, ROWS: rows[rows[:, _OBJECTNESS] > nms[0, 0]][None]}

    return run_prefiltered
