"""On a CPU with BF16 `make serve` chooses BF16 by itself, if it is accurate enough."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import PHOTOS, REPOSITORY, Outputs, RunningServer, ask_grpc, running_server

from yolov5_build import cli as build
from yolov5_build._evaluate import Measurement, evaluate
from yolov5_build._runtimes import OPENVINO_BF16
from yolov5_client.evaluation import Split
from yolov5_server.hardware import cpu_has_bf16

pytestmark = [
    pytest.mark.skipif(not cpu_has_bf16(), reason="needs a CPU with BF16"),
    pytest.mark.embedded("its OpenVINO backend computes in BF16"),
]

IMAGES = [path.read_bytes() for path in sorted(PHOTOS.iterdir())]


def assert_alike(found: Outputs, expected: Outputs) -> None:
    """Assert that confident detections are found again, nearly at the same place."""
    sure = (expected["det_scores"] > 0.3).sum()
    assert (found["det_scores"] > 0.2).sum() >= sure
    for box, name in zip(expected["det_boxes"][0, :sure], expected["det_labels"][0]):
        same = found["det_boxes"][0][found["det_labels"][0] == name]
        assert np.abs(same - box).max(1).min() < 4


@pytest.fixture(autouse=True)
def bf16_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let BF16 take half the time of FP32, whatever else this machine does meanwhile."""

    def measure(path: Path, split: Split, **settings: Any) -> Measurement:
        measured = evaluate(path, split, **settings)
        return replace(measured, milliseconds=1 if settings["runtime"] == OPENVINO_BF16 else 2)

    monkeypatch.setattr(build, "evaluate", measure)


@pytest.mark.parametrize("letterbox", ["square", "rect"])
def test_bf16_is_served_and_finds_the_same_objects(
    tmp_path: Path, letterbox: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
    assert build.main([f"--repository={repository}", f"--letterbox={letterbox}"]) == 0
    said = capsys.readouterr().out
    assert "fp32: mAP50 0.8" in said
    assert "bf16: mAP50 0.8" in said
    assert "BF16 is served, unless PRECISION=fp32." in said
    with running_server(f"--repository={repository}", "--precision=auto") as running:
        assert "Precision: BF16, by openvino." in running.log.read_text()
        together = ask_grpc(running.grpc, IMAGES)
        for index, image in enumerate(IMAGES):
            alone = ask_grpc(running.grpc, [image])
            assert together["num_dets"][index] == alone["num_dets"][0]
            if letterbox == "square":
                assert_alike(alone, ask_grpc(server.grpc, [image]))


def test_fp32_is_served_by_onnx_runtime(server: RunningServer) -> None:
    assert "Precision: FP32, by onnxruntime." in server.log.read_text()


def test_bf16_that_loses_too_much_accuracy_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "ALLOWED_MAP_LOSS", -1.0)  # which no network keeps
    repository = tmp_path / "model_repository"
    shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("yolov5"))
    assert build.main([f"--repository={repository}", "--imgsz=320"]) == 0
    assert "BF16 is not served." in capsys.readouterr().out
    assert not (repository / "yolov5" / "configs").exists()
