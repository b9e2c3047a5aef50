"""Runtimes for an exported network on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

ONNX_RUNTIME, OPENVINO_BF16 = "ONNX Runtime", "OpenVINO BF16"


class Network(Protocol):
    """A network that is ready to run.

    Attributes:
        sides: height and width of the input in pixels, None if open.
    """

    sides: tuple[int | None, int | None]

    def rows(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one image [1, 3, H, W], RGB 0..1, and return its rows [N, 5 + C]."""


class _OnnxRuntime:
    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        image = self._session.get_inputs()[0]
        height, width = (side if isinstance(side, int) else None for side in image.shape[2:])
        self.sides = height, width
        self._name = image.name

    def rows(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._session.run(None, {self._name: images})[0][0]
        return rows


class _OpenVino:
    def __init__(self, path: Path) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        sides = [
            None if side.is_dynamic else side.get_length()
            for side in model.inputs[0].get_partial_shape()
        ]
        self.sides = sides[2], sides[3]
        model.reshape(openvino.PartialShape([1, 3, *(side or -1 for side in self.sides)]))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        self._request: Any = compiled.create_infer_request()

    def rows(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._request.infer([images])[0][0]
        return rows


RUNTIMES: dict[str, Callable[[Path], Network]] = {
    ONNX_RUNTIME: _OnnxRuntime,
    OPENVINO_BF16: _OpenVino,
}
