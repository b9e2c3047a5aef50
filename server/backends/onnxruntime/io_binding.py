"""Run a session into reused output buffers; allocating them for each image is slower."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from config_check import dims
from executor import Run


def bind_outputs(session: onnxruntime.InferenceSession, names: Sequence[str]) -> Run | None:
    """Bind a session's outputs to buffers, one set for each thread, for one image at a time.

    Args:
        names: the outputs to return.

    Returns:
        The network: inputs by name -> outputs by name, which the next run on the same thread
        overwrites. None if the outputs' shapes are not fixed or their type is not float32.
    """
    outputs = {output.name: output for output in session.get_outputs()}
    shapes = {name: [1, *dims(outputs[name].shape)[1:]] for name in names}
    if any(-1 in shapes[name] or outputs[name].type != "tensor(float)" for name in names):
        return None
    local = threading.local()

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if not hasattr(local, "binding"):
            local.binding = session.io_binding()
            local.arrays = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
            for name, array in local.arrays.items():
                local.binding.bind_output(
                    name, "cpu", 0, np.float32, array.shape, array.ctypes.data
                )
        for name, array in inputs.items():
            local.binding.bind_cpu_input(name, array)
        session.run_with_iobinding(local.binding)
        return dict(local.arrays)

    return run
