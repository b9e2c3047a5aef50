"""Import of networks without anchors and of networks that choose their boxes themselves.

The networks are small graphs of each form, and their answers are calculated in NumPy.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conversion import convert, refusal
from foreign_layers import saved
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.helper import make_node
from onnx.numpy_helper import from_array
from placement import GAIN, PAD
from support import SHARED
from torch import nn
from ultralytics_networks import Size, sized

from yolov5_build import _contract as contract
from yolov5_build import _onnx_import, install_onnx, load_checkpoint
from yolov5_build._evaluate import evaluate
from yolov5_build._onnx_import import import_onnx
from yolov5_build.metadata import read_metadata
from yolov5_build.photos import example_images
from yolov5_build.steps import step_module
from yolov5_client.evaluation import read_split

Array = NDArray[Any]

HEIGHT, WIDTH, STRIDES, NAMES = 64, 96, (8, 16, 32), ("car", "bus", "van")
CHANNELS = 4 + len(NAMES)
CELLS = sum((HEIGHT // s) * (WIDTH // s) for s in STRIDES)
CHOSEN = 10  # boxes that a network of that form answers with
IOU, CONFIDENCE = 0.2, 0.5  # of a network with suppression of its own
DYNAMIC = ("b", 3, "h", "w")
OURS = {
    "names": str(dict(enumerate(NAMES))),
    "stride": "32",
    "padding": "whole",
    "source": "onnx",
}
# As the `ultralytics` package writes it.
THEIRS = {"names": OURS["names"], "stride": "32", "task": "detect", "head": "Detect", "batch": "1"}


def weights(stride: int) -> tuple[Array, Array]:
    """Those of the convolution of a feature map; sums of many pixels, and so moderate ones."""
    random = np.random.default_rng(stride)
    bias = np.concatenate((np.zeros(4), np.full(len(NAMES), -1.0)))
    return random.normal(0, 2 / stride, (CHANNELS, 3, stride, stride)).astype("f"), bias.astype("f")


def expected(images: Array) -> Array:
    """The rows of images [B,3,H,W]: cx, cy, w, h, objectness 1, scores, for each cell."""
    batch, _, height, width = images.shape
    parts = []
    for s in STRIDES:
        kernel, bias = weights(s)
        squares = images.reshape(batch, 3, height // s, s, width // s, s)
        cells = squares.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, 3 * s * s)
        answer = cells.astype("d") @ kernel.reshape(CHANNELS, -1).T.astype("d") + bias
        y, x = np.divmod(np.arange(answer.shape[1]), width // s)
        squashed = 1 / (1 + np.exp(-answer))
        centre = np.stack((x + 0.5, y + 0.5), 1) * s + squashed[..., :2] * s
        one = np.ones_like(centre[..., :1])
        parts.append(
            np.concatenate((centre, squashed[..., 2:4] * 4 * s, one, squashed[..., 4:]), 2)
        )
    rows = np.concatenate(parts, 1)
    assert isinstance(rows, np.ndarray)
    return rows


class Graph:
    """A graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Append a node with one output; inputs that are no names are constants."""
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(make_node(operator, names, [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.constants.append(from_array(array, f"constant_{len(self.constants)}"))
        return self.constants[-1].name

    def part(self, value: str, start: int, end: int, axis: int) -> str:
        return self.add("Slice", value, [start], [end], [axis])

    def largest(self, value: str, axis: int, opset: int) -> str:
        if opset < 18:
            return self.add("ReduceMax", value, axes=[axis], keepdims=0)
        return self.add("ReduceMax", value, [axis], keepdims=0)


def head(graph: Graph, batch: int, *, half: bool) -> str:
    """Boxes and scores [B, 4 + C, N] of the input `image`, as exporters write them.

    Args:
        batch: number of images in the constant shapes; -1 for any.
    """
    boxes, scores = [], []
    for s in STRIDES:
        kernel, bias = (part.astype("e" if half else "f") for part in weights(s))
        maps = graph.add("Conv", "image", kernel, bias, strides=[s, s])
        if half:
            maps = graph.add("Cast", maps, to=TensorProto.FLOAT)
        squashed = graph.add("Sigmoid", maps)
        one = graph.add("Add", graph.add("Mul", graph.part(maps, 0, 1, 1), 0.0), 1.0)
        cells = [graph.add("CumSum", one, np.int64(axis)) for axis in (3, 2)]  # from 1 on
        centre = graph.add("Sub", graph.add("Concat", *cells, axis=1), 0.5)
        centre = graph.add("Mul", graph.add("Add", centre, graph.part(squashed, 0, 2, 1)), float(s))
        size = graph.add("Mul", graph.part(squashed, 2, 4, 1), 4.0 * s)
        box = graph.add("Concat", centre, size, axis=1)
        boxes.append(graph.add("Reshape", box, [batch, 4, -1] if batch > 0 else [0, 4, -1]))
        score = graph.part(squashed, 4, CHANNELS, 1)
        count = [batch if batch > 0 else 0, len(NAMES), -1]
        scores.append(graph.add("Reshape", score, count))
    joined = [graph.add("Concat", *parts, axis=2) for parts in (boxes, scores)]
    return graph.add("Concat", *joined, axis=1)


def finish(
    graph: Graph,
    output: str,
    shape: Sequence[int | str],
    *,
    opset: int = 17,
    half: bool = False,
    **metadata: Any,
) -> ModelProto:
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    if half:
        output = graph.add("Cast", output, to=kind)
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "g",
            [helper.make_tensor_value_info("image", kind, shape)],
            [helper.make_empty_tensor_value_info(output)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    helper.set_model_props(made, {**THEIRS, **metadata})
    return made


def raw(
    shape: Sequence[int | str] = (1, 3, HEIGHT, WIDTH),
    *,
    identity: bool = False,
    half: bool = False,
    opset: int = 17,
    **metadata: Any,
) -> ModelProto:
    """[B, 4 + C, N], as YOLOv8 and others answer."""
    graph = Graph()
    batch = shape[0] if isinstance(shape[0], int) else -1
    output = head(graph, batch, half=half)
    if identity:
        output = graph.add("Identity", output)
    return finish(graph, output, shape, opset=opset, half=half, **metadata)


def best_first(
    shape: Sequence[int | str] = (1, 3, HEIGHT, WIDTH), *, opset: int = 17, **metadata: Any
) -> ModelProto:
    """[B, K, 6], the K best boxes without suppression, as YOLOv10 and YOLO26 answer."""
    graph = Graph()
    batch = shape[0] if isinstance(shape[0], int) else -1
    rows = graph.add("Transpose", head(graph, batch, half=False), perm=[0, 2, 1])
    boxes, scores = graph.part(rows, 0, 4, 2), graph.part(rows, 4, CHANNELS, 2)
    classes = graph.add("ArgMax", scores, axis=2, keepdims=1)
    columns = [corners(graph, boxes, 2), graph.add("Cast", classes, to=TensorProto.FLOAT)]
    whole = graph.add("Concat", *columns, axis=2)
    best = graph.largest(scores, 2, opset)
    graph.nodes.append(
        make_node("TopK", [best, graph.constant([CHOSEN])], ["values", "places"], axis=1)
    )
    places = (
        graph.add("Unsqueeze", "places", [2])
        if opset >= 13
        else graph.add("Unsqueeze", "places", axes=[2])
    )
    found = graph.add("GatherElements", whole, graph.add("Tile", places, [1, 1, 5]), axis=1)
    values = graph.add(
        "GatherElements", graph.add("Transpose", best, perm=[0, 1]), "places", axis=1
    )
    values = graph.add("Reshape", values, [0, CHOSEN, 1])
    parts = [graph.part(found, 0, 4, 2), values, graph.part(found, 4, 5, 2)]
    return finish(graph, graph.add("Concat", *parts, axis=2), shape, opset=opset, **metadata)


def corners(graph: Graph, boxes: str, axis: int) -> str:
    centre = graph.part(boxes, 0, 2, axis)
    half = graph.add("Mul", graph.part(boxes, 2, 4, axis), 0.5)
    ends = [graph.add("Sub", centre, half), graph.add("Add", centre, half)]
    return graph.add("Concat", *ends, axis=axis)


def suppressing(confidence: float = CONFIDENCE, **metadata: Any) -> ModelProto:
    """[1, K, 6], with suppression in the graph and rows of zeros at the end."""
    graph = Graph()
    channels = head(graph, 1, half=False)
    boxes = graph.add("Transpose", graph.part(channels, 0, 4, 1), perm=[0, 2, 1])
    scores = graph.part(channels, 4, CHANNELS, 1)
    limits = [np.array([CHOSEN]), np.array([IOU]), np.array([confidence])]
    kept = graph.add("NonMaxSuppression", boxes, scores, *limits, center_point_box=1)
    place = graph.add("Gather", kept, [2], axis=1)
    found = graph.add("GatherND", graph.add("Reshape", boxes, [-1, 4]), place)
    score = graph.add("Unsqueeze", graph.add("GatherND", scores, kept), [1])
    class_ = graph.add("Cast", graph.add("Gather", kept, [1], axis=1), to=TensorProto.FLOAT)
    rows = graph.add("Concat", corners(graph, found, 1), score, class_, axis=1)
    filled = graph.add("Concat", rows, np.zeros((CHOSEN, 6)), axis=0)
    rows = graph.add("Unsqueeze", graph.part(filled, 0, CHOSEN, 0), [0])
    return finish(graph, rows, (1, 3, HEIGHT, WIDTH), **metadata)


def chosen(rows: Array) -> Array:
    """x1, y1, x2, y2, score, class of the best rows of each image, best first."""
    order = np.argsort(-rows[..., 5:].max(-1), axis=1, kind="stable")[:, :CHOSEN, None]
    best = np.take_along_axis(rows, order, 1)
    centre, half = best[..., :2], best[..., 2:4] / 2
    score, index = best[..., 5:].max(-1), best[..., 5:].argmax(-1)
    return np.concatenate((centre - half, centre + half, np.stack((score, index), -1)), -1)


def suppressed(rows: Array, confidence: float = CONFIDENCE) -> list[Array]:
    """What suppression by class leaves of the rows [N, 5 + C] of an image."""
    left = []
    for index in range(len(NAMES)):
        scores = rows[:, 5 + index]
        boxes = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2), 1)
        best: list[int] = []
        for place in np.argsort(-scores, kind="stable"):
            if scores[place] <= confidence:
                break
            if all(overlap(boxes[place], boxes[other]) <= IOU for other in best):
                best.append(int(place))
        left += [np.array([*boxes[i], scores[i], index]) for i in best]
    return left


def overlap(a: Array, b: Array) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


def ends(made: ModelProto) -> list[list[int | str]]:
    return [
        [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        for one in (*made.graph.input, *made.graph.output)
    ]


def said(made: ModelProto) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in made.metadata_props}
    assert re.fullmatch("From them.onnx, sha256 [0-9a-f]{64}.", entries.pop("provenance"))
    return entries


def run(made: ModelProto | Path, **inputs: Array) -> Array:
    data = made.read_bytes() if isinstance(made, Path) else made.SerializeToString()
    session = onnxruntime.InferenceSession(data)
    (rows,) = session.run(["output0"], inputs)
    assert isinstance(rows, np.ndarray) and rows.dtype == np.float32
    return rows


def assert_rows(made: ModelProto, count: int, width: int = WIDTH, tolerance: float = 2e-4) -> None:
    images = example_images(HEIGHT, width, count)
    np.testing.assert_allclose(
        run(made, images=images), expected(images), rtol=tolerance, atol=tolerance
    )


# ---------------------------------------------------------------------------------------------
# Rows of networks without anchors


@pytest.mark.parametrize("opset", [11, 12, 17, 18, 20])
@pytest.mark.parametrize("batch", [1, 3, "b"])
def test_channels_become_rows_with_an_objectness_of_one(
    batch: int | str, opset: int, tmp_path: Path
) -> None:
    made = convert(raw((batch, 3, HEIGHT, WIDTH), opset=opset), tmp_path)
    assert ends(made) == [["batch", 3, HEIGHT, WIDTH], ["batch", CELLS, 5 + len(NAMES)]]
    assert said(made) == {**OURS, "head": "full", "precision": "fp32"}
    for count in (1, 3):
        assert_rows(made, count)
    assert (run(made, images=example_images(HEIGHT, WIDTH, 2))[..., 4] == 1).all()


def test_half_precision_network_answers_in_single_precision(tmp_path: Path) -> None:
    made = convert(raw(half=True), tmp_path)
    assert said(made) == {**OURS, "head": "full", "precision": "fp16"}
    assert_rows(made, 2, tolerance=5e-2)


def test_network_of_open_size_stays_open(tmp_path: Path) -> None:
    made = convert(raw(DYNAMIC), tmp_path, imgsz=(HEIGHT, WIDTH))
    assert ends(made) == [["batch", 3, "height", "width"], ["batch", "rows", 5 + len(NAMES)]]
    assert_rows(made, 2)
    assert_rows(made, 1, width=160)


def test_size_in_the_metadata_is_the_default_of_an_open_size(tmp_path: Path) -> None:
    made = convert(raw(DYNAMIC, imgsz=f"[{HEIGHT}, {WIDTH}]"), tmp_path)
    assert said(made)[contract.IMGSZ_KEY] == f"[{HEIGHT}, {WIDTH}]"
    assert read_metadata(made).imgsz == (HEIGHT, WIDTH)
    weights, repository = tmp_path / "ours.onnx", tmp_path / "repository"
    repository.mkdir()
    for asked, size in ((None, (HEIGHT, WIDTH)), ((96, 128), (96, 128))):
        installed = install_onnx(weights, repository, imgsz=asked)
        assert (installed.height, installed.width) == size
    # A network of fixed size has that.
    assert contract.IMGSZ_KEY not in said(convert(raw(imgsz="[32, 32]"), tmp_path))


def test_attention_in_areas_takes_batches(tmp_path: Path) -> None:
    """It divides a feature map into areas, and treats these as images of their own."""
    made = raw()
    rows = made.graph.output[0].name
    shapes = {"areas": [2, CHANNELS * CELLS // 2], "whole": [1, CHANNELS, CELLS]}
    for name, shape in shapes.items():
        made.graph.initializer.append(from_array(np.array(shape, np.int64), f"{name}_shape"))
    made.graph.node.extend(
        [
            make_node("Reshape", [rows, "areas_shape"], ["areas"]),
            make_node("Abs", ["areas"], ["positive"]),
            make_node("Reshape", ["positive", "whole_shape"], ["whole"]),
        ]
    )
    made.graph.output[0].name = "whole"
    made = convert(made, tmp_path)
    assert contract.MAX_BATCH_KEY not in said(made)
    assert_rows(made, 3)


def test_converted_network_can_be_converted_again(tmp_path: Path) -> None:
    once = convert(raw(), tmp_path)
    again = convert(once, tmp_path)
    assert ends(again) == ends(once)
    assert_rows(again, 2)


def test_older_opset_is_refused(tmp_path: Path) -> None:
    channels = expected(example_images(HEIGHT, WIDTH, 1)).transpose(0, 2, 1)
    channels = np.delete(channels, 4, axis=1).astype(np.float32)
    for version, sentence in ((10, "uses opset 10 of ONNX; 11 or newer is needed."), (11, None)):
        made = constant(channels, opset=version)
        if sentence:
            assert refusal(made, tmp_path) == sentence
        else:
            assert ends(convert(made, tmp_path))[1] == ["batch", CELLS, 5 + len(NAMES)]


def constant(answer: Array, opset: int = 17, **metadata: Any) -> ModelProto:
    """A network that answers with these values whatever the image is."""
    graph = Graph()
    return finish(
        graph,
        graph.add("Identity", answer),
        (1, 3, HEIGHT, WIDTH),
        opset=opset,
        **metadata,
    )


def with_boxes(boxes: Array) -> Array:
    """Channels [1, 4 + C, N] with these boxes [N, 4]."""
    rows = expected(example_images(HEIGHT, WIDTH, 1))[0]
    joined: Array = np.concatenate((boxes, rows[:, 5:]), 1, dtype=np.float32)
    return joined.T[None]


def test_boxes_larger_than_a_small_picture_are_not_taken_for_corners(tmp_path: Path) -> None:
    centres = expected(example_images(HEIGHT, WIDTH, 1))[0, :, :2]
    large = with_boxes(np.concatenate((centres, np.full((CELLS, 2), 150.0)), 1))
    assert said(convert(constant(large), tmp_path))["head"] == "full"


def test_channels_with_corners_are_refused(tmp_path: Path) -> None:
    centres = expected(example_images(HEIGHT, WIDTH, 1))[0, :, :2]
    found = with_boxes(np.concatenate((np.maximum(centres - 9, 0), centres + 9), 1))
    assert refusal(constant(found), tmp_path) == (
        "gives its boxes as two corners, where centre and size are needed."
    )


def test_transposed_channels_are_refused_with_the_shape_that_is_needed(tmp_path: Path) -> None:
    rows = expected(example_images(HEIGHT, WIDTH, 1))[..., [0, 1, 2, 3, 5, 6, 7]].astype("f")
    assert refusal(constant(rows), tmp_path) == (
        "answers with [1, 126, 7], where [1, 7, 126] is needed; export it again in that order."
    )


def test_boxes_and_scores_in_two_outputs_are_refused(tmp_path: Path) -> None:
    graph = Graph()
    channels = head(graph, 1, half=False)
    boxes, scores = graph.part(channels, 0, 4, 1), graph.part(channels, 4, CHANNELS, 1)
    made = finish(graph, boxes, (1, 3, HEIGHT, WIDTH))
    made.graph.output.append(helper.make_empty_tensor_value_info(scores))
    assert refusal(made, tmp_path) == (
        f"answers with '{boxes}' [1, 4, 126], '{scores}' [1, 3, 126]; a detection network answers"
        " with [1, rows, 5 + classes], [1, 4 + classes, rows] or [1, boxes, 6]."
    )


# ---------------------------------------------------------------------------------------------
# The prefiltered variant


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("form", [{}, {"identity": True}, {"half": True}, {"shape": DYNAMIC}])
def test_prefiltered_variant_has_the_rows_whose_best_score_is_over_the_confidence(
    form: dict[str, Any], opset: int, tmp_path: Path
) -> None:
    path = tmp_path / "prefiltered.onnx"
    convert(raw(opset=opset, **form), tmp_path, prefiltered=path, imgsz=(HEIGHT, WIDTH))
    image = example_images(HEIGHT, WIDTH, 1)
    pixels = np.rint(image * 255).astype(np.uint8)
    wanted = run(tmp_path / "ours.onnx", images=pixels.astype(np.float32) / np.float32(255))[0]
    best = wanted[:, 5:].max(1)
    for confidence in (0, *np.quantile(best, (0.2, 0.5, 0.95)), best.max(), 1):
        thresholds = np.array([[confidence, 0.45, 300, 0, 0]], np.float32)
        (rows,) = run(path, pixels=pixels, nms=thresholds)
        kept = wanted[best > thresholds[0, 0]]
        np.testing.assert_array_equal(rows[: len(kept)], kept)
        assert len(rows) == max(1, len(kept)) and not rows[len(kept) :].any()
    assert len(wanted[best > thresholds[0, 0]]) == 0 < len(wanted)


class Decoded(nn.Module):
    """The rows of a network as exporters of YOLOv8 write them, [B, 4 + C, N]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = self.network(images)
        return torch.cat((rows[..., :4], rows[..., 5:]), 2).transpose(1, 2)


