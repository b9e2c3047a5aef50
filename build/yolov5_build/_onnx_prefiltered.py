"""The prefiltered variant of an imported network without anchors, see `_prefiltered`.

Such a network has no objectness, and the largest score of a row takes its place: only the rows
whose largest score is over the requested confidence are transposed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnx.helper import make_node, make_tensor_value_info

from . import _contract as contract
from ._onnx_graph import (
    add_constant,
    append_rows,
    opset,
    prune,
    rename,
    split_channels,
    unused_name,
)
from ._prefiltered import verify
from .photos import example_images

_AXES_ARE_AN_INPUT = 18  # of ReduceMax, since this opset


def write_prefiltered(
    path: Path, full: Path, channels: str, *, imgsz: tuple[int, int], tolerance: float
) -> float:
    """Write the prefiltered variant of an imported network as ONNX, for one image.

    Its inputs and its output are those of `export_prefiltered`.

    Args:
        full: the file that `import_onnx` wrote.
        channels: name of the value [B, 4 + C, N] in that file.
        imgsz: height and width in pixels at which to compare the two.
        tolerance: the largest relative difference allowed.

    Returns:
        The largest relative difference from `full` on photos.

    Raises:
        BuildError: it is too large.
    """
    data = full.read_bytes()
    model = _prefiltered(ModelProto.FromString(data), channels)
    onnx.helper.set_model_props(model, {contract.FULL_KEY: hashlib.sha256(data).hexdigest()})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    images = example_images(*imgsz)
    pixels = np.rint(images * 255).astype(np.uint8)
    return verify(path, full, images, pixels, reduced_head=False, tolerance=tolerance)


def _prefiltered(model: ModelProto, channels: str) -> ModelProto:
    """Make the variant of a network that `import_onnx` has converted."""
    graph = model.graph
    _, _, height, width = (s.dim_param or s.dim_value for s in _shape(graph.input[0]))
    columns = _shape(graph.output[0])[2].dim_value
    boxes_and_scores = _joined(model, channels)
    prune(graph, boxes_and_scores or [channels])
    for field in ("input", "output"):
        graph.ClearField(field)
    names = (contract.PIXELS, contract.NMS, contract.OUTPUT)
    rename(graph, {name: unused_name(graph, f"{name}_") for name in names})
    _append_image(model)
    boxes, scores = boxes_and_scores or split_channels(graph, channels)
    append_rows(graph, *_append_choice(model, boxes, scores))
    prune(graph, [contract.OUTPUT])
    graph.input.extend(
        [
            make_tensor_value_info(contract.PIXELS, TensorProto.UINT8, [1, 3, height, width]),
            make_tensor_value_info(contract.NMS, TensorProto.FLOAT, [1, 5]),
        ]
    )
    graph.output.append(
        make_tensor_value_info(contract.OUTPUT, TensorProto.FLOAT, [1, "rows", columns])
    )
    return model


def _shape(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _joined(model: ModelProto, channels: str) -> list[str] | None:
    """The boxes [B, 4, N] and scores [B, C, N] that `channels` is joined of; None if it is not.

    Most exports end in this node, and taking its inputs saves joining and splitting all rows.
    """
    node = next((node for node in model.graph.node if channels in node.output), None)
    if node is None or node.op_type != "Concat" or len(node.input) != 2:
        return None
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {value.name: _shape(value) for value in inferred if value.name in node.input}
    boxes = shapes.get(node.input[0], [])
    axis = node.attribute[0].i
    known = len(boxes) == 3 and boxes[1].dim_value == 4 and axis in (1, -2)
    return list(node.input) if known else None


def _append_image(model: ModelProto) -> None:
    """Make the network's input of the pixels."""
    graph = model.graph
    floats = unused_name(graph, "pixels_float")
    scale = add_constant(graph, "pixels_scale", np.array(255, np.float32))
    nodes = [
        make_node("Cast", [contract.PIXELS], [floats], to=TensorProto.FLOAT),
        make_node("Div", [floats, scale], [contract.INPUT]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)


def _append_choice(model: ModelProto, boxes: str, scores: str) -> tuple[str, str]:
    """Choose the columns of boxes and scores whose largest score is over the confidence."""
    graph = model.graph

    def append(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = unused_name(graph, name)
        graph.node.append(make_node(operator, inputs, [output], **attributes))
        return output

    def integers(name: str, value: object) -> str:
        return add_constant(graph, name, np.array(value, np.int64))

    first, rows = integers("first", [0]), integers("rows_axis", 1)
    if opset(model) >= _AXES_ARE_AN_INPUT:
        axes = [integers("classes_axis", [1])]
        best = append("ReduceMax", [scores, *axes], "best", keepdims=0)
    else:
        best = append("ReduceMax", [scores], "best", axes=[1], keepdims=0)
    confidence = append("Gather", [contract.NMS, first], "confidence", axis=1)
    over = append("Greater", [best, confidence], "over")
    indices = append("NonZero", [over], "over_indices")
    chosen = append("Gather", [indices, rows], "chosen", axis=0)
    return (
        append("Gather", [boxes, chosen], "chosen_boxes", axis=2),
        append("Gather", [scores, chosen], "chosen_scores", axis=2),
    )
