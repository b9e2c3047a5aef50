"""Edits of ONNX graphs, on graphs of a few nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from yolov5_build._onnx_graph import (
    GraphError,
    Port,
    _integer_constants,
    _shapes,
    all_nodes,
    declare_open_batch,
    make_batch_dynamic,
    precision_from,
    prune,
    rename,
    set_interface,
    subgraphs,
    values_read,
)

Array = NDArray[Any]
FLOAT, HALF, INT8, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node; the values are separated by spaces, and `-` is an absent one."""
    read, made = ([name.strip("-") for name in names.split()] for names in (inputs, outputs))
    return helper.make_node(kind, read, made, **attributes)


def value(name: str, shape: Sequence[int | str] | None = None, kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, values: Any, kind: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def branch(*nodes: NodeProto, output: str, constants: Sequence[TensorProto] = ()) -> GraphProto:
    return helper.make_graph(list(nodes), "branch", [], [value(output)], list(constants))


def model(
    *nodes: NodeProto,
    image: Sequence[int | str] = ("batch", 3, 4, 4),
    constants: Sequence[TensorProto] = (),
    output: str = "output0",
    opset: int = 17,
    kind: int = FLOAT,
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [value("images", image, kind)], [value(output)], list(constants)
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(made: ModelProto, images: Array) -> Array:
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (answer,) = session.run(["output0"], {"images": images})
    assert isinstance(answer, np.ndarray)
    return answer


def photos(count: int, height: int = 4, width: int = 4) -> Array:
    return np.arange(count * 3 * height * width, dtype=np.float32).reshape(count, 3, height, width)


def made_by(nodes: Sequence[NodeProto]) -> list[str]:
    return [one.output[0] for one in nodes]


def names(tensors: Any) -> list[str]:
    return [tensor.name for tensor in tensors]


def choice(inputs: str = "yes", output: str = "c") -> NodeProto:
    """A choice between two branches, which read `a` and `b`."""
    first = branch(
        node("Identity", "mid", "out"), node("Add", "a one", "mid"), output="out",
        constants=[constant("one", 1), constant("unused", 2)],
    )  # fmt: skip
    second = branch(node("Identity", "b", "out"), node("Identity", "b", "no"), output="out")
    return node("If", inputs, output, else_branch=first, then_branch=second)


def test_subgraphs_are_those_of_all_attributes() -> None:
    assert [len(graph.node) for graph in subgraphs(choice())] == [2, 2]
    several = node("Odd", "", "c")
    several.attribute.append(helper.make_attribute("size", 3))
    graphs = [branch(output="x"), branch(node("Identity", "a", "y"), output="y")]
    several.attribute.append(helper.make_attribute("bodies", graphs))
    assert [one.output[0].name for one in subgraphs(several)] == ["x", "y"]
    assert not list(subgraphs(node("Identity", "a", "b")))


def test_all_nodes_include_those_of_subgraphs() -> None:
    outer = node("If", "yes", "d", then_branch=branch(choice(), output="c"))
    assert [one.op_type for one in all_nodes([outer, node("Abs", "d", "e")])] == [
        *("If", "If", "Identity", "Add", "Identity", "Identity", "Abs")
    ]


def test_values_read_include_outer_ones_of_subgraphs() -> None:
    assert values_read(node("Add", "a -", "b")) == {"a"}
    assert values_read(choice()) == {"yes", "a", "b"}
    body = helper.make_graph(
        [node("Add", "x outer", "y")], "body", [value("x")], [value("y"), value("passed")]
    )
    assert values_read(node("Loop", "n", "c", body=body)) == {"n", "outer", "passed"}


def test_pruned_graph_has_what_the_outputs_need_in_order() -> None:
    graph = model(
        node("Identity", "c", "output0"),
        node("Add", "b k", "c"),
        node("Identity", "c", "unused"),
        node("Identity", "images", "b"),
        constants=[constant("k", 1), constant("l", 2)],
    ).graph
    prune(graph, ["output0"])
    assert made_by(graph.node) == ["b", "c", "output0"]
    assert names(graph.initializer) == ["k"]
    assert (names(graph.input), names(graph.output), graph.name) == (["images"], ["output0"], "g")


def test_constant_that_is_an_output_is_kept() -> None:
    graph = model(node("Identity", "images", "a"), constants=[constant("k", 1)]).graph
    graph.name = ""
    prune(graph, ["k", "a"])
    assert names(graph.initializer) == ["k"] and made_by(graph.node) == ["a"]
    assert graph.name == "yolov5"


def test_subgraphs_are_pruned_and_what_they_read_is_kept() -> None:
    graph = model(
        choice(output="output0"),
        node("Identity", "images", "b"),
        node("Identity", "images", "a"),
        constants=[constant("yes", True, bool), constant("one", 1)],
    ).graph
    prune(graph, ["output0"])
    assert made_by(graph.node)[2] == "output0" and set(made_by(graph.node)[:2]) == {"a", "b"}
    assert names(graph.initializer) == ["yes"]  # the branch has a `one` of its own
    first, second = subgraphs(graph.node[2])
    assert made_by(first.node) == ["mid", "out"] and names(first.initializer) == ["one"]
    assert made_by(second.node) == ["out"]


def test_absent_outputs_are_not_the_same_value() -> None:
    graph = model(node("A", "images", "a -"), node("B", "images", "output0 -")).graph
    prune(graph, ["output0"])
    assert made_by(graph.node) == ["output0"]


def test_node_may_name_an_output_twice_but_two_nodes_may_not() -> None:
    prune(model(node("A", "images", "output0 output0")).graph, ["output0"])
    graph = model(node("A", "images", "a"), node("B", "images", "b a")).graph
    with pytest.raises(GraphError, match="a is produced twice"):
        prune(graph, ["b"])


def test_value_that_depends_on_itself_is_refused() -> None:
    circle = [node("A", "b", "a"), node("B", "a", "b")]
    with pytest.raises(GraphError, match="depends on itself"):
        prune(model(*circle).graph, ["a"])
    prune(model(*circle).graph, ["output0"])


def test_value_is_renamed_wherever_it_occurs() -> None:
    graph = model(
        node("Add", "images k", "a"),
        choice("k a"),
        constants=[constant("k", True, bool)],
        output="a",
    ).graph
    rename(graph, {"images": "x", "k": "l", "a": "new", "out": "inner", "one": "two"})
    assert (names(graph.input), names(graph.output)) == (["x"], ["new"])
    assert names(graph.initializer) == ["l"]
    assert (list(graph.node[0].input), list(graph.node[0].output)) == (["x", "l"], ["new"])
    assert list(graph.node[1].input) == ["l", "new"]
    first, second = subgraphs(graph.node[1])
    assert names(first.output) == names(second.output) == ["inner"]
    assert names(first.initializer) == ["two", "unused"]
    assert list(first.node[1].input) == ["new", "two"]
    assert list(second.node[0].input) == ["b"]


# ---------------------------------------------------------------------------------------------
# Input and output


def declared(made: ModelProto) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            one.name,
            one.type.tensor_type.elem_type,
            [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim],
        )
        for one in (*made.graph.input, *made.graph.output)
    ]


