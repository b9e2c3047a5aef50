"""Several images in a request, several requests at once: each gets its own answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
from support import (
    PHOTO,
    PHOTOS,
    RunningServer,
    ask_grpc,
    assert_same,
    executions,
    infer,
    row,
)

SIZES = [(480, 640), (333, 500), (500, 333), (97, 640), (1201, 801), (640, 640), (64, 48), (2, 3)]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """Eight photos of eight sizes."""
    encoded = []
    for path, (height, width) in zip(sorted(PHOTOS.iterdir()), SIZES):
        whole = cv2.imread(str(path))
        assert whole is not None
        picture = cv2.resize(whole, (width, height))
        encoded.append(cv2.imencode(".png", picture)[1].tobytes())
    return encoded


@pytest.fixture
def blank() -> bytes:
    return cv2.imencode(".png", np.full((300, 400, 3), 114, np.uint8))[1].tobytes()


def test_batch_equals_its_images_alone(server: RunningServer, images: list[bytes]) -> None:
    together = ask_grpc(server.grpc, images)
    assert together["image_size"].tolist() == [list(size) for size in SIZES]
    counts = together["num_dets"][:, 0]
    assert together["det_boxes"].shape == (8, counts.max(), 4)
    assert (counts[:3] > 5).all()
    for index, image in enumerate(images):
        assert_same(row(together, index), ask_grpc(server.grpc, [image]), exact=False)


def test_image_without_detections_is_padded(
    server: RunningServer, images: list[bytes], blank: bytes
) -> None:
    answer = ask_grpc(server.grpc, [images[0], blank, images[1]])
    assert answer["num_dets"][1, 0] == 0
    assert not answer["det_boxes"][1].any()
    assert not answer["det_scores"][1].any()
    assert (answer["det_classes"][1] == -1).all()
    assert (answer["det_labels"][1] == b"").all()
    assert answer["image_size"][1].tolist() == [300, 400]
    assert_same(row(answer, 2), ask_grpc(server.grpc, [images[1]]), exact=False)


def test_batch_without_any_detection_is_empty(server: RunningServer, blank: bytes) -> None:
    answer = ask_grpc(server.grpc, [blank, blank])
    assert answer["num_dets"].tolist() == [[0], [0]]
    assert answer["det_boxes"].shape == (2, 0, 4)
    assert answer["det_labels"].shape == (2, 0)


@pytest.fixture(scope="module")
def asked(server: RunningServer, images: list[bytes]) -> Iterator[list[tuple[Any, ...]]]:
    """64 requests of one to three images with mixed parameters, and the answer to each alone."""
    parameters: list[dict[str, Any]] = [
        {},
        {"conf_thres": "0.6"},
        {"max_det": 3},
        {"classes": "WBC,Platelets"},
        {"agnostic_nms": True, "iou_thres": "0.1"},
        {"multi_label": True, "conf_thres": "0.05"},
    ]
    requests = []
    for number in range(64):
        chosen = [images[(number + step) % len(images)] for step in range(1 + number % 3)]
        requests.append((chosen, parameters[number % len(parameters)]))
    yield [(*request, ask_grpc(server.grpc, *request)) for request in requests]


def test_64_requests_of_20_callers_each_get_their_own_answer(
    server: RunningServer, asked: list[tuple[Any, ...]]
) -> None:
    before = executions(server, "preprocess")
    with grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda request: infer(client, *request[:2]), asked))
    for (_, _, alone), answer in zip(asked, answers):
        assert_same(answer, alone, exact=False)
    run = executions(server, "preprocess") - before
    assert run < 64, "the requests were not batched, so nothing was put to the test"


def test_answers_of_different_photos_differ(server: RunningServer) -> None:
    photo = PHOTO.read_bytes()
    other = sorted(PHOTOS.iterdir())[1].read_bytes()
    answer = ask_grpc(server.grpc, [photo, other, photo])
    assert_same(row(answer, 0), row(answer, 2), exact=False)
    assert row(answer, 0)["num_dets"] != row(answer, 1)["num_dets"]
