"""Bad input: its caller gets one sentence, and other callers are not affected."""

from __future__ import annotations

import http.client
import json
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attacks
import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
from support import (
    PHOTO,
    SHARED,
    Outputs,
    RunningServer,
    ask_grpc,
    assert_same,
    executions,
    infer,
    post,
    post_raw,
)
from tritonclient.utils import InferenceServerException


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


FORMATS = "JPEG, PNG, WebP, BMP, TIFF"
PHOTO_BYTES = PHOTO.read_bytes()

BAD_IMAGES = {
    "undecodable": (b"\xff\xd8\xff" + bytes(100), "cannot be decoded, as the file is damaged"),
    "not an image": (b"hello", f"not an image of a supported format; allowed: {FORMATS}"),
    "cut off": (PHOTO_BYTES[:500], "cannot be decoded, as the file is damaged or cut off"),
    "60000x60000": (png_header(60000, 60000), "over the limit of 64000000 pixels"),
    "zero-sized": (png_header(0, 10), "cannot be decoded"),
    "gif": (b"GIF89a" + bytes(50), "not an image of a supported format"),
    "bad data URI": (b"data:image/png;base64,???", "a data URI whose base64 is damaged"),
    "base64 of text": (b"aGVsbG8gd29ybGQh", "not an image of a supported format"),
}

BAD_PARAMETERS = {
    "out of range": ({"conf_thres": "1.5"}, "conf_thres is '1.5'; allowed: a number from 0 to 1"),
    "not a number": ({"iou_thres": "half"}, "iou_thres is 'half'; allowed: a number from 0 to 1"),
    "NaN": ({"conf_thres": "nan"}, "conf_thres is 'nan'; allowed: a number from 0 to 1"),
    "zero": ({"max_det": 0}, "max_det is 0; allowed: a whole number from 1 to 1000"),
    "too many": ({"max_det": 1001}, "max_det is 1001; allowed: a whole number from 1 to 1000"),
    "wrong kind": ({"max_det": True}, "max_det is True; allowed: a whole number from 1 to 1000"),
    "misspelt": ({"conf_thresh": "0.5"}, "parameter 'conf_thresh' is unknown; allowed: conf_thres"),
    "no such class": ({"classes": "0,cat"}, "classes names 'cat'; allowed: indices from 0 to 2"),
    "class index": ({"classes": "3"}, "classes names '3'; allowed: indices from 0 to 2"),
    "flag": ({"agnostic_nms": "yes"}, "agnostic_nms is 'yes'; allowed: true or false"),
    "class of a threshold": (
        {"class_conf_thres": "RBC:0.5,cat:0.5"},
        "class_conf_thres names 'cat'; allowed: indices from 0 to 2 or class names such as",
    ),
    "class index of a threshold": (
        {"class_conf_thres": "3:0.5"},
        "class_conf_thres names '3'; allowed: indices from 0 to 2 or class names such as",
    ),
    "threshold of a class": (
        {"class_conf_thres": '{"RBC": 1.5}'},
        "class_conf_thres for 'RBC' is 1.5; allowed: a number from 0 to 1",
    ),
    "two thresholds of a class": (
        {"class_conf_thres": "RBC:0.5,1:0.5"},
        "class_conf_thres names '1', a class that has a number already; allowed: one number for",
    ),
    "class without a threshold": (
        {"class_conf_thres": "RBC"},
        "class_conf_thres is 'RBC'; allowed: a string of indices or names with numbers, such as",
    ),
    "thresholds that are no text": (
        {"class_conf_thres": 0.5},
        "class_conf_thres is 0.5; allowed: a string of indices or names with numbers, such as",
    ),
}


