"""`yolov5-client eval`: mAP of the whole endpoint, files in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import BUNDLED, SHARED, RunningServer, labelled_photos, make_repository, running_server

from yolov5_client._cli import main


def figures(server: RunningServer, data: Path, folder: Path, *arguments: str) -> dict[str, object]:
    place = [f"--project={folder}", "--name=run", "--exist-ok"]
    assert main(["eval", str(data), f"--server={server.grpc}", *place, *arguments]) == 0
    answer: dict[str, object] = json.loads((folder / "run" / "results.json").read_text())
    return answer


def test_labels_that_are_its_own_answers(
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
    assert shown.splitlines()[0].split() == ["Class", "Labels", "P", "R", "mAP50", "mAP50-95"]
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == [
        "all",
        "Platelets",
        "RBC",
        "WBC",
    ]
    assert figures(server, data, tmp_path, "--json") == json.loads(capsys.readouterr().out)


def test_a_data_set_of_other_classes_is_refused(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_photos(tmp_path)
    data.write_text(data.read_text().replace("RBC", "red"))
    assert main(["eval", str(data), f"--server={server.grpc}"]) == 2
    assert "class 1 is 'RBC', the data set's is 'red'" in capsys.readouterr().err


def test_parameters_and_data_that_cannot_be_used(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_photos(tmp_path)
    assert main(["eval", str(data), f"--server={server.grpc}", "--iou-thres=2"]) == 2
    assert "iou_thres is 2.0; allowed: a number from 0 to 1" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "none.yaml"), f"--server={server.grpc}"]) == 2
    assert "none.yaml cannot be read: No such file" in capsys.readouterr().err
    assert main(["eval", str(data), "--server=127.0.0.1:1"]) == 3


def test_a_reduced_head_is_measured_without_multi_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = make_repository(tmp_path, BUNDLED, "--reduced-head")
    (tmp_path / "data").mkdir()
    with running_server(f"--repository={repository}") as reduced:
        found = figures(reduced, labelled_photos(tmp_path / "data"), tmp_path)
    assert found["multi_label"] is False
    assert "measured without multi_label" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.exists(), reason="the labelled sets are not at hand")
@pytest.mark.parametrize(
    "weights, data, map50, map50_95",
    [
        (BUNDLED, "bccd", 0.8609, 0.5422),
        (SHARED / "weights" / "yolov5n_v7.0.pt", "coco", 0.6255, 0.4083),
    ],
    ids=["blood cells", "COCO"],
)
def test_the_references_own_figures(
    tmp_path: Path, weights: Path, data: str, map50: float, map50_95: float
) -> None:
    repository = make_repository(tmp_path, weights)
    with running_server(f"--repository={repository}") as served:
        found = figures(served, SHARED / data / "data.yaml", tmp_path, "--split", "test")
    print(found["all"])
    total = found["all"]
    assert isinstance(total, dict)
    assert total["map50"] == pytest.approx(map50, abs=0.005)
    assert total["map50_95"] == pytest.approx(map50_95, abs=0.005)
