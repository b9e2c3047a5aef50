"""Edit an ONNX graph: prune and sort it, rename values, set its interface, open its batch."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    numpy_helper,
)

from ._contract import FP16, FP32, INPUT, INT8, INT8_SYMMETRIC, MODEL, OUTPUT


class GraphError(Exception):
    """The graph is inconsistent."""


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The branches of an `If`, the body of a `Loop` or `Scan`."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, including those of subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from all_nodes(graph.node)


def prune(graph: GraphProto, outputs: Sequence[str]) -> None:
    """Drop the nodes and initializers that `outputs` do not need, and sort the rest.

    Raises:
        GraphError: two nodes produce the same value, or a value depends on itself.
    """
    nodes = list(graph.node)
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for inner in subgraphs(node):
            prune(inner, [output.name for output in inner.output])
        for output in filter(None, node.output):
            if producer.setdefault(output, index) != index:
                raise GraphError(f"{output} is produced twice")
    reads = [values_read(node) for node in nodes]
    needs: dict[int, set[int]] = {}
    wanted = [producer[output] for output in outputs if output in producer]
    while wanted:
        index = wanted.pop()
        if index not in needs:
            needs[index] = {producer[value] for value in reads[index] if value in producer}
            wanted.extend(needs[index])
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError:
        raise GraphError("a value depends on itself") from None
    used = set(outputs).union(*(reads[index] for index in order))
    kept = GraphProto(
        node=[nodes[index] for index in order],
        initializer=[tensor for tensor in graph.initializer if tensor.name in used],
    )
    for field in ("node", "initializer"):
        graph.ClearField(field)
    graph.MergeFrom(kept)
    graph.name = graph.name or MODEL  # required by onnx's checker


def values_read(node: NodeProto) -> set[str]:
    """The values that a node reads, including outer values that its subgraphs read."""
    values = set(filter(None, node.input))
    for graph in subgraphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own.update(output for inner in graph.node for output in inner.output)
        read = {output.name for output in graph.output}.union(*map(values_read, graph.node))
        values |= read - own
    return values


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever they occur, including in subgraphs."""
    for value in _named(graph):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for inner in subgraphs(node):
            rename(inner, names)


def _named(graph: GraphProto) -> list[ValueInfoProto | TensorProto]:
    return [*graph.input, *graph.output, *graph.initializer]


