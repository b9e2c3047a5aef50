"""The input of a foreign network, and running it, on graphs of a few nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import from_array

from yolov5_build import BuildError
from yolov5_build._onnx_network import ImageInput, Network, image_input
from yolov5_build.photos import example_images

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
NMS = "them.onnx has non-maximum suppression built in; export it again without that."


def model(
    *nodes: NodeProto,
    shape: Sequence[int | str | None] = ("b", 3, "h", "w"),
    kind: int = FLOAT,
    outputs: Sequence[str] = ("y",),
) -> ModelProto:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("TRT", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("kind", [FLOAT, HALF])
@pytest.mark.parametrize(
    "shape, batch, height, width",
    [
        ((1, 3, 480, 640), 1, 480, 640),
        ((4, 3, 3, 3), 4, 3, 3),
        (("b", 3, "h", "w"), None, None, None),
        (("b", "c", 480, None), None, 480, None),
        ((0, 3, 0, 640), None, None, 640),
    ],
)
def test_input_takes_images(
    kind: int,
    shape: Sequence[int | str | None],
    batch: int | None,
    height: int | None,
    width: int | None,
) -> None:
    found = image_input("them.onnx", model(shape=shape, kind=kind).graph)
    assert found == ImageInput(name="x", type=kind, batch=batch, height=height, width=width)


@pytest.mark.parametrize(
    "shape, sentence",
    [
        ((3, 640, 640), "takes a tensor [3, 640, 640]; [batch, 3, height, width] is needed."),
        (
            ("b", 640, 640, 3),
            "takes images with the channels last (NHWC), [?, 640, 640, 3];"
            " [batch, 3, height, width] is needed.",
        ),
        ((1, 1, 640, 640), "takes images of 1 channel, [1, 1, 640, 640]; 3 are needed."),
        ((1, 4, 640, "w"), "takes images of 4 channels, [1, 4, 640, ?]; 3 are needed."),
    ],
)
def test_other_shapes_are_refused(shape: Sequence[int | str | None], sentence: str) -> None:
    with pytest.raises(BuildError) as caught:
        image_input("them.onnx", model(shape=shape).graph)
    assert str(caught.value) == f"them.onnx {sentence}"


def test_other_types_and_several_inputs_are_refused() -> None:
    with pytest.raises(BuildError) as caught:
        image_input("them.onnx", model(kind=TensorProto.UINT8).graph)
    assert str(caught.value) == "them.onnx takes uint8 images; float32 or float16 is needed."
    made = model()
    for name in "abcd":
        made.graph.input.append(helper.make_tensor_value_info(name, FLOAT, [1]))
    with pytest.raises(BuildError) as caught:
        image_input("them.onnx", made.graph)
    sentence = "them.onnx has 5 inputs ('x', 'a', 'b', 'c') instead of one."
    assert str(caught.value) == sentence
    made.graph.ClearField("input")
    with pytest.raises(BuildError, match=r"has 0 inputs \(\) instead of one"):
        image_input("them.onnx", made.graph)


def network(made: ModelProto) -> Network:
    return Network("them.onnx", made, image_input("them.onnx", made.graph))


@pytest.mark.parametrize("batch, count", [("b", 3), (1, 3), (2, 4), (3, 3), (4, 4), (8, 8)])
def test_photos_fill_whole_batches(batch: int | str, count: int) -> None:
    one = network(model(shape=(batch, 3, 64, 96)))
    assert one.batch == (batch if isinstance(batch, int) else 1)
    photos = one.photos(64, 96)
    assert photos.shape == (count, 3, 64, 96) and photos.dtype == np.float32
    assert np.array_equal(photos[:3], example_images(64, 96, 3))
    assert len({photo.tobytes() for photo in photos[:3]}) == 3


def test_more_photos_than_there_are_repeat() -> None:
    photos = network(model(shape=(500, 3, 8, 8))).photos(8, 8)
    assert photos.shape == (500, 3, 8, 8)
    assert len({photo.tobytes() for photo in photos}) == len(example_images(8, 8, 500))


def test_photos_are_rounded_to_half_precision() -> None:
    photos = network(model(kind=HALF)).photos(64, 64)
    assert photos.dtype == np.float32
    assert np.array_equal(photos, photos.astype(np.float16))
    assert not np.array_equal(photos, example_images(64, 64, 3))


def test_outputs_that_are_tensors_are_returned() -> None:
    sequence = helper.make_node("SequenceConstruct", ["x", "x"], ["s"])
    one = network(model(helper.make_node("Neg", ["x"], ["y"]), sequence, outputs=["s", "y"]))
    photos = np.ones((1, 3, 4, 4), np.float32)
    answers = one.run(photos)
    assert list(answers) == ["y"] and np.array_equal(answers["y"], -photos)
    assert list(one.run(photos, ["y"])) == ["y"]
    half = network(model(helper.make_node("Neg", ["x"], ["y"]), kind=HALF))
    assert half.run(photos)["y"].dtype == np.float16


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_are_computed_batch_by_batch(batch: int) -> None:
    shape = from_array(np.array([batch, 48], np.int64), "s")
    made = model(helper.make_node("Reshape", ["x", "s"], ["y"]), shape=(batch, 3, 4, 4), kind=HALF)
    made.graph.initializer.append(shape)
    photos = np.arange(4 * 48, dtype=np.float32).reshape(4, 3, 4, 4)
    rows = network(made).rows(photos, "y")
    assert rows.dtype == np.float32 and np.array_equal(rows, photos.reshape(4, 48))


def test_network_that_fails_is_named_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    made = model(helper.make_node("Reshape", ["x", "s"], ["y"]))
    made.graph.initializer.append(from_array(np.array([7], np.int64), "s"))
    made.graph.initializer.append(from_array(np.array([7], np.int64), "unused"))
    with pytest.raises(BuildError, match=r"^them\.onnx cannot be run at 64x96 pixels: [^\n]+\.$"):
        network(made).run(np.zeros((1, 3, 64, 96), np.float32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("operator", ["EfficientNMS_TRT", "BatchedNmsPlugin", "NonMaxSuppression"])
def test_operators_for_suppression_are_recognised(operator: str) -> None:
    with pytest.raises(BuildError) as caught:
        network(model(helper.make_node(operator, ["x"], ["y"], domain="TRT")))
    assert str(caught.value) == NMS
    with pytest.raises(BuildError) as caught:
        network(model(helper.make_node(operator, ["x"], ["y"])))
    assert str(caught.value) == NMS


def test_operators_of_others_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    for domain in ("", "TRT"):
        node = helper.make_node("Frobnicate", ["x"], ["y"], domain=domain)
        inner = helper.make_node("If", ["yes"], ["z"])
        for branch in ("then_branch", "else_branch"):
            graph = helper.make_graph([node], "b", [], [helper.make_empty_tensor_value_info("y")])
            inner.attribute.append(helper.make_attribute(branch, graph))
        for one in (node, inner):
            with pytest.raises(BuildError) as caught:
                network(model(one, outputs=[one.output[0]]))
            said = str(caught.value)
            if domain:
                operator = "them.onnx uses the operator 'TRT:Frobnicate', which ONNX Runtime"
                assert said == f"{operator} does not have."
            else:
                assert said.startswith("them.onnx cannot be loaded by ONNX Runtime: ")
    assert not network(model()).has_nms
    assert capfd.readouterr() == ("", "")
