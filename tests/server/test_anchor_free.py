"""Exports of networks without anchors, installed as `make model` does and served."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as grpc
from figures import all_of, figures
from numpy.typing import NDArray
from support import (
    SHARED,
    Outputs,
    RunningServer,
    ask_grpc,
    assert_same,
    compare,
    make_repository,
    reference,
    row,
    running_server,
)

from yolov5_build._evaluate import evaluate
from yolov5_client import evaluation

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not SHARED.exists(), reason="other people's exports are not at hand"
)
YOLOV8 = SHARED / "onnx" / "wrong_family_yolov8.onnx"
PLAIN, WITH_NMS = (SHARED / "yolou" / f"bccd_yolov5nu{form}.onnx" for form in ("", "_nms"))
DATA = SHARED / "bccd" / "data.yaml"
SIDE = 320  # of the input of all three, in pixels
LOW = {"conf_thres": 0.01}  # the photos show nothing that the stranger's network was trained for


def decoded(session: onnxruntime.InferenceSession, photo: Path, conf_thres: float) -> Array:
    """Detections x1, y1, x2, y2, score, class of a photo, best first, calculated in NumPy."""
    picture = cv2.imread(str(photo))
    assert picture is not None
    height, width = picture.shape[:2]
    gain = min(SIDE / height, SIDE / width)
    size = round(width * gain), round(height * gain)
    if size != (width, height):
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
    left, top = (round((SIDE - side) / 2 - 0.1) for side in size)
    canvas = np.full((SIDE, SIDE, 3), 114, np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = picture
    image = canvas[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
    (answer,) = session.run(None, {"images": image})
    assert isinstance(answer, np.ndarray)
    rows = answer[0].T
    scores, classes = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > conf_thres]
    boxes = np.concatenate((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2), 1)
    kept: list[int] = []
    for i in order:
        if all(classes[i] != classes[k] or iou(boxes[i], boxes[k]) <= 0.45 for k in kept):
            kept.append(i)
    kept = kept[:300]
    x, y = ((boxes[kept][:, i::2] - pad) / gain for i, pad in ((0, left), (1, top)))
    x, y = x.clip(0, width), y.clip(0, height)
    columns = (x[:, 0], y[:, 0], x[:, 1], y[:, 1], scores[kept], classes[kept])
    found: Array = np.stack(columns, 1).astype(np.float64)
    return found


def iou(a: Array, b: Array) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    shared = math.prod(sides)
    return float(shared / (math.prod(a[2:] - a[:2]) + math.prod(b[2:] - b[:2]) - shared))


def test_strangers_yolov8_answers_what_numpy_calculates(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(YOLOV8)
    photos = sorted((SHARED / "photos").iterdir())
    photos += sorted((SHARED / "bccd" / "images" / "test").iterdir())[:20]
    total, farthest = 0, 0.0
    with running_server(f"--repository={make_repository(tmp_path, YOLOV8)}") as server:
        for photo in photos:
            found = ask_grpc(server.grpc, [photo.read_bytes()], LOW)
            wanted = decoded(session, photo, LOW["conf_thres"])
            total += len(wanted)
            assert found["num_dets"].item() == len(wanted)
            distances = np.abs(found["det_boxes"][0] - wanted[:, :4])
            farthest = max(farthest, float(distances.max(initial=0)))
            np.testing.assert_allclose(found["det_boxes"][0], wanted[:, :4], rtol=0, atol=0.1)
            np.testing.assert_allclose(found["det_scores"][0], wanted[:, 4], rtol=0, atol=1e-3)
            np.testing.assert_array_equal(found["det_classes"][0], wanted[:, 5])
        names = np.array([b"green", b"orange"], object)[found["det_classes"]]
        np.testing.assert_array_equal(found["det_labels"], names)
        several = [photo.read_bytes() for photo in photos[:3]]
        together = ask_grpc(server.grpc, several, LOW)
        for index, image in enumerate(several):
            assert_same(row(together, index), ask_grpc(server.grpc, [image], LOW), exact=False)
    print(f"{total} detections in {len(photos)} photos, boxes within {farthest:.1e} px")
    assert total > 100


def answers(server: RunningServer, **parameters: object) -> dict[str, Outputs]:
    photos = sorted((SHARED / "bccd" / "images" / "test").iterdir())
    return {p.name: ask_grpc(server.grpc, [p.read_bytes()], parameters) for p in photos}


def assert_faithful(found: Mapping[str, Outputs], letterbox: str) -> None:
    """The answers are the package's own, and so is their mAP."""
    wanted = reference(SHARED / "yolou" / f"reference_{letterbox}.json")
    result = compare(found, wanted)
    print(result)
    assert result.images == 72
    assert result.detections == (1329 if letterbox == "rect" else 1308)
    assert result.unmatched <= 0.002 * result.detections
    assert result.box <= 0.1 and result.score <= 1e-3
    ours, theirs = (
        mean_precision({n: rows(one) for n, one in found.items()}),
        mean_precision(wanted),
    )
    print(ours, theirs)
    assert ours == pytest.approx(theirs, abs=0.005)
    assert min(ours) > 0.35


