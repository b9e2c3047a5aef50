"""What an ONNX file may ask for: checked before it is parsed, and before ONNX Runtime sees it.

ONNX Runtime computes all that does not depend on the image when it loads a network, however large;
a file of 200 bytes can ask for gigabytes, or for a loop that does not end.
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

# The exported yolov5n has 9,000 fields, 5 levels deep.
MAX_FIELDS = 400_000
MAX_LEVELS = 64
# Values that do not depend on the image, beside the weights: the grids of yolov5x6 for 1280 pixels
# are a million.
MAX_CONSTANT_VALUES = 1 << 24
MAX_LIST_VALUES = 1 << 16  # of a list of integers, which shape inference copies
LARGE_CONSTANT = 1024  # more values than any shape has
_LOOPS = ("Loop", "Scan", "SequenceMap")
_USUAL_PIXELS = 640 * 640
_WEIGHT = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}  # which input it is
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)

Shape = tuple[int, ...]


def check_fields(data: bytes) -> None:
    """Walk over the fields of a model's bytes: each becomes an object of a hundred bytes or more.

    Raises:
        ValueError: it is cut off, or has too many fields or too many messages within messages.
    """
    position, count = 0, 0
    stack: list[tuple[Any, int]] = []  # messages around this one, and where they end
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
    """The number that begins here, and where it ends."""
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
    """
    Raises:
        BuildError: there is a loop in the graph; the sentence begins with `name`.
    """
    for node in all_nodes(model.graph.node):
        if node.op_type in _LOOPS:
            raise BuildError(f"{name} has a loop in it ({node.op_type}), as no YOLOv5 network has.")


def check_costs(name: str, model: ModelProto, image: Shape) -> None:
    """Work out the shapes of all values as far as they can be, before one is computed.

    Args:
        image: the shape of the input, [B,3,H,W].

    Raises:
        BuildError: it needs more memory or time than a YOLOv5 network; the sentence begins with
            `name`.
    """
    sketch = _sketch(model, image)
    weights = sum(math.prod(tensor.dims) for tensor in _constants(model.graph))
    # With propagation of the values of shapes, which copies them, only where they are short.
    for propagate in (False, True):
        inferred = onnx.shape_inference.infer_shapes(sketch, data_prop=propagate)
        _check_values(name, inferred.graph, image, weights)


def _sketch(model: ModelProto, image: Shape) -> ModelProto:
    """The model without its large constants, for an image of this shape."""
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
                        f"{name} makes {count} values of an image by {node.op_type}, and at most"
                        f" {int(MAX_LAYER_VALUES * size)} are allowed."
                    )
                continue
            constants -= count
            if constants < 0 or (is_list and count > MAX_LIST_VALUES):
                raise BuildError(
                    f"{name} makes constants of {count} values by {node.op_type}, as no YOLOv5"
                    " network does."
                )
        multiplications -= _multiplications(node, shapes)
        if min(values, multiplications) < 0:
            raise BuildError(
                f"{name} computes more for an image than a YOLOv5 network with so many weights"
                " does."
            )


def _shapes(graph: GraphProto) -> dict[str, tuple[Shape, bool]]:
    """The shapes of the values as far as they are known, and whether each is a list of integers."""
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
    """How many it needs; at least, and of the operators that need most."""
    inputs = [shapes.get(value, ((), False))[0] for value in node.input]
    made = math.prod(shapes[node.output[0]][0]) if node.output[0] in shapes else 0
    if node.op_type in _WEIGHT and len(inputs) > _WEIGHT[node.op_type]:
        return made * math.prod(inputs[_WEIGHT[node.op_type]][1:])
    if node.op_type == "ConvTranspose" and len(inputs) > 1:
        return math.prod(inputs[0]) * math.prod(inputs[1][1:])
    if node.op_type in ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"):
        return made * math.prod(inputs[0][-1:])
    return 0
