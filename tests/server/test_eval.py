"""`yolov5-client eval`: mAP of the whole endpoint on image files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from figures import all_of, figures
from support import BUNDLED, PHOTOS, RunningServer, labelled_photos

from yolov5_client._cli import main


def test_own_answers_as_labels_score_one(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_photos(tmp_path)
    found = figures(server, data, tmp_path)
    assert found["photos"] == 8
    assert found["multi_label"] is True
    total = found["all"]
    assert isinstance(total, dict)
    assert total["labels"] == 130
    assert min(total["map50"], total["map50_95"]) > 0.99
    for picture in ("PR_curve.png", "confusion_matrix.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["COCO", "(pycocotools)", "YOLOv5", "(val.py)"]
    columns = ["P", "R", "mAP50", "mAP50-95"]
    assert shown.splitlines()[1].split() == ["Class", "Labels", *columns, *columns]
    assert [line.split()[0] for line in shown.splitlines()[2:6]] == [
        "all",
        "Platelets",
        "RBC",
        "WBC",
    ]
    assert figures(server, data, tmp_path, "--json") == json.loads(capsys.readouterr().out)


# Of the bundled photos with their own labels, with FP32. YOLOv5's own arithmetic on the same
# detections gives the second line.
COCO = {"labels": 148, "map50": 0.8184, "map50_95": 0.5136}
YOLOV5 = {"precision": 0.8176, "recall": 0.7344, "map50": 0.8168, "map50_95": 0.5136}


def bundled_set(folder: Path) -> Path:
    for name in ("images", "labels"):
        shutil.copytree(BUNDLED.parent / name, folder / name)
    (folder / "data.yaml").write_text("val: images\nnames: [Platelets, RBC, WBC]\n")
    return folder / "data.yaml"


def test_coco_and_yolov5_figures_are_both_printed(server: RunningServer, tmp_path: Path) -> None:
    found = figures(server, bundled_set(tmp_path / "set"), tmp_path)
    for wanted, got in ((COCO, all_of(found)), (YOLOV5, all_of(found["yolov5"]))):
        assert {key: got[key] for key in wanted} == pytest.approx(wanted, abs=0.0005)


def test_threshold_of_a_class_leaves_the_others_as_they_are(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bundled_set(tmp_path / "set")
    every, without = (
        figures(server, data, tmp_path, *flags)["classes"]
        for flags in ([], ["--class-conf-thres", "RBC:1"])
    )
    assert isinstance(every, dict) and isinstance(without, dict)
    assert every["RBC"]["map50"] > 0.5
    assert without.pop("RBC")["map50"] == 0
    # Precision and recall are those at the best confidence for all classes together.
    for name, row in without.items():
        for key in ("map50", "map50_95"):
            assert row[key] == every[name][key]
    flags = ["--class-conf-thres", "cat:1"]
    assert main(["eval", str(data), f"--server={server.grpc}", *flags]) == 2
    assert "class_conf_thres names 'cat'" in capsys.readouterr().err


def test_as_val_prepares_photos_as_val_py_does(server: RunningServer, tmp_path: Path) -> None:
    """The photos are 640 pixels wide; only the canvas differs."""
    data = bundled_set(tmp_path / "set")
    found = figures(server, data, tmp_path, "--as-val")
    assert (found["as_val"], found["model"]) == ("square", "yolov5")
    got = all_of(found["yolov5"])
    assert {key: got[key] for key in YOLOV5} == pytest.approx(YOLOV5, abs=0.0005)


def test_broken_photos_are_left_out_and_named(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bundled_set(tmp_path / "set")
    (tmp_path / "set" / "images" / "A.jpg").write_bytes(b"no picture")
    names = [path.name for path in PHOTOS.iterdir()]
    (tmp_path / "set" / "list.txt").write_text(
        "".join(f"./images/{name}\n" for name in ["none.jpg", "A.jpg", *names])
    )
    data.write_text(data.read_text().replace("val: images", "val: list.txt"))
    for arguments in ([], ["--as-val"]):
        found = figures(server, data, tmp_path, *arguments)
        assert (found["photos"], found["left_out"]) == (8, 2)
        assert all_of(found)["map50"] == pytest.approx(COCO["map50"], abs=0.0005)
        said = capsys.readouterr().err
        assert "none.jpg: No such file or directory" in said
        assert "A.jpg: " in said
        assert "2 of 10 photos left out" in said
    for photo in (tmp_path / "set" / "images").iterdir():
        photo.write_bytes(b"no picture")
    assert main(["eval", str(data), f"--server={server.grpc}"]) == 2
    assert "none of the data set's photos can be used" in capsys.readouterr().err


def test_names_that_are_their_index_fit_any_model(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bundled_set(tmp_path / "set")
    data.write_text("val: images\nnames: [0, 1, 2]\n")
    (tmp_path / "set" / "labels" / "BloodImage_00007.txt").write_text("1 1.002 .5 .1 .1\n")
    found = figures(server, data, tmp_path)
    assert found["photos"] == 7
    assert "warning: 1 photo left out; the first: BloodImage_00007" in capsys.readouterr().err


def test_data_set_with_other_classes_is_refused(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_photos(tmp_path)
    data.write_text(data.read_text().replace("RBC", "red"))
    assert main(["eval", str(data), f"--server={server.grpc}"]) == 2
    assert "class 1 is 'RBC', the data set's is 'red'" in capsys.readouterr().err


def test_unusable_parameters_and_data_are_refused(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_photos(tmp_path)
    assert main(["eval", str(data), f"--server={server.grpc}", "--iou-thres=2"]) == 2
    assert "iou_thres is 2.0; allowed: a number from 0 to 1" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "none.yaml"), f"--server={server.grpc}"]) == 2
    assert "none.yaml cannot be read: No such file" in capsys.readouterr().err
    assert main(["eval", str(data), "--server=127.0.0.1:1"]) == 3