def rows(outputs: Outputs) -> Array:
    """x1, y1, x2, y2, score, class of the detections in an answer for one photo."""
    columns = outputs["det_boxes"][0], outputs["det_scores"][0], outputs["det_classes"][0]
    return np.column_stack(columns)[: outputs["num_dets"].item()]


def mean_precision(found: Mapping[str, Array]) -> tuple[float, float]:
    """mAP50 and mAP50-95 of the detections in the test photos, in YOLOv5's arithmetic."""
    split = evaluation.read_split(DATA, "test")
    predictions = [
        evaluation.Predictions(
            boxes=one[:, :4], scores=one[:, 4], classes=one[:, 5].astype(int), size=(480, 640)
        )
        for one in (found[photo.name] for photo in split.photos)
    ]
    figures = evaluation.evaluate(predictions, split, classes=3).val
    return float(np.nanmean(figures.ap50)), float(np.nanmean(figures.ap50_95))


def opened(folder: Path) -> Path:
    """Write the plain export with an open batch and size, as `dynamic=True` does.

    It counts the cells in its feature maps, where the original has constants for 320x320.
    """
    model = onnx.load(PLAIN)
    graph = model.graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape":
            shape = [0, *(-1 if side == 2100 else side for side in values[node.input[1]][1:])]
            node.input[1] += "_open"
            if node.input[1] not in {tensor.name for tensor in graph.initializer}:
                open_shape = onnx.numpy_helper.from_array(np.array(shape), node.input[1])
                graph.initializer.append(open_shape)
    counted = onnx.parser.parse_graph(
        "counted () => (float[b, 2, n] cells, float[b, 1, n] strides)"
        " <float zero = {0}, float half = {0.5}, float one = {1}, int64 x = {3}, int64 y = {2},"
        " int64[1] first = {0}, int64[1] second = {1}, int64[3] pairs = {0, 2, -1},"
        " int64[3] numbers = {0, 1, -1}, float s0 = {8}, float s1 = {16}, float s2 = {32}> {"
        + "".join(
            f"map{i} = Slice(maps{i}, first, second, second) zeros{i} = Mul(map{i}, zero)"
            f" ones{i} = Add(zeros{i}, one) x{i} = CumSum(ones{i}, x) y{i} = CumSum(ones{i}, y)"
            f" xy{i} = Concat<axis = 1>(x{i}, y{i}) centre{i} = Sub(xy{i}, half)"
            f" cells{i} = Reshape(centre{i}, pairs) steps{i} = Mul(ones{i}, s{i})"
            f" strides{i} = Reshape(steps{i}, numbers)"
            for i in range(3)
        )
        + "cells = Concat<axis = 2>(cells0, cells1, cells2)"
        " strides = Concat<axis = 2>(strides0, strides1, strides2) }"
    )
    counted_as: dict[tuple[int, ...], str] = {(1, 2, 2100): "cells", (1, 2100): "strides"}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in values:
                node.input[place] = counted_as.get(values[name].shape, name)
    for node in counted.node:
        for place, name in enumerate(node.input):
            if name.startswith("maps"):
                node.input[place] = "/model.24/cv2.{0}/cv2.{0}.2/Conv_output_0".format(name[4:])
    before = next(i for i, node in enumerate(graph.node) if "cells" in node.input)
    ordered = [*graph.node[:before], *counted.node, *graph.node[before:]]
    graph.ClearField("value_info")
    graph.ClearField("node")
    graph.node.extend(ordered)
    graph.initializer.extend(counted.initializer)
    for value in (*graph.input, *graph.output):
        for place, side in enumerate(value.type.tensor_type.shape.dim):
            if place != 1:
                side.dim_param = f"{value.name}{place}"
    target = folder / "bccd_yolov5nu_dynamic.onnx"
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("letterbox", ["square", "rect"])
def test_export_of_open_size_matches_the_reference(letterbox: str, tmp_path: Path) -> None:
    repository = make_repository(tmp_path, opened(tmp_path), f"--letterbox={letterbox}")
    with running_server(f"--repository={repository}") as server:
        assert_faithful(answers(server), letterbox)