def with_scans(count: int) -> bytes:
    """A progressive JPEG of 4000x4000 with its last scan repeated."""
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    jpeg = cv2.imencode(".jpg", np.zeros((4000, 4000, 3), np.uint8), options)[1].tobytes()
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * (count - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def refusal(server: RunningServer, images: list[bytes], parameters: Any = None) -> str:
    with pytest.raises(grpc.InferenceServerException) as caught:
        ask_grpc(server.grpc, images, parameters)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    return str(caught.value.message())


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert "Traceback" not in message
    assert "/" not in message.replace("/9j/", "")
    assert len(message) < 300


@pytest.mark.parametrize("image, sentence", BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_image_is_refused(server: RunningServer, image: bytes, sentence: str) -> None:
    message = refusal(server, [image])
    assert f"image 1 of 1: {sentence}" in message
    assert_one_sentence(message)
    reply = post_raw(server.http, image)
    assert reply.status == 400
    assert sentence in reply.json()["error"]


def test_jpeg_of_very_many_scans_is_refused(server: RunningServer) -> None:
    started = time.monotonic()
    message = refusal(server, [with_scans(5000)])
    assert time.monotonic() - started < 5  # on a busy machine
    assert "image 1 of 1: a JPEG of 5000 scans; allowed: 1024000000 pixels in all scans" in message
    assert_one_sentence(message)


def test_empty_body_is_refused(server: RunningServer) -> None:
    reply = post_raw(server.http, b"")
    assert reply.status == 400
    assert "image 1 of 1: no bytes at all" in reply.json()["error"]
    assert "image 1 of 1: no bytes at all" in refusal(server, [b""])


def test_bad_element_of_a_batch_is_named(server: RunningServer) -> None:
    message = refusal(server, [PHOTO_BYTES, PHOTO_BYTES, b"hello", PHOTO_BYTES])
    assert "image 3 of 4: not an image" in message


@pytest.mark.parametrize("parameters, sentence", BAD_PARAMETERS.values(), ids=BAD_PARAMETERS)
def test_bad_parameter_is_refused(server: RunningServer, parameters: Any, sentence: str) -> None:
    message = refusal(server, [PHOTO_BYTES], parameters)
    assert sentence in message
    assert_one_sentence(message)
    body = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}],
        "parameters": parameters,
    }
    reply = post(f"{server.http}/v2/models/yolov5_ensemble/infer", json.dumps(body).encode())
    assert reply.status == 400
    assert sentence in reply.json()["error"]


def test_bad_header_is_refused(server: RunningServer) -> None:
    reply = post_raw(server.http, PHOTO_BYTES, {"X-Yolo-Conf-Thres": "2"})
    assert (reply.status, "conf_thres is '2'" in reply.body.decode()) == (400, True)
    reply = post_raw(server.http, PHOTO_BYTES, {"X-Yolo-Confidence": "0.5"})
    assert reply.status == 400
    assert "parameter 'X-Yolo-Confidence' is unknown" in reply.json()["error"].replace(
        "x-yolo-confidence", "X-Yolo-Confidence"
    )