IMAGE = Port(name="x", type=FLOAT, shape=("batch", 3, 4, 4))
ROWS = Port(name="y", type=FLOAT, shape=("batch", 3, 4, 4))


def interfaced(kind: int = FLOAT) -> ModelProto:
    """A network of other names, which uses ours for values of its own: y = |x| + 1."""
    made = model(
        node("Abs", "x", "images"),
        node("Add", "images output0", "y"),
        node("Identity", "y", "more"),
        constants=[constant("output0", 1, np.float16 if kind == HALF else np.float32)],
        output="y",
        kind=kind,
    )
    made.graph.input[0].name = "x"
    made.graph.output.append(value("more"))
    made.graph.value_info.append(value("images", [9]))
    made.graph.quantization_annotation.append(onnx.TensorAnnotation(tensor_name="x"))
    return made


def test_interface_has_one_input_and_one_output() -> None:
    made = interfaced()
    set_interface(made, IMAGE, ROWS)
    assert declared(made) == [
        ("images", FLOAT, ["batch", 3, 4, 4]),
        ("output0", FLOAT, ["batch", 3, 4, 4]),
    ]
    assert [one.op_type for one in made.graph.node] == ["Abs", "Add"]
    assert not made.graph.value_info and not made.graph.quantization_annotation
    onnx.checker.check_model(made)
    assert np.array_equal(run(made, -photos(2)), photos(2) + 1)


