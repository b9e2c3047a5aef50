"""`POST /detect` and what is around it, in front of the real server: what it answers."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from api_service import RunningApi, running_api
from prometheus_client.parser import text_string_to_metric_families
from support import PHOTO, PHOTOS, SHARED, RunningServer, reference, wait_until

from yolov5_client import Client, Detections, InvalidRequestError

IMAGE = PHOTO.read_bytes()
BASE64 = base64.b64encode(IMAGE).decode()
PROBLEM = "application/problem+json"
KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def rest(api: RunningApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, timeout=60) as client:
        yield client


def members(found: Detections) -> dict[str, Any]:
    """An image of the answer, written from the client's detections."""
    columns = found.to_dict()
    height, width = columns["image_size"]
    rows = zip(columns["labels"], columns["classes"], columns["scores"], columns["boxes"])
    return {
        "width": width,
        "height": height,
        "detections": [
            {
                "label": label,
                "class_id": index,
                "score": score,
                "box": {"x1": box[0], "y1": box[1], "x2": box[2], "y2": box[3]},
            }
            for label, index, score, box in rows
        ],
    }


def wanted(server: RunningServer, image: bytes = IMAGE, **parameters: Any) -> dict[str, Any]:
    with Client(server.grpc) as client:
        return members(client.detect(image, **parameters))