def test_header_that_is_not_utf_8_fails_its_own_request_only(server: RunningServer) -> None:
    expected = ask_grpc(server.grpc, [PHOTO_BYTES])
    body = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}

    def ask(number: int) -> Outputs | tuple[int, bytes]:
        if number % 2:
            return ask_grpc(server.grpc, [PHOTO_BYTES])
        connection = http.client.HTTPConnection(server.http.removeprefix("http://"))
        headers = {**body, "X-Yolo-Classes": "\xff\xfe"}  # http.client sends Latin-1
        path = "/v2/models/yolov5_ensemble/infer"
        connection.request("POST", path, PHOTO_BYTES, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    for answer in answers[1::2]:
        assert isinstance(answer, dict)
        assert_same(answer, expected, exact=False)
    for answer in answers[::2]:
        assert isinstance(answer, tuple)
        assert answer[0] == 400
        assert b"a parameter is no text; allowed: UTF-8" in answer[1]


def test_too_many_images_are_refused(server: RunningServer) -> None:
    assert "8" in refusal(server, [PHOTO_BYTES] * 9)


def test_good_requests_batched_with_bad_ones_are_answered(server: RunningServer) -> None:
    expected = ask_grpc(server.grpc, [PHOTO_BYTES])
    bad = [*BAD_IMAGES.values(), *((PHOTO_BYTES, s, p) for p, s in BAD_PARAMETERS.values())]
    requests = [case for pair in zip([None] * len(bad), bad) for case in pair] * 2
    before = executions(server, "preprocess")

    with grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(36) as pool:

        def ask(case: Any) -> Outputs | str:
            image, _, *parameters = case or (PHOTO_BYTES, "")
            try:
                return infer(client, [image], *parameters)
            except grpc.InferenceServerException as error:
                return f"{error.status()} {error.message()}"

        answers = list(pool.map(ask, requests))

    for case, answer in zip(requests, answers):
        if case is None:
            assert isinstance(answer, dict), answer
            assert_same(answer, expected, exact=False)
        else:
            assert isinstance(answer, str)
            assert "INVALID_ARGUMENT" in answer
            assert str(case[1]) in answer
    run = executions(server, "preprocess") - before
    assert run < len(requests), "nothing was batched, so nothing was put to the test"


@pytest.mark.parametrize("shape, data", [([0, 1], []), ([1, 2], ["a", "b"]), ([1], ["a"])])
def test_shape_that_is_no_batch_of_images_is_refused(
    server: RunningServer, shape: list[int], data: list[str]
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape, "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    reply = post(f"{server.http}/v2/models/yolov5_ensemble/infer", body)
    assert reply.status == 400, reply.body


FAULTS = sorted((SHARED.parent / "faults" / "png").glob("*.png"))


@pytest.mark.parametrize(
    "image, status",
    [
        pytest.param(attacks.frame_out_of_place, 200, id="frame out of place"),
        pytest.param(attacks.inflating_png, 400, id="inflating PNG"),
        pytest.param(attacks.two_widths, 400, id="two widths"),
        *(pytest.param(path.read_bytes, None, id=path.stem) for path in FAULTS),
    ],
)
def test_image_that_once_ended_a_server_is_answered_or_refused(
    server: RunningServer, image: Callable[[], bytes], status: int | None
) -> None:
    processes = server.processes("triton_python_backend_stub")
    found, body = attacks.send(server, image())
    assert found in ((status,) if status else (200, 400))
    if found == 400:
        assert b"image 1 of 1: " in body
    assert_same(ask_grpc(server.grpc, [PHOTO_BYTES]), ask_grpc(server.grpc, [PHOTO_BYTES]))
    assert server.processes("triton_python_backend_stub") == processes


@pytest.mark.skipif(not SHARED.exists(), reason="the hostile files are not at hand")
def test_hostile_files_are_answered_or_refused(server: RunningServer) -> None:
    files = [path for path in (SHARED / "nasty").rglob("*") if path.is_file()]
    assert len(files) > 300
    outcomes = {200: 0, 400: 0}
    for path in files:
        reply = post_raw(server.http, path.read_bytes())
        assert reply.status in outcomes, (path.name, reply.body)
        outcomes[reply.status] += 1
        if reply.status == 400:
            assert "image 1 of 1: " in reply.json()["error"]
    print(outcomes)
    assert_same(ask_grpc(server.grpc, [PHOTO_BYTES]), ask_grpc(server.grpc, [PHOTO_BYTES]))


@pytest.mark.parametrize("name", ["classes", "class_conf_thres"])
def test_long_parameters_are_refused_at_once(server: RunningServer, name: str) -> None:
    for text in ("0," * 2100, "0," * 2_000_000):
        with pytest.raises(InferenceServerException) as caught:
            ask_grpc(server.grpc, [PHOTO_BYTES], {name: text})
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "allowed: at most 4096 bytes" in caught.value.message() or (
            "allowed: at most 262144" in caught.value.message()
        )
