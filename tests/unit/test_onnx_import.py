from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from checkpoints import EXPORT_SIZE, LABELS, export, read_small, unsorted
from numpy.typing import NDArray
from one_image import detect
from onnx import ModelProto, TensorProto, helper, numpy_helper
from support import SHARED
from thresholds import Thresholds

from yolov5_build import BuildError
from yolov5_build import _contract as contract
from yolov5_build._onnx_import import import_onnx
from yolov5_build.photos import PhotoLoader, example_images

HEIGHT, WIDTH = EXPORT_SIZE
ROWS = 378

Array = NDArray[Any]


def load(source: ModelProto | bytes, folder: Path, **options: Any) -> ModelProto:
    """The result of `import_onnx`."""
    path, target = folder / "them.onnx", folder / "ours.onnx"
    path.write_bytes(source if isinstance(source, bytes) else source.SerializeToString())
    import_onnx(path, target, **options)
    model = onnx.load(target)
    onnx.checker.check_model(model)
    return model


def refusal(source: ModelProto | bytes, folder: Path, **options: Any) -> str:
    with pytest.raises(BuildError) as caught:
        load(source, folder, **options)
    assert not (folder / "ours.onnx").exists()
    sentence = str(caught.value)
    assert sentence.startswith("them.onnx ") and sentence.endswith(".")
    assert "\n" not in sentence and len(sentence) < 330
    return sentence.removeprefix("them.onnx ")


def ends(model: ModelProto) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]


def metadata(model: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def assert_answers(
    model: ModelProto, *counts: int, size: tuple[int, int] = (HEIGHT, WIDTH), limit: float = 1e-3
) -> None:
    """For batches of these sizes, the model returns the rows of the network in PyTorch."""
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for count in counts:
        photos = example_images(*size, count)
        (rows,) = session.run(["output0"], {"images": photos})
        with torch.no_grad():
            wanted = read_small().network(torch.from_numpy(photos)).numpy()
        assert rows.dtype == np.float32 and rows.shape == wanted.shape
        assert (np.abs(rows - wanted) / np.maximum(np.abs(wanted), 1)).max() < limit


# ---------------------------------------------------------------------------------------------
# Exports that are accepted


def four_outputs() -> ModelProto:
    """An export of releases 5.0 to 6.1, with the raw heads beside the decoded rows."""
    model = export()
    heads = [node.output[0] for node in model.graph.node if node.op_type == "Transpose"]
    assert len(heads) == 3
    model.graph.output.extend(onnx.ValueInfoProto(name=head) for head in heads)
    return model


def weights_as_inputs() -> ModelProto:
    """In version 3 of the format, every initializer is also an input."""
    model = export()
    model.ir_version = 3
    for tensor in (*model.graph.initializer, numpy_helper.from_array(np.zeros(2), "unused")):
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "unused"))
    return model


def names_in_the_way() -> ModelProto:
    model = export()
    model.graph.input[0].name = "output0"
    first, second = model.graph.node[0], model.graph.node[1]
    first.input[0] = "output0"
    for node in model.graph.node:
        node.input[:] = ["images" if n == first.output[0] else n for n in node.input]
    first.output[0] = "images"
    assert "images" in second.input
    return model


def resize_to_sizes() -> ModelProto:
    model = export(opset=17)
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    for node in model.graph.node:
        if node.op_type == "Resize":
            sizes = np.array(shapes[node.output[0]], np.int64)
            model.graph.initializer.append(numpy_helper.from_array(sizes, f"{node.name}_sizes"))
            node.input[2:] = ["", f"{node.name}_sizes"]
    return model


def zeros_meant_as_such() -> ModelProto:
    """Reshape as torch's newer exporter writes it."""
    model = export(opset=17)
    for node in model.graph.node:
        if node.op_type == "Reshape":
            node.ClearField("attribute")
            node.attribute.append(helper.make_attribute("allowzero", 1))
    return model


def choice_of_branches() -> ModelProto:
    """An `If` before the nodes whose values its branches read; one branch is unsorted."""
    model = export()
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    steps = [("mid", "out"), ("output", "mid")]
    then, otherwise = (
        helper.make_graph([helper.make_node("Identity", [a], [b]) for a, b in nodes], "", [], [out])
        for nodes in (steps, [("output", "out")])
    )
    node = helper.make_node("If", ["yes"], ["picked"], then_branch=then, else_branch=otherwise)
    model.graph.node.insert(0, node)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.output[0].name = "picked"
    return model


