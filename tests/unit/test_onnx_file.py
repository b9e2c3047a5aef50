"""Reading an untrusted ONNX file, on graphs of a few nodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper
from onnx.numpy_helper import from_array, to_array

from yolov5_build import BuildError, _onnx_file
from yolov5_build._onnx_file import quoted, read_onnx, short_reason

DAMAGED = "is cut off or damaged."


def model(
    *nodes: NodeProto, constants: Sequence[TensorProto] = (), inputs: Sequence[str] = ("x",)
) -> ModelProto:
    """A graph from `x` to `y`."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Sum", ["x", *(one.name for one in constants)], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        list(constants),
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def read(made: ModelProto | bytes, folder: Path) -> ModelProto:
    path = folder / "them.onnx"
    path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return read_onnx(path)[0]


def refusal(made: ModelProto | bytes, folder: Path) -> str:
    with pytest.raises(BuildError) as caught:
        read(made, folder)
    assert str(caught.value).startswith("them.onnx ")
    return str(caught.value).removeprefix("them.onnx ")


def test_model_is_read_with_the_sha256_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "them.onnx"
    path.write_bytes(model().SerializeToString())
    made, sha256 = read_onnx(path)
    assert made == model()
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is empty."),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer and not the file"),
        (b"PK\x03\x04rest", "is a PyTorch file; rename it to .pt."),
        (b"hello", "is not an ONNX file."),
        (b"\x08\x08\xff", DAMAGED),
        (b"\x3a\x00", "is not an ONNX file."),  # well-formed, but without a version
        (ModelProto(ir_version=8).SerializeToString(), "holds an empty graph."),
    ],
)
def test_other_content_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    assert refusal(content, tmp_path).startswith(sentence)


@pytest.mark.parametrize("field", ["node", "output"])
def test_graph_needs_nodes_and_outputs(field: str, tmp_path: Path) -> None:
    made = model()
    made.graph.ClearField(field)
    assert refusal(made, tmp_path) == "holds an empty graph."


def test_only_regular_files_of_a_limited_size_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(name: str) -> str:
        with pytest.raises(BuildError) as caught:
            read_onnx(tmp_path / name)
        return str(caught.value)

    assert said("none") == "none cannot be read: No such file or directory."
    (tmp_path / "folder").mkdir()
    assert said("folder") == "folder cannot be read: Is a directory."
    os.mkfifo(tmp_path / "pipe")
    assert said("pipe") == "pipe is not a file."
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 31)
    assert said("huge") == "huge is over the limit of 2048 MB."
    assert _onnx_file.MAX_BYTES == 2**31 - 1  # as much as protobuf reads
    whole = model().SerializeToString()
    monkeypatch.setattr(_onnx_file, "MAX_BYTES", len(whole))
    read(whole, tmp_path)
    monkeypatch.setattr(_onnx_file, "MAX_BYTES", len(whole) - 1)
    assert refusal(whole, tmp_path).startswith("is over the limit of ")


def test_initializers_are_no_inputs(tmp_path: Path) -> None:
    made = model(constants=[from_array(np.ones(1, np.float32), "k")], inputs=["k", "x"])
    made.ir_version = 3
    got = read(made, tmp_path)
    assert [value.name for value in got.graph.input] == ["x"]
    assert got.ir_version == 4  # which allows that
    assert read(model(), tmp_path).ir_version == 8


def test_nodes_are_sorted_and_a_circle_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Abs", ["a"], ["y"]), helper.make_node("Abs", ["x"], ["a"])]
    assert [node.output[0] for node in read(model(*nodes), tmp_path).graph.node] == ["a", "y"]
    nodes[1].input[0] = "y"
    assert refusal(model(*nodes), tmp_path) == DAMAGED


# ---------------------------------------------------------------------------------------------
# Functions


def with_functions(*sizes: int) -> ModelProto:
    """A model that calls F0, which calls F1 so often, and that the next one; the last one has so
    many nodes."""
    made = model(helper.make_node("F0", ["x"], ["y"], domain="mine"))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for level, size in enumerate(sizes):
        last = level == len(sizes) - 1
        kind, domain = ("Abs", "") if last else (f"F{level + 1}", "mine")
        nodes = [
            helper.make_node(kind, [f"v{i}"], [f"v{i + 1}"], domain=domain) for i in range(size)
        ]
        function = helper.make_function("mine", f"F{level}", ["v0"], [f"v{size}"], nodes, imports)
        made.functions.append(function)
    return made


def test_functions_are_inlined(tmp_path: Path) -> None:
    got = read(with_functions(2, 3), tmp_path)
    assert [node.op_type for node in got.graph.node] == ["Abs"] * 6
    assert not got.functions


def test_functions_with_too_many_nodes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "has more nodes than any YOLOv5 network."
    assert refusal(with_functions(*[2] * 60), tmp_path) == sentence
    assert refusal(with_functions(100, 999), tmp_path) == sentence  # 100,001 with the calls
    made = with_functions(2, 3)  # 6 nodes and 3 calls
    made.graph.initializer.append(from_array(np.ones(1, np.float32), "k"))
    made.graph.node.append(helper.make_node("Abs", ["x"], ["unused"]))
    monkeypatch.setattr(_onnx_file, "MAX_NODES", 11)
    assert len(read(made, tmp_path).graph.node) == 6
    monkeypatch.setattr(_onnx_file, "MAX_NODES", 10)
    assert refusal(made, tmp_path) == sentence


