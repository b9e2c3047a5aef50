"""Conversion of foreign ONNX files, on a network of one convolution for each feature map."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conversion import convert, refusal
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from onnx.numpy_helper import from_array

from yolov5_build import BuildError
from yolov5_build._onnx_import import _largest_error, _open_batch, _size
from yolov5_build._onnx_network import ImageInput
from yolov5_build.photos import example_images

Array = NDArray[Any]
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ROW = [30, 40, 5, 6, 0.5, 0.25]


def network(
    *shape: int | str,
    batch: int = 0,
    more: Sequence[onnx.NodeProto] = (),
    output: str = "rows",
    kind: type = np.float32,
    **metadata: str,
) -> ModelProto:
    """Three equal rows for each cell, which are `ROW` plus a small number that the image gives.

    Args:
        batch: number of images in the constant shapes; 0 for any.
        more: nodes after `rows`.
    """
    nodes, constants = [], [from_array(np.array([batch, -1, 6], np.int64), "shape")]
    for stride in (8, 16, 32):
        weights: Array = np.full((18, 3, stride, stride), 0.1 / stride**2, kind)
        constants.append(from_array(weights, f"w{stride}"))
        nodes += [
            helper.make_node("Conv", ["image", f"w{stride}", "bias"], [f"c{stride}"],
                             strides=[stride, stride]),
            helper.make_node("Transpose", [f"c{stride}"], [f"t{stride}"], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [f"t{stride}", "shape"], [f"r{stride}"]),
        ]  # fmt: skip
    constants.append(from_array(np.array(ROW * 3, kind), "bias"))
    nodes.append(helper.make_node("Concat", ["r8", "r16", "r32"], ["rows"], axis=1))
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [*nodes, *more],
        "g",
        [helper.make_tensor_value_info("image", type_, shape or ("b", 3, 64, 96))],
        [helper.make_empty_tensor_value_info(output)],
        constants,
    )
    opsets = [helper.make_opsetid("", 12)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=7)
    helper.set_model_props(made, {"names": "['car']", **metadata})
    return made


def ends(made: ModelProto) -> list[list[int | str]]:
    assert [one.type.tensor_type.elem_type for one in (*made.graph.input, *made.graph.output)] == [
        *(FLOAT, FLOAT)
    ]
    return [
        [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        for one in (*made.graph.input, *made.graph.output)
    ]


def metadata(made: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in made.metadata_props}


def answer(made: ModelProto, images: Array) -> Array:
    session = onnxruntime.InferenceSession(made.SerializeToString())
    (rows,) = session.run(["output0"], {"images": images})
    assert isinstance(rows, np.ndarray)
    return rows


def cells(height: int, width: int) -> int:
    return 3 * sum((height // s) * (width // s) for s in (8, 16, 32))


def expected(images: Array) -> Array:
    """What the network computes: an equal number is added to all columns of a cell's rows."""
    batch, _, height, width = images.shape
    parts = []
    for s in (8, 16, 32):
        squares = images.reshape(batch, 3, height // s, s, width // s, s)
        means = squares.sum((1, 3, 5)) * 0.1 / s**2
        parts.append(means.reshape(batch, -1, 1).repeat(3, 1))
    rows = np.concatenate(parts, 1) + np.array(ROW, np.float32)
    assert isinstance(rows, np.ndarray)
    return rows


def assert_answers(made: ModelProto, count: int, height: int = 64, width: int = 96) -> None:
    images = example_images(height, width, count)
    rows = answer(made, images)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(images), rtol=0, atol=0.05)


def test_network_gets_our_interface_and_metadata(tmp_path: Path) -> None:
    made = convert(network(), tmp_path)
    assert ends(made) == [["batch", 3, 64, 96], ["batch", cells(64, 96), 6]]
    sha256 = hashlib.sha256((tmp_path / "them.onnx").read_bytes()).hexdigest()
    assert metadata(made) == {
        "names": "{0: 'car'}",
        "stride": "32",
        "head": "full",
        "precision": "fp32",
        "source": "onnx",
        "provenance": f"From them.onnx, sha256 {sha256}.",
    }
    assert_answers(made, 1)
    assert_answers(made, 3)


def test_metadata_of_the_file_are_kept(tmp_path: Path) -> None:
    made = convert(network("b", 3, 64, 128, stride="64", head="full"), tmp_path)
    assert metadata(made)["stride"] == "64"
    made = convert(network(), tmp_path, names=["bus"])
    assert metadata(made)["names"] == "{0: 'bus'}"
    assert refusal_of_names(network(), tmp_path / "a") == "has 1 classes but 2 class names."
    (tmp_path / "b").mkdir()
    said = refusal(network(head="reduced"), tmp_path / "b")
    assert said == "has a 'reduced' head; only a full one is read."


def refusal_of_names(made: ModelProto, folder: Path) -> str:
    folder.mkdir()
    return refusal(made, folder, names=["a", "b"])


