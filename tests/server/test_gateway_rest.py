"""The REST service behind the gateway: what passes, what does not, and whose word counts."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from api_service import running_api
from gateways import NGINX, Gateway, running_gateway
from support import PHOTO, RAW, ROOT, Reply, RunningServer, free_ports, metric, wait_until

from yolov5_client import Client
from yolov5_client._api.detect import image_members, to_json

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

IMAGE = PHOTO.read_bytes()
IN_JSON = json.dumps({"image": base64.b64encode(IMAGE).decode()}).encode()
JSON = {"Content-Type": "application/json"}
YOLOV5, PLATES = "yolov5_ensemble", "plates_ensemble"
KEYS = {
    "all": "a1" * 32,
    "yolov5 [yolov5_ensemble]": "b2" * 32,
    "plates [plates_ensemble]": "c3" * 32,
    "none []": "d4" * 32,
}
NO_RIGHT = "the caller has no right to this endpoint; allowed: "
PAGES = ("/", "/docs", "/openapi.json")


@pytest.fixture(scope="module")
def gateway(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with keys of several rights, and a second endpoint that Triton does not know."""
    folder = tmp_path_factory.mktemp("gateway")
    lines = [f'"{key}" "{name}";\n' for name, key in KEYS.items()]
    (folder / "keys.map").write_text("".join(lines))
    repository = tmp_path_factory.mktemp("models")
    for name in ("yolov5", YOLOV5, "plates", PLATES, "preprocess", "postprocess"):
        (repository / name).mkdir()
    with running_gateway(server, folder, f"--repository={repository}") as running:
        yield running


def key(name: str) -> dict[str, str]:
    return {"X-Api-Key": next(key for full, key in KEYS.items() if full.split(" ")[0] == name)}


def form(**fields: bytes) -> tuple[bytes, dict[str, str]]:
    """Make the body of a form, and its type."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
        % (name.encode(), b'; filename="x"' if name == "image" else b"", value)
        for name, value in fields.items()
    ]
    return b"".join([*parts, b"--edge--\r\n"]), {
        "Content-Type": "multipart/form-data; boundary=edge"
    }


def assert_problem(reply: Reply, status: int, detail: str, path: str = "") -> None:
    """Assert that an answer has the form of the service's own errors on that path."""
    assert reply.status == status
    members, headers = reply.json(), {name.lower(): text for name, text in reply.headers.items()}
    if path.startswith("/v1/"):
        assert headers["content-type"] == "application/json"
        assert [*members] == ["success", "error", "code"]
        assert (members["success"], members["code"]) == (False, status)
        assert members["error"].startswith(detail), members
        assert headers["x-request-id"]
        return
    assert headers["content-type"] == "application/problem+json"
    assert [*members] == ["type", "title", "status", "detail", "request_id"]
    assert members["title"] == http.HTTPStatus(status).phrase
    assert (members["type"], members["status"]) == ("about:blank", status)
    assert members["detail"].startswith(detail), members["detail"]
    assert headers["x-request-id"] == members["request_id"]


def large_image() -> bytes:
    """Make an image that keeps the server busy for a while."""
    pixels = np.random.default_rng(1).integers(0, 255, (700, 900, 3), np.uint8)
    coded, data = cv2.imencode(".jpg", cv2.resize(pixels, (9000, 7000)))
    assert coded
    return data.tobytes()


def ask_service(gateway: Gateway, path: str) -> bytes:
    """Ask the service as its operator does, on its socket."""
    with socket.socket(socket.AF_UNIX) as unix:
        unix.settimeout(30)
        unix.connect(str(gateway.folder / "rest.socket"))
        connection = http.client.HTTPConnection("localhost")
        connection.sock = unix
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read()


