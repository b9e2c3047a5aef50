"""The runner for a GPU, with a session and tensors on the CPU: the same code, another device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from device import DeviceRunner, rows_over
from onnx import TensorProto, helper
from prefilter import with_prefilter

CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path: Path) -> onnxruntime.InferenceSession:
    """A network whose rows are its image's pixels, six at a time."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["images", "shape"], ["output0"])],
        "rows",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 8, 6])],
        [onnx.numpy_helper.from_array(np.array([0, 8, 6]), "shape")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        path,
    )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, 4, 4), np.uint8))


def thresholds(*confidences: float) -> torch.Tensor:
    return torch.tensor([[value, 0.45, 300, 0, 0] for value in confidences])


def test_pixels_are_divided_as_on_a_cpu(session: onnxruntime.InferenceSession) -> None:
    pixels = pictures(2)
    outputs = DeviceRunner(session, CPU).run({"pixels": pixels})
    assert torch.equal(outputs["output0"], (pixels.float() / 255).reshape(2, 8, 6))
    assert pixels.dtype == torch.uint8


def test_batch_has_the_rows_that_each_image_has_on_a_cpu(
    session: onnxruntime.InferenceSession,
) -> None:
    pixels, nms = pictures(3), thresholds(0.5, 0.9, 0.1)

    def on_host(inputs: Any) -> dict[str, Any]:
        return {"output0": session.run(None, inputs)[0]}

    outputs = DeviceRunner(session, CPU).run({"pixels": pixels, "nms": nms})["output0"].numpy()
    counts = []
    for index in range(3):
        part = slice(index, index + 1)
        inputs = {"pixels": pixels[part].numpy(), "nms": nms[part].numpy()}
        wanted = with_prefilter(on_host)(inputs)["output0"][0]
        np.testing.assert_array_equal(outputs[index, : len(wanted)], wanted)
        assert not outputs[index, len(wanted) :].any()
        counts.append(len(wanted))
    assert len({*counts}) == 3 and outputs.shape == (3, max(counts), 6)


def test_no_row_over_the_confidence_gives_no_rows() -> None:
    assert rows_over(torch.zeros(2, 5, 8), torch.zeros(2)).shape == (2, 0, 8)


def test_joined_tensors_are_in_the_order_of_the_requests(
    session: onnxruntime.InferenceSession,
) -> None:
    runner = DeviceRunner(session, CPU)
    parts = [pictures(3)[:1], pictures(3)[1:]]
    assert torch.equal(runner.join(parts), pictures(3))
    assert runner.join([thresholds(0.5), thresholds(0.25)]).tolist() == [
        *thresholds(0.5).tolist(),
        *thresholds(0.25).tolist(),
    ]


def test_every_batch_size_is_warmed_up(session: onnxruntime.InferenceSession) -> None:
    runner = DeviceRunner(session, CPU)
    seen = []
    runner.run = lambda inputs: seen.append(inputs["images"].shape) or {}  # type: ignore[method-assign, func-returns-value]
    runner.warm_up(range(1, 4))
    assert seen == [(1, 3, 4, 4), (2, 3, 4, 4), (3, 3, 4, 4)]


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    or not torch.cuda.is_available(),
    reason="no NVIDIA GPU here, or no onnxruntime-gpu",
)
def test_gpu_gives_the_rows_of_the_cpu(
    tmp_path: Path, session: onnxruntime.InferenceSession
) -> None:
    on_gpu = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CUDAExecutionProvider"]
    )
    assert "CUDAExecutionProvider" in on_gpu.get_providers()
    inputs = {"pixels": pictures(3), "nms": thresholds(0.5, 0.9, 0.1)}
    runner = DeviceRunner(on_gpu, torch.device("cuda", 0))
    joined = {name: runner.join([value[:1], value[1:]]) for name, value in inputs.items()}
    assert joined["pixels"].is_cuda
    found = runner.run(joined)["output0"]
    assert not found.is_cuda
    wanted = DeviceRunner(session, CPU).run(inputs)["output0"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
