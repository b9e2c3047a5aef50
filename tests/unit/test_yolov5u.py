"""A checkpoint that the `ultralytics` package's own trainer wrote, without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nms
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from one_image import detect
from support import SHARED, Outputs, compare, reference
from thresholds import Thresholds

from yolov5_build import Checkpoint, export_onnx, load_checkpoint
from yolov5_build._runtimes import ONNX_RUNTIME, RUNTIMES
from yolov5_build.metadata import read_metadata
from yolov5_build.photos import PhotoLoader
from yolov5_client.evaluation import Predictions, Split, evaluate, read_split

FOLDER = SHARED / "yolou"
PHOTOS = SHARED / "bccd" / "images" / "test"

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the YOLOv5u checkpoint is not at hand")


@pytest.fixture(scope="module")
def yolov5nu() -> Checkpoint:
    return load_checkpoint(FOLDER / "bccd_yolov5nu.pt")


@pytest.fixture(scope="module")
def exported(yolov5nu: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("yolov5nu") / "model.onnx"
    export_onnx(yolov5nu, path, imgsz=320, dynamic=True)
    return path


def answers(
    network: Path, photos: list[Path], side: int, letterbox: str = "square", **changes: Any
) -> Iterator[tuple[Any, Any]]:
    """The placement of each photo, and its detections by the modules of the steps."""
    run = RUNTIMES[ONNX_RUNTIME](network)
    padding = read_metadata(network).padding
    loader = PhotoLoader(side, side, letterbox=letterbox, padding=padding)
    values: dict[str, Any] = {
        "conf_thres": 0.25,
        "iou_thres": 0.45,
        "max_det": 300,
        "multi_label": False,
    }
    thresholds = Thresholds(**{"agnostic_nms": False, **values, **changes})
    least = torch.full((3,), thresholds.conf_thres)
    for photo in photos:
        tensor, placement = loader.load(photo)
        found = detect(torch.from_numpy(run.rows(tensor[None])), thresholds, least, placement)
        yield placement, [part.numpy() for part in found]


def outputs(boxes: Any, scores: Any, classes: Any) -> Outputs:
    """The same as the endpoint's."""
    found = {"det_boxes": boxes, "det_scores": scores, "det_classes": classes}
    return {"num_dets": np.array([[len(boxes)]]), **{k: part[None] for k, part in found.items()}}


def test_names_and_stride_are_read(yolov5nu: Checkpoint) -> None:
    assert (yolov5nu.names, yolov5nu.stride) == (("Platelets", "RBC", "WBC"), 32)


@pytest.mark.parametrize(("letterbox", "count"), [("square", 1308), ("rect", 1329)])
def test_detections_are_those_of_the_package(exported: Path, letterbox: str, count: int) -> None:
    photos = sorted(PHOTOS.iterdir())
    found = answers(exported, photos, 320, letterbox)
    given = {photo.name: outputs(*parts) for photo, (_, parts) in zip(photos, found)}
    result = compare(given, reference(FOLDER / f"reference_{letterbox}.json"))
    print(result)
    assert (result.images, result.detections) == (72, count)
    assert result.unmatched <= 0.002 * count
    assert result.box <= 0.1
    assert result.score <= 1e-3


def unclipped(boxes: NDArray[np.float32], placement: NDArray[np.float32]) -> NDArray[np.float32]:
    """The corners of boxes in pixels of the photo, as the package's validation takes them."""
    moved = (boxes.reshape(-1, 2, 2) - placement[:, None, 2:4]) / placement[:, None, :2]
    return moved.reshape(-1, 4)  # type: ignore[no-any-return]


def measured(network: Path, split: Split, side: int) -> tuple[float, float]:
    settings: dict[str, Any] = {"conf_thres": 0.001, "iou_thres": 0.6, "multi_label": True}
    found = [
        Predictions(boxes=boxes, scores=scores, classes=classes, size=(at.height, at.width))
        for at, (boxes, scores, classes) in answers(network, [*split.photos], side, **settings)
    ]
    result = evaluate(found, split, classes=3)
    return result.map50, result.map50_95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "map50", "map50_95"), [(320, 0.6043, 0.3775), (416, 0.6174, 0.3874)]
)
def test_map_is_that_of_the_package(
    exported: Path, side: int, map50: float, map50_95: float, tmp_path: Path
) -> None:
    """The package compares boxes that may reach beyond the photo; clipped ones fit better."""
    (tmp_path / "data.yaml").write_text(f"path: {SHARED / 'bccd'}\nval: images/test\n")
    split = read_split(tmp_path / "data.yaml", "val")
    clipped = measured(exported, split, side)
    with patch.object(nms, "_to_image", unclipped):
        plain = measured(exported, split, side)
    print(f"clipped {clipped}, unclipped {plain}")
    assert plain == pytest.approx((map50, map50_95), abs=0.005)
    assert clipped[0] == pytest.approx(map50, abs=0.005)
    assert clipped[1] > plain[1]