def service_log(gateway: Gateway) -> list[dict[str, Any]]:
    lines = (gateway.folder / "rest.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def service_process(gateway: Gateway) -> psutil.Process | None:
    for child in psutil.Process(gateway.process.pid).children():
        if "yolov5_client._cli" in child.cmdline():
            return child
    return None


# ---------------------------------------------------------------------------------------------
# What goes through


def test_every_form_is_answered_with_what_grpc_answers(
    server: RunningServer, gateway: Gateway
) -> None:
    body, kind = form(image=IMAGE, conf_thres=b"0.4")
    with Client(server.grpc) as direct:
        wanted = json.loads(to_json(image_members(direct.detect(PHOTO, conf_thres=0.4))))
    assert len(wanted["detections"]) > 5
    for path, sent, headers in (
        ("/detect?conf_thres=0.4", IMAGE, {"Content-Type": "image/jpeg"}),
        ("//detect?conf_thres=0.4", IMAGE, RAW),
        ("/x/../detect?conf_thres=0.4&model=yolov5", IN_JSON, JSON),
        ("/detect", body, kind),
    ):
        reply = gateway.ask(path, sent, headers)
        assert reply.status == 200, reply
        assert reply.json()["model"] == "yolov5"
        assert reply.json()["images"] == [wanted]


def test_picture_is_passed_on(gateway: Gateway) -> None:
    for path, headers in (("/detect.jpg", RAW), ("/detect", {**RAW, "Accept": "image/jpeg"})):
        reply = gateway.ask(path, IMAGE, headers)
        assert (reply.status, reply.headers["Content-Type"]) == (200, "image/jpeg")
        drawn = cv2.imdecode(np.frombuffer(reply.body, np.uint8), 1)
        assert drawn is not None and drawn.shape == (480, 640, 3)


def test_line_of_a_fast_image_does_not_wait_for_that_of_a_slow_one(gateway: Gateway) -> None:
    parts = form(image=large_image())[0].removesuffix(b"--edge--\r\n"), form(image=IMAGE)[0]
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = gateway.connect()
    headers = {"Accept": "application/x-ndjson", **form()[1], **key("all")}
    connection.request("POST", "/detect", b"".join(parts), headers)
    answer = connection.getresponse()
    first, after_first = answer.readline(), time.perf_counter()
    second, after_second = answer.readline(), time.perf_counter()
    assert [json.loads(line)["index"] for line in (first, second)] == [1, 0]
    assert after_second - after_first > 0.05
    connection.close()


def test_chunked_body_reaches_the_service_whole(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection("127.0.0.1")
    connection.sock = gateway.connect()
    pieces = (IMAGE[start : start + 1000] for start in range(0, len(IMAGE), 1000))
    connection.request("POST", "/detect", pieces, {**RAW, **key("all")}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["images"][0]["detections"]) == 11
    connection.close()


def test_slow_upload_does_not_occupy_the_service(gateway: Gateway) -> None:
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEYS['all']}\r\n"
    with gateway.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(IMAGE)}\r\n\r\n".encode() + IMAGE[:1000])
        time.sleep(0.5)
        # The only request that it has is this one.
        assert b"\nyolov5_api_requests_in_progress 1.0\n" in ask_service(gateway, "/metrics")
        connection.sendall(IMAGE[1000:])
        assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_request_id_is_passed_on_unless_it_could_do_harm(gateway: Gateway) -> None:
    for given, passed in (("camera-7/2026:11", True), ('"},{"', False), ("x" * 129, False)):
        for path, wanted in (("/detect", 200), ("/detect?a=b", 400), ("/models", 405)):
            reply = gateway.ask(path, IMAGE, {**RAW, "X-Request-Id": given})
            assert reply.status == wanted
            headers = {name.lower(): value for name, value in reply.headers.items()}
            assert (headers["x-request-id"] == given) == passed
            assert re.fullmatch(r"[\w/:-]{16,32}", headers["x-request-id"])
    known = {line["request_id"] for line in service_log(gateway)}
    assert "camera-7/2026:11" in known
    assert known <= {line["request_id"] for line in gateway.logged(0)} | {
        line["request_id"] for line in service_log(gateway) if line["path"] == "/metrics"
    }


