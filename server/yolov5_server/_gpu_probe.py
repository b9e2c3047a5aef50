"""Try an NVIDIA GPU: `python -m yolov5_server._gpu_probe`, a process of its own.

A driver may hang or end its process, and the launcher must do neither. The last line of its output
is JSON: `gpus`, the names of those that can run a network, and `fault`, why none can (or null).
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

from ._settings import BACKENDS

_NO_GPU, _STUB_LIBRARY, _TOO_OLD, _MISMATCH = 100, 34, 35, 803  # CUresult
_CAUSES = {
    _NO_GPU: "it sees no GPU; CUDA_VISIBLE_DEVICES may hide it, or the container was given none",
    _STUB_LIBRARY: "libcuda.so.1 is the one to link programs with, not the driver's",
    _TOO_OLD: "it is older than its own library",
    _MISMATCH: "its library and its kernel module have different versions; a restart may help",
}
# The oldest driver for each version of CUDA.
_DRIVERS = {12: 525, 13: 580}


def probe() -> dict[str, Any]:
    """Try each step that a network on a GPU takes, and say where it fails."""
    try:
        import onnxruntime

        fault = driver_fault(onnxruntime.cuda_version or "")
        if fault is None:
            # As the network's process does: torch loads the libraries of CUDA, which ONNX Runtime
            # would look for in the system alone.
            import torch

            if not torch.cuda.is_available():
                fault = f"torch {torch.__version__} cannot use it"
    except Exception as error:
        fault = f"{error.__class__.__name__}: {error}"
    if fault:
        return {"gpus": [], "fault": fault}
    gpus = []
    for device in range(torch.cuda.device_count()):
        fault = fault or _session_fault(device)
        gpus.append(torch.cuda.get_device_name(device))
    return {"gpus": [] if fault else gpus, "fault": fault}


def driver_fault(needed: str) -> str | None:
    """Why the driver cannot be used; None if it can.

    Args:
        needed: version of CUDA that onnxruntime was built for, such as 13.0; empty if unknown.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"its driver's library cannot be loaded: {error}"
    if status := driver.cuInit(0):
        return f"its driver cannot be used: {_CAUSES.get(status, f'CUDA error {status}')}"
    found = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(found))
    major, minor = found.value // 1000, found.value % 1000 // 10
    wanted = int(needed.partition(".")[0] or 0)
    if major >= wanted:
        return None
    newer = f"; NVIDIA's driver {_DRIVERS[wanted]} or newer has it" if wanted in _DRIVERS else ""
    return f"its driver knows CUDA {major}.{minor}, and onnxruntime needs CUDA {needed}{newer}"


def _session_fault(device: int) -> str | None:
    """Run a network of one node on a GPU; say why it does not run."""
    sys.path += [str(BACKENDS / "onnxruntime"), str(BACKENDS / "shared")]
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper
    from session import CUDA, why_not_on_cuda

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "one", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    network = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    onnxruntime.set_default_logger_severity(4)
    try:
        providers = [(CUDA, {"device_id": device})]
        session = onnxruntime.InferenceSession(network, providers=providers)
        if CUDA not in session.get_providers():
            return str(why_not_on_cuda())
        session.run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:  # ONNX Runtime raises a class of its own for each cause
        return f"a first network failed on GPU {device}: {error}"
    return None


if __name__ == "__main__":
    print(json.dumps(probe()))
