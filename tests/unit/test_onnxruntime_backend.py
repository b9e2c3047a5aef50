from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from batch import run_batch
from config_check import ConfigError, check_config, dims
from io_binding import bind_outputs
from onnx import TensorProto, helper
from session import configured_thread_counts, providers, session_options, why_not_on_cuda
from support import GraphTensor

INPUTS = [GraphTensor("images", "tensor(float)", ["batch", 3, 640, 640])]
OUTPUTS = [
    GraphTensor("output0", "tensor(float)", ["batch", 25200, 8]),
    GraphTensor("extra", "tensor(int64)", ["batch", None]),
]


def config(**changes: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "images", "data_type": "TYPE_FP32", "dims": [3, 640, 640]}],
        "output": [{"name": "output0", "data_type": "TYPE_FP32", "dims": ["25200", "8"]}],
        **changes,
    }


def check(**changes: Any) -> None:
    check_config(config(**changes), INPUTS, OUTPUTS)


def test_fitting_configuration_is_accepted() -> None:
    check()
    check(output=[{"name": "extra", "data_type": "TYPE_INT64", "dims": [-1]}])
    check(output=[{"name": "extra", "data_type": "TYPE_INT64", "dims": [7]}])
    assert dims(["batch", None, 3, -1]) == [-1, -1, 3, -1]


IMAGE = config()["input"][0]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"input": []}, "the configuration expects 0 inputs, the model provides 1"),
        ({"output": []}, "the configuration names no output"),
        (
            {"input": [{**IMAGE, "name": "image"}]},
            "unexpected inference input 'image' for model 'm'",
        ),
        ({"input": [{**IMAGE, "data_type": "TYPE_UINT8"}]}, "expecting TYPE_FP32 for model 'm'"),
        ({"input": [{**IMAGE, "dims": [3, -1, 640]}]}, "(shape [-1, 3, -1, 640])"),
        ({"input": [{**IMAGE, "dims": [3, 640]}]}, "specifies 3 dimensions (shape [-1, 3, 640])"),
        ({"input": [{**IMAGE, "reshape": {"shape": [1]}}]}, "'reshape' is not supported"),
        ({"max_batch_size": 0}, "specifies 3 dimensions (shape [3, 640, 640])"),
    ],
)
def test_unfitting_configuration_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(**changes)
    assert sentence in str(caught.value)


def parameters(**values: str) -> dict[str, Any]:
    return config(parameters={name: {"string_value": text} for name, text in values.items()})


def test_stated_thread_count_replaces_the_default() -> None:
    assert configured_thread_counts(config(), 6) == [1, 4, 6]
    assert configured_thread_counts(parameters(intra_op_thread_count="3"), 6) == [3]
    assert session_options(config(), threads=3).intra_op_num_threads == 3


def test_options_of_the_cpp_backend_are_honoured() -> None:
    options = session_options(
        parameters(execution_mode="1", inter_op_thread_count="3", enable_mem_arena="0"), threads=2
    )
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert options.inter_op_num_threads == 3
    assert options.enable_cpu_mem_arena is False
    levels = onnxruntime.GraphOptimizationLevel
    basic = session_options(config(optimization={"graph": {"level": -1}}), threads=2)
    assert basic.graph_optimization_level == levels.ORT_ENABLE_BASIC
    assert session_options(config(), threads=2).graph_optimization_level == levels.ORT_ENABLE_ALL


@pytest.mark.parametrize(
    "wrong",
    [
        parameters(intra_op_thread_count="-1"),
        parameters(execution_mode="2"),
        parameters(enable_mem_pattern="yes"),
        config(optimization={"graph": {"level": 7}}),
    ],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        configured_thread_counts(wrong, 2)
        session_options(wrong, threads=2)


CPU: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})
EVERYTHING = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def accelerated(kind: str, name: str, **options: str) -> dict[str, Any]:
    accelerators = {kind: [{"name": name, "parameters": options}]}
    return config(optimization={"execution_accelerators": accelerators})


