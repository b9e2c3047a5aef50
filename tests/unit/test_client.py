from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import PHOTO, PHOTOS, free_ports

from yolov5_client import Client, Detections, UnavailableError
from yolov5_client._cli import main
from yolov5_client._client import _wire_parameters
from yolov5_client._draw import draw
from yolov5_client._sources import find_images


def detections(**changes: Any) -> Detections:
    values: dict[str, Any] = {
        "boxes": np.array([[64, 48, 128, 96], [0, 0, 640, 480]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "classes": np.array([2, 0], np.int32),
        "labels": ("WBC", "Platelets"),
        "image_size": (480, 640),
        **changes,
    }
    return Detections(**values)


def test_padding_is_left_out() -> None:
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
def test_parts_that_do_not_fit(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shape|image_size"):
        detections(**changes)


def test_yolo_lines_are_normalised() -> None:
    assert detections().yolo_lines() == ["2 0.15 0.15 0.1 0.1", "0 0.5 0.5 1 1"]
    assert detections().yolo_lines(confidence=True)[0] == "2 0.15 0.15 0.1 0.1 0.9"
    empty = np.zeros(0, np.float32)
    nothing = detections(
        boxes=empty.reshape(0, 4), scores=empty, classes=empty.astype(np.int32), labels=()
    )
    assert nothing.yolo_lines() == []
    assert nothing.summary() == "no detections"


def test_summary() -> None:
    assert detections(labels=("bus", "bus")).summary() == "2 bus"
    assert detections(labels=("person", "person")).summary() == "2 persons"
    assert detections().summary() == "1 WBC, 1 Platelets"


def test_parameters_on_the_wire() -> None:
    given = {"conf_thres": 0.4, "classes": [0, "bus"], "max_det": np.int64(3), "multi_label": True}
    wire = {"conf_thres": 0.4, "classes": "0,bus", "max_det": 3, "multi_label": True}
    assert _wire_parameters(given) == wire
    assert json.dumps(_wire_parameters(given)) == json.dumps(wire)
    assert _wire_parameters({"classes": "0,2"}) == {"classes": "0,2"}


def test_sources(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images([str(tmp_path)])] == ["a.png", "b.JPG"]
    # A file is taken as it is called; the server judges by content.
    assert find_images([str(tmp_path / "notes.txt")]) == [tmp_path / "notes.txt"]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_images([str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in the folder"):
        find_images([str(tmp_path / "empty")])


def test_drawing_stays_inside_the_picture(tmp_path: Path) -> None:
    boxes = np.array([[600, 0, 640, 30], [0, 450, 20, 480], [300, 200, 340, 260]], np.float32)
    found = detections(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        classes=np.array([0, 1, 2], np.int32),
        labels=("a rather long label", "ü", "WBC"),
    )
    target = tmp_path / "drawn.png"
    draw(PHOTO, found, target)
    before, after = cv2.imread(str(PHOTO)), cv2.imread(str(target))
    assert after.shape == before.shape
    changed = (after != before).any(2)
    # Each box's own corner is drawn, and its label beside it.
    for x, y in ((604, 29), (1, 451), (300, 200)):
        assert changed[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any()
    assert changed[:40, 450:600].any(), "the long label is moved to the left, not cut off"
    assert not changed[300:400].any()
    with pytest.raises(OSError, match="cannot be decoded for drawing"):
        draw(Path(__file__), found, target)


def test_nobody_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    with Client(address, timeout=5) as client:
        with pytest.raises(UnavailableError):
            client.detect(PHOTO)
        with pytest.raises(UnavailableError):
            client.status()
        with pytest.raises(FileNotFoundError):
            client.detect(tmp_path / "none.jpg")
    arguments = ["detect", str(PHOTO), "--server", address, "--project", str(tmp_path / "runs")]
    assert main(arguments) == 3
    assert capsys.readouterr().err.startswith(f"error: {address}: ")
    assert not (tmp_path / "runs").exists()
    assert main(["status", "--server", address]) == 3
    assert main(["detect", str(tmp_path / "none"), "--server", address]) == 2


def test_it_needs_neither_torch_nor_opencv() -> None:
    script = (
        "import sys; sys.modules['cv2'] = sys.modules['torch'] = None; "
        "import yolov5_client, yolov5_client._cli; "
        f"print(len(yolov5_client._cli.find_images([{str(PHOTOS)!r}])))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("8\n", "")
