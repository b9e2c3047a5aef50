"""A server that is to use a GPU where none can be used: it says why, and serves on the CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import PHOTOS, RunningServer, ask_grpc, assert_same, running_server

from yolov5_server.hardware import has_cuda_provider, has_gpu

pytestmark = pytest.mark.skipif(has_gpu(), reason="an NVIDIA GPU is here")
IMAGE = (PHOTOS / "BloodImage_00007.jpg").read_bytes()


def warning_in(log: Path) -> str:
    """The one warning about the GPU."""
    (warning,) = re.findall(r"^warning: the network runs on the CPU, .*$", log.read_text(), re.M)
    assert isinstance(warning, str)
    return warning


def test_gpu_that_cannot_be_used_is_named_and_the_cpu_serves(server: RunningServer) -> None:
    with running_server("--gpu=1") as running:
        warning = warning_in(running.log)
        assert warning.startswith("warning: the network runs on the CPU, although GPU=1 asks for a")
        cause = "libcuda.so.1" if has_cuda_provider() else "the installed onnxruntime cannot use it"
        assert cause in warning
        ready = "Precision: FP32, by onnxruntime. It runs on the CPU, by CPUExecutionProvider."
        assert ready in running.log.read_text()
        assert_same(ask_grpc(running.grpc, [IMAGE]), ask_grpc(server.grpc, [IMAGE]))


def test_nobody_is_warned_of_a_gpu_that_is_not_there(server: RunningServer) -> None:
    assert "GPU" not in server.log.read_text()
