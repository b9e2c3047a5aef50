"""Send fewer bytes into a detection network and out of it, by two inputs that its graph lacks.

Between two steps Triton copies every tensor three times. As float32, images are four times as large
as their pixels, and almost all rows of a network's output are background. A configuration may
therefore state two more inputs:

- `pixels`, UINT8, in place of `images`: RGB 0..255, divided by 255 here.
- `nms`, FP32, whose first number is a confidence: rows whose objectness is not over it are left
  out of `output0`; if a network without anchors has an objectness of 1 everywhere, those whose
  largest score is not over it. The step after the network would drop them first anyway.

A request with both may be answered by the network's prefiltered variant, which computes less.
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
_OBJECTNESS = 4  # column of a row


class InputError(ValueError):
    """The inputs of a request do not fit each other; one sentence."""


def without_own_inputs(config: Mapping[str, Any], outputs: Sequence[Any]) -> Mapping[str, Any]:
    """The configuration without what this module adds to it: the part that the graph must fit.

    Args:
        config: the model's configuration, as Triton passes it to a backend.
        outputs: tensors of the graph: objects with `name` and `shape`.
    """
    stated = {tensor["name"] for tensor in config["input"]}
    if IMAGES not in stated or not stated & {PIXELS, NMS}:
        return config
    shapes = {output.name: dims(output.shape) for output in outputs}

    def with_all_rows(output: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put back the graph's number of rows, which `nms` makes variable."""
        if NMS not in stated or output["name"] != ROWS or ROWS not in shapes:
            return output
        return {**output, "dims": [shapes[ROWS][1], *output["dims"][1:]]}

    return {
        **config,
        "input": [tensor for tensor in config["input"] if tensor["name"] not in (PIXELS, NMS)],
        "output": [with_all_rows(output) for output in config["output"]],
    }


def check_inputs(names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Check that a request has an input, and exactly one of `images` and `pixels`.

    Args:
        names: the inputs that the configuration states.
        given: the inputs of the request, by name.

    Raises:
        InputError: it has none, or both.
    """
    if PIXELS in names and (IMAGES in given) == (PIXELS in given):
        raise InputError(f"one of the inputs '{IMAGES}' and '{PIXELS}' is needed, and only one")
    if not given:
        raise InputError("an input is needed")


def check_prefiltered(
    config: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Compare the configuration with the network's prefiltered variant.

    The variant takes `pixels` and `nms` of one image and answers with the rows of `output0` whose
    objectness is over the first number of `nms`.

    Raises:
        ConfigError: they do not fit.
    """

    def for_one_image(tensors: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
        return [{**t, "dims": [1, *t["dims"]]} for t in tensors if t["name"] in names]

    stated = {
        **config,
        "max_batch_size": 0,
        "input": for_one_image(config["input"], PIXELS, NMS),
        "output": for_one_image(config["output"], ROWS),
    }
    check_config(stated, inputs, outputs)


def with_prefilter(run: Run, prefiltered: Run | None = None, *, full_head: bool = False) -> Run:
    """Let a network take `pixels` and `nms` too, one image at a time.

    Args:
        run: the network.
        prefiltered: its prefiltered variant, which answers requests with both.
        full_head: a row has a score for each class after the objectness.
    """
    local = threading.local()

    def images_from(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Scale to 0..1, in memory that the next image on this thread overwrites."""
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

    return run_prefiltered