def unused_name(graph: GraphProto, name: str) -> str:
    """The name, with underscores added until no value of the graph has it."""
    taken = {value.name for value in _named(graph)}
    for node in all_nodes(graph.node):
        taken.update(node.input, node.output)
        for inner in subgraphs(node):
            taken.update(value.name for value in _named(inner))
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or output of a graph.

    Attributes:
        name: of the value.
        type: its ONNX data type.
        shape: the shape to declare; a text is the name of an open dimension.
    """

    name: str
    type: int
    shape: Sequence[int | str]


def set_interface(model: ModelProto, image: Port, rows: Port) -> None:
    """Make `image` the only input, `images`, and `rows` the only output, `output0`, both float32.

    Nodes that the output does not need are dropped, and so are the shapes of intermediate values.
    """
    graph = model.graph
    prune(graph, [rows.name])
    for field in ("input", "output", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    names = {end: unused_name(graph, f"{end}_") for end in (INPUT, OUTPUT)}
    rename(graph, names)
    rename(
        graph, {names.get(image.name, image.name): INPUT, names.get(rows.name, rows.name): OUTPUT}
    )
    if image.type != TensorProto.FLOAT:
        inner = unused_name(graph, f"{INPUT}_cast")
        rename(graph, {INPUT: inner})
        cast = onnx.helper.make_node("Cast", [INPUT], [inner], to=image.type)
        graph.node.insert(0, cast)
    if rows.type != TensorProto.FLOAT:
        inner = unused_name(graph, f"{OUTPUT}_cast")
        rename(graph, {OUTPUT: inner})
        graph.node.append(onnx.helper.make_node("Cast", [inner], [OUTPUT], to=TensorProto.FLOAT))
    for values, name, end in ((graph.input, INPUT, image), (graph.output, OUTPUT, rows)):
        values.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, end.shape))


def transpose_channels(model: ModelProto, rows: Sequence[int | str]) -> str:
    """Turn the output [B, 4 + C, N] into [B, N, 5 + C] with an objectness of 1.

    Args:
        model: a graph from `set_interface`, in opset 11 or newer.
        rows: the shape to declare.

    Returns:
        The name of the value [B, 4 + C, N].
    """
    graph = model.graph
    channels = unused_name(graph, f"{OUTPUT}_channels")
    rename(graph, {OUTPUT: channels})
    boxes, scores = split_channels(graph, channels)
    append_rows(graph, boxes, scores)
    graph.ClearField("output")
    graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, rows))
    return channels


def split_channels(graph: GraphProto, channels: str) -> tuple[str, str]:
    """Append the nodes that split [B, 4 + C, N] into boxes [B, 4, N] and scores [B, C, N]."""
    parts = []
    for name, start, end in (("boxes", 0, 4), ("scores", 4, np.iinfo(np.int64).max)):
        limits = [
            add_constant(graph, f"{name}_{key}", np.array([value], np.int64))
            for key, value in (("start", start), ("end", end), ("axis", 1))
        ]
        parts.append(unused_name(graph, name))
        graph.node.append(onnx.helper.make_node("Slice", [channels, *limits], [parts[-1]]))
    return parts[0], parts[1]


def append_rows(graph: GraphProto, boxes: str, scores: str) -> None:
    """Append the nodes that make the rows [B, N, 5 + C] of boxes [B, 4, N], scores [B, C, N]."""
    pads = add_constant(graph, "objectness_place", np.array([0, 0, 0, 0, 1, 0], np.int64))
    one = add_constant(graph, "objectness", np.array(1, np.float32))
    padded, joined = (unused_name(graph, name) for name in ("boxes_objectness", "columns"))
    graph.node.extend(
        [
            onnx.helper.make_node("Pad", [boxes, pads, one], [padded]),
            onnx.helper.make_node("Concat", [padded, scores], [joined], axis=1),
            onnx.helper.make_node("Transpose", [joined], [OUTPUT], perm=[0, 2, 1]),
        ]
    )


def opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a graph uses."""
    versions = [one.version for one in model.opset_import if one.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def precision_from(model: ModelProto) -> str:
    """The precision of a graph, one of `PRECISIONS`, inferred from its weights and casts."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = []
    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in tensors.values())
    for node in all_nodes(model.graph.node):
        if node.op_type == "QuantizeLinear":
            zeros.append(tensors.get(node.input[2]) if len(node.input) > 2 else None)
        for attribute in node.attribute:
            half |= attribute.name == "to" and attribute.i == TensorProto.FLOAT16
    if zeros:
        symmetric = all(
            zero is not None
            and zero.data_type == TensorProto.INT8
            and not numpy_helper.to_array(zero).any()
            for zero in zeros
        )
        return INT8_SYMMETRIC if symmetric else INT8
    return FP16 if half else FP32


def make_batch_dynamic(model: ModelProto, batch: int) -> None:
    """Replace a fixed number of images in constant shapes, in a graph from `set_interface`.

    Correct only if the first dimension of the values is that of the images, which the caller has to
    verify.
    """
    shapes = _shapes(model, batch)
    constants = _integer_constants(model.graph)
    images = {INPUT}
    for node in model.graph.node:
        made_of_images = not images.isdisjoint(node.input) and node.op_type not in ("Shape", "Size")
        if made_of_images:
            images.update(node.output)
        if node.op_type == "Expand" and batch != 1:
            if (
                len(constants.get(node.input[1], ())) >= 4
            ):  # a shorter shape may be that of a grid with as many rows
                _replace_batch(model.graph, node, constants, batch, 1)
        elif node.op_type == "Reshape" and made_of_images:
            shape = constants.get(node.input[1], np.empty(0, np.int64))
            first = shapes.get(node.input[0], [None])[:1]
            copied = first == [batch] or -1 in shape
            # Attention in areas of a feature map multiplies the batch by their number.
            areas = shape.size and shape.min() > 0 and shape[0] % batch == 0 and shape[0] != batch
            old, new = (shape[0], -1) if areas else (batch, 0 if copied else -1)
            if _replace_batch(model.graph, node, constants, old, new):
                # With `allowzero`, a zero would mean a size of zero instead of "as in the input".
                others = [a for a in node.attribute if a.name != "allowzero"]
                node.ClearField("attribute")
                node.attribute.extend(others)
        elif node.op_type == "Resize" and len(node.input) == 4 and made_of_images:
            before, after = shapes.get(node.input[0], []), constants.get(node.input[3])
            if after is not None and len(before) == len(after) and all(before):
                scales = (after / np.array(before, np.float64)).astype(np.float32)
                node.input[2] = add_constant(model.graph, f"{node.output[0]}_scales", scales)
                del node.input[3]
    prune(model.graph, [OUTPUT])


def declare_open_batch(model: ModelProto) -> None:
    """Leave the output's first dimension open, in a graph from `set_interface` for one image.

    The network still takes one image only.

    ONNX Runtime infers a 1 there. Triton's backend would then treat the network as one without a
    batch dimension, and refuse it as a step of an ensemble with batches.
    """
    graph = model.graph
    inner = unused_name(graph, f"{OUTPUT}_single")
    rename(graph, {OUTPUT: inner})
    graph.output[0].name = OUTPUT
    first = add_constant(graph, "first", np.array([0], np.int64))
    rest = add_constant(graph, "rest", np.array([1, 1], np.int64))
    sides, batch, shape = (
        unused_name(graph, f"{OUTPUT}_{part}") for part in ("sides", "batch", "is")
    )
    graph.node.extend(
        [
            onnx.helper.make_node("Shape", [INPUT], [sides]),
            onnx.helper.make_node("Gather", [sides, first], [batch]),
            onnx.helper.make_node("Concat", [batch, rest], [shape], axis=0),
            onnx.helper.make_node("Expand", [inner, shape], [OUTPUT]),
        ]
    )


def _replace_batch(
    graph: GraphProto,
    node: NodeProto,
    constants: Mapping[str, NDArray[np.int64]],
    old: int,
    new: int,
) -> bool:
    """If the constant shape of a node begins with `old`, give it one that begins with `new`."""
    shape = constants.get(node.input[1])
    if shape is None or not shape.size or shape[0] != old:
        return False
    shape = np.array([new, *shape[1:]], np.int64)
    node.input[1] = add_constant(graph, f"{node.output[0]}_shape", shape)
    return True


def add_constant(graph: GraphProto, name: str, value: NDArray[np.generic]) -> str:
    name = unused_name(graph, name)
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _integer_constants(graph: GraphProto) -> dict[str, NDArray[np.int64]]:
    """The constants that can be shapes, by name: lists of integers."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1
    }


def _shapes(model: ModelProto, batch: int) -> dict[str, list[int | None]]:
    """The shapes of values that can be inferred; None for open dimensions."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    return {
        value.name: [side.dim_value or None for side in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.input, *inferred.graph.value_info)
    }
