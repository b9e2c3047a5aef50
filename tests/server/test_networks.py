"""Networks of every kind, installed as `make model` does and served by a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from figures import figures
from support import (
    BUNDLED,
    PHOTO,
    PHOTOS,
    SHARED,
    Outputs,
    RunningServer,
    ask_grpc,
    assert_same,
    export_as_others_do,
    labelled_photos,
    make_repository,
    row,
    running_server,
)

from yolov5_build.cli import main as build

IMAGES = [path.read_bytes() for path in sorted(PHOTOS.iterdir())]


def answers(*arguments: str, weights: Path = BUNDLED, folder: Path) -> list[Outputs]:
    """Answers of a server with this network to the bundled photos."""
    repository = make_repository(folder, weights, *arguments)
    with running_server(f"--repository={repository}", "--precision=auto") as server:
        return [ask_grpc(server.grpc, [image]) for image in IMAGES]


@pytest.fixture(scope="module")
def expected(server: RunningServer) -> list[Outputs]:
    return [ask_grpc(server.grpc, [image]) for image in IMAGES]


def test_safetensors_give_the_same_answers(tmp_path: Path, expected: list[Outputs]) -> None:
    shared = tmp_path / "best.safetensors"
    assert build([str(BUNDLED), f"--save={shared}"]) == 0
    for one, other in zip(answers(weights=shared, folder=tmp_path), expected):
        assert_same(one, other)


def test_half_precision_finds_the_same_objects(tmp_path: Path, expected: list[Outputs]) -> None:
    for one, other in zip(answers("--half", folder=tmp_path), expected):
        sure = (other["det_scores"] > 0.27).sum()
        assert (one["det_scores"] > 0.23).sum() >= sure
        for box, name in zip(other["det_boxes"][0, :sure], other["det_labels"][0]):
            same = one["det_boxes"][0][one["det_labels"][0] == name]
            assert np.abs(same - box).max(1).min() < 2


@pytest.fixture(scope="module")
def reduced_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = make_repository(tmp_path_factory.mktemp("reduced"), BUNDLED, "--reduced-head")
    with running_server(f"--repository={repository}") as running:
        yield running


def test_reduced_head_answers_alike_and_refuses_multi_label(
    reduced_server: RunningServer, expected: list[Outputs]
) -> None:
    address = reduced_server.grpc
    for image, other in zip(IMAGES, expected):
        assert_same(ask_grpc(address, [image]), other, exact=False)
    only = ask_grpc(address, [IMAGES[0]], {"classes": "WBC"})
    assert set(only["det_labels"].ravel()) == {b"WBC"}
    with pytest.raises(grpc.InferenceServerException) as caught:
        ask_grpc(address, [IMAGES[0]], {"multi_label": True})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "this model tells only the best class of each box" in str(caught.value)


def test_reduced_head_is_measured_without_multi_label(
    reduced_server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    found = figures(reduced_server, labelled_photos(tmp_path / "data"), tmp_path)
    assert found["multi_label"] is False
    assert "measured without multi_label" in capsys.readouterr().err


def test_export_with_batch_size_one_takes_batches(tmp_path: Path, expected: list[Outputs]) -> None:
    """YOLOv5's exporter writes batch size 1 by default."""
    foreign = export_as_others_do(tmp_path / "best.onnx", metadata={})
    (tmp_path / "names.txt").write_text("Platelets\nRBC\nWBC\n")
    names = f"--names={tmp_path / 'names.txt'}"
    repository = make_repository(tmp_path, foreign, names)
    with running_server(f"--repository={repository}") as server:
        together = ask_grpc(server.grpc, IMAGES)
        for index, other in enumerate(expected):
            assert_same(row(together, index), other, exact=False)


def test_export_that_cannot_batch_limits_the_endpoint(
    tmp_path: Path, expected: list[Outputs]
) -> None:
    foreign = export_as_others_do(tmp_path / "best.onnx", fixed=True)
    repository = make_repository(tmp_path, foreign)
    with running_server(f"--repository={repository}") as server:
        assert_same(ask_grpc(server.grpc, IMAGES[:1]), expected[0], exact=False)
        with pytest.raises(grpc.InferenceServerException, match="batch-size must be <= 1"):
            ask_grpc(server.grpc, IMAGES[:2])
    # The next network lifts the limit.
    assert build([str(BUNDLED), f"--repository={repository}"]) == 0
    ensemble = (repository / "yolov5_ensemble" / "config.pbtxt").read_text()
    assert "\nmax_batch_size: 8\n" in ensemble


@pytest.mark.skipif(not SHARED.exists(), reason="other people's exports are not at hand")
def test_export_that_onnx_checker_refuses_is_served(tmp_path: Path) -> None:
    weights = SHARED / "onnx" / "third_party_yolov5n_fp16_unsorted.onnx"
    repository = make_repository(tmp_path, weights)
    with running_server(f"--repository={repository}", "--precision=auto") as server:
        bus = ask_grpc(server.grpc, [(SHARED / "photos" / "bus.jpg").read_bytes()])
        assert sorted(bus["det_labels"].ravel()) == [b"bus", b"person", b"person", b"person"]


@pytest.mark.skipif(not SHARED.exists(), reason="a fine-tuned network is not at hand")
def test_checkpoint_with_types_of_another_library_is_served(tmp_path: Path) -> None:
    repository = make_repository(tmp_path, SHARED / "weights" / "crop_best.pt")
    with running_server(f"--repository={repository}") as server:
        answer = ask_grpc(server.grpc, [PHOTO.read_bytes()], {"conf_thres": 0.001})
        assert set(answer["det_labels"].ravel()) == {b"tobacco"}