def test_interface_of_half_precision_is_cast() -> None:
    made = interfaced(HALF)
    shape = ("batch", 3, 4, 4)
    set_interface(
        made, Port(name="x", type=HALF, shape=shape), Port(name="y", type=HALF, shape=shape)
    )
    assert [kind for _, kind, _ in declared(made)] == [FLOAT, FLOAT]
    assert [one.op_type for one in made.graph.node] == ["Cast", "Abs", "Add", "Cast"]
    onnx.checker.check_model(made)
    answer = run(made, -photos(2))
    assert answer.dtype == np.float32 and np.array_equal(answer, photos(2) + 1)


def test_interface_may_have_our_names_already() -> None:
    made = model(node("Abs", "images", "a"), node("Neg", "a", "output0"))
    shape = ("batch", 3, 4, 4)
    ports = (Port(name=name, type=FLOAT, shape=shape) for name in ("images", "output0"))
    set_interface(made, *ports)
    assert np.array_equal(run(made, -photos(1)), -photos(1))


@pytest.mark.parametrize("place", ["value", "constant", "subgraph", "subgraph's constant"])
def test_helper_names_differ_from_all_others(place: str) -> None:
    """Values that were called `images` or `output0` get another name, which must be free."""
    first = {
        "value": [node("Abs", "x", "images_"), node("Neg", "images_", "a")],
        "constant": [node("Mul", "x images_", "a")],
        "subgraph": [
            node(
                "If",
                "yes",
                "a",
                then_branch=branch(
                    node("Abs", "x", "images_"), node("Neg", "images_", "o"), output="o"
                ),
                else_branch=branch(node("Abs", "x", "o"), output="o"),
            )
        ],
        "subgraph's constant": [
            node(
                "If",
                "yes",
                "a",
                then_branch=branch(
                    node("Mul", "x images_", "o"),
                    output="o",
                    constants=[constant("images_", -1, np.float32)],
                ),
                else_branch=branch(node("Abs", "x", "o"), output="o"),
            )
        ],
    }[place]
    made = model(
        *first,
        node("Add", "a images", "y"),
        constants=[
            constant("images", 5, np.float32),
            constant("images_", -1, np.float32),
            constant("yes", True, bool),
        ][:: 2 if place in ("value", "subgraph") else 1],
        output="y",
    )
    made.graph.input[0].name = "x"
    if place == "subgraph's constant":
        del made.graph.initializer[1]
    set_interface(made, IMAGE, ROWS)
    assert np.array_equal(run(made, photos(2)), 5 - photos(2))


# ---------------------------------------------------------------------------------------------
# Precision


def quantised(*zeros: TensorProto | None) -> ModelProto:
    nodes = [
        node("QuantizeLinear", f"images s {one.name}" if one else "images s", f"q{index}")
        for index, one in enumerate(zeros)
    ]
    return model(*nodes, constants=[constant("s", 1, np.float32), *filter(None, zeros)])


ZERO = constant("zero", 0, np.int8)


@pytest.mark.parametrize(
    "made, precision",
    [
        (model(node("Abs", "images", "a")), "fp32"),
        (model(node("Cast", "images", "a", to=FLOAT)), "fp32"),
        (model(node("Odd", "images", "a", count=HALF)), "fp32"),
        (model(constants=[constant("k", 1, np.float32), constant("l", 1, np.float16)]), "fp16"),
        (model(constants=[constant("k", 1, np.float16), constant("l", 1, np.float32)]), "fp16"),
        (
            model(node("Cast", "images", "a", to=HALF), node("Cast", "a", "output0", to=FLOAT)),
            "fp16",
        ),
        (
            model(
                node("If", "y", "a", x=branch(node("Cast", "b", "c", to=HALF), output="c")),
            ),
            "fp16",
        ),
        (quantised(ZERO), "int8-symmetric"),
        (quantised(ZERO, constant("zeros", [0, 0], np.int8)), "int8-symmetric"),
        (quantised(ZERO, constant("odd", [0, 1], np.int8)), "int8"),
        (quantised(constant("odd", [0, 1], np.int8), ZERO), "int8"),
        (quantised(constant("zero", 0, np.uint8)), "int8"),
        (quantised(None), "int8"),
        (quantised(ZERO, None), "int8"),
        (model(node("QuantizeLinear", "images s unknown", "a")), "int8"),
        (model(node("DequantizeLinear", "images s z", "a")), "fp32"),
    ],
)
def test_precision_follows_from_weights_and_casts(made: ModelProto, precision: str) -> None:
    assert precision_from(made) == precision