def test_half_precision_is_cast_at_both_ends(tmp_path: Path) -> None:
    made = convert(network(kind=np.float16), tmp_path)
    assert metadata(made)["precision"] == "fp16"
    assert_answers(made, 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_number_of_images_is_opened(batch: int, tmp_path: Path) -> None:
    made = convert(network(batch, 3, 64, 96, batch=batch), tmp_path)
    assert ends(made) == [["batch", 3, 64, 96], ["batch", cells(64, 96), 6]]
    assert "max_batch_size" not in metadata(made)
    assert_answers(made, 5)


def single() -> list[onnx.NodeProto]:
    """Nodes that fail with more than one image."""
    return [
        helper.make_node("Squeeze", ["rows"], ["flat"], axes=[0]),
        helper.make_node("Unsqueeze", ["flat"], ["again"], axes=[0]),
    ]


def test_network_for_single_images_says_so(tmp_path: Path) -> None:
    made = convert(network(1, 3, 64, 96, more=single(), output="again"), tmp_path)
    assert metadata(made)["max_batch_size"] == "1"
    assert made.graph.node[-1].op_type == "Expand"  # else Triton would see a batch of 1
    assert_answers(made, 1)


def test_network_for_several_images_at_a_time_is_refused(tmp_path: Path) -> None:
    more = [
        helper.make_node("Split", ["rows"], ["a", "b"], axis=0),
        helper.make_node("Concat", ["a", "b"], ["again"], axis=0),
    ]
    said = refusal(network(2, 3, 64, 96, batch=2, more=more, output="again"), tmp_path)
    assert said == "takes exactly 2 images at a time; export it with a dynamic batch."


def test_network_with_chance_in_it_is_refused(tmp_path: Path) -> None:
    more = [
        helper.make_node("RandomUniformLike", ["rows"], ["chance"], high=0.1),
        helper.make_node("Add", ["rows", "chance"], ["again"]),
    ]
    said = refusal(network(more=more, output="again"), tmp_path)
    assert said.startswith("returns rows that differ by 0.")
    assert said.endswith(" when it is run again.")


def test_open_sides_stay_open(tmp_path: Path) -> None:
    made = convert(network("b", 3, "h", "w"), tmp_path, imgsz=(64, 64))
    assert ends(made) == [["batch", 3, "height", "width"], ["batch", "rows", 6]]
    assert_answers(made, 2, 96, 32)


@pytest.mark.parametrize("shape", [("b", 3, 64, "w"), ("b", 3, "h", 96)])
def test_sides_stay_fixed_if_one_is(shape: Sequence[int | str], tmp_path: Path) -> None:
    made = convert(network(*shape), tmp_path, imgsz=(64, 96))
    assert ends(made) == [["batch", 3, 64, 96], ["batch", cells(64, 96), 6]]


def test_sides_that_are_open_in_name_alone_become_fixed(tmp_path: Path) -> None:
    shape = from_array(np.array([0, cells(64, 96), 6], np.int64), "all")
    made = network(
        "b", 3, "h", "w",
        more=[helper.make_node("Reshape", ["rows", "all"], ["again"])], output="again",
    )  # fmt: skip
    made.graph.initializer.append(shape)
    made = convert(made, tmp_path, imgsz=(64, 96))
    assert ends(made) == [["batch", 3, 64, 96], ["batch", cells(64, 96), 6]]
    assert_answers(made, 2)


def test_all_photos_must_give_rows(tmp_path: Path) -> None:
    """The second photo gives rows that lie far outside."""
    bright, dark = sorted(float(photo.mean()) for photo in example_images(64, 96, 2))[::-1]
    first = float(example_images(64, 96, 1).mean())
    sign = 1 if first == dark else -1
    more = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "sign"], ["signed"]),
        helper.make_node("Greater", ["signed", "middle"], ["other"]),
        helper.make_node("Cast", ["other"], ["far"], to=FLOAT),
        helper.make_node("Mul", ["far", "thousand"], ["shift"]),
        helper.make_node("Reshape", ["shift", "column"], ["shifts"]),
        helper.make_node("Add", ["rows", "shifts"], ["again"]),
    ]
    made = network(more=more, output="again")
    for name, value in (("sign", sign), ("middle", sign * (bright + dark) / 2), ("thousand", 1e3)):
        made.graph.initializer.append(from_array(np.array(value, np.float32), name))
    made.graph.initializer.append(from_array(np.array([-1, 1, 1], np.int64), "column"))
    assert refusal(made, tmp_path).startswith("answers with rows without decoding")


def test_loops_and_costs_are_refused_before_loading(tmp_path: Path) -> None:
    loop = helper.make_node("Loop", ["", "", "rows"], ["again"])
    assert refusal(network(more=[loop], output="again"), tmp_path) == (
        "has a loop (Loop), which no YOLOv5 network has."
    )
    more = [
        helper.make_node("ConstantOfShape", ["sides"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["rows", "sum"], ["again"]),
    ]
    made = network(more=more, output="again")
    made.graph.initializer.append(from_array(np.array([1 << 13, 1 << 13], np.int64), "sides"))
    assert refusal(made, tmp_path).startswith("computes constants of 67108864 values by Constant")


def test_other_errors_are_named(tmp_path: Path) -> None:
    made = network()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="a.data")
    tensor.external_data.add(key="offset", value="x")
    (tmp_path / "a.data").write_bytes(bytes(100))
    assert refusal(made, tmp_path).startswith("cannot be imported: invalid literal for int()")