@pytest.mark.parametrize("accepted", ["application/json", "application/x-ndjson"])
def test_service_cancels_no_call_for_a_caller_who_hangs_up(
    server: RunningServer, accepted: str
) -> None:
    """Behind a gateway callers are strangers, and Triton 2.51 can end by a cancelled call."""

    def cancelled() -> int:
        return metric(server.metrics, "nv_inference_request_failure", reason="CANCELED")

    body = large_image()
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Yolov5-Endpoints: {YOLOV5}\r\n"
    head += f"Accept: {accepted}\r\n"
    before = cancelled()
    with running_api(server, "--gateway") as api:
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", api.port), 30) as caller:
                caller.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                time.sleep(0.1)
        wait_until(lambda: len(api.access_log) == 8, 60)
        assert {line["status"] for line in api.access_log} <= {200, 499}
        assert api.errors.read_text() == ""
    time.sleep(1)  # a cancelled call would be counted by now
    assert cancelled() == before


def test_caller_who_hangs_up_counts_as_one_until_its_image_is_done(gateway: Gateway) -> None:
    """Otherwise one that does nothing else could fill the server's queue."""
    body = large_image()
    head = f"POST /detect HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEYS['all']}\r\n"
    with gateway.changed("nginx.conf", ("callers 32", "callers 1")):
        with gateway.connect() as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: b"progress 2.0" in ask_service(gateway, "/metrics"), 10)
        assert_problem(gateway.ask("/detect", IMAGE), 429, "too many requests at once")
        wait_until(lambda: gateway.ask("/detect", IMAGE).status == 200, 20)


# ---------------------------------------------------------------------------------------------
# Who is let in, and to what


def test_pages_need_no_key_and_nothing_else_does_without(gateway: Gateway) -> None:
    for path in PAGES:
        reply = gateway.ask(path, headers={}, method="GET", key=False)
        assert reply.status == 200
        assert "plates" not in reply.body.decode()
    for method, path in (
        ("POST", "/detect"),
        ("POST", "/detect.jpg"),
        ("GET", "/models"),
        ("POST", "/v1/vision/detection"),
        ("POST", "/v1/vision/custom/yolov5"),
        ("GET", "/v1/vision/custom/list"),
    ):
        for headers in ({}, {"X-Api-Key": "0" * 64}, {"Authorization": "Bearer x"}):
            reply = gateway.ask(path, b"x", headers, method=method, key=False)
            sentence = "no API key, or one that is not known; allowed: one in"
            assert_problem(reply, 401, sentence, path)
            assert reply.headers["WWW-Authenticate"] == 'ApiKey realm="yolov5"'


def test_key_may_be_a_bearer_token(gateway: Gateway) -> None:
    bearer = {"Authorization": f"Bearer {KEYS['yolov5 [yolov5_ensemble]']}"}
    reply = gateway.ask("/models", headers=bearer, method="GET", key=False)
    assert [one["name"] for one in reply.json()["models"]] == ["yolov5"]
    wrong = {**bearer, "X-Api-Key": "0" * 64}  # it is not asked after a wrong key
    assert gateway.ask("/models", headers=wrong, method="GET", key=False).status == 401


def test_key_in_the_query_counts_on_the_routes_of_recorders_alone(gateway: Gateway) -> None:
    known = f"api_key={KEYS['all']}"
    for path in ("/models", "/detect", "/v2", "/v2/models/yolov5_ensemble/infer"):
        method = "GET" if path in ("/models", "/v2") else "POST"
        reply = gateway.ask(f"{path}?{known}", b"x", RAW, method=method, key=False)
        assert reply.status == 401
    for query, wanted in (
        (known, True),
        (f"min_confidence=0.4&{known}", True),
        (f"{known}&min_confidence=0.4", True),
        (f"xapi_key={KEYS['all']}", False),
        ("api_key=", False),
        (f"a#{known}", False),
    ):
        reply = gateway.ask(f"/v1/vision/detection?{query}", b"x", RAW, key=False)
        assert (reply.status != 401) == wanted, query
        assert known not in reply.body.decode()
    logs = [path for path in gateway.folder.iterdir() if path.suffix in (".log", "")]
    assert {path.name for path in logs} >= {"access.log", "error.log", "rest.log", "output"}
    assert not any("a1a1a1" in path.read_text() for path in logs if path.is_file())


