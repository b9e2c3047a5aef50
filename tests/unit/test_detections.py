from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import supervision as sv
from support import no_detections, some_detections

from yolov5_client import Detections


def assert_equal(one: Detections, other: Detections) -> None:
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype
    assert one.labels == other.labels
    assert one.image_size == other.image_size


@pytest.mark.parametrize("found", [some_detections(), no_detections()], ids=["some", "none"])
def test_conversions_round_trip(found: Detections) -> None:
    size = found.image_size
    supervised = found.to_supervision()
    assert isinstance(supervised, sv.Detections)
    assert len(supervised) == len(found)
    assert_equal(Detections.from_supervision(supervised, image_size=size), found)
    table = found.to_pandas()
    assert isinstance(table, pd.DataFrame)
    assert [*table.columns] == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert_equal(Detections.from_pandas(table, image_size=size), found)
    assert_equal(Detections.from_dict(json.loads(json.dumps(found.to_dict()))), found)
    names = {0: "Platelets", 1: "RBC", 2: "WBC"}
    again = Detections.from_coco(found.to_coco("a"), names=names, image_size=size)
    np.testing.assert_allclose(again.boxes, found.boxes, atol=1e-4)
    assert again.labels == found.labels


def test_coco_results_hold_corner_and_size() -> None:
    first, second = some_detections().to_coco(7, categories={2: 3, 0: 1})
    assert first["image_id"] == 7
    assert first["category_id"] == 3
    assert first["bbox"] == pytest.approx([64, 48, 64, 48], abs=1e-4)
    assert second == {"image_id": 7, "category_id": 1, "bbox": [0, 0, 640, 480], "score": 0.5}
    assert json.dumps([first, second])


def test_unsorted_detections_are_sorted_best_first() -> None:
    found = Detections.from_unsorted(
        boxes=[[0.0, 0.0, 640.0, 480.0], [64.0, 48.0, 128.0, 96.0]],
        scores=[0.5, 0.9],
        classes=[0, 2],
        labels=["Platelets", "WBC"],
        image_size=(480, 640),
    )
    assert_equal(found, some_detections())
    with pytest.raises(ValueError, match="2 scores, and 1 labels"):
        Detections.from_unsorted(
            boxes=np.zeros((2, 4)), scores=[1, 1], classes=[0, 0], labels=["a"], image_size=(1, 1)
        )
    with pytest.raises(ValueError, match="lack confidence"):
        Detections.from_supervision(sv.Detections(xyxy=np.zeros((1, 4))), image_size=(1, 1))


def test_padding_is_removed() -> None:
    outputs = {
        "num_dets": np.array([[2], [1]], np.int32),
        "det_boxes": np.arange(16, dtype=np.float32).reshape(2, 2, 4),
        "det_scores": np.array([[0.9, 0.8], [0.7, 0]], np.float32),
        "det_classes": np.array([[1, 0], [1, -1]], np.int32),
        "det_labels": np.array([[b"b", b"a"], ["ü".encode(), b""]], np.object_),
        "image_size": np.array([[10, 20], [30, 40]], np.int32),
    }
    first, second = (Detections.from_outputs(outputs, row) for row in (0, 1))
    assert len(first) == 2
    assert second.boxes.tolist() == [[8, 9, 10, 11]]
    assert second.labels == ("ü",)
    assert second.image_size == (30, 40)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("one",)},
        {"boxes": np.zeros((2, 5), np.float32)},
        {"scores": np.zeros((2, 1), np.float32)},
        {"image_size": (0, 640)},
    ],
)
def test_mismatched_parts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shape|image_size"):
        some_detections(**changes)


def test_yolo_lines_are_normalised() -> None:
    assert some_detections().yolo_lines() == ["2 0.15 0.15 0.1 0.1", "0 0.5 0.5 1 1"]
    assert some_detections().yolo_lines(confidence=True)[0] == "2 0.15 0.15 0.1 0.1 0.9"
    assert no_detections().yolo_lines() == []
    assert no_detections().summary() == "no detections"


def test_summary_counts_the_labels() -> None:
    assert some_detections(labels=("bus", "bus")).summary() == "2 bus"
    assert some_detections(labels=("person", "person")).summary() == "2 persons"
    assert some_detections().summary() == "1 WBC, 1 Platelets"
