"""The endpoint of the contract: names, shapes, and all transports."""

from __future__ import annotations

import base64
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from support import (
    PHOTO,
    Outputs,
    RunningServer,
    ask_grpc,
    assert_same,
    image_tensor,
    parse_binary,
    parse_json,
    post,
    post_raw,
    row,
    samples,
)

CONTRACT = {
    "image": ("BYTES", [-1, 1]),
    "num_dets": ("INT32", [-1, 1]),
    "det_boxes": ("FP32", [-1, -1, 4]),
    "det_scores": ("FP32", [-1, -1]),
    "det_classes": ("INT32", [-1, -1]),
    "det_labels": ("BYTES", [-1, -1]),
    "image_size": ("INT32", [-1, 2]),
}


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def ask_http_binary(server: RunningServer, image: bytes, **parameters: Any) -> Outputs:
    with http.InferenceServerClient(server.http.removeprefix("http://")) as client:
        tensor = image_tensor(http, [image])
        result = client.infer("yolov5_ensemble", [tensor], parameters=parameters)
        names = [output["name"] for output in result.get_response()["outputs"]]
        return {name: result.as_numpy(name) for name in names}


def ask_http_json(server: RunningServer, text: str, **parameters: Any) -> Outputs:
    body = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}],
        "parameters": parameters,
    }
    reply = post(f"{server.http}/v2/models/yolov5_ensemble/infer", json.dumps(body).encode())
    assert reply.status == 200, reply.body
    return parse_json(reply.json()["outputs"])


def ask_generate(server: RunningServer, text: str, **parameters: Any) -> Outputs:
    body = {"image": text, "parameters": parameters}
    reply = post(f"{server.http}/v2/models/yolov5_ensemble/generate", json.dumps(body).encode())
    assert reply.status == 200, reply.body
    answer = {name: value for name, value in reply.json().items() if name in CONTRACT}
    # /generate flattens arrays, and writes an array of one element as that element.
    count = answer["num_dets"]
    shapes = {"det_boxes": (1, count, 4), "image_size": (1, 2), "num_dets": (1, 1)}
    outputs: Outputs = {}
    for name, value in answer.items():
        values = value if isinstance(value, list) else [value]
        if name == "det_labels":
            values = [text.encode() for text in values]
        kind = {"FP32": np.float32, "INT32": np.int32, "BYTES": np.object_}[CONTRACT[name][0]]
        outputs[name] = np.array(values, kind).reshape(shapes.get(name, (1, count)))
    return outputs


def test_endpoint_is_ready(server: RunningServer) -> None:
    with urllib.request.urlopen(f"{server.http}/v2/models/yolov5_ensemble/ready") as answer:
        assert answer.status == 200


def test_endpoint_has_exactly_the_tensors_of_the_contract(server: RunningServer) -> None:
    metadata = get_json(f"{server.http}/v2/models/yolov5_ensemble")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image"]
    tensors = [*metadata["inputs"], *metadata["outputs"]]
    assert {t["name"]: (t["datatype"], t["shape"]) for t in tensors} == CONTRACT


@pytest.mark.parametrize("conf_thres", [0.25, 0.999], ids=["cells", "nothing"])
def test_every_transport_gives_the_same_answer(server: RunningServer, conf_thres: float) -> None:
    image = PHOTO.read_bytes()
    text = base64.b64encode(image).decode()
    expected = ask_grpc(server.grpc, [image], {"conf_thres": str(conf_thres)})
    assert expected["num_dets"].item() == (11 if conf_thres == 0.25 else 0)

    raw = post_raw(server.http, image, {"X-Yolo-Conf-Thres": str(conf_thres)})
    assert raw.status == 200
    assert_same(expected, parse_binary(raw))
    assert_same(expected, ask_http_json(server, text, conf_thres=conf_thres))
    uri = f"data:image/jpeg;base64,{text}"
    assert_same(expected, ask_http_json(server, uri, conf_thres=conf_thres))
    assert_same(expected, ask_generate(server, text, conf_thres=conf_thres))
    assert_same(expected, ask_http_binary(server, image, conf_thres=conf_thres))


def test_full_batch_of_large_images_is_answered_as_json(server: RunningServer) -> None:
    """Triton 26.08 by itself refuses bodies over 64 MiB; eight images of 32 MiB are allowed."""
    photo = cv2.imread(str(PHOTO))
    assert photo is not None
    image = cv2.imencode(".bmp", photo.repeat(3, 0).repeat(3, 1))[1].tobytes()
    data = [base64.b64encode(image).decode()] * 8
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [8, 1], "data": data}]}
    text = json.dumps(body).encode()
    assert len(text) > 80 << 20
    url = f"{server.http}/v2/models/yolov5_ensemble/infer"
    reply = post(url, text, {"Content-Type": "application/json"})
    assert reply.status == 200, reply.body
    outputs = parse_json(reply.json()["outputs"])
    assert outputs["image_size"].tolist() == [[1440, 1920]] * 8
    assert_same(row(outputs, 7), ask_grpc(server.grpc, [image]), exact=False)


