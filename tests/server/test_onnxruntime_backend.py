"""The Python-based backend `onnxruntime`, on small graphs, where Triton's C++ one could be told
from it: what it refuses to load, what it honours, what it fills in."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support import plain_triton, ready_triton, wait_until

pytestmark = pytest.mark.embedded("its ONNX Runtime backend is this project's own")

CONFIG = """
name: "graph"
backend: "onnxruntime"
max_batch_size: {batch}
input [ {{ name: "x" data_type: {kind} dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
dynamic_batching {{ max_queue_delay_microseconds: 100000 }}
{more}
"""


def reciprocal(path: Path, *, batch: str | int = "batch") -> None:
    """y = 1 / gather(table, int(x)): fails on an index that is not 0, 1 or 2."""
    shape: list[Any] = [batch, 2]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "index"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def repository(
    folder: Path, file: str = "model.onnx", graph_batch: Any = "batch", **config: Any
) -> Path:
    version = folder / "graph" / "1"
    version.mkdir(parents=True)
    reciprocal(version / file, batch=graph_batch)
    values = {"batch": 4, "kind": "TYPE_FP32", "dims": "2", "output": "y", "more": "", **config}
    (folder / "graph" / "config.pbtxt").write_text(CONFIG.format(**values))
    return folder


def ask(client: grpc.InferenceServerClient, rows: list[list[float]]) -> NDArray[np.float32]:
    tensor = grpc.InferInput("x", [len(rows), 2], "FP32")
    tensor.set_data_from_numpy(np.array(rows, np.float32))
    answer: NDArray[np.float32] = client.infer("graph", [tensor]).as_numpy("y")
    return answer


@pytest.mark.parametrize(
    "config, sentence",
    [
        ({"kind": "TYPE_FP16"}, "unexpected datatype TYPE_FP16 for inference input 'x'"),
        ({"dims": "3"}, "tensor 'x': the model expects 2 dimensions (shape [-1, 2]) but the model"),
        ({"dims": "2, 1"}, "(shape [-1, 2]) but the model configuration specifies 3 dimensions"),
        (
            {"output": "z"},
            "unexpected inference output 'z' for model 'graph', allowed outputs are: y",
        ),
        ({"graph_batch": 1}, "batching needs a first dimension that is variable"),
        ({"file": "other.onnx"}, "unable to find 'model.onnx' for model 'graph'"),
        (
            {"more": 'parameters { key: "intra_op_thread_count" value: { string_value: "two" } }'},
            "parameter 'intra_op_thread_count' is 'two'",
        ),
    ],
    ids=["datatype", "dims", "rank", "output", "batching", "file", "threads"],
)
def test_unfitting_model_is_not_loaded(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    with plain_triton(repository(tmp_path, **config)) as (process, _):
        output, _ = process.communicate(timeout=30)
        assert process.returncode != 0
    assert sentence in output


def test_failing_request_of_a_batch_fails_alone(tmp_path: Path) -> None:
    file = "weights.onnx"
    more = f'default_model_filename: "{file}" instance_group [ {{ count: 1 kind: KIND_CPU }} ]'
    with (
        ready_triton(repository(tmp_path, file, more=more)) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        good = [[[0.0, 1.0]], [[2.0, 2.0], [1.0, 0.0]]]
        answers = [pool.submit(ask, client, rows) for rows in good]
        bad = pool.submit(ask, client, [[0.0, 99.0]])
        np.testing.assert_array_equal(answers[0].result(), [[10, 20]])
        np.testing.assert_array_equal(answers[1].result(), [[30, 30], [20, 10]])
        with pytest.raises(grpc.InferenceServerException, match="error running model 'graph'"):
            bad.result()

        def largest_batch() -> int:
            statistics = client.get_inference_statistics("graph", as_json=True)["model_stats"][0]
            return max(
                (int(one["batch_size"]) for one in statistics.get("batch_stats", [])), default=0
            )

        # The test needs them to have been one batch. Triton counts it after the last answer.
        wait_until(lambda: largest_batch() >= 3, 10)


def test_missing_configuration_comes_from_the_graph(tmp_path: Path) -> None:
    repository(tmp_path)
    (tmp_path / "graph" / "config.pbtxt").write_text('backend: "onnxruntime"')
    with ready_triton(tmp_path, complete=True) as client:
        config = client.get_model_config("graph", as_json=True)["config"]
        assert config["max_batch_size"] == 4
        assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["2"]}]
        np.testing.assert_array_equal(ask(client, [[1.0, 2.0]]), [[20, 30]])


def test_no_process_is_left(tmp_path: Path) -> None:
    with ready_triton(repository(tmp_path)) as client:
        assert ask(client, [[0.0, 0.0]]).tolist() == [[10, 10]]
    children = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "stub"], capture_output=True)
    assert not children.stdout
