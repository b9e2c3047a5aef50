"""The runner for a GPU, with a session and tensors on the CPU: the same code, another device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from device import DeviceRunner, batch_sizes, rows_over, sessions_by_size
from onnx import TensorProto, helper
from prefilter import with_prefilter
from session import open_session

CPU = torch.device("cpu")


@pytest.fixture
def network(tmp_path: Path) -> Path:
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
    return path


@pytest.fixture
def session(network: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])


def pictures(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, 3, 4, 4), np.uint8))


def thresholds(*confidences: float) -> torch.Tensor:
    return torch.tensor([[value, 0.45, 300, 0, 0] for value in confidences])


def test_pixels_are_divided_as_on_a_cpu(session: onnxruntime.InferenceSession) -> None:
    pixels = pictures(2)
    outputs = DeviceRunner({8: session}, CPU).run({"pixels": pixels})
    assert torch.equal(outputs["output0"], (pixels.float() / 255).reshape(2, 8, 6))
    assert pixels.dtype == torch.uint8


def test_batch_has_the_rows_that_each_image_has_on_a_cpu(
    session: onnxruntime.InferenceSession,
) -> None:
    pixels, nms = pictures(3), thresholds(0.5, 0.9, 0.1)

    def on_host(inputs: Any) -> dict[str, Any]:
        return {"output0": session.run(None, inputs)[0]}

    outputs = DeviceRunner({8: session}, CPU).run({"pixels": pixels, "nms": nms})["output0"].numpy()
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
    runner = DeviceRunner({8: session}, CPU)
    parts = [pictures(3)[:1], pictures(3)[1:]]
    assert torch.equal(runner.join(parts), pictures(3))
    assert runner.join([thresholds(0.5), thresholds(0.25)]).tolist() == [
        *thresholds(0.5).tolist(),
        *thresholds(0.25).tolist(),
    ]


def by_size(path: Path, most: int) -> tuple[dict[int, onnxruntime.InferenceSession], list[Any]]:
    """Sessions of a network by batch size, and for which sizes they were opened."""
    opened: list[Any] = []

    def open_fixed(fixed: Any) -> onnxruntime.InferenceSession:
        opened.append(dict(fixed))
        return open_session({"name": "yolov5"}, path, fixed, kind="CPU", device=0)

    return sessions_by_size(open_fixed({}), most, open_fixed), opened[1:]


@pytest.mark.parametrize(
    "most, sizes",
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])],
)
def test_batch_sizes_are_the_powers_of_two_and_the_largest(most: int, sizes: list[int]) -> None:
    assert batch_sizes(most) == sizes


def test_sessions_have_their_batch_size_as_a_fixed_dimension(network: Path) -> None:
    sessions, opened = by_size(network, 3)
    assert opened == [{"batch": 1}, {"batch": 2}, {"batch": 3}]
    for size, session in sessions.items():
        assert session.get_inputs()[0].shape == [size, 3, 4, 4]
        assert session.get_outputs()[0].shape == [size, 8, 6]


def test_network_that_does_not_batch_keeps_its_one_session(network: Path) -> None:
    sessions, opened = by_size(network, 0)
    assert [*sessions] == [1] and not opened
    pixels = pictures(3)
    assert len(DeviceRunner(sessions, CPU).run({"pixels": pixels})["output0"]) == 3


@pytest.mark.parametrize("count", range(1, 7))
def test_padded_batch_has_the_answers_of_an_unpadded_one(
    network: Path, session: onnxruntime.InferenceSession, count: int
) -> None:
    sessions, _ = by_size(network, 6)
    plain, padded = DeviceRunner({count: session}, CPU), DeviceRunner(sessions, CPU)
    pixels = pictures(count)
    confidences = thresholds(*[0.9, 0.5, 0.1, 0.7, 0.3, 0.2][:count])
    for inputs in {"pixels": pixels}, {"pixels": pixels, "nms": confidences}:
        assert torch.equal(plain.run(inputs)["output0"], padded.run(inputs)["output0"])
    assert torch.equal(
        plain.run({"images": pixels / 255})["output0"],
        padded.run({"images": pixels / 255})["output0"],
    )


def test_each_session_is_run_with_its_own_batch_size_alone(
    session: onnxruntime.InferenceSession,
) -> None:
    seen: list[tuple[int, int]] = []

    class Spy:
        """A session that notes the size of the batches that it runs."""

        def __init__(self, size: int) -> None:
            self.size = size

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run_with_iobinding(self, binding: Any) -> None:
            session.run_with_iobinding(binding)
            seen.append((self.size, len(binding.copy_outputs_to_cpu()[0])))

    sessions: Any = {size: Spy(size) for size in (4, 1, 2)}
    runner = DeviceRunner(sessions, CPU)
    runner.warm_up()
    assert seen == [(1, 1), (2, 2), (4, 4)]
    for count in (3, 1, 4, 2):
        runner.run({"pixels": pictures(count)})
    assert seen[3:] == [(4, 4), (1, 1), (4, 4), (2, 2)]
    runner.run({"pixels": pictures(5)})  # larger than the configuration allows
    assert seen[-1] == (4, 5)


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
    runner = DeviceRunner({1: on_gpu, 8: on_gpu}, torch.device("cuda", 0))
    joined = {name: runner.join([value[:1], value[1:]]) for name, value in inputs.items()}
    assert joined["pixels"].is_cuda
    found = runner.run(joined)["output0"]
    assert not found.is_cuda
    wanted = DeviceRunner({8: session}, CPU).run(inputs)["output0"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