# ---------------------------------------------------------------------------------------------
# Names


def _add_input(made: ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("BAD", TensorProto.FLOAT, [1]))


def _add_output(made: ModelProto) -> None:
    made.graph.output.append(helper.make_tensor_value_info("BAD", TensorProto.FLOAT, [1]))


def _nest(made: ModelProto) -> None:
    inner = helper.make_graph([helper.make_node("Abs", ["x"], ["BAD"])], "", [], [])
    made.graph.node[0].attribute.append(helper.make_attribute("body", inner))


@pytest.mark.parametrize(
    "change",
    [
        _add_input,
        _add_output,
        _nest,
        lambda made: made.graph.initializer.append(from_array(np.ones(1, np.float32), "BAD")),
        lambda made: setattr(made.graph.node[0], "name", "BAD"),
        lambda made: setattr(made.graph.node[0], "op_type", "BAD"),
        lambda made: setattr(made.graph.node[0], "domain", "BAD"),
        lambda made: made.graph.node[0].input.append("BAD"),
        lambda made: made.graph.node[0].output.append("BAD"),
        lambda made: made.graph.node[0].attribute.append(helper.make_attribute("BAD", 1)),
    ],
)
def test_name_that_is_no_text_is_refused(
    change: Callable[[ModelProto], Any], tmp_path: Path
) -> None:
    made = model()
    change(made)
    read(made, tmp_path)
    spoilt = made.SerializeToString().replace(b"BAD", b"\xff\xfe\xfd")
    assert refusal(spoilt, tmp_path) == DAMAGED


@pytest.mark.parametrize(
    "text, shown",
    [("a" * 60, f"'{'a' * 60}'"), ("a" * 61, f"'{'a' * 57}...'"), ("ü\n", r"'\xfc\n'")],
)
def test_texts_of_the_file_are_quoted(text: str, shown: str) -> None:
    assert quoted(text) == shown


@pytest.mark.parametrize(
    "message, reason",
    [
        ("No luck.", "No luck"),
        ("One.\n  Two. Three", "One; Two; Three"),
        ("", "ValueError"),
        ("a\x00b", "a?b"),
        ("a" * 160, "a" * 160),
        ("a" * 161, "a" * 160),
        ("before Status Message: after", "after"),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. Type", "Type"),
        ("Exception during initialization: /onnxruntime/a.cc:12 void F(int) no", "no"),
        ("/onnxruntime/core/a.h:1 failed", "failed"),
    ],
)
def test_reason_of_an_error_is_short(message: str, reason: str) -> None:
    assert short_reason(ValueError(message)) == reason


# ---------------------------------------------------------------------------------------------
# Tensors

KINDS = {
    TensorProto.BOOL: 1,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
    TensorProto.FLOAT16: 2,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT32: 4,
    TensorProto.UINT32: 4,
    TensorProto.FLOAT: 4,
    TensorProto.INT64: 8,
    TensorProto.UINT64: 8,
    TensorProto.DOUBLE: 8,
}


def raw(kind: int, count: int, *dims: int) -> TensorProto:
    return TensorProto(name="k", data_type=kind, dims=dims, raw_data=bytes(count))


def test_tensors_have_as_many_bytes_as_their_shape_needs(tmp_path: Path) -> None:
    for kind, size in KINDS.items():
        read(model(constants=[raw(kind, 6 * size, 2, 3)]), tmp_path)
        read(model(constants=[raw(kind, 6 * size + 1, 2, 3)]), tmp_path)
        made = model(constants=[raw(kind, 6 * size - 1, 2, 3)])
        assert refusal(made, tmp_path) == DAMAGED


@pytest.mark.parametrize(
    "field, kind", [("float_data", TensorProto.FLOAT), ("int32_data", TensorProto.INT8)]
)
def test_tensors_have_as_many_numbers_as_their_shape_needs(
    field: str, kind: int, tmp_path: Path
) -> None:
    tensor = TensorProto(name="k", data_type=kind, dims=[2, 3])
    getattr(tensor, field).extend([1] * 6)
    read(model(constants=[tensor]), tmp_path)
    getattr(tensor, field).pop()
    assert refusal(model(constants=[tensor]), tmp_path) == DAMAGED


def test_odd_shapes_and_types_are_refused(tmp_path: Path) -> None:
    read(model(constants=[raw(TensorProto.INT8, 1)]), tmp_path)
    read(model(constants=[raw(TensorProto.INT8, 0, 0)]), tmp_path)
    read(model(constants=[raw(TensorProto.INT8, 1, *[1] * 16)]), tmp_path)
    for tensor in (raw(TensorProto.INT8, 1, *[1] * 17), raw(TensorProto.INT8, 1, -1)):
        assert refusal(model(constants=[tensor]), tmp_path) == DAMAGED
    text = TensorProto(name="k", data_type=TensorProto.STRING, dims=[1], string_data=[b"a"])
    assert refusal(model(constants=[text]), tmp_path) == (
        "holds data of a type that no YOLOv5 network has."
    )