def images(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    found: list[dict[str, Any]] = answer.json()["images"]
    return found


def problem(answer: httpx.Response, status: int) -> str:
    """The sentence of a problem, whose form is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == PROBLEM
    details = answer.json()
    assert details["status"] == status
    assert details["title"] and details["type"] == "about:blank"
    assert details["request_id"] == answer.headers["X-Request-Id"]
    sentence: str = details["detail"]
    assert not re.search(r"[\n/](tmp|work|home|usr)\b|Traceback", sentence)
    return sentence


# What it takes and answers


def test_answer_has_an_object_for_each_detection(server: RunningServer, rest: httpx.Client) -> None:
    answer = rest.post("/detect", files={"image": IMAGE})
    assert images(answer) == [wanted(server)]
    assert answer.json()["model"] == "yolov5"
    assert re.fullmatch(r"\d+", answer.json()["version"])
    assert 0 < answer.json()["milliseconds"] < 60_000
    best = answer.json()["images"][0]["detections"][0]
    assert best["label"] == "WBC" and best["class_id"] == 2
    assert best["score"] == pytest.approx(0.82, abs=0.01)
    assert [*best["box"].values()] == pytest.approx([194, 94, 398, 287], abs=1)


def test_bccd_photos_have_the_detections_that_grpc_gives(
    server: RunningServer, rest: httpx.Client
) -> None:
    shared = SHARED / "bccd" / "photos"
    photos = sorted((shared if shared.is_dir() else PHOTOS).glob("*.jpg"))
    assert len(photos) in (8, 72)
    with Client(server.grpc) as client, ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda path: rest.post("/detect", content=path.read_bytes()), photos)
        for path, answer in zip(photos, answers):
            [found] = images(answer)
            direct = members(client.detect(path))
            assert [one["label"] for one in found["detections"]] == [
                one["label"] for one in direct["detections"]
            ]
            for one, other in zip(found["detections"], direct["detections"]):
                # Which images share a batch may change the last digit.
                assert one["score"] == pytest.approx(other["score"], abs=1e-5)
                assert [*one["box"].values()] == pytest.approx([*other["box"].values()], abs=1e-3)


def test_bccd_photos_have_the_detections_of_the_reference(rest: httpx.Client) -> None:
    expected = reference(Path(__file__).parents[1] / "data" / "bccd_reference.json")
    for path in sorted(PHOTOS.iterdir()):
        [found] = images(rest.post("/detect", content=path.read_bytes()))
        rows = [
            [*one["box"].values(), one["score"], one["class_id"]] for one in found["detections"]
        ]
        assert np.abs(np.array(rows) - expected[path.name]).max() < 0.01


@pytest.mark.parametrize(
    "request_",
    [
        {"content": IMAGE},
        {"content": IMAGE, "headers": {"Content-Type": "image/jpeg"}},
        {"content": IMAGE, "headers": {"Content-Type": "application/octet-stream"}},
        # What curl sends with --data-binary.
        {"content": IMAGE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"files": {"image": ("photo.jpg", IMAGE, "image/jpeg")}},
        {"data": {"image": BASE64}, "files": {"max_det": (None, b"300")}},
        {"json": {"image": BASE64}},
        {"json": {"image": f"data:image/jpeg;base64,{BASE64}"}},
        {"json": {"image": [BASE64]}},
    ],
    ids=["raw", "jpeg", "bytes", "curl", "form", "text", "base64", "uri", "list"],
)
def test_every_way_to_send_an_image_gives_the_same_answer(
    server: RunningServer, rest: httpx.Client, request_: dict[str, Any]
) -> None:
    assert images(rest.post("/detect", **request_)) == [wanted(server)]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_every_format_is_taken(server: RunningServer, rest: httpx.Client, suffix: str) -> None:
    photo = cv2.imread(str(PHOTO))
    assert photo is not None
    encoded = cv2.imencode(suffix, photo)[1].tobytes()
    found = images(rest.post("/detect", content=encoded))
    assert found == [wanted(server, encoded)]
    assert len(found[0]["detections"]) > 5


def test_parameters_are_taken_from_the_query_the_form_and_the_json(
    server: RunningServer, rest: httpx.Client
) -> None:
    parameters: dict[str, Any] = {
        "conf_thres": 0.5,
        "classes": "WBC,RBC",
        "max_det": 2,
        "agnostic_nms": "true",
    }
    direct = wanted(server, conf_thres=0.5, classes=["WBC", "RBC"], max_det=2, agnostic_nms=True)
    assert len(direct["detections"]) == 2
    answers = [
        rest.post("/detect", content=IMAGE, params=parameters),
        rest.post("/detect", files={"image": IMAGE}, data=parameters),
        rest.post("/detect", files={"image": IMAGE}, data={"max_det": "2"}, params={
            name: value for name, value in parameters.items() if name != "max_det"
        }),
        rest.post("/detect", json={
            "image": BASE64, "conf_thres": 0.5, "classes": ["WBC", 1], "max_det": 2,
            "agnostic_nms": True,
        }),
    ]  # fmt: skip
    assert [images(answer) for answer in answers] == [[direct]] * 4
    by_class: dict[str, Any] = {"class_conf_thres": {"RBC": 0.6, "WBC": 0.5, "Platelets": 1}}
    found = images(rest.post("/detect", json={"image": BASE64, **by_class}))
    assert found == [wanted(server, **by_class)]


def test_several_images_are_answered_in_their_order(
    server: RunningServer, rest: httpx.Client
) -> None:
    photos = [path.read_bytes() for path in sorted(PHOTOS.iterdir())]
    direct = [wanted(server, photo) for photo in photos]
    form = [("image", photo) for photo in photos]
    texts = [base64.b64encode(photo).decode() for photo in photos]
    for answer in (rest.post("/detect", files=form), rest.post("/detect", json={"image": texts})):
        found = images(answer)
        assert [len(one["detections"]) for one in found] == [
            len(one["detections"]) for one in direct
        ]
        for one, other in zip(found, direct):
            assert one["detections"][0]["score"] == pytest.approx(
                other["detections"][0]["score"], abs=1e-5
            )


def test_lines_come_one_for_each_image_as_soon_as_it_is_done(
    server: RunningServer, rest: httpx.Client
) -> None:
    form = [*[("image", IMAGE)] * 7, ("image", b"no image")]
    headers = {"Accept": "application/x-ndjson"}
    with rest.stream("POST", "/detect", files=form, headers=headers) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert sorted(line["index"] for line in lines) == [*range(8)]
    refused = next(line for line in lines if line["index"] == 7)
    assert refused != lines[-1], "the last image is refused before the others are answered"
    assert refused["problem"]["status"] == 400
    assert "image 8 of 8: not an image" in refused["problem"]["detail"]
    lines.remove(refused)
    direct = wanted(server)
    for line in lines:
        assert {name: line[name] for name in direct} == direct
        assert line["model"] == "yolov5" and line["milliseconds"] > 0


def test_picture_is_drawn(rest: httpx.Client) -> None:
    photo = cv2.imread(str(PHOTO))
    assert photo is not None
    for answer in (
        rest.post("/detect", content=IMAGE, headers={"Accept": "image/jpeg"}),
        rest.post("/detect.jpg", files={"image": IMAGE}),
        rest.post("/detect.jpg", json={"image": f"data:image/jpeg;base64,{BASE64}"}),
    ):
        assert answer.headers["Content-Type"] == "image/jpeg"
        drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        assert drawn is not None and drawn.shape == photo.shape
        changed = np.abs(drawn.astype(int) - photo).max(axis=2) > 60
        assert changed[92:98, 200:390].any(axis=0).mean() > 0.9, "the upper side of the best box"
        assert changed.mean() < 0.2
    none = rest.post("/detect.jpg", content=IMAGE, params={"conf_thres": 0.99})
    drawn = cv2.imdecode(np.frombuffer(none.content, np.uint8), cv2.IMREAD_COLOR)
    assert drawn is not None and np.abs(drawn.astype(int) - photo).max() < 40


# What it refuses


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"content": b"hello"}, "image 1 of 1: not an image of a supported format; allowed: "),
        ({"content": b""}, "there is no image; allowed: 1 to 8, as the body or in the field image"),
        ({"content": IMAGE[:2000]}, "image 1 of 1: "),
        ({"content": IMAGE, "params": {"conf_thres": "2"}}, "conf_thres is '2'; allowed: "),
        ({"content": IMAGE, "params": {"conf": "1"}}, "parameter 'conf' is unknown; allowed: "),
        ({"content": IMAGE, "params": {"image": "x"}}, "parameter 'image' is unknown"),
        ({"content": IMAGE, "params": {"model": "A B"}}, "model is 'A B'; allowed: "),
        ({"content": IMAGE, "params": {"classes": "cat"}}, "classes "),
        (
            {"files": {"image": IMAGE}, "data": {"max_det": "1"}, "params": {"max_det": "2"}},
            "'max_det' is given twice; allowed: once, in the query or in the body",
        ),
        ({"files": {"photo": IMAGE}}, "'photo' is a file; allowed: a file only in the field image"),
        ({"files": [("image", IMAGE)] * 9}, "the form cannot be read: Too many files."),
        ({"json": {"image": [BASE64] * 9}}, "there are 9 images; allowed: at most 8"),
        ({"json": {"image": 7}}, "image is not text; allowed: a string, or a list of at most 8"),
        ({"json": {"image": BASE64, "max_det": None}}, "max_det is None; "),
        ({"json": {"image": BASE64, "max_det": 10**30}}, "max_det is a number of more than 64"),
        ({"json": {"image": BASE64, "model": 7}}, "model is 7; allowed: "),
        (
            {
                "content": json.dumps({"image": BASE64, "classes": "\ud800"}),
                "headers": {"Content-Type": "application/json"},
            },
            "classes has halves of surrogate pairs",
        ),
        ({"json": []}, "the JSON is not an object"),
        ({"json": {"image": BASE64, "url": "http://x/"}}, "image and url are both given"),
        (
            {
                "content": b'{"max_det": 1, "max_det": 2}',
                "headers": {"Content-Type": "application/json"},
            },
            "'max_det' is given twice; allowed: once",
        ),
        (
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            "the body is not valid JSON",
        ),
        (
            {"content": b"[" * 50_000, "headers": {"Content-Type": "application/json"}},
            "the body is not valid JSON",
        ),
        (
            {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
            "the form cannot be read: Missing boundary in multipart",
        ),
        ({"files": [("image", IMAGE)] * 2, "headers": {"Accept": "image/jpeg"}}, "there are 2 "),
    ],
)
def test_bad_request_is_a_problem_with_one_sentence(
    rest: httpx.Client, request_: dict[str, Any], sentence: str
) -> None:
    assert problem(rest.post("/detect", **request_), 400).startswith(sentence)


@pytest.mark.parametrize("parameters", [{"conf_thres": "x"}, {"classes": "[1"}, {"max_det": "0"}])
def test_sentences_are_those_of_the_endpoint(
    server: RunningServer, rest: httpx.Client, parameters: dict[str, str]
) -> None:
    with Client(server.grpc) as client, pytest.raises(InvalidRequestError) as refused:
        client.detect(PHOTO, **parameters)
    answer = rest.post("/detect", content=IMAGE, params=parameters)
    assert problem(answer, 400) == str(refused.value)


def test_one_bad_image_is_named_by_its_place(rest: httpx.Client) -> None:
    form = [("image", IMAGE), ("image", IMAGE), ("image", IMAGE[:3000])]
    assert problem(rest.post("/detect", files=form), 400).startswith("image 3 of 3: ")


def test_network_that_the_server_lacks_is_not_found(rest: httpx.Client) -> None:
    answer = rest.post("/detect", content=IMAGE, params={"model": "plates"})
    assert "no endpoint 'plates_ensemble'" in problem(answer, 404)


def test_other_paths_and_methods_say_what_is_allowed(rest: httpx.Client) -> None:
    assert "allowed: POST /detect" in problem(rest.get("/v2/models"), 404)
    answer = rest.get("/detect")
    assert "allowed: POST" in problem(answer, 405)
    assert answer.headers["Allow"] == "POST"
    assert problem(rest.post("/models"), 405)


def test_compressed_body_is_refused(rest: httpx.Client) -> None:
    answer = rest.post("/detect", content=IMAGE, headers={"Content-Encoding": "gzip"})
    assert "compressed as 'gzip'; allowed: uncompressed" in problem(answer, 415)


def test_server_that_is_away_makes_callers_come_back_later() -> None:
    with running_api("127.0.0.1:9") as lonely, httpx.Client(base_url=lonely.url) as rest:
        answer = rest.post("/detect", content=IMAGE)
        assert problem(answer, 503)
        assert answer.headers["Retry-After"] == "1"
        assert problem(rest.get("/ready"), 503)
        assert rest.get("/live").json() == {"live": True}
        assert rest.get("/models").json()["models"][0]["version"] is None


# Images named by their address


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/photo.jpg")
        else:
            self.send_response(200 if self.path in ("/photo.jpg", "/large") else 404)
        self.end_headers()
        if self.path == "/photo.jpg":
            self.wfile.write(IMAGE)
        elif self.path == "/large":
            with suppress(OSError):  # the service hangs up
                for _ in range(40):
                    self.wfile.write(bytes(1 << 20))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Host) as listening:
        threading.Thread(target=listening.serve_forever).start()
        yield f"127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()


def test_image_is_fetched_only_from_a_host_that_the_operator_lists(
    server: RunningServer, rest: httpx.Client, host: str
) -> None:
    good = {"url": f"http://{host}/photo.jpg"}
    refused = problem(rest.post("/detect", json=good), 403)
    assert refused.endswith("allowed: none; the operator lists no host")
    with (
        running_api(server, f"--allow-url-host={host}") as allowing,
        httpx.Client(base_url=allowing.url, timeout=30) as rest,
    ):
        assert images(rest.post("/detect", json=good)) == [wanted(server)]
        two = {"url": [good["url"]] * 2}
        assert images(rest.post("/detect", json=two)) == [wanted(server)] * 2
        for path, reason in (
            ("none", "its host answers with HTTP 404"),
            ("elsewhere", "its host answers with HTTP 302"),
            ("large", "it has more than 32 MiB"),
        ):
            answer = rest.post("/detect", json={"url": f"http://{host}/{path}"})
            assert problem(answer, 400).endswith(f"cannot be fetched: {reason}")
        for url in (
            "http://127.0.0.1/photo.jpg",
            f"http://x@{host}/photo.jpg",
            f"http://{host}@example.com/",
            f"http://{host}\\@example.com/",
            "http://169.254.169.254/latest/meta-data/",
        ):
            assert f"allowed: {host}" in problem(rest.post("/detect", json={"url": url}), 403)
        for url in ("file:///etc/passwd", "ftp://x/y", "http://", "", f"http://{host}\t/x"):
            answer = rest.post("/detect", json={"url": url})
            assert problem(answer, 400).endswith("allowed: http:// or https://")


# Who may ask


def test_only_callers_with_a_key_are_answered(server: RunningServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# for the shop\n{KEY} shop\n\n")
    with (
        running_api(server, f"--api-keys={keys}") as closed,
        httpx.Client(base_url=closed.url, timeout=30) as rest,
    ):
        for headers in ({}, {"X-Api-Key": "x" * 16}, {"Authorization": "Basic x"}):
            answer = rest.post("/detect", content=IMAGE, headers=headers)
            assert "allowed: one in the header X-Api-Key" in problem(answer, 401)
            assert answer.headers["WWW-Authenticate"]
        assert problem(rest.get("/models"), 401)
        for headers in ({"X-Api-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert images(rest.post("/detect", content=IMAGE, headers=headers)) == [wanted(server)]
        for path in ("/", "/docs", "/openapi.json", "/live", "/ready", "/metrics"):
            assert rest.get(path).status_code == 200
        assert [one["caller"] for one in closed.access_log if one["path"] == "/detect"] == [
            *[""] * 3, "shop", "shop",
        ]  # fmt: skip
        assert KEY not in closed.output.read_text() + closed.errors.read_text()


# For operators


def test_request_id_is_in_the_answer_and_in_the_log(api: RunningApi, rest: httpx.Client) -> None:
    headers = {"X-Request-Id": "order-17"}
    answer = rest.post("/detect?conf_thres=0.123", content=IMAGE, headers=headers)
    assert answer.headers["X-Request-Id"] == "order-17"
    made = rest.post("/detect", content=b"x", headers={"X-Request-Id": "two words"})
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-Id"])
    wait_until(lambda: made.headers["X-Request-Id"] in api.output.read_text(), 5)
    first, second = api.access_log[-2:]
    assert {name: first[name] for name in ("request_id", "method", "path", "status", "images")} == {
        "request_id": "order-17", "method": "POST", "path": "/detect", "status": 200, "images": 1,
    }  # fmt: skip
    assert first["model"] == "yolov5" and 0 < first["milliseconds"] < 60_000
    assert second["status"] == 400 and "not an image" in second["problem"]
    assert "0.123" not in api.output.read_text(), "the query is not logged"


def test_metrics_count_requests_by_route_and_status(api: RunningApi, rest: httpx.Client) -> None:
    def count(status: int) -> float:
        families = text_string_to_metric_families(rest.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "yolov5_api_requests_total"
            and sample.labels == {"route": "/detect", "status": str(status)}
        )

    before = count(200), count(400)
    rest.post("/detect", content=IMAGE)
    rest.post("/detect", content=b"x")
    assert (count(200), count(400)) == (before[0] + 1, before[1] + 1)
    names = rest.get("/metrics").text
    for name in ("request_seconds_bucket", "requests_in_progress", "buffered_bytes"):
        assert f"yolov5_api_{name}" in names
    assert "process_resident_memory_bytes" in names


def test_networks_are_listed_as_the_launcher_serves_them(rest: httpx.Client) -> None:
    listed = rest.get("/models").json()
    assert listed["default"] == "yolov5"
    [model] = listed["models"]
    assert model["name"] == "yolov5" and model["ready"] is True
    assert re.fullmatch(r"\d+", model["version"]) and model["precision"]
    assert rest.get("/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port=70000"], "--port is 70000; allowed: 0 to 65535."),
        (["--model=A"], "--model is 'A'; allowed: "),
        (["--health=8003"], "--health is '8003'; allowed: "),
        (["--allow-url-host=http://x"], "--allow-url-host is 'http://x'; allowed: "),
        (["--allow-origin=*"], "--allow-origin is '*'; allowed: "),
        (["--in-flight=0"], "--in-flight is 0; allowed: "),
        (["--max-buffered-mib=1"], "--max-buffered-mib is 1; allowed: "),
        (["--upload-timeout=nan"], "--upload-timeout is nan; allowed: "),
        (["--drain=0"], "--drain is 0.0; allowed: "),
        (["--timeout=0"], "timeout is 0.0; allowed: "),
        (["--server=http://x:0"], "'http://x:0' is no address; allowed: "),
        (["--api-keys=/none"], "--api-keys cannot read /none: "),
    ],
)
def test_flag_that_cannot_be_used_ends_the_start(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from yolov5_client import _cli

    assert _cli.main(["api", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
