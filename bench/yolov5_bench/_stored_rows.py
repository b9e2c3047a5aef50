"""Networks that cost nothing: ONNX graphs that hand out stored rows, whatever the picture is.

All that knows how the served graphs and configurations look is here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from yolov5_build import _contract as contract

SIDE = 640  # of the input, in pixels
ROWS, CLASSES = 25_200, 80
# Number of detections -> the conf_thres that leaves as many. 0.25 is what a request has by default.
CONF_THRES = {0: 0.99, 10: 0.95, 100: 0.25, 300: 0.15}
_SCORES = np.repeat(np.array([0.97, 0.9, 0.2], np.float32), [10, 90, 200])
_OPSET = 17
# How a network takes its prefiltered form in checkouts whose `make model` makes none of an import.
_OLD_FILE, _OLD_CONFIG = "prefiltered.onnx", "configs/embedded.pbtxt"
_OLD_PARAMETER = f'parameters {{ key: "prefiltered" value: {{ string_value: "{_OLD_FILE}" }} }}\n'
_COLUMNS, _LINES = 20, 15  # places for detections that do not overlap
# A picture of 4:3 fills these lines of the input; boxes in the padding would be clipped to nothing.
_TOP, _BOTTOM = 80, 560


def stored_rows() -> NDArray[np.float32]:
    """Make rows of which some are detections that nothing suppresses.

    Returns:
        [25200, 85]: cx, cy, w, h in pixels, objectness, a score for each class.
    """
    random = np.random.default_rng(0)
    rows = np.empty((ROWS, 5 + CLASSES), np.float32)
    rows[:, :2] = random.uniform(0, SIDE, (ROWS, 2))
    rows[:, 2:4] = random.uniform(4, 200, (ROWS, 2))
    rows[:, 4] = random.uniform(0, 0.01, ROWS)
    rows[:, 5:] = random.uniform(0, 0.05, (ROWS, CLASSES))
    count = len(_SCORES)
    places = random.permutation(_COLUMNS * _LINES)[:count]
    cell = np.array([SIDE / _COLUMNS, (_BOTTOM - _TOP) / _LINES])
    corners = np.stack([places % _COLUMNS, places // _COLUMNS], 1) * cell + (0, _TOP)
    chosen = np.sort(random.permutation(ROWS)[:count])  # anywhere among the others
    rows[chosen, :2] = corners + cell / 2
    rows[chosen, 2:4] = 0.75 * cell
    rows[chosen, 4] = _SCORES
    rows[chosen, 5 + random.integers(0, CLASSES, count)] = 1
    return rows


def rows_over(rows: NDArray[np.float32], conf_thres: float) -> NDArray[np.float32]:
    """The rows that a prefiltered network hands out at this confidence."""
    return rows[rows[:, 4] > conf_thres]


def write_full(path: Path, rows: NDArray[np.float32]) -> None:
    """Write a network as YOLOv5's exporter does, for `make model`: all rows for each image."""
    count, columns = rows.shape
    model = _handing_out(
        rows,
        [_value(contract.INPUT, TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        _value(contract.OUTPUT, TensorProto.FLOAT, ["batch", count, columns]),
    )
    names = {index: f"class {index}" for index in range(columns - 5)}
    helper.set_model_props(model, {contract.NAMES_KEY: str(names), contract.STRIDE_KEY: "32"})
    onnx.save(model, path)


def prefilter(network: Path) -> None:
    """Give an installed network a prefiltered form, which stores nothing but the detections.

    Args:
        network: its folder in a model repository, with one version.
    """
    rows = rows_over(stored_rows(), min(CONF_THRES.values()))
    full = next(network.glob(f"[0-9]*/{contract.WEIGHTS_FILE}"))
    if served := _taking_pixels(full.parent):
        model = onnx.load(served)
        inputs, output = [*model.graph.input], model.graph.output[0]
        metadata = {entry.key: entry.value for entry in model.metadata_props}
    else:
        served = full.with_name(_OLD_FILE)
        inputs = [
            _value(contract.PIXELS, TensorProto.UINT8, [1, 3, SIDE, SIDE]),
            _value(contract.NMS, TensorProto.FLOAT, [1, 5]),
        ]
        output = _value(contract.OUTPUT, TensorProto.FLOAT, [1, "rows", rows.shape[1]])
        metadata = {contract.FULL_KEY: hashlib.sha256(full.read_bytes()).hexdigest()}
        with (network / _OLD_CONFIG).open("a", encoding="utf-8") as file:
            file.write(_OLD_PARAMETER)
    made = _handing_out_above_confidence(rows, inputs, output)
    helper.set_model_props(made, metadata)
    onnx.save(made, served)


def _taking_pixels(version: Path) -> Path | None:
    """The file of an installed version that takes pixels; earlier checkouts make none of it."""
    for path in version.glob("*.onnx"):
        inputs = onnx.load(path, load_external_data=False).graph.input
        if contract.PIXELS in {value.name for value in inputs}:
            return path
    return None


def _value(name: str, kind: int, shape: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _handing_out(
    rows: NDArray[np.float32], inputs: Sequence[ValueInfoProto], output: ValueInfoProto
) -> ModelProto:
    """A graph that answers each image of the first input's batch with these rows [N, columns]."""
    nodes = [
        helper.make_node("Shape", [inputs[0].name], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "ones"], ["shape"], axis=0),
        helper.make_node("Expand", ["rows", "shape"], [output.name]),
    ]
    return _model(nodes, inputs, output, rows=rows[None], ones=np.array([1, 1], np.int64))


def _handing_out_above_confidence(
    rows: NDArray[np.float32], inputs: Sequence[ValueInfoProto], output: ValueInfoProto
) -> ModelProto:
    """A prefiltered graph: those of these rows [N, columns] that are over the confidence.

    Of a batch's confidences it takes the lowest, so that each image has the same rows.
    """
    nodes = [
        helper.make_node("Gather", [contract.NMS, "first"], ["confidences"], axis=1),
        helper.make_node("ReduceMin", ["confidences"], ["confidence"], keepdims=0),
        helper.make_node("Greater", ["objectness", "confidence"], ["over"]),
        helper.make_node("Compress", ["rows", "over"], ["chosen"], axis=0),
        helper.make_node("Unsqueeze", ["chosen", "first"], ["of_one"]),
        helper.make_node("Shape", [contract.PIXELS], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "ones"], ["shape"], axis=0),
        helper.make_node("Expand", ["of_one", "shape"], [output.name]),
    ]
    first, ones = np.array([0], np.int64), np.array([1, 1], np.int64)
    objectness = rows[:, 4].copy()
    return _model(nodes, inputs, output, rows=rows, objectness=objectness, first=first, ones=ones)


def _model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    output: ValueInfoProto,
    **stored: NDArray[Any],
) -> ModelProto:
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "stored_rows", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model