def test_export_of_yolov5u_matches_the_reference(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, PLAIN)
    with running_server(f"--repository={repository}") as server:
        assert_faithful(answers(server), "onnx_square")
        found = figures(server, DATA, tmp_path, "--split=test")
    # In its validation the package does not clip boxes, and the endpoint clips them: many cells are
    # at the border. `test_map_without_clipping_is_the_packages` measures the same network, and the
    # same way but for the clipping.
    (network,) = (repository / "yolov5").glob("*/model.onnx")
    measured = evaluate(network, evaluation.read_split(DATA, "test"))
    total = all_of(found)
    print(found["all"], all_of(found["yolov5"]), measured)
    assert total["map50"] == pytest.approx(measured.map50, abs=0.0005)
    assert total["map50_95"] == pytest.approx(measured.map50_95, abs=0.0005)
    assert all_of(found["yolov5"])["map50"] == pytest.approx(0.6043, abs=0.005)


def test_export_with_suppression_matches_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server(f"--repository={make_repository(tmp_path, WITH_NMS)}") as server:
        found = answers(server)
        assert_faithful(found, "onnx_square")
        # Neither a lower confidence nor another IoU threshold brings more: not even rows of zeros.
        name, other = max(found.items(), key=lambda item: item[1]["num_dets"].item())
        image = (SHARED / "bccd" / "images" / "test" / name).read_bytes()
        for iou_thres in (0.0, 1.0):
            same = ask_grpc(server.grpc, [image], {"conf_thres": 0, "iou_thres": iou_thres})
            assert_same(same, other)
        best = ask_grpc(server.grpc, [image], {"max_det": 3, "classes": "RBC"})
        assert best["det_labels"].tolist() == [[b"RBC"] * 3]
        strict = ask_grpc(server.grpc, [image], {"conf_thres": 0.6})
        assert strict["num_dets"].item() == (other["det_scores"] > 0.6).sum() > 0
        for flag, sentence in (
            ("multi_label", "this model tells only the best class of each box"),
            ("agnostic_nms", "this model suppresses overlapping boxes itself"),
        ):
            with pytest.raises(grpc.InferenceServerException) as caught:
                ask_grpc(server.grpc, [image], {flag: True})
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
            assert sentence in str(caught.value)
        print(all_of(figures(server, DATA, tmp_path, "--split=test")))
    assert "measured without multi_label" in capsys.readouterr().err
