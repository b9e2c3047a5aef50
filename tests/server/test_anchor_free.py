"""Exports of networks without anchors, installed as `make model` does and served."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpc
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

from yolov5_client._cli import main

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not SHARED.exists(), reason="other people's exports are not at hand"
)
YOLOV8 = SHARED / "onnx" / "wrong_family_yolov8.onnx"
PLAIN, WITH_NMS = (SHARED / "yolou" / f"bccd_yolov5nu{form}.onnx" for form in ("", "_nms"))
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
    total = 0
    with running_server(f"--repository={make_repository(tmp_path, YOLOV8)}") as server:
        for photo in photos:
            found = ask_grpc(server.grpc, [photo.read_bytes()], LOW)
            wanted = decoded(session, photo, LOW["conf_thres"])
            total += len(wanted)
            assert found["num_dets"].item() == len(wanted)
            np.testing.assert_allclose(found["det_boxes"][0], wanted[:, :4], rtol=0, atol=0.1)
            np.testing.assert_allclose(found["det_scores"][0], wanted[:, 4], rtol=0, atol=1e-3)
            np.testing.assert_array_equal(found["det_classes"][0], wanted[:, 5])
        names = np.array([b"green", b"orange"], object)[found["det_classes"]]
        np.testing.assert_array_equal(found["det_labels"], names)
        several = [photo.read_bytes() for photo in photos[:3]]
        together = ask_grpc(server.grpc, several, LOW)
        for index, image in enumerate(several):
            assert_same(row(together, index), ask_grpc(server.grpc, [image], LOW), exact=False)
    assert total > 100


def answers(server: RunningServer, **parameters: object) -> dict[str, Outputs]:
    photos = sorted((SHARED / "bccd" / "images" / "test").iterdir())
    return {p.name: ask_grpc(server.grpc, [p.read_bytes()], parameters) for p in photos}


def evaluated(server: RunningServer, folder: Path) -> dict[str, float]:
    """The client's figures for the test photos, in YOLOv5's arithmetic."""
    place = [f"--project={folder}", "--name=run", "--exist-ok", "--split=test"]
    data = SHARED / "bccd" / "data.yaml"
    assert main(["eval", str(data), f"--server={server.grpc}", *place]) == 0
    found: dict[str, float] = json.loads((folder / "run" / "results.json").read_text())["yolov5"][
        "all"
    ]
    return found


def test_export_of_yolov5u_matches_the_reference(tmp_path: Path) -> None:
    wanted = reference(SHARED / "yolou" / "reference_onnx_square.json")
    with running_server(f"--repository={make_repository(tmp_path, PLAIN)}") as server:
        result = compare(answers(server), wanted)
        total = evaluated(server, tmp_path)
    print(result, total)
    assert (result.images, result.detections) == (72, 1308)
    assert result.unmatched <= 0.002 * result.detections
    assert result.box <= 0.1 and result.score <= 1e-3
    assert total["map50"] == pytest.approx(0.6043, abs=0.005)
    # The package compares boxes that reach beyond the photo, and the endpoint clips them: many
    # cells lie at the border. `test_map_without_clipping_is_the_packages` leaves the clipping out.
    assert total["map50_95"] > 0.3775 - 0.005


def test_export_with_suppression_matches_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = reference(SHARED / "yolou" / "reference_onnx_square.json")
    with running_server(f"--repository={make_repository(tmp_path, WITH_NMS)}") as server:
        found = answers(server)
        result = compare(found, wanted)
        assert (result.images, result.detections) == (72, 1308)
        assert result.unmatched <= 0.002 * result.detections
        assert result.box <= 0.1 and result.score <= 1e-3
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
        print(result, evaluated(server, tmp_path))
    assert "measured without multi_label" in capsys.readouterr().err
