"""What an ONNX file may ask for at most, by files that ask for as much and for a bit more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array

from yolov5_build import BuildError
from yolov5_build._onnx_limits import (
    _multiplications,
    _shapes,
    _sketch,
    check_costs,
    check_fields,
    check_operators,
)

IMAGE = (1, 3, 640, 640)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def tensor(name: str, *dims: int, kind: int = TensorProto.FLOAT) -> TensorProto:
    """One without its data, which nobody may need."""
    return TensorProto(name=name, data_type=kind, dims=dims)


def numbers(name: str, *values: int) -> TensorProto:
    return from_array(np.array(values, np.int64), name)


def model(*nodes: NodeProto, constants: Sequence[TensorProto] = ()) -> ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "h", "w"])],
        [helper.make_empty_tensor_value_info("y")],
        list(constants),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# ---------------------------------------------------------------------------------------------
# Fields

ONE = b"\x08\x01"  # ir_version: 1


def message(field: int, content: bytes) -> bytes:
    """A field that holds a message or a text of less than 128 bytes."""
    assert field < 16 and len(content) < 128
    return bytes([field << 3 | 2, len(content)]) + content


def nested(levels: int) -> bytes:
    """An empty message so deep in a model: a graph, its node, its attribute, its graph ..."""
    content = b""
    fields = [7, *(1, 5, 6) * levels][:levels]
    for field in reversed(fields):
        length = len(content)
        size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        content = bytes([field << 3 | 2]) + size + content
    return content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ONE,
        b"\x08" + b"\xff" * 9 + b"\x01",  # the longest number
        b"\x09" + bytes(8),
        b"\x0d" + bytes(4),
        b"\xc1\x3e" + bytes(8) + ONE,  # field 1000, which nobody knows
        b"\xc5\x3e" + bytes(4) + ONE,
        b"\xc2\x3e\x01\x07" + ONE,
        message(2, b"\x07") + ONE,  # a text
        b"\x12\xac\x02" + bytes(300) + ONE,
        b"\x12\x7f" + bytes(127) + ONE,
        message(7, message(1, message(4, b"Abs"))) + ONE,
        nested(64),
        model(node("Abs", "x", "y")).SerializeToString(),
    ],
)
def test_well_formed_fields_are_accepted(data: bytes) -> None:
    check_fields(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",
        b"\x08\x80",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x09" + bytes(7),
        b"\x0d" + bytes(3),
        b"\x0b",
        b"\x0c",
        b"\x0e",
        b"\x0f",
        b"\x12\x02\x00",
        b"\x3a\x02\x00",
        b"\x12\xac\x02" + bytes(299),
        message(7, b"\x07"),
        message(7, message(1, b"\x07")) + ONE,
        message(7, b"\x0a\x02") + ONE + ONE,  # its node is longer than the graph
        nested(65),
        model(node("Abs", "x", "y")).SerializeToString()[:-1],
    ],
)
def test_fields_that_are_cut_off_or_too_deep_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        check_fields(data)


def test_number_of_fields_is_limited() -> None:
    check_fields(ONE * 400_000)
    with pytest.raises(ValueError):
        check_fields(ONE * 400_001)


# ---------------------------------------------------------------------------------------------
# Operators and costs


@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap"])
def test_loops_are_refused(operator: str) -> None:
    loop = node(operator, "x", "y")
    inner = node("If", "x", "y", then_branch=helper.make_graph([loop], "", [], []))
    for one in (loop, inner):
        with pytest.raises(BuildError) as caught:
            check_operators("them.onnx", model(node("Abs", "x", "a"), one))
        sentence = f"them.onnx has a loop ({operator}), which no YOLOv5 network has."
        assert str(caught.value) == sentence
    check_operators("them.onnx", model(node("If", "x", "y")))


def of_image(*sizes: Sequence[int]) -> ModelProto:
    """Values of these shapes, which depend on the image; beside them there is one more value."""
    nodes = [node("ReduceMean", "x", "mean")]
    nodes += [node("Expand", f"mean s{i}", f"e{i}") for i in range(len(sizes))]
    return model(*nodes, constants=[numbers(f"s{i}", *size) for i, size in enumerate(sizes)])


def accepted(made: ModelProto, image: Sequence[int] = IMAGE) -> bool:
    return refusal(made, image) is None


def refusal(made: ModelProto, image: Sequence[int] = IMAGE) -> str | None:
    try:
        check_costs("them.onnx", made, tuple(image))
    except BuildError as error:
        return str(error)
    return None


MORE = "them.onnx computes more for an image than a YOLOv5 network with so many weights does."


@pytest.mark.parametrize(
    "image, size",
    [
        (IMAGE, 1),
        ((1, 3, 64, 64), 1),
        ((4, 3, 640, 640), 4),
        ((2, 3, 1280, 640), 4),
        ((2, 3, 640, 1280), 4),
    ],
)
def test_values_of_one_layer_are_limited(image: Sequence[int], size: int) -> None:
    assert accepted(of_image([1, size, 1 << 14, 1 << 14]), image)
    count = size * (1 << 14) * ((1 << 14) + 1)
    assert refusal(of_image([1, size, (1 << 14) + 1, 1 << 14]), image) == (
        f"them.onnx computes {count} values of an image by Expand, and at most {size << 28} are"
        " allowed."
    )


def test_values_of_all_layers_are_limited() -> None:
    full = [[1, 1, 1 << 14, 1 << 14]] * 31
    assert accepted(of_image(*full, [1, 1, 1, (1 << 28) - 1]))
    assert refusal(of_image(*full, [1, 1, 1, 1 << 28])) == MORE
    assert refusal(of_image(*full, *full), (2, 3, 640, 640)) is None
    assert refusal(of_image(*full, *full, full[0], full[0]), (2, 3, 640, 640)) == MORE


SQUARE = (1, 3, 512, 512)


def multiplying(more: int) -> ModelProto:
    """As many multiplications as are allowed to its weights, and so many more.

    2^21 weights multiply 2^14 times each, and are allowed 2^13 each besides 2^34. The 4 numbers
    of a shape count as weights, for which the last nodes multiply.
    """
    made = of_image([1, 1, 1 << 14, 1 << 14])
    made.graph.initializer.append(tensor("w", 1 << 14, 1 << 7))
    made.graph.node.extend(
        [
            node("MatMul", "e0 w", "y"),
            node("ReduceMean", "x", "row", axes=[1, 2]),
            node("ReduceMean", "x", "column", axes=[1, 3]),
            *(node("MatMul", "row column", f"r{i}") for i in range(4 * 8192 // 512)),
            *(node("MatMul", "mean mean", f"m{i}") for i in range(more)),
        ]
    )
    return made


def test_multiplications_are_limited_by_the_number_of_weights() -> None:
    assert accepted(multiplying(0), SQUARE)
    assert refusal(multiplying(1), SQUARE) == MORE
    made = multiplying(1)
    made.graph.initializer.append(tensor("unused", 1))
    assert accepted(made, SQUARE)
    made = multiplying(1)
    made.graph.node.append(node("Constant", "", "unused", value=from_array(np.ones(1))))
    assert accepted(made, SQUARE)
    assert accepted(multiplying(1), (2, 3, 640, 640))


def constants(*sizes: Sequence[int], kind: type = np.float32) -> ModelProto:
    """Values of these shapes, which do not depend on the image."""
    zero = from_array(np.zeros(1, kind))
    nodes = [node("ConstantOfShape", f"s{i}", f"c{i}", value=zero) for i in range(len(sizes))]
    shapes = [numbers(f"s{i}", *size) for i, size in enumerate(sizes)]
    return model(node("Abs", "x", "y"), *nodes, constants=shapes)


def too_many(count: int, operator: str = "ConstantOfShape") -> str:
    return (
        f"them.onnx computes constants of {count} values by {operator}, which no YOLOv5 network"
        " does."
    )


def test_computed_constants_are_limited() -> None:
    assert accepted(constants([1 << 12, 1 << 12]))
    count = (1 << 12) * ((1 << 12) + 1)
    assert refusal(constants([1 << 12, (1 << 12) + 1])) == too_many(count)
    assert accepted(constants([1 << 12, 1 << 11], [1 << 12, 1 << 11]))
    assert refusal(constants([1 << 12, 1 << 11], [1 << 12, 1 << 11], [1, 1])) == too_many(1)


def test_constants_of_a_computed_shape_are_limited() -> None:
    made = model(
        node("Concat", "side side", "s", axis=0),
        node("ConstantOfShape", "s", "y"),
        constants=[numbers("side", 1 << 13)],
    )
    assert refusal(made) == too_many(1 << 26)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_computed_lists_of_numbers_are_limited(kind: type) -> None:
    assert accepted(constants([1 << 16], kind=kind))
    assert refusal(constants([(1 << 16) + 1], kind=kind)) == too_many((1 << 16) + 1)
    assert accepted(constants([2, 1 << 16], kind=kind))
    assert accepted(constants([(1 << 16) + 1]))


def test_values_of_subgraphs_are_limited() -> None:
    nodes = [node("ConstantOfShape", "s", "c"), node("ReduceMean", "c", "m")]
    output = helper.make_tensor_value_info("m", TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "", [], [output], [numbers("s", 1 << 13, 1 << 13)])
    made = model(
        node("If", "yes", "y", then_branch=branch, else_branch=branch),
        constants=[from_array(np.array(True), "yes")],
    )
    assert refusal(made) == too_many(1 << 26)


def test_large_constants_become_inputs_of_the_sketch() -> None:
    made = model(
        node("Add", "x k", "y"),
        constants=[tensor("k", 32, 32), tensor("l", 1025, kind=TensorProto.INT8)],
    )
    sketch = _sketch(made, IMAGE)
    assert [one.name for one in sketch.graph.initializer] == ["k"]
    assert {name: shape for name, (shape, _) in _shapes(sketch.graph).items()} == {
        "x": IMAGE,
        "l": (1025,),
        "k": (32, 32),
    }
    kinds = [one.type.tensor_type.elem_type for one in sketch.graph.input]
    assert kinds == [TensorProto.FLOAT, TensorProto.INT8]
    assert (sketch.ir_version, sketch.opset_import) == (8, made.opset_import)
    assert sketch.graph.name == "g" and sketch.graph.output[0].name == "y"


def test_shapes_without_open_sides_are_known() -> None:
    made = model(node("If", "x", "y", then_branch=model().graph), constants=[tensor("k", 2, 3)])
    graph = made.graph
    for name, kind, shape in (
        ("list", TensorProto.INT64, [7]),
        ("list32", TensorProto.INT32, [7]),
        ("number", TensorProto.INT64, []),
        ("table", TensorProto.INT64, [7, 1]),
        ("floats", TensorProto.FLOAT, [7]),
        ("open", TensorProto.FLOAT, [7, None]),
        ("unknown", TensorProto.FLOAT, None),
    ):
        graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))
    inner = graph.node[0].attribute[0].g
    inner.value_info.append(helper.make_tensor_value_info("inner", TensorProto.FLOAT, [5]))
    assert _shapes(graph) == {
        "k": ((2, 3), False),
        "list": ((7,), True),
        "list32": ((7,), True),
        "number": ((), True),
        "table": ((7, 1), False),
        "floats": ((7,), False),
        "inner": ((5,), False),
    }


SHAPES = {
    name: (shape, False)
    for name, shape in {
        "x": (1, 8, 20, 20),
        "w": (16, 8, 3, 3),
        "t": (8, 4, 2, 2),
        "a": (10, 6),
        "b": (6, 7),
        "y": (2, 5),
    }.items()
}


@pytest.mark.parametrize(
    "kind, inputs, output, count",
    [
        ("Conv", "x w", "y", 10 * 8 * 9),
        ("FusedConv", "x w b", "y", 10 * 8 * 9),
        ("ConvInteger", "x w", "y", 10 * 8 * 9),
        ("QLinearConv", "x s z w", "y", 10 * 8 * 9),
        ("ConvTranspose", "x t", "unknown", 8 * 400 * 4 * 4),
        ("MatMul", "a b", "y", 10 * 6),
        ("Gemm", "a b", "y", 10 * 6),
        ("MatMulInteger", "a b", "y", 10 * 6),
        ("QLinearMatMul", "a b", "y", 10 * 6),
        ("Conv", "x w", "unknown", 0),
        ("Conv", "x unknown", "y", 10),
        ("Conv", "x", "y", 0),
        ("ConvTranspose", "x", "y", 0),
        ("QLinearConv", "x s z", "y", 0),
        ("MatMul", "unknown b", "y", 10),
        ("Add", "a b", "y", 0),
    ],
)
def test_multiplications_follow_from_the_shapes(
    kind: str, inputs: str, output: str, count: int
) -> None:
    assert _multiplications(node(kind, inputs, output), SHAPES) == count