# ---------------------------------------------------------------------------------------------
# Batch


def constants(made: ModelProto) -> dict[str, list[Any]]:
    return {one.name: numpy_helper.to_array(one).tolist() for one in made.graph.initializer}


def test_reshape_keeps_the_images_apart() -> None:
    made = model(
        node("Reshape", "images s", "a", allowzero=1),
        node("Reshape", "a t", "output0"),
        image=("batch", 3, 4, 4),
        constants=[constant("s", [2, 3, 16]), constant("t", [2, 48])],
    )
    make_batch_dynamic(made, 2)
    assert sorted(constants(made).values()) == [[0, 3, 16], [0, 48]]
    assert not made.graph.node[0].attribute
    assert np.array_equal(run(made, photos(5)), photos(5).reshape(5, 48))


def test_reshape_of_another_first_dimension_counts_the_images() -> None:
    made = model(
        node("Reshape", "images s", "a", allowzero=1),
        node("Reshape", "a t", "output0"),
        constants=[constant("s", [-1, 16]), constant("t", [2, 3, 16])],
    )
    make_batch_dynamic(made, 2)
    assert sorted(constants(made).values()) == [[-1, 3, 16], [-1, 16]]
    assert [one.name for one in made.graph.node[0].attribute] == ["allowzero"]
    assert np.array_equal(run(made, photos(5)), photos(5).reshape(5, 3, 16))


def test_reshape_never_gets_two_unknown_sides() -> None:
    made = model(
        node("Reshape", "images s", "a"),
        node("Reshape", "a t", "output0"),
        constants=[constant("s", [-1, 16]), constant("t", [2, -1, 16])],
    )
    make_batch_dynamic(made, 2)
    assert sorted(constants(made).values()) == [[-1, 16], [0, -1, 16]]


def test_shape_may_be_a_constant_node() -> None:
    made = model(
        node("Constant", "", "s", value=numpy_helper.from_array(np.array([2, 48]))),
        node("Reshape", "images s", "output0"),
    )
    make_batch_dynamic(made, 2)
    assert list(constants(made).values()) == [[0, 48]]
    assert [one.op_type for one in made.graph.node] == ["Reshape"]
    assert run(made, photos(3)).shape == (3, 48)


def test_reshape_of_values_without_images_stays() -> None:
    made = model(
        node("Reshape", "k s", "a"),
        node("Shape", "images", "sides"),
        node("Reshape", "sides s", "b"),
        node("Size", "images", "count"),
        node("Reshape", "count s", "c"),
        node("Concat", "a b c", "output0", axis=0),
        constants=[constant("k", [1, 2, 3, 4]), constant("s", [2, -1])],
    )
    make_batch_dynamic(made, 2)
    assert constants(made) == {"k": [1, 2, 3, 4], "s": [2, -1]}


def test_reshape_to_another_batch_or_a_computed_shape_stays() -> None:
    made = model(
        node("Reshape", "images s", "a"),
        node("Shape", "images", "sides"),
        node("Reshape", "a sides", "b"),
        node("Reshape", "b empty", "output0"),
        constants=[constant("s", [3, 2, 16]), constant("empty", np.zeros(0))],
    )
    make_batch_dynamic(made, 2)
    assert constants(made) == {"s": [3, 2, 16], "empty": []}


def expand(shape: list[int]) -> ModelProto:
    ones = constant("one", np.ones([1] * len(shape)), np.float32)
    return model(
        node("Expand", "one s", "a"),
        node("Add", "images a", "output0"),
        constants=[ones, constant("s", shape)],
    )


def test_expand_leaves_the_number_of_images_to_broadcasting() -> None:
    made = expand([2, 1, 4, 4])
    make_batch_dynamic(made, 2)
    assert constants(made)["a_shape"] == [1, 1, 4, 4]
    assert np.array_equal(run(made, photos(5)), photos(5) + 1)
    made = expand([2, 1, 1, 4, 4])
    make_batch_dynamic(made, 2)
    assert constants(made)["a_shape"] == [1, 1, 1, 4, 4]


@pytest.mark.parametrize(
    "shape, batch", [([4, 4, 4], 4), ([1, 1, 4, 4], 1), ([3, 1, 4, 4], 2)], ids=str
)
def test_other_expand_stays(shape: list[int], batch: int) -> None:
    made = expand(shape)
    make_batch_dynamic(made, batch)
    assert constants(made)["s"] == shape and set(constants(made)) == {"one", "s"}