def test_rights_hold_wherever_the_network_is_named(gateway: Gateway) -> None:
    body, kind = form(image=IMAGE, model=b"yolov5")
    in_json = json.dumps({**json.loads(IN_JSON), "model": "yolov5"}).encode()
    asked: list[tuple[str, bytes, Mapping[str, str]]] = [
        ("/detect", IMAGE, RAW),
        ("/detect?model=yolov5", IMAGE, RAW),
        ("/detect.jpg?model=yolov5", IMAGE, RAW),
        ("/detect?m%6fdel=yolov5", IMAGE, RAW),
        ("/detect", body, kind),
        ("/detect", in_json, JSON),
    ]
    for path, sent, headers in asked:
        reply = gateway.ask(path, sent, {**headers, **key("yolov5")}, key=False)
        assert reply.status == 200
        reply = gateway.ask(path, sent, {**headers, **key("plates")}, key=False)
        assert_problem(reply, 403, f"{NO_RIGHT}{PLATES}")
        reply = gateway.ask(path, sent, {**headers, **key("none")}, key=False)
        assert_problem(reply, 403, f"{NO_RIGHT}none")
    reply = gateway.ask("/detect?model=plates", IMAGE, {**RAW, **key("plates")}, key=False)
    assert "plates_ensemble" in reply.json()["detail"]
    assert "no right" not in reply.json()["detail"]  # Triton does not know it


def test_rights_hold_for_a_network_in_the_path(gateway: Gateway) -> None:
    body, kind = form(image=IMAGE)
    for path in ("/v1/vision/custom/yolov5", "/v1/vision/detection"):
        reply = gateway.ask(path, body, {**kind, **key("yolov5")}, key=False)
        assert (reply.status, reply.json()["success"]) == (200, True)
        reply = gateway.ask(path, body, {**kind, **key("plates")}, key=False)
        assert reply.json() == {"success": False, "error": f"{NO_RIGHT}{PLATES}", "code": 403}
    reply = gateway.ask("/v1/vision/custom/list", headers=key("yolov5"), method="GET", key=False)
    assert reply.json()["models"] == ["yolov5"]


def test_list_of_networks_has_those_of_the_caller(gateway: Gateway) -> None:
    for name, wanted in (("all", ["yolov5"]), ("yolov5", ["yolov5"]), ("plates", [])):
        reply = gateway.ask("/models", headers=key(name), method="GET", key=False)
        assert [one["name"] for one in reply.json()["models"]] == wanted


@pytest.mark.parametrize(
    "forged",
    [
        [("X-Yolov5-Endpoints", YOLOV5)],
        [("x-yolov5-endpoints", f"{YOLOV5},{PLATES}"), ("X-Yolov5-Endpoints", YOLOV5)],
        [("X_Yolov5_Endpoints", YOLOV5)],
        [("X-Yolov5_Endpoints", YOLOV5), ("X_YOLOV5-ENDPOINTS", YOLOV5)],
        [("Connection", "X-Yolov5-Endpoints, X-Api-Key, close")],
        [("X-Forwarded-For", "127.0.0.1"), ("X-Original-Url", "/metrics")],
    ],
)
def test_caller_has_no_say_about_its_rights(
    gateway: Gateway, forged: list[tuple[str, str]]
) -> None:
    given = [*RAW.items(), *key("plates").items(), *forged]
    assert_problem(gateway.ask("/detect", IMAGE, given, key=False), 403, f"{NO_RIGHT}{PLATES}")
    given = [*RAW.items(), *forged]
    assert gateway.ask("/detect", IMAGE, given, key=False).status == 401


