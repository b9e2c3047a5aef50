from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
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
    import pandas as pd
    import supervision as sv  # takes a second, which no other file needs

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
    import supervision as sv

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


def answer(**changes: Any) -> dict[str, Any]:
    """The outputs for one image, with values at the ends of what is allowed."""
    return {
        "num_dets": np.array([[3]], np.int32),
        "det_boxes": np.array([[[0, 0, 640, 480], [5, 6, 5, 6], [1, 2, 3, 4]]], np.float32),
        "det_scores": np.array([[1, 0, 0]], np.float32),
        "det_classes": np.array([[0, 0, 2**31 - 1]], np.int32),
        "det_labels": np.array([[b"a", b"", b"c"]], np.object_),
        "image_size": np.array([[480, 640]], np.int32),
        **changes,
    }


def test_extreme_values_are_accepted() -> None:
    found = Detections.from_outputs(answer())
    assert found.boxes.tolist() == [[0, 0, 640, 480], [5, 6, 5, 6], [1, 2, 3, 4]]
    assert found.scores.tolist() == [1, 0, 0]
    assert found.labels == ("a", "", "c")
    none = Detections.from_outputs(answer(num_dets=np.array([[0]], np.int32)))
    assert (len(none), none.boxes.shape) == (0, (0, 4))
    smallest = Detections.from_outputs(
        answer(
            num_dets=np.array([[0]], np.int32),
            image_size=np.array([[1, 1]], np.int32),
        )
    )
    assert smallest.image_size == (1, 1)


BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "no_detections_of_three": ({"num_dets": np.array([[-1]], np.int32)}, "num_dets is -1, of at"),
    "four_of_three": ({"num_dets": np.array([[4]], np.int32)}, "num_dets is 4, of at most 3"),
    "scores_are_a_vector": (
        {"det_scores": np.zeros(3, np.float32)},
        r"num_dets has shape \(1, 1\), expected \(0, 1\)",
    ),
    "double_scores": ({"det_scores": np.zeros((1, 3))}, "det_scores is of the type float64, exp"),
    "label_is_text": ({"det_labels": np.array([["a", "b", "c"]], np.object_)}, "string of bytes"),
    "no_image": ({"image_size": np.array([[480, 0]], np.int32)}, r"image_size is \(480, 0\)"),
    **{
        f"box_{box}": (
            {"det_boxes": np.array([[[0, 0, 1, 1], box, [1, 1, 2, 2]]], np.float32)},
            sentence,
        )
        for box, sentence in {
            (-0.5, 0, 1, 1): "not in the image",
            (0, -0.5, 1, 1): "not in the image",
            (0, 0, 640.5, 1): "not in the image",
            (0, 0, 1, 480.5): "not in the image",
            (0, 0, 481, 481): "not in the image",
            (2, 0, 1, 1): "ends before it begins",
            (0, 2, 1, 1): "ends before it begins",
        }.items()
    },
    **{
        f"scores_{scores}": ({"det_scores": np.array([scores], np.float32)}, sentence)
        for scores, sentence in {
            (1.001, 0.5, 0.5): "not from 0 to 1",
            (0.5, 0.5, -0.001): "not from 0 to 1",
            (0.5, 0.4, 0.41): "not in descending order",
        }.items()
    },
}


@pytest.mark.parametrize("name", BEYOND)
def test_answer_beyond_what_is_allowed_is_refused(name: str) -> None:
    changes, sentence = BEYOND[name]
    with pytest.raises(ValueError, match=sentence):
        Detections.from_outputs(answer(**changes))


def test_image_that_is_not_in_the_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no image 2, of 1"):
        Detections.from_outputs(answer(), row=1)


def test_boxes_are_divided_by_the_sides_of_the_image() -> None:
    found = some_detections(boxes=np.array([[10, 30, 50, 130], [0, 0, 640, 240]], np.float32))
    wanted = [[30 / 640, 80 / 480, 40 / 640, 100 / 480], [0.5, 0.25, 1, 0.5]]
    np.testing.assert_allclose(found.boxes_normalised, wanted, rtol=1e-6)
    assert found.yolo_lines()[0] == "2 0.046875 0.166667 0.0625 0.208333"


def test_detections_of_equal_score_keep_their_order() -> None:
    found = Detections.from_unsorted(
        boxes=[[0, 0, 1, 1]] * 3,
        scores=[0.5, 0.9, 0.5],
        classes=[0, 1, 2],
        labels=["a", "b", "c"],
        image_size=(1, 1),
    )
    assert (found.labels, found.classes.tolist()) == (("b", "a", "c"), [1, 0, 2])
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", [True, 640]),
        ("image_size", [480, 640, 3]),
        ("image_size", (480, 640)),
        ("classes", [0, -(2**31) - 1]),
        ("classes", [0, 2**31]),
        ("scores", [0.5, True]),
        ("scores", [float("inf"), 0.5]),
        ("boxes", [[0, 0, 1, 1], [0, 0, 1, 1, 1]]),
        ("boxes", [[0, 0, 1, 1], [0, 0, 1, False]]),
        ("boxes", [[0, 0, 1, 1], {}]),
        ("labels", ["a", b"b"]),
        ("labels", "ab"),
    ],
)
def test_json_of_another_form_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        Detections.from_dict({**some_detections().to_dict(), name: value})


def test_json_with_extreme_classes_is_read() -> None:
    data = {**some_detections().to_dict(), "classes": [-(2**31), 2**31 - 1]}
    assert Detections.from_dict(data).classes.tolist() == [-(2**31), 2**31 - 1]
    assert Detections.from_dict({**data, "image_size": [1, 1]}).image_size == (1, 1)


@pytest.mark.parametrize("missing", ["confidence", "class_id", "class_name"])
def test_supervision_without_a_part_is_refused(missing: str) -> None:
    import supervision as sv

    parts: dict[str, Any] = {"confidence": np.array([0.5]), "class_id": np.array([1])}
    parts.pop(missing, None)
    data: dict[str, Any] = {} if missing == "class_name" else {"class_name": np.array(["a"])}
    other = sv.Detections(xyxy=np.zeros((1, 4)), data=data, **parts)
    with pytest.raises(ValueError, match="lack confidence, class_id or"):
        Detections.from_supervision(other, image_size=(1, 1))


def test_other_forms_hold_each_value_in_its_place() -> None:
    found = some_detections(boxes=np.array([[10, 30, 50, 130], [1, 2, 4, 8]], np.float32))
    supervised = found.to_supervision()
    assert supervised.xyxy.tolist() == found.boxes.tolist()
    assert [*supervised.data["class_name"]] == ["WBC", "Platelets"]
    assert found.to_pandas().iloc[1].tolist() == [1, 2, 4, 8, 0.5, 0, "Platelets"]
    coco = found.to_coco("a")
    assert [one["bbox"] for one in coco] == [[10, 30, 40, 100], [1, 2, 3, 6]]
    assert [one["category_id"] for one in coco] == [2, 0]
    names = {2: "WBC", 0: "Platelets"}
    again = Detections.from_coco(coco, names=names, image_size=(480, 640))
    assert_equal(again, found)
    with pytest.raises(KeyError):
        found.to_coco("a", categories={2: 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": (480, -1)},
        {"image_size": (480,)},
        {"image_size": (480, 640, 3)},
        {"classes": np.zeros(3, np.int32)},
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