def test_network_in_half_precision_has_a_prefiltered_variant(tmp_path: Path) -> None:
    """ONNX Runtime rounds to FP16 at other places in the variant."""
    torch.manual_seed(0)
    made = sized("yolov8", Size(0.33, 0.0625, 1024, 0.0), NAMES)
    network = load_checkpoint(saved(tmp_path / "best.pt", {"model": made})).network
    path, target, prefiltered = (tmp_path / f"{n}.onnx" for n in ("them", "ours", "prefiltered"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        torch.onnx.export(
            Decoded(network).half().eval(),
            (torch.zeros(1, 3, 256, 256, dtype=torch.float16),),
            str(path),
            dynamo=False,
            opset_version=17,
        )
    import_onnx(path, target, names=NAMES, prefiltered=prefiltered)
    image = example_images(256, 256, 1)
    pixels = np.rint(image * 255).astype(np.uint8)
    (found,) = run(prefiltered, pixels=pixels, nms=np.array([[-1, 0, 0, 0, 0]], np.float32))
    (wanted,) = run(target, images=image)
    np.testing.assert_allclose(found, wanted, rtol=5e-2, atol=5e-2)


def test_rows_are_chosen_behind_a_network_whose_own_variant_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_onnx_import, "TOLERANCE", -1.0)  # less than no difference at all
    monkeypatch.setattr(_onnx_import, "_open_batch", lambda name, model, *rest: (model, False))
    path = tmp_path / "served.onnx"
    assert_rows(convert(raw(), tmp_path, prefiltered=path), 1)
    assert capsys.readouterr().err == (
        "All rows are transposed, and chosen from then: the network's prefiltered variant differs"
        " from it by 0 (allowed -1.0).\n"
    )
    image = example_images(HEIGHT, WIDTH, 1)
    (wanted,) = run(tmp_path / "ours.onnx", images=image)
    confidence = np.median(wanted[:, 5:].max(1))
    thresholds = np.full((1, 5), confidence, np.float32)
    (found,) = run(path, pixels=np.rint(image * 255).astype(np.uint8), nms=thresholds)
    np.testing.assert_array_equal(found, wanted[wanted[:, 5:].max(1) > confidence])


def test_prefiltered_variant_is_installed(tmp_path: Path) -> None:
    path, repository = tmp_path / "served.onnx", tmp_path / "repository"
    repository.mkdir()
    convert(raw(), tmp_path, prefiltered=path)
    install_onnx(tmp_path / "ours.onnx", repository, prefiltered=path)
    assert (repository / "yolov5" / "1" / "served.onnx").read_bytes() == path.read_bytes()


def test_boxes_that_a_network_chose_are_prefiltered_by_their_score(tmp_path: Path) -> None:
    path = tmp_path / "served.onnx"
    convert(best_first(), tmp_path, prefiltered=path)
    image = example_images(HEIGHT, WIDTH, 1)
    (wanted,) = run(tmp_path / "ours.onnx", images=image)
    confidence = np.sort(wanted[:, 4])[3]
    thresholds = np.full((1, 5), confidence, np.float32)
    (found,) = run(path, pixels=np.rint(image * 255).astype(np.uint8), nms=thresholds)
    np.testing.assert_array_equal(found, wanted[wanted[:, 4] > confidence])
    assert 0 < len(found) < len(wanted)


# ---------------------------------------------------------------------------------------------
# Networks that choose their boxes themselves


@pytest.mark.parametrize("opset", [11, 17, 18])
@pytest.mark.parametrize("batch", [1, "b"])
def test_boxes_that_a_network_chooses_are_served_as_they_are(
    batch: int | str, opset: int, tmp_path: Path
) -> None:
    made = convert(best_first((batch, 3, HEIGHT, WIDTH), opset=opset, end2end="True"), tmp_path)
    assert ends(made) == [["batch", 3, HEIGHT, WIDTH], ["batch", CHOSEN, 6]]
    assert said(made) == {**OURS, "head": "end2end", "precision": "fp32"}
    images = example_images(HEIGHT, WIDTH, 3)
    wanted = chosen(expected(images))
    np.testing.assert_allclose(run(made, images=images), wanted, rtol=2e-4, atol=2e-4)


def test_boxes_that_a_network_of_open_size_chooses_are_served(tmp_path: Path) -> None:
    made = convert(best_first(DYNAMIC), tmp_path, imgsz=(HEIGHT, WIDTH))
    assert ends(made) == [["batch", 3, "height", "width"], ["batch", "rows", 6]]
    images = example_images(HEIGHT, 160, 2)
    wanted = chosen(expected(images))
    np.testing.assert_allclose(run(made, images=images), wanted, rtol=2e-4, atol=2e-4)


def test_chosen_boxes_are_not_taken_for_as_many_rows(tmp_path: Path) -> None:
    count = 3 * ((HEIGHT // 16) * (WIDTH // 16) + (HEIGHT // 32) * (WIDTH // 32))
    corner = np.random.default_rng(0).uniform(0, 40, (count, 2))
    rows = np.concatenate((corner, corner + 20, np.full((count, 1), 0.5), np.eye(count, 1)), 1)
    rows[0, 2] = rows[0, 0] - 1  # a box without a width
    answer = convert(constant(rows[None].astype("f")), tmp_path)
    assert said(answer)["head"] == "end2end"


def test_network_with_suppression_is_served_for_single_images(tmp_path: Path) -> None:
    made = convert(suppressing(args="{'nms': True, 'data': None}"), tmp_path)
    assert said(made) == {**OURS, "head": "end2end", "precision": "fp32", "max_batch_size": "1"}
    for image in example_images(HEIGHT, WIDTH, 3)[:, None]:
        (rows,) = run(made, images=image)
        wanted = suppressed(expected(image)[0])
        assert 0 < len(wanted) < CHOSEN
        assert not rows[len(wanted) :].any()
        found = sorted(rows[: len(wanted)], key=lambda row: (row[5], -row[4]))
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4)


def test_network_that_finds_nothing_in_photos_must_say_what_it_is(tmp_path: Path) -> None:
    assert said(convert(suppressing(confidence=1.0), tmp_path))["head"] == "end2end"
    nothing = np.zeros((1, 300, 6), np.float32)
    telling: list[dict[str, Any]] = [{"end2end": "True"}, {"args": "{'nms': True}"}]
    silent: list[dict[str, Any]] = [
        {"end2end": "False"},
        {"args": "{'nms': None}"},
        {"args": "__import__('os')"},
    ]
    for metadata in telling:
        assert said(convert(constant(nothing, **metadata), tmp_path))["head"] == "end2end"
        (tmp_path / "ours.onnx").unlink()
    for metadata in silent:
        assert refusal(constant(nothing, **metadata), tmp_path) == (
            "answers with [1, 300, 6] and finds nothing in photos; only detection networks as"
            " YOLOv5 and YOLOv8 export them are supported."
        )


def test_class_names_of_boxes_that_a_network_chooses(tmp_path: Path) -> None:
    one = np.zeros((1, 5, 6), np.float32)
    one[0, 0] = [8, 8, 40, 30, 0.5, 2]
    made = constant(one)
    assert said(convert(made, tmp_path))["names"] == OURS["names"]
    given = convert(made, tmp_path, names=["a", "b", "c"])
    assert said(given)["names"] == "{0: 'a', 1: 'b', 2: 'c'}"
    (tmp_path / "ours.onnx").unlink()
    assert refusal(made, tmp_path, names=["a", "b"]) == "has 3 classes but 2 class names."
    assert refusal(constant(one, names="['a', 'b']"), tmp_path) == (
        "answers with class 2, but has 2 class names."
    )
    nameless = constant(one, names="")
    assert refusal(nameless, tmp_path).startswith("has no class names in it; give them with")
    assert said(convert(nameless, tmp_path, names=["a", "b", "c", "d"]))["names"].endswith("'d'}")


# ---------------------------------------------------------------------------------------------
# Other networks


@pytest.mark.parametrize(
    "task, name",
    [
        ("segment", "segmentation"),
        ("pose", "poses"),
        ("obb", "oriented boxes"),
        ("classify", "classification"),
    ],
)
def test_network_for_another_task_is_refused(task: str, name: str, tmp_path: Path) -> None:
    assert refusal(raw(task=task), tmp_path) == (
        f"is a network for {name} (task '{task}'); only detection networks are supported."
    )


@pytest.mark.parametrize("more, low, high", [(51, -20, 90), (1, -0.7, 2)], ids=["pose", "obb"])
def test_network_with_more_values_than_its_classes_is_refused(
    more: int, low: float, high: float, tmp_path: Path
) -> None:
    rows = np.delete(expected(example_images(HEIGHT, WIDTH, 1)), 4, axis=2)
    values = np.random.default_rng(0).uniform(low, high, (1, CELLS, more))
    answer = np.concatenate((rows, values), 2).transpose(0, 2, 1).astype(np.float32)
    assert refusal(constant(answer), tmp_path) == (
        f"answers with {list(answer.shape)}, {more} values more than a box and 3 classes need, as"
        " networks for poses and oriented boxes do; only detection networks as YOLOv5 and YOLOv8"
        " export them are supported."
    )
    # Without class names it cannot be said what the values are.
    assert "but not with scores from 0 to 1" in refusal(constant(answer, names=""), tmp_path)


# ---------------------------------------------------------------------------------------------
# Third-party files


@pytest.mark.skipif(not SHARED.exists(), reason="third-party ONNX files are not available")
@pytest.mark.parametrize(
    "name, head",
    [
        ("onnx/wrong_family_yolov8", "full"),
        ("yolou/bccd_yolov5nu", "full"),
        ("yolou/bccd_yolov5nu_nms", "end2end"),
    ],
)
def test_third_party_exports_answer_as_before(name: str, head: str, tmp_path: Path) -> None:
    source = SHARED / f"{name}.onnx"
    import_onnx(source, tmp_path / "ours.onnx")
    assert read_metadata(tmp_path / "ours.onnx").head == head
    theirs = onnxruntime.InferenceSession(source)
    for image in example_images(320, 320, 3)[:, None]:
        (wanted,) = theirs.run(None, {"images": image})
        if head == "full":
            assert isinstance(wanted, np.ndarray)
            wanted = np.insert(wanted.transpose(0, 2, 1), 4, 1, axis=2)
        np.testing.assert_array_equal(run(tmp_path / "ours.onnx", images=image), wanted)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the labelled test split is not available")
def test_map_without_clipping_is_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's validation compares boxes as the network gives them."""

    def unclipped(
        boxes: NDArray[np.float32], placement: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        gains, pads = (placement[:, None, columns] for columns in (GAIN, PAD))
        moved: NDArray[np.float32] = (boxes.reshape(-1, 2, 2) - pads) / gains
        return moved.reshape(-1, 4)

    import_onnx(SHARED / "yolou" / "bccd_yolov5nu.onnx", tmp_path / "ours.onnx")
    monkeypatch.setattr(step_module("postprocess", "nms"), "_to_image", unclipped)
    measured = evaluate(tmp_path / "ours.onnx", read_split(SHARED / "bccd" / "data.yaml", "test"))
    assert measured.map50 == pytest.approx(0.6043, abs=0.005)
    assert measured.map50_95 == pytest.approx(0.3775, abs=0.005)
