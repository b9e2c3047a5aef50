"""Networks of every kind, installed as `make model` does and served by a real server."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
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


def test_reduced_head_answers_alike_and_refuses_multi_label(
    tmp_path: Path, expected: list[Outputs]
) -> None:
    repository = make_repository(tmp_path, BUNDLED, "--reduced-head")
    with running_server(f"--repository={repository}") as server:
        for image, other in zip(IMAGES, expected):
            assert_same(ask_grpc(server.grpc, [image]), other, exact=False)
        only = ask_grpc(server.grpc, [IMAGES[0]], {"classes": "WBC"})
        assert set(only["det_labels"].ravel()) == {b"WBC"}
        with pytest.raises(grpc.InferenceServerException) as caught:
            ask_grpc(server.grpc, [IMAGES[0]], {"multi_label": True})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "this model tells only the best class of each box" in str(caught.value)


def test_rect_answers_requests_of_several_shapes(tmp_path: Path) -> None:
    picture = cv2.imread(str(PHOTO))
    assert picture is not None
    wide, tall = picture[100:340], picture[:, 200:440]
    encoded = [cv2.imencode(".png", part)[1].tobytes() for part in (wide, tall, picture)]
    repository = make_repository(tmp_path, BUNDLED, "--letterbox=rect")
    with running_server(f"--repository={repository}") as server:
        alone = [ask_grpc(server.grpc, [image]) for image in encoded]
        assert min(answer["num_dets"].item() for answer in alone) > 2
        # Images of one shape get the same answers as alone.
        twice = ask_grpc(server.grpc, [encoded[0]] * 2)
        assert_same(row(twice, 1), alone[0], exact=False)
        # Images of several shapes share a padding, which changes the answers a little.
        together = ask_grpc(server.grpc, encoded)
        assert together["image_size"].tolist() == [[240, 640], [480, 240], [480, 640]]
        for index, answer in enumerate(alone):
            mixed = row(together, index)
            for box, score, name in zip(
                answer["det_boxes"][0], answer["det_scores"][0], answer["det_labels"][0]
            ):
                if score > 0.5:
                    same = mixed["det_boxes"][0][mixed["det_labels"][0] == name]
                    assert np.abs(same - box).max(1).min() < 12


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