def test_expand_to_a_computed_shape_stays() -> None:
    made = model(
        node("Shape", "images", "s"),
        node("Expand", "k s", "a"),
        node("Add", "images a", "output0"),
        constants=[constant("k", [1], np.float32)],
    )
    make_batch_dynamic(made, 2)
    assert np.array_equal(run(made, photos(3)), photos(3) + 1)


def resized(**values: Any) -> ModelProto:
    return model(
        node("Resize", "images - - sizes", "output0", mode="nearest"),
        constants=[constant("sizes", [2, 3, 8, 12])],
        **values,
    )


def test_resize_to_sizes_becomes_one_by_scales() -> None:
    made = resized()
    make_batch_dynamic(made, 2)
    assert len(made.graph.node[0].input) == 3
    assert constants(made) == {"output0_scales": [1, 1, 2, 3]}
    wanted = photos(5).repeat(2, 2).repeat(3, 3)
    assert np.array_equal(run(made, photos(5)), wanted)


def test_other_resize_stays() -> None:
    by_scales = model(
        node("Resize", "images - scales", "output0"),
        constants=[constant("scales", [1, 1, 2, 2], np.float32)],
    )
    computed = model(
        node("Identity", "k", "sizes"),
        node("Resize", "images - - sizes", "output0"),
        constants=[constant("k", [2, 3, 8, 8])],
    )
    of_constant = model(
        node("Resize", "k - - sizes", "a"),
        node("Add", "images a", "output0"),
        constants=[constant("k", photos(1), np.float32), constant("sizes", [1, 3, 4, 4])],
    )
    fewer = model(
        node("Resize", "images - - sizes", "output0"), constants=[constant("sizes", [8, 12])]
    )
    open_size = resized(image=("batch", 3, "height", "width"))
    for made in (by_scales, computed, of_constant, fewer, open_size):
        before = made.graph.SerializeToString()
        make_batch_dynamic(made, 2)
        assert made.graph.SerializeToString() == before


def test_declared_batch_is_that_of_the_input() -> None:
    made = model(
        node("Reshape", "images s", "output0"),
        image=("batch", 3, 5, 4),
        constants=[constant("s", [1, 12, 5]), constant("first", [7]), constant("rest", [7])],
    )
    declare_open_batch(made)
    assert declared(made)[1][0] == "output0"
    images = photos(1, 5, 4)
    assert np.array_equal(run(made, images), images.reshape(1, 12, 5))


def test_declared_batch_is_open_to_onnx() -> None:
    made = model(node("Reshape", "images s", "output0"), constants=[constant("s", [1, 12, 4])])
    declare_open_batch(made)
    made.graph.output[0].CopyFrom(value("output0"))
    made.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(made, data_prop=True).graph.output[0]
    sides = [side.dim_value for side in inferred.type.tensor_type.shape.dim]
    assert sides[:1] == [0] and sides[1:] == [12, 4]


def test_integer_constants_are_lists_of_whole_numbers() -> None:
    made = model(
        node("Constant", "", "c", value=constant("", [5, 6])),
        node("Constant", "", "n", value_int=3),
        node("Constant", "", "f", value=constant("", [1], np.float32)),
        node("ConstantOfShape", "a", "o", value=constant("", [7])),
        node("Abs", "c", "x"),
        constants=[
            constant("a", [1, 2]),
            constant("scalar", 1),
            constant("table", [[1, 2]]),
            constant("float", [1], np.float32),
            constant("int32", [1], np.int32),
        ],
    )
    found = {name: array.tolist() for name, array in _integer_constants(made.graph).items()}
    assert found == {"a": [1, 2], "c": [5, 6]}


def test_shapes_are_inferred_for_a_number_of_images() -> None:
    made = model(
        node("Shape", "images", "s"),
        node("Gather", "s zero", "batch"),
        node("Concat", "batch k", "t", axis=0),
        node("Reshape", "images t", "a"),
        node("Abs", "a", "b"),
        node("Abs", "b", "output0"),
        image=("batch", 3, "height", 4),
        constants=[constant("zero", [0]), constant("k", [3, 4, -1])],
    )
    found = _shapes(made, 2)
    assert found["images"] == [2, 3, None, 4]
    assert found["a"] == found["b"] == [2, 3, 4, None]
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
