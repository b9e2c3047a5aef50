"""Decide whether the network runs on an NVIDIA GPU: only if one was tried, and works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any

from ._settings import Settings
from .hardware import gpu_python_path, has_cuda_provider, has_gpu, wants_gpu

_PROBE_SECONDS = 120  # torch from a cold, slow disk, and a first use of the GPU
_LONGEST = 400  # characters of a cause


def without_faulty_gpu(
    settings: Settings, should_exit: threading.Event
) -> tuple[Settings, str | None]:
    """The settings, for the CPU if no GPU can be used; and the warning that says why.

    A container's Triton has a backend of its own, which decides for itself.
    """
    if settings.triton is not None or not wants_gpu(settings.gpu):
        return settings, None
    fault = gpu_fault(should_exit)
    if fault is None:
        return settings, None
    there = "although there is an NVIDIA GPU" if has_gpu() else "although GPU=1 asks for a GPU"
    return replace(settings, gpu="0"), f"warning: the network runs on the CPU, {there}: {fault}."


def gpu_fault(should_exit: threading.Event) -> str | None:
    """Why no GPU can run a network here; None if one can, or if `should_exit` is set first."""
    if not has_cuda_provider():
        if sys.version_info < (3, 11):
            major, minor = sys.version_info[:2]
            return (
                "onnxruntime-gpu for CUDA 13 needs Python 3.11 or newer, and the environment has"
                f" {major}.{minor};"
                " `make clean` and `make serve PYTHON=python3.12` change that"
            )
        return (
            "the installed onnxruntime cannot use it; `make serve` installs onnxruntime-gpu beside"
            " it as soon as it reaches the package index (docs/operations.md)"
        )
    fault = _probe(should_exit).get("fault")
    return " ".join(str(fault).split())[:_LONGEST].rstrip(". ") if fault else None


def _probe(should_exit: threading.Event) -> dict[str, Any]:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    if folder := gpu_python_path():
        environment["PYTHONPATH"] = folder
    with subprocess.Popen(
        [sys.executable, "-m", "yolov5_server._gpu_probe"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        late = time.monotonic() + _PROBE_SECONDS
        while process.poll() is None:
            if should_exit.wait(0.05) or time.monotonic() > late:
                process.kill()
                break
        assert process.stdout is not None
        lines = process.stdout.read().strip().splitlines()
    if should_exit.is_set():
        return {}
    if time.monotonic() > late:
        return {"fault": f"it did not answer within {_PROBE_SECONDS} s"}
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        return {"fault": f"the process that tried it ended with status {process.returncode}"}
    return found
