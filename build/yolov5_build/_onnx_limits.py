"""Limits on an ONNX file, checked before it is parsed and before ONNX Runtime loads it.

When ONNX Runtime loads a network, it computes everything that does not depend on the image, however
large. A file of 200 bytes can make it allocate gigabytes, or run a loop that does not end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from ._checkpoint import (
    MAX_LAYER_VALUES,
    MAX_VALUES,
    MULTIPLICATIONS,
    MULTIPLICATIONS_PER_WEIGHT,
)
from ._errors import BuildError
from ._onnx_graph import all_nodes, subgraphs, values_read

# The exported yolov5n has 9,000 protobuf fields in 5 levels.
MAX_FIELDS = 400_000
MAX_LEVELS = 64
# Computed values that do not depend on the image: the grids of yolov5x6 for 1280 pixels have a
# million.
MAX_CONSTANT_VALUES = 1 << 24
MAX_LIST_VALUES = 1 << 16  # in a list of integers, as shape inference copies them
LARGE_CONSTANT = 1024  # values; a constant with more cannot be a shape
_LOOPS = ("Loop", "Scan", "SequenceMap")
_USUAL_PIXELS = 640 * 640
_WEIGHT = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}  # index of the input
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)

Shape = tuple[int, ...]


def check_fields(data: bytes) -> None:
    """Count the fields of a serialised model, as parsing creates an object of 100 bytes for each.

    Raises:
        ValueError: the data are cut off, or have too many fields or too deeply nested messages.
    """
    position, count = 0, 0
    stack: list[tuple[Any, int]] = []  # enclosing messages, and their ends
    message: Any = ModelProto.DESCRIPTOR
    end = len(data)
    while True:
        if position == end:
            if not stack:
                return
            message, end = stack.pop()
            continue
        count += 1
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(data, position)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(data, position)
            field = message.fields_by_number.get(tag >> 3)
            inner = field.message_type if field is not None else None
            if inner is not None and position + length <= end:
                stack.append((message, end))
                message, end = inner, position + length
            else:
                position += length
        else:
            raise ValueError("an unknown kind of field")
        if position > end or count > MAX_FIELDS or len(stack) > MAX_LEVELS:
            raise ValueError("cut off, or too large")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode the number at this position; also returns the position after it."""
    value = shift = 0
    while shift < 70 and position < len(data):
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("cut off")


def check_operators(name: str, model: ModelProto) -> None:
    """Refuse loops.

    Raises:
        BuildError: the graph has a loop; the message begins with `name`.
    """
    for node in all_nodes(model.graph.node):
        if node.op_type in _LOOPS:
            raise BuildError(f"{name} has a loop ({node.op_type}), which no YOLOv5 network has.")


def check_costs(name: str, model: ModelProto, image: Shape) -> None:
    """Check the sizes of all values that can be inferred, before any of them is computed.

    Args:
        image: the shape of the input, [B,3,H,W].

    Raises:
        BuildError: the model needs more memory or time than a YOLOv5 network; the message begins
            with `name`.
    """
    sketch = _sketch(model, image)
    weights = sum(math.prod(tensor.dims) for tensor in _constants(model.graph))
    # Propagation copies the values of shapes, so the first pass refuses long ones without it.
    for propagate in (False, True):
        inferred = onnx.shape_inference.infer_shapes(sketch, data_prop=propagate)
        _check_values(name, inferred.graph, image, weights)


def _sketch(model: ModelProto, image: Shape) -> ModelProto:
    """A copy of the model with large constants turned into inputs, for an image of this shape."""
    graph = model.graph
    sketch = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    sketch.graph.name = graph.name
    sketch.graph.node.extend(graph.node)
    sketch.graph.output.extend(ValueInfoProto(name=output.name) for output in graph.output)
    kind = graph.input[0].type.tensor_type.elem_type
    sketch.graph.input.append(
        onnx.helper.make_tensor_value_info(graph.input[0].name, kind, list(image))
    )
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= LARGE_CONSTANT:
            sketch.graph.initializer.append(tensor)
        else:
            sketch.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    return sketch


def _constants(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in all_nodes(graph.node):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _check_values(name: str, graph: GraphProto, image: Shape, weights: int) -> None:
    size = max(1.0, math.prod((image[0], *image[2:])) / _USUAL_PIXELS)
    values = MAX_VALUES * size
    multiplications = (MULTIPLICATIONS + MULTIPLICATIONS_PER_WEIGHT * weights) * size
    constants = MAX_CONSTANT_VALUES
    of_image = {graph.input[0].name}
    shapes = _shapes(graph)
    for node in all_nodes(graph.node):
        if not of_image.isdisjoint(values_read(node)):
            of_image.update(node.output)
        for shape, is_list in (shapes[output] for output in node.output if output in shapes):
            count = math.prod(shape)
            values -= count
            if not of_image.isdisjoint(node.output):
                if count > MAX_LAYER_VALUES * size:
                    raise BuildError(
                        f"{name} computes {count} values of an image by {node.op_type}, and at most"
                        f" {int(MAX_LAYER_VALUES * size)} are allowed."
                    )
                continue
            constants -= count
            if constants < 0 or (is_list and count > MAX_LIST_VALUES):
                raise BuildError(
                    f"{name} computes constants of {count} values by {node.op_type}, which no"
                    " YOLOv5 network does."
                )
        multiplications -= _multiplications(node, shapes)
        if min(values, multiplications) < 0:
            raise BuildError(
                f"{name} computes more for an image than a YOLOv5 network with so many weights"
                " does."
            )


def _shapes(graph: GraphProto) -> dict[str, tuple[Shape, bool]]:
    """The known shapes of values, and for each whether it is a list of integers."""
    shapes: dict[str, tuple[Shape, bool]] = {}
    graphs = [graph]
    for one in graphs:
        for tensor in one.initializer:
            shapes[tensor.name] = tuple(tensor.dims), False
        for value in (*one.input, *one.value_info, *one.output):
            kind = value.type.tensor_type
            sides = [side.dim_value for side in kind.shape.dim if side.HasField("dim_value")]
            if kind.HasField("shape") and len(sides) == len(kind.shape.dim):
                is_list = len(sides) < 2 and kind.elem_type in _INTEGERS
                shapes[value.name] = tuple(sides), is_list
        graphs.extend(inner for node in one.node for inner in subgraphs(node))
    return shapes


def _multiplications(node: NodeProto, shapes: Mapping[str, tuple[Shape, bool]]) -> int:
    """A lower bound of a node's multiplications; 0 for the operators that need few."""
    inputs = [shapes.get(value, ((), False))[0] for value in node.input]
    made = math.prod(shapes[node.output[0]][0]) if node.output[0] in shapes else 0
    if node.op_type in _WEIGHT and len(inputs) > _WEIGHT[node.op_type]:
        return made * math.prod(inputs[_WEIGHT[node.op_type]][1:])
    if node.op_type == "ConvTranspose" and len(inputs) > 1:
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"):
        return made * math.prod(inputs[0][-1:])
    return 0