def odd(**attributes: Any) -> NodeProto:
    return helper.make_node("Odd", ["x"], ["y"], **attributes)


def graph_of(node: NodeProto) -> GraphProto:
    return helper.make_graph([node], "", [], [helper.make_empty_tensor_value_info("y")])


def test_tensors_of_nodes_are_checked_too(tmp_path: Path) -> None:
    short = raw(TensorProto.FLOAT, 7, 2)
    good = raw(TensorProto.FLOAT, 8, 2)
    inner = graph_of(odd(value=short))
    for node in (odd(value=short), odd(values=[good, short]), odd(body=inner)):
        assert refusal(model(node), tmp_path) == DAMAGED
    inner = graph_of(odd(value=good))
    inner.initializer.append(short)
    inner.node[0].input.append("k")
    assert refusal(model(odd(body=inner)), tmp_path) == DAMAGED
    read(model(odd(value=good, values=[good])), tmp_path)


def test_sparse_tensors_are_refused(tmp_path: Path) -> None:
    one = helper.make_sparse_tensor(
        from_array(np.ones(1, np.float32), "s"), from_array(np.zeros(1, np.int64)), [3]
    )
    assert isinstance(one, SparseTensorProto)
    sentence = "holds sparse tensors, which are not supported."
    initializer = model()
    initializer.graph.sparse_initializer.append(one)
    assert refusal(initializer, tmp_path) == sentence
    for attributes in ({"value": one}, {"values": [one]}):
        assert refusal(model(odd(**attributes)), tmp_path) == sentence
    both = model(odd(value=one))
    both.graph.node[0].attribute[0].sparse_tensors.append(one)
    assert refusal(both, tmp_path) == sentence
    both = model(odd(value=one))
    both.graph.sparse_initializer.append(one)
    assert refusal(both, tmp_path) == sentence


# ---------------------------------------------------------------------------------------------
# External data


def external(
    name: str = "k", *, count: int = 4, location: str | None = "a.data", **entries: int
) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count])
    tensor.data_location = TensorProto.EXTERNAL
    if location is not None:
        tensor.external_data.add(key="location", value=location)
    for key, number in entries.items():
        tensor.external_data.add(key=key, value=str(number))
    return tensor


def data(folder: Path, count: int = 4, name: str = "a.data") -> Path:
    path = folder / name
    path.write_bytes(np.arange(count, dtype=np.float32).tobytes())
    return path


def test_external_data_are_embedded(tmp_path: Path) -> None:
    data(tmp_path, 6)
    (tmp_path / "sub").mkdir()
    data(tmp_path, 4, "sub/b.data")
    made = model(
        constants=[
            external("k"),
            external("l", offset=8, length=16),
            external("m", location="sub/b.data"),
            external("n", location="sub\\b.data"),
        ]
    )
    got = read(made, tmp_path).graph.initializer
    assert [to_array(one).tolist() for one in got] == [
        *([0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3])
    ]
    for one in got:
        assert not one.external_data and not one.HasField("data_location")


def test_external_data_must_be_whole(tmp_path: Path) -> None:
    data(tmp_path, 4)
    more = "needs more data than 'a.data' has, which is cut off."
    for tensor, sentence in (
        (external(count=5), more),
        (external(offset=1), more),
        (external(offset=-1), DAMAGED),
        (external(length=15), DAMAGED),
        (external(count=1 << 29), "is over the limit of 2048 MB."),
    ):
        assert refusal(model(constants=[tensor]), tmp_path) == sentence
    read(model(constants=[external(count=3, offset=4)]), tmp_path)


def test_external_data_may_not_be_used_again_and_again(tmp_path: Path) -> None:
    data(tmp_path, 8)
    data(tmp_path, 8, "b.data")
    tensors = [external(name, count=8) for name in "klm"]
    read(model(constants=tensors[:2]), tmp_path)
    assert refusal(model(constants=tensors), tmp_path) == DAMAGED
    read(model(constants=[external("b", count=8, location="b.data"), *tensors]), tmp_path)


def test_external_data_must_lie_in_the_folder_of_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    (folder / "sub").mkdir(parents=True)
    inside, outside = data(folder), data(tmp_path)
    (folder / "link.data").symlink_to(outside)
    for location in (
        *("../a.data", "..\\a.data", "sub/../a.data", "C:\\a.data", "C:a.data", "link.data"),
        *(str(outside), str(inside), "\\a.data"),
    ):
        made = model(constants=[external(location=location)])
        assert refusal(made, folder).endswith(", which is not in its folder."), location
    for location, shown in (("b.data", "b.data"), ("sub\\b", "sub/b"), ("sub", "sub")):
        made = model(constants=[external(location=location)])
        assert refusal(made, folder) == f"needs '{shown}' beside it, which is not there."
    assert refusal(model(constants=[external(location=None)]), folder) == (
        "needs '.' beside it, which is not there."
    )