def test_page_of_another_site_is_refused(gateway: Gateway) -> None:
    own = {"Origin": f"https://{gateway.address}", "Sec-Fetch-Site": "same-origin"}
    assert gateway.ask("/detect", IMAGE, {**RAW, **own}).status == 200
    for other in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = gateway.ask("/detect", IMAGE, {**RAW, **own, **other})
        assert_problem(reply, 403, "the request comes from a page of another site")


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/live",
        "/ready",
        "//metrics",
        "/detect/../metrics",
        "/detect/%2e%2e/metrics",
        "/%6detrics",
        "/detect%2f..%2fmetrics",
        "/detect/",
        "/detect%00",
        "/detect%0d%0aX:%20y",
        "/detect;x",
        "/DETECT",
        "/detect%3fmodel=yolov5",
        "/docs/..%2flive",
        "/v1/vision/custom/../../../metrics",
        "/v1/vision/custom/..%2f..%2f..%2fmetrics",
        "/v1/vision/custom/a%0d%0aX:%20y",
        "/v1/vision/custom/a%20HTTP/1.1",
        "/v1/vision/custom/a%3fb",
        "/v1/vision/custom/",
        "/v1/vision/custom/a/b",
        "/v1/vision/face",
        "/refused/v1/401",
        "/refused/problem/401",
        "/rest",
    ],
)
def test_other_paths_do_not_reach_the_service(gateway: Gateway, path: str) -> None:
    # The lines of requests before this one come after their answers; this one's comes after theirs.
    mark = {"X-Request-Id": f"before-{uuid.uuid4().hex}"}
    assert gateway.ask("/models", None, mark, method="GET").status == 200
    wait_until(lambda: service_log(gateway)[-1]["request_id"] == mark["X-Request-Id"], 20)
    before = len(service_log(gateway))
    for method in ("GET", "POST"):
        reply = gateway.ask(path, b"{}" if method == "POST" else None, JSON, method=method)
        # nginx itself refuses a null byte.
        assert reply.status == (400 if "%00" in path else 404)
        assert "error" in reply.json()
    assert len(service_log(gateway)) == before


def test_other_methods_are_told_the_right_one(gateway: Gateway) -> None:
    for path, allowed in (
        ("/", "GET"),
        ("/docs", "GET"),
        ("/models", "GET"),
        ("/detect", "POST"),
        ("/v1/vision/detection", "POST"),
        ("/v1/vision/custom/list", "GET, POST"),
        ("/v1/vision/custom/yolov5", "POST"),
    ):
        for method in {"GET", "POST", "DELETE", "OPTIONS"} - {*allowed.split(", ")}:
            reply = gateway.ask(path, b"{}", JSON, method=method)
            sentence = "the path is not asked for with this method; allowed: "
            assert_problem(reply, 405, sentence + allowed, path)
            assert reply.headers["Allow"] == allowed


def test_refusals_of_nginx_are_problems_on_these_routes(gateway: Gateway) -> None:
    zipped = {**RAW, "Content-Encoding": "gzip"}
    assert_problem(gateway.ask("/detect", b"x", zipped), 415, "the body is compressed; allowed:")
    twice = [*RAW.items(), ("Content_Type", "image/png")]
    assert_problem(gateway.ask("/detect", b"x", twice), 400, "a header is given twice or misspelt")
    reply = gateway.ask("/detect", bytes((48 << 20) + 1))
    assert_problem(reply, 413, "the request is too large; allowed: at most 48 MiB")


def test_strangers_cannot_store_bodies(gateway: Gateway) -> None:
    for path in PAGES:
        reply = gateway.ask(path, bytes(1 << 20), RAW, method="GET", key=False)
        assert_problem(reply, 400, "not a request that the gateway understands")


def test_pages_are_limited_by_address(gateway: Gateway) -> None:
    logged = (gateway.folder / "error.log").read_text()
    with gateway.changed("nginx.conf", ("rate=20r/s", "rate=1r/m"), ("burst=100", "burst=1")):
        replies = [gateway.ask("/docs", None, {}, method="GET", key=False) for _ in range(4)]
        assert_problem(replies[3], 429, "too many requests at once; try again later")
        assert replies[3].headers["Retry-After"] == "1"
        assert gateway.ask("/models", None, {}, method="GET").status == 200
    assert (gateway.folder / "error.log").read_text() == logged