def test_headers_are_parameters_in_any_letter_case(server: RunningServer) -> None:
    image = PHOTO.read_bytes()
    expected = ask_grpc(server.grpc, [image], {"max_det": 2, "classes": "RBC"})
    reply = post_raw(server.http, image, {"x-yolo-MAX-DET": "2", "X-YOLO-classes": "1"})
    assert_same(expected, parse_binary(reply))
    assert expected["det_labels"].tolist() == [[b"RBC", b"RBC"]]


def test_classes_may_be_a_json_list_over_every_transport(server: RunningServer) -> None:
    image = PHOTO.read_bytes()
    expected = ask_grpc(server.grpc, [image], {"classes": "RBC,0"})
    listed = '["\\u0052BC", 0]'
    assert_same(expected, ask_grpc(server.grpc, [image], {"classes": listed}))
    assert_same(expected, parse_binary(post_raw(server.http, image, {"X-Yolo-Classes": listed})))
    text = base64.b64encode(image).decode()
    assert_same(expected, ask_generate(server, text, classes=listed))


def test_class_thresholds_are_read_over_every_transport(server: RunningServer) -> None:
    image = PHOTO.read_bytes()
    text = base64.b64encode(image).decode()
    expected = ask_grpc(server.grpc, [image], {"class_conf_thres": "RBC:0.5,0:0.8"})
    # Those over the lower threshold, less the ones that their own class's threshold excludes.
    every = ask_grpc(server.grpc, [image])
    kept = every["det_scores"][0] > np.array([0.8, 0.5, 0.25])[every["det_classes"][0]]
    assert 0 < kept.sum() < every["num_dets"].item()
    np.testing.assert_array_equal(expected["det_boxes"][0], every["det_boxes"][0][kept])
    for given in ("RBC:0.5,0:0.8", '{"Platelets": 0.8, "\\u0052BC": 0.5}', '{"0": 0.8, "1": 0.5}'):
        thresholds = {"class_conf_thres": given}
        assert_same(expected, ask_grpc(server.grpc, [image], thresholds))
        raw = post_raw(server.http, image, {"X-Yolo-Class-Conf-Thres": given})
        assert_same(expected, parse_binary(raw))
        assert_same(expected, ask_http_json(server, text, **thresholds))
        assert_same(expected, ask_generate(server, text, **thresholds))
        assert_same(expected, ask_http_binary(server, image, **thresholds))


@pytest.mark.parametrize("given", [{}, {"multi_label": True}, {"classes": "RBC,WBC"}], ids=str)
def test_class_threshold_below_the_others_is_honoured(
    server: RunningServer, given: dict[str, Any]
) -> None:
    """The network leaves out rows that no class needs; those that one class needs are there."""
    image = PHOTO.read_bytes()
    mixed = ask_grpc(
        server.grpc, [image], {**given, "conf_thres": 0.6, "class_conf_thres": "RBC:0.01"}
    )
    apart = [
        ask_grpc(server.grpc, [image], {**given, "conf_thres": conf_thres, "classes": classes})
        for conf_thres, classes in ((0.01, "RBC"), (0.6, "WBC"), (0.6, "Platelets"))
        if classes in given.get("classes", "RBC,WBC,Platelets")
    ]
    joined = {
        name: np.concatenate([one[name][0] for one in apart])
        for name in ("det_scores", "det_classes", "det_boxes")
    }
    order = np.argsort(-joined["det_scores"], kind="stable")
    assert apart[0]["num_dets"].item() > 11
    for name, values in joined.items():
        np.testing.assert_allclose(mixed[name][0], values[order], rtol=1e-6)


def test_header_may_hold_utf_8(server: RunningServer) -> None:
    """There is no such class, but the error shows that the name arrived intact."""
    as_bytes = "Katze 猫".encode().decode("latin-1")  # http.client sends Latin-1
    reply = post_raw(server.http, PHOTO.read_bytes(), {"X-Yolo-Classes": as_bytes})
    assert reply.status == 400
    assert "classes names 'Katze \\u732b'; allowed: indices from 0 to 2" in reply.json()["error"]


