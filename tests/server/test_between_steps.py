"""In the embedded server pixels and the rows over the threshold cross between the steps, not floats
and all rows; and floats sent to the network give all rows, as on any other server."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from support import (
    PHOTOS,
    RunningServer,
    ask_grpc,
    assert_same,
    ready_triton,
    running_server,
)

from yolov5_build.photos import PhotoLoader

pytestmark = [
    pytest.mark.skipif(
        Path("/dev/nvidiactl").exists(), reason="where there is a GPU, tensors stay on it"
    ),
    pytest.mark.embedded("its backends take pixels and leave rows out"),
]

PATHS = sorted(PHOTOS.iterdir())
LOADER = PhotoLoader(640, 640)
CONF_THRES = 0.3


def prepared(count: int) -> NDArray[np.float32]:
    return np.stack([LOADER.load(path)[0] for path in PATHS[:count]])


@pytest.fixture(scope="module")
def network(bundled_repository: Path) -> Iterator[grpc.InferenceServerClient]:
    """The network by itself, which callers of the launcher's server cannot reach."""
    flags = ["--model-control-mode=explicit", "--load-model=yolov5", "--model-config-name=embedded"]
    with ready_triton(bundled_repository, *flags) as client:
        yield client


def rows(network: grpc.InferenceServerClient, **arrays: NDArray[Any]) -> NDArray[np.float32]:
    """The network's answer to these inputs."""
    tensors = []
    for name, array in arrays.items():
        kind = {"float32": "FP32", "uint8": "UINT8"}[str(array.dtype)]
        tensors.append(grpc.InferInput(name, [*array.shape], kind))
        tensors[-1].set_data_from_numpy(array)
    answer: NDArray[np.float32] = network.infer("yolov5", tensors).as_numpy("output0")
    return answer


def thresholds(count: int, conf_thres: float) -> NDArray[np.float32]:
    return np.array([[conf_thres, 0.45, 300, 0, 0]] * count, np.float32)


def test_ensemble_has_the_small_tensors(server: RunningServer) -> None:
    with urllib.request.urlopen(f"{server.http}/v2/models/yolov5_ensemble/config") as answer:
        steps = json.load(answer)["ensemble_scheduling"]["step"]
    assert steps[1]["input_map"] == {"pixels": "pixels", "nms": "nms"}


def test_floats_give_all_rows(network: grpc.InferenceServerClient) -> None:
    images = prepared(2)
    found = rows(network, images=images)
    assert found.shape == (2, 25200, 8)
    pixels = np.rint(images * 255).astype(np.uint8)
    np.testing.assert_array_equal(rows(network, pixels=pixels), found)


@pytest.mark.parametrize("kind", ["images", "pixels"])
@pytest.mark.parametrize("count", [1, 3])
def test_only_rows_over_the_confidence_are_returned(
    network: grpc.InferenceServerClient, count: int, kind: str
) -> None:
    images = prepared(count)
    whole = rows(network, images=images)
    given = {kind: {"images": images, "pixels": np.rint(images * 255).astype(np.uint8)}[kind]}
    found = rows(network, nms=thresholds(count, CONF_THRES), **given)
    wanted = [one[one[:, 4] > np.float32(CONF_THRES)] for one in whole]
    assert found.shape == (count, max(map(len, wanted)), 8)
    assert len(wanted[0]) > 10
    for one, candidates in zip(found, wanted):
        np.testing.assert_array_equal(one[: len(candidates)], candidates)
        assert not one[len(candidates) :].any()


def test_no_row_over_the_confidence_gives_no_rows(network: grpc.InferenceServerClient) -> None:
    assert rows(network, images=prepared(2), nms=thresholds(2, 1.0)).shape == (2, 0, 8)


def test_images_and_pixels_exclude_each_other(network: grpc.InferenceServerClient) -> None:
    images = prepared(1)
    given: list[dict[str, NDArray[Any]]] = [
        {},
        {"images": images, "pixels": images.astype(np.uint8)},
    ]
    for arrays in given:
        with pytest.raises(grpc.InferenceServerException, match="and only one") as caught:
            rows(network, **arrays, nms=thresholds(1, 0.5))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_weights_changed_by_hand_are_served(
    tmp_path: Path, bundled_repository: Path, server: RunningServer
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(bundled_repository, repository)
    (weights,) = repository.glob("yolov5/*/model.onnx")
    model = onnx.load(weights)
    model.doc_string = "another"
    onnx.save(model, weights)
    image = PATHS[0].read_bytes()
    with running_server(f"--repository={repository}", "--precision=fp32") as other:
        assert "prefiltered.onnx was not made from this model.onnx" in other.log.read_text()
        assert_same(ask_grpc(other.grpc, [image]), ask_grpc(server.grpc, [image]))


def test_small_tensors_give_the_same_answer_to_the_last_digit(
    tmp_path: Path, bundled_repository: Path, server: RunningServer
) -> None:
    """Compare with a network installed by hand, which has only config.pbtxt."""
    repository = tmp_path / "model_repository"
    shutil.copytree(bundled_repository, repository)
    shutil.rmtree(repository / "yolov5" / "configs")
    images = [path.read_bytes() for path in PATHS]
    parameters: list[dict[str, Any]] = [
        {},
        {"conf_thres": 0.001, "multi_label": True, "iou_thres": 0.6},
        {"conf_thres": 0, "max_det": 1000, "agnostic_nms": True},
        {"conf_thres": 1},
        {"classes": "WBC"},
        {"conf_thres": 0.6, "class_conf_thres": "RBC:0.01,0:1"},
        {"class_conf_thres": "1:0.01,2:0.9", "multi_label": True, "classes": "0,1"},
    ]
    with running_server(f"--repository={repository}") as plain:
        with urllib.request.urlopen(f"{plain.http}/v2/models/yolov5_ensemble/config") as answer:
            steps = json.load(answer)["ensemble_scheduling"]["step"]
        assert steps[1]["input_map"] == {"images": "images"}
        for given in parameters:
            for batch in ([images[0]], images):
                assert_same(ask_grpc(server.grpc, batch, given), ask_grpc(plain.grpc, batch, given))