def test_providers_follow_instance_kind_and_accelerators() -> None:
    assert providers(config(), EVERYTHING, "CPU", 0) == [CPU]
    assert providers(config(), EVERYTHING, "GPU", 1) == [
        ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": "0"}),
        CPU,
    ]
    # With a GPU but without CUDA in the package, the network runs on the CPU.
    assert providers(config(), EVERYTHING[2:], "GPU", 1) == [CPU]
    tensorrt = accelerated(
        "gpu_execution_accelerator",
        "tensorrt",
        precision_mode="FP16",
        max_workspace_size_bytes="1000",
        trt_engine_cache_enable="1",
    )
    assert providers(tensorrt, EVERYTHING, "GPU", 0)[0] == (
        "TensorrtExecutionProvider",
        {
            "device_id": 0,
            "trt_engine_cache_enable": "1",
            "trt_max_workspace_size": "1000",
            "trt_fp16_enable": "1",
        },
    )
    cuda = parameters(cudnn_conv_algo_search="1", gpu_mem_limit="9", use_tf32="1")
    assert providers(cuda, EVERYTHING, "GPU", 0)[0][1] == {
        "device_id": 0,
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": "9",
        "use_tf32": "1",
    }


def test_missing_cuda_provider_is_explained() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    assert "onnxruntime-gpu has one" in why_not_on_cuda()


@pytest.mark.parametrize(
    "wanted, kind, sentence",
    [
        (
            accelerated("cpu_execution_accelerator", "openvino"),
            "CPU",
            "OpenVINOExecutionProvider is",
        ),
        (accelerated("cpu_execution_accelerator", "mkl"), "CPU", "accelerator 'mkl'"),
        (accelerated("gpu_execution_accelerator", "vulkan"), "GPU", "accelerator 'vulkan'"),
    ],
)
def test_missing_accelerators_are_refused(wanted: dict[str, Any], kind: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        providers(wanted, EVERYTHING, kind, 0)


def requests(*rows: list[float]) -> list[dict[str, Any]]:
    return [{"x": np.array(values, np.float32).reshape(-1, 1)} for values in rows]


def test_batch_is_one_run_and_each_request_gets_its_rows() -> None:
    seen = []

    def run(inputs: Any) -> Any:
        seen.append(len(inputs["x"]))
        return {"y": inputs["x"] * 2}

    answers = run_batch(run, requests([1], [2, 3], [4]), join=np.concatenate)
    assert seen == [4]
    assert [a["y"].ravel().tolist() for a in answers if not isinstance(a, Exception)] == [
        [2],
        [4, 6],
        [8],
    ]
    seen.clear()
    run_batch(run, requests([1], [2]), join=None)
    assert seen == [1, 1]


def test_failing_request_of_a_batch_fails_alone() -> None:
    def run(inputs: Any) -> Any:
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return {"y": inputs["x"]}

    good, bad, other = run_batch(run, requests([1], [-1], [2, 2]), join=np.concatenate)
    assert isinstance(bad, RuntimeError)
    assert not isinstance(good, Exception)
    assert not isinstance(other, Exception)
    assert other["y"].ravel().tolist() == [2, 2]


def test_requests_with_different_optional_inputs_are_not_joined() -> None:
    seen = []

    def run(inputs: Any) -> Any:
        seen.append(sorted(inputs))
        return {"y": inputs["x"]}

    (one,) = requests([1])
    answers = run_batch(run, [one, {**one, "z": one["x"]}], join=np.concatenate)
    assert seen == [["x"], ["x", "z"]]
    assert not any(isinstance(answer, Exception) for answer in answers)


def test_output_buffers_are_reused_for_each_thread(tmp_path: Path) -> None:
    doubled = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(doubled, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    run = bind_outputs(session, ["y"])
    assert run is not None
    first = run({"x": np.array([[1, 2, 3]], np.float32)})["y"]
    assert first.tolist() == [[2, 4, 6]]
    assert run({"x": np.array([[4, 5, 6]], np.float32)})["y"] is first
    assert first.tolist() == [[8, 10, 12]]
    with ThreadPoolExecutor(1) as pool:  # another thread has its own buffers
        other = pool.submit(run, {"x": np.array([[7, 8, 9]], np.float32)}).result()["y"]
    assert other.tolist() == [[14, 16, 18]]
    assert first.tolist() == [[8, 10, 12]]


def test_outputs_of_unknown_size_are_not_bound(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    assert bind_outputs(onnxruntime.InferenceSession(tmp_path / "m.onnx"), ["y"]) is None
