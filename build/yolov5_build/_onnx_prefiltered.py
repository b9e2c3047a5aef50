"""The form in which a network is served, made of its ONNX file: see `_prefiltered`.

Without the network's layers its head cannot be changed, and all rows are decoded; those that are
not over the requested confidence are dropped behind it. Only of imported networks without anchors
the rows that are left are also the only ones that are transposed.
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
from ._export import TOLERANCE
from ._onnx_graph import add_constant, opset, prune, rename, split_channels, unused_name
from ._prefiltered import verify
from .metadata import read_metadata
from .photos import example_images

_CAN_DROP_ROWS = 11  # oldest opset that has CumSum and ScatterND
_AXES_ARE_AN_INPUT = 18  # of ReduceMax, since this opset
_OBJECTNESS = 4  # column of a row


def write_prefiltered(
    path: Path, full: Path, channels: str | None = None, *, tolerance: float = TOLERANCE
) -> float:
    """Write the prefiltered variant of an ONNX file, with the tensors of `export_prefiltered`.

    Args:
        full: a file that `export_onnx`, `import_onnx` or `quantise` wrote.
        channels: name of the value [B, 4 + C, N] that its rows are made of, if they are.
        tolerance: the largest relative difference allowed.

    Returns:
        The largest relative difference from `full` on photos.

    Raises:
        BuildError: it is too large.
    """
    data = full.read_bytes()
    model = prefiltered_from(ModelProto.FromString(data), channels)
    metadata = read_metadata(full)
    onnx.helper.set_model_props(model, {contract.FULL_KEY: hashlib.sha256(data).hexdigest()})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    _, _, *sides = _sides(model.graph.input[0])
    own = metadata.imgsz or contract.DEFAULT_SIZE
    height, width = (side if isinstance(side, int) else usual for side, usual in zip(sides, own))
    images = example_images(height, width)
    return verify(
        path,
        full,
        images,
        np.rint(images * 255).astype(np.uint8),
        reduced_head=metadata.head == contract.REDUCED,
        batch=metadata.max_batch_size or len(images),
        tolerance=tolerance,
    )


def prefiltered_from(
    model: ModelProto, channels: str | None = None, *, keep_all: bool = False
) -> ModelProto:
    """Change a graph `images` -> `output0` into `pixels`, `nms` -> the rows over the confidence.

    Args:
        model: from `export_onnx`, `import_onnx` or `quantise`.
        channels: as for `write_prefiltered`.
        keep_all: set the other rows to zero instead of dropping them, so that no shape depends on
            values. So it is in any case if the graph's opset is too old.
    """
    entries = {entry.key: entry.value for entry in model.metadata_props}
    without_objectness = (
        entries.get(contract.PADDING_KEY) == contract.WHOLE
        and entries.get(contract.HEAD_KEY) == contract.FULL
    )
    graph = model.graph
    batch, _, height, width = _sides(graph.input[0])
    _, rows, columns = _sides(graph.output[0])
    keep_all |= opset(model) < _CAN_DROP_ROWS
    boxes_and_scores = None
    if channels and not keep_all:
        boxes_and_scores = _joined(model, channels)
        prune(graph, boxes_and_scores or [channels])
    for field in ("input", "output", "value_info"):
        graph.ClearField(field)
    ends = (contract.PIXELS, contract.NMS)
    rename(graph, {name: unused_name(graph, f"{name}_") for name in ends})
    found = unused_name(graph, f"{contract.OUTPUT}_all")
    rename(graph, {contract.OUTPUT: found})
    edit = _Edit(model)
    edit.append_image()
    if keep_all:
        edit.append_mask(found, edit.objectness(found))
    elif channels:
        boxes, scores = boxes_and_scores or split_channels(graph, channels)
        edit.append_choice_of_channels(boxes, scores, columns)
    else:
        score = edit.best_class(found) if without_objectness else edit.objectness(found)
        edit.append_choice(found, score, columns)
    prune(graph, [contract.OUTPUT])
    graph.input.extend(
        [
            make_tensor_value_info(contract.PIXELS, TensorProto.UINT8, [batch, 3, height, width]),
            make_tensor_value_info(contract.NMS, TensorProto.FLOAT, [batch, 5]),
        ]
    )
    shape = [batch, rows if keep_all else "kept", columns]
    graph.output.append(make_tensor_value_info(contract.OUTPUT, TensorProto.FLOAT, shape))
    return model


def _shape(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _sides(value: onnx.ValueInfoProto) -> list[Any]:
    """The sizes, names or, of dimensions that have neither, None."""
    return [side.dim_param or side.dim_value or None for side in _shape(value)]


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


class _Edit:
    """Appends nodes to a graph; each method returns the name of a value."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._axes_are_an_input = opset(model) >= _AXES_ARE_AN_INPUT

    def append_image(self) -> None:
        """Make the network's input of the pixels."""
        floats = unused_name(self._graph, "pixels_float")
        scale = add_constant(self._graph, "pixels_scale", np.array(255, np.float32))
        nodes = [
            make_node("Cast", [contract.PIXELS], [floats], to=TensorProto.FLOAT),
            make_node("Div", [floats, scale], [contract.INPUT]),
        ]
        for node in reversed(nodes):
            self._graph.node.insert(0, node)

    def objectness(self, rows: str) -> str:
        """[B, N] of rows [B, N, columns]; the score, if there are no others."""
        return self._append("Gather", [rows, self._integers(_OBJECTNESS)], "objectness", axis=2)

    def best_class(self, rows: str) -> str:
        """The largest score [B, N] of rows [B, N, 5 + C]."""
        limits = [self._integers([n]) for n in (_OBJECTNESS + 1, np.iinfo(np.int64).max, 2)]
        return self._largest(self._append("Slice", [rows, *limits], "class_scores"), 2)

    def append_mask(self, rows: str, scores: str) -> None:
        """Answer with all rows; those whose score is not over the confidence are zeros."""
        over = self._append("Cast", [self._over(scores)], "over_1", to=TensorProto.FLOAT)
        shape = self._integers([0, -1, 1])
        column = self._append("Reshape", [over, shape], "over_column")
        self._graph.node.append(make_node("Mul", [rows, column], [contract.OUTPUT]))

    def append_choice(self, rows: str, scores: str, columns: int) -> None:
        """Answer with the rows [B, N, columns] whose score [B, N] is over the confidence."""
        over = self._over(scores)
        at = self._places(over)
        self._answer(over, at, self._append("GatherND", [rows, at], "chosen"), columns)

    def append_choice_of_channels(self, boxes: str, scores: str, columns: int) -> None:
        """The same of boxes [B, 4, N] and scores [B, C, N], with an objectness of 1."""
        over = self._over(self._largest(scores, 1))
        at = self._places(over)
        sides = self._append("Shape", [scores], "scores_shape")
        cells = self._append("Gather", [sides, self._integers(2)], "cells", axis=0)
        chosen = [
            self._gather_channels(part, at, cells, count)
            for part, count in ((boxes, 4), (scores, columns - 5))
        ]
        pads = self._integers([0, 0, 0, 1])
        one = add_constant(self._graph, "objectness_1", np.array(1, np.float32))
        padded = self._append("Pad", [chosen[0], pads, one], "chosen_with_objectness")
        self._answer(
            over, at, self._append("Concat", [padded, chosen[1]], "chosen", axis=1), columns
        )

    def _gather_channels(self, part: str, at: str, cells: str, count: int) -> str:
        """[n, count] of [B, count, N] at [n, 2], without transposing the whole of it."""
        image, cell = (
            self._append("Slice", [at, *map(self._integers, ([i], [i + 1], [1]))], "index")
            for i in (0, 1)
        )
        first = self._append("Mul", [image, self._integers(count)], "first_channel")
        channel = self._append("Add", [first, self._integers(range(count))], "channel")
        row = self._append("Mul", [channel, cells], "channel_start")
        index = self._append("Add", [row, cell], "channel_index")
        flat = self._append("Reshape", [part, self._integers([-1])], "flat")
        return self._append("Gather", [flat, index], "chosen_channels", axis=0)

    def _over(self, scores: str) -> str:
        """Whether the scores [B, N] are over the confidence of their image."""
        confidence = self._append("Gather", [contract.NMS, self._integers([0])], "conf", axis=1)
        return self._append("Greater", [scores, confidence], "over")

    def _places(self, over: str) -> str:
        """The image and the row of what is chosen, [n, 2]."""
        indices = self._append("NonZero", [over], "over_indices")
        return self._append("Transpose", [indices], "over_places", perm=[1, 0])

    def _answer(self, over: str, at: str, rows: str, columns: int) -> None:
        """Write the rows [n, columns] of all images into the output, padded with zeros.

        Counted as floats, since Max takes integers only from opset 12 on.
        """
        ones = self._append("Cast", [over], "over_float", to=TensorProto.FLOAT)
        counted = self._append("CumSum", [ones, self._integers(1)], "counted")
        one = add_constant(self._graph, "one", np.array(1, np.float32))
        most = self._append("ReduceMax", [counted], "most", keepdims=0)
        longest = self._append("Max", [most, one], "longest")
        longest = self._append("Cast", [longest], "longest_integer", to=TensorProto.INT64)
        longest = self._append("Reshape", [longest, self._integers([1])], "longest_side")
        number = self._append("GatherND", [counted, at], "number")
        place = self._append("Sub", [number, one], "place")
        place = self._append("Cast", [place], "place_integer", to=TensorProto.INT64)
        place = self._append("Reshape", [place, self._integers([-1, 1])], "place_column")
        zero, first, second = (self._integers([n]) for n in (0, 1, 1))
        image = self._append("Slice", [at, zero, first, second], "image")
        to = self._append("Concat", [image, place], "target", axis=1)
        sides = self._append("Shape", [contract.NMS], "nms_shape")
        batch = self._append("Gather", [sides, self._integers([0])], "images_count", axis=0)
        shape = self._append("Concat", [batch, longest, self._integers([columns])], "is", axis=0)
        empty = self._append("ConstantOfShape", [shape], "empty")
        self._graph.node.append(make_node("ScatterND", [empty, to, rows], [contract.OUTPUT]))

    def _largest(self, values: str, axis: int) -> str:
        if self._axes_are_an_input:
            return self._append("ReduceMax", [values, self._integers([axis])], "best", keepdims=0)
        return self._append("ReduceMax", [values], "best", axes=[axis], keepdims=0)

    def _append(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = unused_name(self._graph, name)
        self._graph.node.append(make_node(operator, inputs, [output], **attributes))
        return output

    def _integers(self, value: object) -> str:
        if isinstance(value, range):
            value = list(value)
        return add_constant(self._graph, "integers", np.array(value, np.int64))
