"""The network alone: `python -m yolov5_bench._gpu_engine NETWORK DEVICE TF32 BATCHES`.

It runs without a server. Input and output stay on the device. Prints a line of JSON for each batch
size, as soon as it is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch  # noqa: F401  # loads the libraries of CUDA, which ONNX Runtime then finds

_SECONDS = 2.0
_WARM_RUNS = 5


def main() -> None:
    _, network, device, tf32, batches = sys.argv
    chosen = {
        "cuda": ("CUDAExecutionProvider", {"device_id": 0, "use_tf32": tf32}),
        "tensorrt": ("TensorrtExecutionProvider", {"device_id": 0, "trt_fp16_enable": "1"}),
    }
    providers = [chosen.get(device, ("CPUExecutionProvider", {}))]
    session = onnxruntime.InferenceSession(Path(network), providers=providers)
    if session.get_providers()[0] != providers[0][0]:
        sys.exit(f"{providers[0][0]} could not be used")
    device = "cpu" if device == "cpu" else "cuda"
    for batch in map(int, batches.split(",")):
        run = bound(session, batch, device)
        started = time.perf_counter()
        for _ in range(_WARM_RUNS if device == "cuda" else 1):
            run()
        warm = time.perf_counter() - started
        seconds = measure(run)
        print(json.dumps({"batch": batch, "warm": warm, "rate": batch / seconds}), flush=True)


def bound(session: onnxruntime.InferenceSession, batch: int, device: str) -> Callable[[], None]:
    """A run of the session whose input and output are on the device."""
    image = session.get_inputs()[0]
    kind = np.float16 if image.type == "tensor(float16)" else np.float32
    values = np.random.default_rng(1).random((batch, *image.shape[1:]), np.float32).astype(kind)
    binding = session.io_binding()
    held = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
    binding.bind_ortvalue_input(image.name, held)
    for output in session.get_outputs():
        binding.bind_output(output.name, device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def measure(run: Callable[[], None]) -> float:
    """The median of a run's seconds."""
    spent: list[float] = []
    begin = time.perf_counter()
    while len(spent) < 3 or time.perf_counter() - begin < _SECONDS:
        started = time.perf_counter()
        run()
        spent.append(time.perf_counter() - started)
    return float(np.median(spent))


if __name__ == "__main__":
    main()