def function_of_its_own() -> ModelProto:
    model = export()
    model.functions.append(
        helper.make_function(
            "mine",
            "Same",
            ["x"],
            ["y"],
            [helper.make_node("Identity", ["x"], ["y"])],
            [helper.make_opsetid("", 12)],
        )
    )
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node.append(helper.make_node("Same", ["output"], ["same"], domain="mine"))
    model.graph.output[0].name = "same"
    return model


def half_precision() -> ModelProto:
    model = export()
    scales = {node.input[2] for node in model.graph.node if node.op_type == "Resize"}
    tensors = [(t.name, t) for t in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors.append((node.output[0], node.attribute[0].t))
        elif node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
    for name, tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT and name not in scales:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize(
    "make, limit",
    [
        (lambda: export(opset=11), 1e-3),
        (lambda: export(opset=17), 1e-3),
        (lambda: export(batch=4), 1e-3),
        (four_outputs, 1e-3),
        (unsorted, 1e-3),
        (weights_as_inputs, 1e-3),
        (names_in_the_way, 1e-3),
        (resize_to_sizes, 1e-3),
        (zeros_meant_as_such, 1e-3),
        (choice_of_branches, 1e-3),
        (function_of_its_own, 1e-3),
        (half_precision, 5e-2),
    ],
)
def test_export_is_converted_to_our_interface(
    make: Callable[[], ModelProto], limit: float, tmp_path: Path
) -> None:
    model = load(make(), tmp_path)
    assert ends(model) == [
        ("images", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH]),
        ("output0", TensorProto.FLOAT, ["batch", ROWS, 8]),
    ]
    said = metadata(model)
    assert said.pop(contract.PROVENANCE_KEY).startswith("From them.onnx, sha256 ")
    assert said == {
        "names": str(dict(enumerate(LABELS))),
        "stride": "32",
        "head": "full",
        "precision": "fp16" if make is half_precision else "fp32",
        "source": "onnx",
    }
    made = {value for node in model.graph.node for value in node.output}
    used = {value for node in model.graph.node for value in node.input} | {"output0", "output"}
    assert made <= used and {tensor.name for tensor in model.graph.initializer} <= used
    assert_answers(model, 1, 3, limit=limit)