@pytest.mark.parametrize(
    "query",
    ["&".join(f"a{i}=1" for i in range(800)), "x=" + "%25" * 2000, "conf_thres=1#?model=plates"],
    ids=["many", "long", "fragment"],
)
def test_odd_query_is_answered_by_one_who_understands_it(gateway: Gateway, query: str) -> None:
    reply = gateway.ask(f"/detect?{query}", IMAGE)
    assert reply.status == (200 if "#" in query else 400)


# ---------------------------------------------------------------------------------------------
# Its life


def test_service_is_started_again_and_triton_is_answered_meanwhile(gateway: Gateway) -> None:
    service = service_process(gateway)
    assert service is not None
    service.suspend()  # its socket stays, and nginx waits
    service.kill()
    infer = "/v2/models/yolov5_ensemble/infer"
    statuses = {gateway.ask("/models", None, {}, method="GET").status for _ in range(5)}
    assert statuses <= {200, 502}
    assert gateway.ask(infer, IMAGE).status == 200
    wait_until(lambda: gateway.ask("/models", None, {}, method="GET").status == 200, 20)
    again = service_process(gateway)
    assert again is not None and again.pid != service.pid
    output = (gateway.folder / "output").read_text()
    assert "The REST service ended by itself (exit status -9); it is started again." in output


def test_service_that_is_away_is_a_problem(gateway: Gateway) -> None:
    with gateway.changed("nginx.conf", ("rest.socket", "no.socket")):
        reply = gateway.ask("/detect", IMAGE)
        assert_problem(reply, 502, "the server behind the gateway cannot be reached")
        assert reply.headers["Retry-After"] == "1"


def test_operator_can_let_prometheus_read_the_metrics(gateway: Gateway) -> None:
    (port,) = free_ports(1)
    text = (gateway.folder / "nginx.conf").read_text()
    block = re.search(r"    # server \{\n(    # .*\n)+?    # \}\n", text)
    assert block is not None
    opened = block[0].replace("    # ", "    ").replace("8004", str(port))
    with gateway.changed("nginx.conf", (block[0], opened)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/metrics")
        assert b"yolov5_api_requests_total" in connection.getresponse().read()
        connection.request("GET", "/models")
        assert connection.getresponse().status == 404
        connection.close()


def test_gateway_without_the_service_has_none_of_its_routes(
    server: RunningServer, tmp_path: Path
) -> None:
    with running_gateway(server, tmp_path, "--no-rest") as gateway:
        assert service_process(gateway) is None
        for path, method in (("/", "GET"), ("/models", "GET"), ("/detect", "POST")):
            reply = gateway.ask(path, headers={}, method=method)
            assert (reply.status, reply.headers["Content-Type"]) == (404, "application/json")
            assert reply.json()["error"].startswith("no such route; allowed: POST /v2/models/")


def test_service_that_cannot_start_is_reported(server: RunningServer, tmp_path: Path) -> None:
    command = [sys.executable, "deploy/gateway/run.py", f"--port={free_ports(1)[0]}"]
    names = ("--http-port", "--grpc-port", "--metrics-port", "--health-port")
    command += [f"{name}={port}" for name, port in zip(names, server.ports)]
    done = subprocess.run(
        [*command, f"--folder={tmp_path}", "--rest-flags=--in-flight 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "--in-flight is 1; allowed: 8 or more." in done.stderr
    assert done.stderr.endswith(
        "error: The REST service ended by itself (exit status 2); --no-rest does without it.\n"
    )


def test_service_ends_with_the_gateway(server: RunningServer, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with running_gateway(server, tmp_path) as gateway:
            service = service_process(gateway)
            assert service is not None
            os.kill(gateway.process.pid, number)
            gateway.process.wait(15)
            wait_until(lambda service=service: not service.is_running(), 12)  # type: ignore[misc]