# ---------------------------------------------------------------------------------------------
# Sizes


def size(
    height: int | None, width: int | None, imgsz: tuple[int, int] | None = None, batch: int = 1
) -> tuple[int, int] | str:
    image = ImageInput(name="x", type=FLOAT, batch=batch or None, height=height, width=width)
    try:
        return _size("them.onnx", image, imgsz)
    except BuildError as error:
        return str(error).removeprefix("them.onnx ")


def test_size_is_that_of_the_network_or_the_wanted_one() -> None:
    assert size(480, 608) == (480, 608)
    assert size(480, 608, (480, 608)) == (480, 608)
    assert size(None, None) == (640, 640)
    assert size(None, 608) == (640, 608)
    assert size(480, None) == (480, 640)
    assert size(None, None, (96, 32)) == (96, 32)
    assert size(100, 100) == (100, 100)
    other = "takes images of 480x608 pixels (height x width) and cannot be set to "
    assert size(480, 608, (480, 640)) == f"{other}480x640; export it again at that size."
    assert size(480, 608, (640, 608)) == f"{other}640x608; export it again at that size."
    assert str(size(480, None, (640, 608))).startswith(f"{other}640x608")


def test_sides_are_limited() -> None:
    assert size(4096, 32) == (4096, 32)
    assert size(4097, 32) == "takes images of 4097x32 pixels; at most 4096 a side are allowed."
    assert size(None, None, (32, 4096)) == (32, 4096)
    assert "at most 4096 a side" in size(None, None, (32, 4128))
    for side in (0, -32, 100, 33):
        sentence = f"needs sides that are multiples of 32, not {side}."
        assert size(None, None, (side, 640)) == sentence
        assert size(None, None, (640, side)) == sentence


def test_fixed_batches_are_limited_in_pixels() -> None:
    assert size(4096, 4096, batch=2) == (4096, 4096)
    assert size(4096, 4096, batch=0) == (4096, 4096)
    for batch, height in ((3, 4096), (1 << 40, 32)):
        assert size(height, 4096, batch=batch) == (
            f"takes exactly {batch} images at a time; export it with a dynamic batch."
        )


# ---------------------------------------------------------------------------------------------
# Comparison


def scaled(*, half: bool = False) -> ModelProto:
    """Answers with the images."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["output0"])],
        "g",
        [helper.make_tensor_value_info("images", FLOAT, ["b", 3, 4, 4])],
        [helper.make_empty_tensor_value_info("output0")],
        [from_array(np.ones(1, np.float16), "half")] if half else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IMAGES = np.linspace(0, 200, 3 * 48, dtype=np.float32).reshape(3, 3, 4, 4)


def test_error_is_relative_to_large_values_and_absolute_for_small_ones() -> None:
    assert _largest_error(scaled(), [(IMAGES, IMAGES)], (2, 3, 1)) == 0
    wanted = IMAGES.copy()
    wanted[2, 2, 3, 3] = 250
    assert _largest_error(scaled(), [(IMAGES, wanted)], (1, 2)) == 0
    assert _largest_error(scaled(), [(IMAGES, wanted)], (3,)) == pytest.approx(0.2)
    assert _largest_error(scaled(), [(IMAGES, IMAGES), (IMAGES, wanted)], (3,)) > 0.1
    assert _largest_error(scaled(), [(IMAGES, wanted), (IMAGES, IMAGES)], (3, 1)) > 0.1
    wanted = IMAGES.copy()
    wanted[0, 0, 0, 0] = -0.25
    assert _largest_error(scaled(), [(IMAGES, wanted)], (1,)) == pytest.approx(0.25)


def test_error_is_infinite_without_comparable_rows() -> None:
    assert _largest_error(scaled(), [(IMAGES, IMAGES[:, :1])], (1,)) == np.inf
    broken = IMAGES.copy()
    broken[0] = np.nan
    assert _largest_error(scaled(), [(broken, broken)], (1,)) == np.inf
    assert _largest_error(ModelProto(), [(IMAGES, IMAGES)], (1,)) == np.inf


@pytest.mark.parametrize(
    "half, difference, accepted",
    [(False, 9e-4, True), (False, 2e-3, False), (True, 0.04, True), (True, 0.06, False)],
)
def test_tolerance_depends_on_the_precision(half: bool, difference: float, accepted: bool) -> None:
    made, wanted = scaled(half=half), IMAGES.copy()
    wanted[0, 0, 0, 0] += difference
    if accepted:
        assert _open_batch("them.onnx", made, 1, [(IMAGES, wanted)]) == (made, False)
    else:
        with pytest.raises(BuildError, match="returns rows that differ by "):
            _open_batch("them.onnx", made, 1, [(IMAGES, wanted)])