def test_network_of_open_size_stays_open(tmp_path: Path) -> None:
    model = load(export(open_size=True), tmp_path, imgsz=(HEIGHT, WIDTH))
    assert ends(model) == [
        ("images", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        ("output0", TensorProto.FLOAT, ["batch", "rows", 8]),
    ]
    assert_answers(model, 2, size=(192, 96))
    assert load(export(open_size=True), tmp_path) == model  # the same after a trial at 640x640
    assert "multiples of 32, not 100" in refusal_of_open((100, 640), tmp_path / "a")
    assert "at most 4096 a side" in refusal_of_open((4128, 640), tmp_path / "b")


def refusal_of_open(imgsz: tuple[int, int], folder: Path) -> str:
    folder.mkdir()
    return refusal(export(open_size=True), folder, imgsz=imgsz)


def test_size_that_is_open_only_in_name_becomes_fixed(tmp_path: Path) -> None:
    for sides in ((2,), (2, 3)):
        model = export()
        for side in sides:
            model.graph.input[0].type.tensor_type.shape.dim[side].dim_param = "any"
        model = load(model, tmp_path, imgsz=(HEIGHT, WIDTH))
        assert ends(model)[0][2] == ["batch", 3, HEIGHT, WIDTH]
        assert ends(model)[1][2] == ["batch", ROWS, 8]


def test_other_imgsz_than_the_fixed_one_is_refused(tmp_path: Path) -> None:
    assert refusal(export(), tmp_path, imgsz=(96, 64)) == (
        "takes images of 64x96 pixels (height x width) and cannot be set to 96x64;"
        " export it again at that size."
    )
    load(export(), tmp_path, imgsz=(HEIGHT, WIDTH))


def with_nodes(model: ModelProto, *nodes: tuple[str, Sequence[str], str]) -> ModelProto:
    """Append nodes to the output."""
    for operator, inputs, output in nodes:
        model.graph.node.append(helper.make_node(operator, inputs, [output]))
    model.graph.output[0].name = nodes[-1][2]
    return model


def with_constant(model: ModelProto, name: str, *values: int) -> ModelProto:
    tensor = numpy_helper.from_array(np.array(values, np.int64), name)
    model.graph.initializer.append(tensor)
    return model


def test_network_for_single_images_gets_a_batch_limit(tmp_path: Path) -> None:
    # The first can be run only with one image; the second returns the first image's rows for all.
    squeezed = with_nodes(export(), ("Squeeze", ["output"], "a"), ("Unsqueeze", ["a"], "b"))
    squeezed.graph.node[-2].attribute.append(helper.make_attribute("axes", [0]))
    squeezed.graph.node[-1].attribute.append(helper.make_attribute("axes", [0]))
    mixed = with_nodes(
        with_constant(export(open_size=True), "first", 0),
        ("Gather", ["output", "first"], "a"),
        ("Sub", ["output", "output"], "b"),
        ("Add", ["a", "b"], "c"),
    )
    for model in (squeezed, mixed):
        model = load(model, tmp_path, imgsz=(HEIGHT, WIDTH))
        assert metadata(model)[contract.MAX_BATCH_KEY] == "1"
        assert ends(model)[0][2][0] == ends(model)[1][2][0] == "batch"
        assert_answers(model, 1)


def test_fixed_batch_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    model = with_nodes(export(batch=4), ("Concat", ["four", "rest"], "s"))
    model.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
    with_constant(with_constant(model, "four", 4), "rest", ROWS, 8)
    with_nodes(model, ("Reshape", ["output", "s"], "shaped"))
    sentence = "takes exactly 4 images at a time; export it with a dynamic batch."
    assert refusal(model, tmp_path) == sentence
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40
    assert "takes exactly 1099511627776 images" in refusal(model, tmp_path)


# ---------------------------------------------------------------------------------------------
# Class names and stride


def constant() -> ModelProto:
    """A network with three classes and constant rows, which is imported sooner than a real one."""
    model = answering({"output": rows(classes=3)}, (1, 3, 64, 64))
    helper.set_model_props(model, {"names": str([*LABELS])})
    return model


@pytest.mark.parametrize(
    "text",
    [
        "['a', 'b', 'c']",
        '["a", "b", "c"]',
        "('a', 'b', 'c')",
        "{0: 'a', 1: 'b', 2: 'c'}",
        '{"2": "c", "0": "a", "1": "b"}',
    ],
)
def test_class_names_are_read_from_the_metadata(text: str, tmp_path: Path) -> None:
    model = constant()
    helper.set_model_props(model, {"names": text, "stride": "no number"})
    said = metadata(load(model, tmp_path))
    assert said["names"] == "{0: 'a', 1: 'b', 2: 'c'}"
    assert said["stride"] == "32"


def test_odd_class_names_become_lines_of_text(tmp_path: Path) -> None:
    model = constant()
    helper.set_model_props(model, {"names": r'[" ", "b\nc", "\ud800d"]'})
    assert metadata(load(model, tmp_path))["names"] == "{0: 'class0', 1: 'b c', 2: '?d'}"


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "has no class names in it; give them with --names FILE, one a line."),
        ("", "has no class names in it"),
        ("__import__('os').abort()", "has no class names in it"),
        ("[" * 5000, "has no class names in it"),
        ("{'a': 0, 'b': 1, 'c': 2}", "has no class names in it"),
        ("['a', ['b'], 'c']", "has no class names in it"),
        ("['a', 'b']", "has 3 classes but 2 class names; give them with --names FILE"),
        ("{0: 'a', 1: 'b', 3: 'd'}", "not numbered from 0 without a gap"),
    ],
)
def test_invalid_class_names_are_refused(text: str | None, sentence: str, tmp_path: Path) -> None:
    model = constant()
    helper.set_model_props(model, {} if text is None else {"names": text})
    assert sentence in refusal(model, tmp_path)
    assert metadata(load(model, tmp_path, names=list("xyz")))["names"] == str(
        {0: "x", 1: "y", 2: "z"}
    )


def test_given_class_names_must_match_the_classes(tmp_path: Path) -> None:
    sentence = "has 3 classes but 2 class names."
    assert refusal(constant(), tmp_path, names=["a", "b"]) == sentence