def test_concurrent_requests_of_different_thresholds_get_their_own_answers(
    server: RunningServer,
) -> None:
    """The step answers requests with a high conf_thres first."""
    heavy: dict[str, Any] = {"conf_thres": 0, "iou_thres": 1, "max_det": 1000}
    given = [heavy, {}, {"conf_thres": 0.5}, {**heavy, "multi_label": True, "agnostic_nms": True}]
    image = PHOTO.read_bytes()
    expected = [ask_grpc(server.grpc, [image], parameters) for parameters in given]
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda one: ask_grpc(server.grpc, [image], one), given * 4)]
    for answer, wanted in zip(answers, expected * 4):
        assert answer["num_dets"].tolist() == wanted["num_dets"].tolist()
        np.testing.assert_allclose(answer["det_scores"], wanted["det_scores"], atol=1e-3)


def test_parameters_choose_the_detections(server: RunningServer) -> None:
    image = PHOTO.read_bytes()
    everything = ask_grpc(server.grpc, [image])
    scores = everything["det_scores"][0]
    confident = ask_grpc(server.grpc, [image], {"conf_thres": "0.5"})
    assert confident["det_scores"][0].tolist() == [s for s in scores if s > 0.5]
    cells = ask_grpc(server.grpc, [image], {"classes": "0, WBC"})
    assert sorted(set(cells["det_classes"][0].tolist())) == [0, 2]
    # Only now a box may be reported with several classes.
    low = {"conf_thres": "0.01", "iou_thres": "1"}
    one = ask_grpc(server.grpc, [image], low)["num_dets"].item()
    several = ask_grpc(server.grpc, [image], {**low, "multi_label": True, "max_det": 1000})
    assert several["num_dets"].item() > one
    agnostic = ask_grpc(server.grpc, [image], {"agnostic_nms": True, "iou_thres": "0"})
    boxes = agnostic["det_boxes"][0]
    left_top = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    right_bottom = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlap = (right_bottom - left_top).clip(0).prod(2)
    assert overlap[~np.eye(len(boxes), dtype=bool)].max() < 1.0


def test_scores_descend_and_boxes_lie_within_the_image(server: RunningServer) -> None:
    answer = ask_grpc(server.grpc, [PHOTO.read_bytes()], {"conf_thres": "0.01"})
    assert np.all(np.diff(answer["det_scores"][0]) <= 0)
    height, width = answer["image_size"][0]
    boxes = answer["det_boxes"][0]
    assert boxes.min() >= 0
    assert boxes[:, [0, 2]].max() <= width
    assert boxes[:, [1, 3]].max() <= height


def test_metrics_count_images_and_detections(server: RunningServer) -> None:
    def values() -> list[float]:
        found = []
        for name, labels in (
            ("yolov5_images_total", {}),
            ("yolov5_detections_total", {"label": "WBC"}),
            ("yolov5_rejected_images_total", {"reason": "format"}),
            ("yolov5_decode_seconds_count", {}),
            ("yolov5_letterbox_seconds_count", {}),
            ("yolov5_nms_seconds_count", {}),
        ):
            (sample,) = samples(server.metrics, name, **labels)
            assert sample.labels == labels
            found.append(sample.value)
        return found

    def sent_by_the_launcher() -> float:
        found = samples(f"{server.health}/metrics", "yolov5_canaries_total", outcome="sent")
        return sum(sample.value for sample in found)

    time.sleep(0.5)  # for the updates of earlier requests, which are buffered
    canaries, before = sent_by_the_launcher(), values()
    ask_grpc(server.grpc, [PHOTO.read_bytes()] * 2)
    assert post_raw(server.http, b"no image").status == 400
    time.sleep(0.5)
    after = values()
    canaries = sent_by_the_launcher() - canaries  # of one pixel, of a server with little to do
    counted = [count - earlier for count, earlier in zip(after, before)]
    assert counted[1:3] == [2, 1]
    images, decoded, letterboxed, suppressed = (counted[index] - canaries for index in (0, 3, 4, 5))
    assert (images, decoded, letterboxed, suppressed) == (3, 2, 2, 2)


def test_management_apis_are_closed(server: RunningServer) -> None:
    for path in (
        "repository/index",
        "repository/models/yolov5/load",
        "systemsharedmemory/region/x/register",
        "logging",
        "trace/setting",
    ):
        assert post(f"{server.http}/v2/{path}", b"{}").status == 403, path
    with (
        grpc.InferenceServerClient(server.grpc) as client,
        pytest.raises(grpc.InferenceServerException, match="restricted"),
    ):
        client.register_system_shared_memory("x", "/x", 1)
