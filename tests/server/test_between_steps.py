"""Pixels and the rows over the threshold cross between the steps, not floats and all rows."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from support import (
    PHOTOS,
    RunningServer,
    ask_grpc,
    assert_same,
    ready_triton,
    running_server,
)
from tritonclient.grpc import model_config_pb2

from yolov5_build.photos import PhotoLoader

PATHS = sorted(PHOTOS.iterdir())
LOADER = PhotoLoader(640, 640)
CONF_THRES = 0.3


def prepared(count: int) -> NDArray[np.float32]:
    return np.stack([LOADER.load(path)[0] for path in PATHS[:count]])


@pytest.fixture(scope="module")
def network(bundled_repository: Path) -> Iterator[grpc.InferenceServerClient]:
    """The network by itself, which callers of the launcher's server cannot reach."""
    flags = ["--model-control-mode=explicit", "--load-model=yolov5"]
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


def in_full(repository: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """All rows of the network, from the file that the served one was made of."""
    (weights,) = repository.glob("yolov5/[0-9]*/model.onnx")
    session = onnxruntime.InferenceSession(weights, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["output0"], {"images": images})[0]
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_only_rows_over_the_confidence_are_returned(
    network: grpc.InferenceServerClient, bundled_repository: Path, count: int
) -> None:
    images = prepared(count)
    pixels = np.rint(images * 255).astype(np.uint8)
    found = rows(network, nms=thresholds(count, CONF_THRES), pixels=pixels)
    whole = in_full(bundled_repository, images)
    wanted = [one[one[:, 4] > np.float32(CONF_THRES)] for one in whole]
    assert found.shape == (count, max(map(len, wanted)), 8)
    assert len(wanted[0]) > 10
    for one, candidates in zip(found, wanted):
        np.testing.assert_array_equal(one[: len(candidates)], candidates)
        assert not one[len(candidates) :].any()


def test_no_row_over_the_confidence_gives_zeros(network: grpc.InferenceServerClient) -> None:
    pixels = np.rint(prepared(2) * 255).astype(np.uint8)
    found = rows(network, pixels=pixels, nms=thresholds(2, 1.0))
    assert found.shape == (2, 1, 8) and not found.any()


@pytest.mark.embedded("its backend compares the two files of a network")
def test_full_network_changed_by_hand_is_warned_of(
    tmp_path: Path, bundled_repository: Path, server: RunningServer
) -> None:
    repository = tmp_path / "model_repository"
    shutil.copytree(bundled_repository, repository)
    (weights,) = repository.glob("yolov5/[0-9]*/model.onnx")
    model = onnx.load(weights)
    model.doc_string = "another"
    onnx.save(model, weights)
    image = PATHS[0].read_bytes()
    with running_server(f"--repository={repository}", "--precision=fp32") as other:
        assert "served.onnx was not made from this model.onnx" in other.log.read_text()
        assert_same(ask_grpc(other.grpc, [image]), ask_grpc(server.grpc, [image]))


def test_network_of_an_earlier_version_gives_the_same_answer_to_the_last_digit(
    tmp_path: Path, bundled_repository: Path, server: RunningServer
) -> None:
    """Its configuration has floats in and all rows out; its endpoint was not changed."""
    repository = tmp_path / "model_repository"
    shutil.copytree(bundled_repository, repository)
    shutil.rmtree(repository / "yolov5" / "configs", ignore_errors=True)
    (served,) = repository.glob("yolov5/[0-9]*/served.onnx")
    served.unlink()
    path = repository / "yolov5" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.default_model_filename = "model.onnx"
    del config.input[1:]
    del config.model_warmup[:]
    config.input[0].name, config.input[0].data_type = "images", model_config_pb2.TYPE_FP32
    config.output[0].dims[0] = 25200
    path.write_text(text_format.MessageToString(config))
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