# ---------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "is empty."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0bfa\nsize 1\n",
            "is a Git LFS pointer and not the file itself, which `git lfs pull` fetches.",
        ),
        (b"hello", "is not an ONNX file."),
        (b"\x1a\x00", "is not an ONNX file."),  # well-formed, but without a version
        (ModelProto(ir_version=8).SerializeToString(), "holds an empty graph."),
    ],
    ids=["empty", "lfs", "text", "version", "graph"],
)
def test_file_that_is_not_onnx_is_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    assert refusal(content, tmp_path) == sentence


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    for name, sentence in (
        ("none.onnx", "none.onnx cannot be read: No such file or directory."),
        (".", f"{tmp_path.name} cannot be read: Is a directory."),
        ("pipe", "pipe is not a file."),
        ("huge.onnx", "huge.onnx is over the limit of 2048 MB."),
        ("best.onnx", "best.onnx is a PyTorch file; rename it to .pt."),
    ):
        path = tmp_path / name
        if name == "pipe":
            os.mkfifo(path)
        elif name == "huge.onnx":
            with path.open("wb") as file:
                file.truncate(1 << 31)
        elif name == "best.onnx":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("best/data.pkl", b"")
        with pytest.raises(BuildError) as caught:
            import_onnx(path, tmp_path / "ours.onnx")
        assert str(caught.value) == sentence


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    whole = export().SerializeToString()
    cut_off = whole[: len(whole) // 2]
    short = export()
    short.graph.initializer[0].raw_data = short.graph.initializer[0].raw_data[:-1]
    huge = export()
    huge.graph.initializer[0].dims[0] = 1 << 40
    negative = export()
    negative.graph.initializer[0].dims[0] = -1
    circle = export()
    circle.graph.node[0].input[0] = circle.graph.node[-1].output[0]
    twice = export()
    twice.graph.node.append(twice.graph.node[0])
    for source in (cut_off, short, huge, negative, circle, twice):
        assert refusal(source, tmp_path) == "is cut off or damaged."


def test_functions_that_expand_to_billions_of_nodes_are_refused(tmp_path: Path) -> None:
    model = function_of_its_own()
    opset = [helper.make_opsetid("", 12), helper.make_opsetid("mine", 1)]
    for level in range(40):
        called = f"F{level - 1}" if level else "Same"
        calls = [
            helper.make_node(called, ["x" if i == 0 else "m"], ["y" if i else "m"], domain="mine")
            for i in range(2)
        ]
        model.functions.append(
            helper.make_function("mine", f"F{level}", ["x"], ["y"], calls, opset)
        )
    model.graph.node[-1].op_type = "F39"
    assert refusal(model, tmp_path) == "has more nodes than any YOLOv5 network."


def beside(folder: Path, location: str = "them.data") -> ModelProto:
    """The model with external weights in the folder."""
    path = folder / "saved.onnx"
    model = export()
    onnx.save(model, path, save_as_external_data=True, location="them.data", size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return model


def test_external_weights_are_embedded(tmp_path: Path) -> None:
    model = load(beside(tmp_path), tmp_path)
    (tmp_path / "them.data").unlink()
    assert_answers(model, 2)
    (tmp_path / "sub").mkdir()
    model = beside(tmp_path, "sub\\them.data")  # as Windows writes it
    (tmp_path / "them.data").rename(tmp_path / "sub" / "them.data")
    assert_answers(load(model, tmp_path), 2)


def test_external_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    missing = beside(folder)
    data = (folder / "them.data").rename(tmp_path / "them.data")
    assert refusal(missing, folder) == "needs 'them.data' beside it, which is not there."
    (folder / "link.data").symlink_to(data)
    for location in ("../them.data", str(data), "..\\them.data", "C:\\them.data", "link.data"):
        model = beside(folder, location)
        (folder / "them.data").unlink()
        assert "which is not in its folder." in refusal(model, folder)
    model = beside(folder)
    with (folder / "them.data").open("r+b") as file:
        file.truncate(1000)
    assert refusal(model, folder) == "needs more data than 'them.data' has, which is cut off."
    model.graph.initializer[0].dims[0] = 1 << 40
    assert refusal(model, folder) == "is over the limit of 2048 MB."


# ---------------------------------------------------------------------------------------------
# Other networks


def answering(
    outputs: dict[str, Sequence[int] | Array],
    shape: Sequence[int | str] = (1, 3, 640, 640),
    kind: int = TensorProto.FLOAT,
    nodes: Sequence[onnx.NodeProto] = (),
) -> ModelProto:
    """A network with constant outputs: given arrays, or ones of given shapes."""
    made = list(nodes)
    for name, answer in outputs.items():
        if isinstance(answer, np.ndarray):
            value = numpy_helper.from_array(answer)
            made.append(helper.make_node("Constant", [], [name], value=value))
        else:
            sides = numpy_helper.from_array(np.array(answer, np.int64))
            one = numpy_helper.from_array(np.ones(1, np.float32))
            made.append(helper.make_node("Constant", [], [f"{name}_shape"], value=sides))
            made.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=one))
    graph = helper.make_graph(
        made,
        "",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    opset = [helper.make_opsetid("", 12), helper.make_opsetid("TRT", 1)]
    return helper.make_model(graph, opset_imports=opset, ir_version=7)


RAW = {f"head{s}": (1, 3, 640 // s, 640 // s, 85) for s in (8, 16, 32)}
RAW_SENTENCE = (
    "holds the raw heads without decoding; export it again with decoding"
    " (with --grid in release 5.0)."
)


@pytest.mark.parametrize(
    "outputs, sentence",
    [
        ({"output0": np.full((1, 6, 8400), 2.5, "f")}, "answers with [1, 6, 8400], but not with"),
        (
            {"output0": (1, 116, 8400), "output1": (1, 32, 160, 160)},
            "looks like a YOLOv8 or YOLO11 segmentation network",
        ),
        (
            {"output0": (1, 25200, 117), "output1": (1, 32, 160, 160)},
            "looks like a YOLOv5 segmentation network",
        ),
        ({"output": np.full((1, 8400, 6), 0.5, "f")}, "looks like an anchor-free network such as"),
        ({"num_dets": (1, 1), "det_boxes": (1, 100, 4)}, "has non-maximum suppression built in"),
        ({"output0": np.full((1, 300, 6), 2.5, "f")}, "answers with [1, 300, 6], but not with two"),
        ({"output": (5, 7)}, "has non-maximum suppression built in"),
        ({"logits": (1, 1000)}, "looks like a classifier"),
        ({"output": RAW["head8"], **RAW}, RAW_SENTENCE),
        ({f"head{s}": (1, 255, 640 // s, 640 // s) for s in (8, 16, 32)}, RAW_SENTENCE),
        (
            {f"cls_{s}": (1, (640 // s) ** 2, 1) for s in (4, 8, 16, 32, 64)},
            "answers with 'cls_4' [1, 25600, 1], 'cls_8' [1, 6400, 1], 'cls_16' [1, 1600, 1],"
            " 2 more; a detection network answers with [1, rows, 5 + classes], [1, 4 + classes,"
            " rows] or [1, boxes, 6].",
        ),
    ],
)
def test_other_kinds_of_network_are_recognised(
    outputs: dict[str, Sequence[int] | Array], sentence: str, tmp_path: Path
) -> None:
    assert refusal(answering({**outputs}), tmp_path).startswith(sentence)


@pytest.mark.parametrize(
    "shape, kind, sentence",
    [
        ((1, 640, 640, 3), TensorProto.FLOAT, "takes images with the channels last (NHWC)"),
        (
            (1, 1, 640, 640),
            TensorProto.FLOAT,
            "takes images of 1 channel, [1, 1, 640,",
        ),
        ((1, 4, 640, 640), TensorProto.FLOAT, "takes images of 4 channels"),
        ((3, 640, 640), TensorProto.FLOAT, "takes a tensor [3, 640, 640]"),
        ((1, 3, 640, 640), TensorProto.UINT8, "takes uint8 images; float32 or float16 is needed"),
        ((1, 3, 8192, 8192), TensorProto.FLOAT, "takes images of 8192x8192 pixels; at most 4096"),
    ],
)
def test_other_kinds_of_input_are_refused(
    shape: Sequence[int], kind: int, sentence: str, tmp_path: Path
) -> None:
    assert refusal(answering({"a": (1, 25200, 85)}, shape, kind), tmp_path).startswith(sentence)


def test_reduced_head_is_refused(tmp_path: Path) -> None:
    model = answering({"output": (1, 25200, 6)})
    helper.set_model_props(model, {contract.HEAD_KEY: "reduced"})
    assert refusal(model, tmp_path) == "has a 'reduced' head; only a full one is read."


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    model = answering({"output": (1, 25200, 85)})
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    assert refusal(model, tmp_path) == "has 2 inputs ('images', 'more') instead of one."


def rows(classes: int = 1, **columns: float) -> Array:
    """Rows for 64x64 pixels: centres all over the picture, and the given columns."""
    made = np.full((1, 252, 5 + classes), 0.5, np.float32)
    made[0, :, 0] = made[0, :, 1] = np.linspace(4, 60, 252)
    made[0, :, 2:4] = 20
    for name, value in columns.items():
        made[0, :, ["cx", "cy", "w", "h", "objectness", "score"].index(name)] = value
    return made


@pytest.mark.parametrize(
    "answer, sentence",
    [
        (rows(objectness=-3), "answers with rows without decoding"),
        (rows(score=1.5), "answers with rows without decoding"),
        (rows(w=-1), "answers with rows without decoding"),
        (rows(cx=1000), "answers with rows without decoding"),
        (rows(cx=np.nan), "answers with values that are not finite"),
        (rows() / 64, "gives its boxes in 0 to 1, as exports for TensorFlow do"),
        (rows(w=61, h=61), "gives its boxes as two corners"),
        (np.ones((1, 252, 6), np.int64), "answers with int64 instead of float32 or float16"),
    ],
)
def test_values_that_cannot_be_decoded_rows_are_refused(
    answer: Array, sentence: str, tmp_path: Path
) -> None:
    shape = (1, 3, 64, 64)
    assert refusal(answering({"output": answer}, shape), tmp_path).startswith(sentence)
    # If one output is right, the others do not matter.
    options = {"imgsz": (64, 64), "names": ["a"]}
    model = load(answering({"wrong": answer, "right": rows()}, shape), tmp_path, **options)
    assert ends(model)[1][2] == ["batch", 252, 6]


def test_network_that_onnx_runtime_cannot_load_is_refused_in_one_line(tmp_path: Path) -> None:
    for operator, domain, sentence in (
        ("Frobnicate", "", "cannot be loaded by ONNX Runtime: "),
        ("Grid", "TRT", "uses the operator 'TRT:Grid', which ONNX Runtime does not have."),
        ("EfficientNMS_TRT", "TRT", "has non-maximum suppression built in"),
    ):
        node = helper.make_node(operator, ["images"], ["output"], domain=domain)
        model = answering({}, nodes=[node])
        model.graph.output.append(helper.make_tensor_value_info("output", 1, None))
        assert refusal(model, tmp_path).startswith(sentence)


# ---------------------------------------------------------------------------------------------
# Third-party files


@pytest.mark.skipif(not SHARED.exists(), reason="third-party ONNX files are not available")
@pytest.mark.parametrize(
    "name, sentence",
    [
        ("wrong_family_yunet_face", "answers with 'cls_8' [1, 6400, 1], "),
        ("lfs_pointer", "is a Git LFS pointer and not the file itself"),
        ("external_data_missing", "needs 'best.onnx.data' beside it, which is not there."),
        ("truncated", "is cut off or damaged."),
        ("empty_graph", "holds an empty graph."),
    ],
)
def test_third_party_files_are_refused(name: str, sentence: str, tmp_path: Path) -> None:
    source = SHARED / "onnx" / f"{name}.onnx"
    with pytest.raises(BuildError) as caught:
        import_onnx(source, tmp_path / "ours.onnx")
    assert str(caught.value).startswith(f"{name}.onnx {sentence}")


@pytest.mark.skipif(not SHARED.exists(), reason="third-party ONNX files are not available")
def test_third_party_export_finds_the_people_and_the_bus(tmp_path: Path) -> None:
    source = SHARED / "onnx" / "third_party_yolov5n_fp16_unsorted.onnx"
    import_onnx(source, tmp_path / "ours.onnx")
    photo, placement = PhotoLoader(640, 640).load(SHARED / "photos" / "bus.jpg")
    session = onnxruntime.InferenceSession(tmp_path / "ours.onnx")
    (answer,) = session.run(["output0"], {"images": photo[None]})
    boxes, _, classes = detect(
        torch.from_numpy(answer[0]),
        Thresholds.from_row([0.25, 0.45, 300, 0, 0]),
        torch.full((80,), 0.25),
        placement,
    )
    assert sorted(classes.tolist()) == [0, 0, 0, 5]  # three persons and a bus
    bus = boxes[classes == 5][0]
    assert (bus[2] - bus[0]) * (bus[3] - bus[1]) > 0.25 * 810 * 1080
    said = metadata(onnx.load(tmp_path / "ours.onnx"))
    assert said["names"].startswith("{0: 'person', 1: 'bicycle'")
    assert said["stride"] == "32" and contract.MAX_BATCH_KEY not in said
