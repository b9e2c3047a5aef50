"""nginx in front of the real server: what it passes on, what it refuses, and its messages."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
import trustme
from gateways import NGINX, Gateway, running_gateway, wait_for
from support import (
    BUNDLED,
    PHOTO,
    RAW,
    ROOT,
    TRITON_FLAGS,
    Reply,
    RunningServer,
    assert_same,
    free_ports,
    image_tensor,
    make_repository,
    parse_binary,
    post_raw,
    running_server,
)
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from yolov5_build.cli import main as build
from yolov5_client import (
    TLS,
    Client,
    DeniedError,
    InvalidRequestError,
    TimedOutError,
    UnavailableError,
)

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

IMAGE = PHOTO.read_bytes()
INFER = "/v2/models/yolov5_ensemble/infer"
GENERATE = "/v2/models/yolov5_ensemble/generate"
JSON = {"Content-Type": "application/json"}
IN_JSON = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
EXAMINED = ["X-Api-Key", "Content-Type", "Content-Encoding", "Inference-Header-Content-Length"]
SCHEMES = pytest.mark.parametrize("scheme", ["https://", ""], ids=["https", "grpc"])


def peak(server: RunningServer) -> int:
    """Return the peak memory of Triton itself, in bytes."""
    (pid,) = server.processes("/tritonserver")
    status = Path("/proc", str(pid), "status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


# HTTP/2 by hand, for what no client library would send.

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC_HEADERS = [("content-type", "application/grpc"), ("te", "trailers")]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers_frame(
    gateway: Gateway, path: str, more: list[tuple[str, str]] | None = None, method: str = "POST"
) -> bytes:
    """Make a HEADERS frame with each header as a literal, without compression."""
    headers = {":method": method, ":scheme": "https", ":path": path, ":authority": "x"}
    block = b""
    for name, value in [*headers.items(), *gateway.key.items(), *(more or [])]:
        assert len(name) < 127 and len(value) < 127
        block += bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


def raw_grpc(gateway: Gateway, body: bytes, more: list[tuple[str, str]] | None = None) -> None:
    """Send these bytes as a call of ModelInfer; the result is in the log."""
    with gateway.connect("h2") as connection:
        call = headers_frame(gateway, MODEL_INFER, [*GRPC_HEADERS, *(more or [])])
        received = exchange(connection, PREFACE + frame(1, 4, 1, call) + grpc_data(body), answered)
        assert received is not None, "no answer within 30 s"


def exchange(
    connection: ssl.SSLSocket, data: bytes, ended: Callable[[bytes], bool]
) -> bytes | None:
    """Send and receive at once, until all is sent and `ended`, or the other side has enough.

    nginx need not have read all of it to refuse it. In one thread, since two may not use one
    connection of OpenSSL at a time. Returns what was received, None after 30 s.
    """
    connection.setblocking(False)
    left, received = memoryview(data), b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                left = left[connection.send(left[:65536]) :] if left else left
            part = connection.recv(65536)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not left and ended(received):
                return received
            select.select([connection], [connection] if left else [], [], 1)
        except (ConnectionError, ssl.SSLEOFError):
            return received
        else:
            received += part
            if not part:
                return received
    return None


def grpc_data(body: bytes, size: int = 16384) -> bytes:
    """Make DATA frames of at most `size` bytes, and the end of the stream."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(frame(0, 0, 1, piece) for piece in pieces) + frame(0, 1, 1)


def answered(received: bytes) -> bool:
    """Whether these frames contain the end of the first stream."""
    while len(received) >= 9:
        length, kind, flags = int.from_bytes(received[:3], "big"), received[3], received[4]
        stream = int.from_bytes(received[5:9], "big")
        if stream == 1 and (kind == 3 or (kind in {0, 1} and flags & 1)):
            return True
        received = received[9 + length :]
    return False


def message(data: bytes, flag: int = 0) -> bytes:
    """Add the prefix of a gRPC message."""
    return struct.pack(">BI", flag, len(data)) + data


def image_request(image: bytes) -> service_pb2.ModelInferRequest:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1]}
    request = service_pb2.ModelInferRequest(model_name="yolov5_ensemble", inputs=[tensor])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
    return request


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def gateway(
    server: RunningServer, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    authority.cert_pem.write_to_path(str(folder / "client-ca.pem"))
    with running_gateway(server, folder) as running:
        yield running


@pytest.fixture
def second_key(gateway: Gateway) -> Iterator[dict[str, str]]:
    line = (gateway.folder / "keys.map").read_text()
    with gateway.changed("keys.map", (line, f'{line}"{"cd" * 32}" "second";\n')):
        yield {"x-api-key": "cd" * 32}


@pytest.fixture(autouse=True)
def unharmed(server: RunningServer, gateway: Gateway) -> Iterator[None]:
    """Check after each test that the server still answers, directly and through the gateway."""
    yield
    direct = parse_binary(post_raw(server.http, IMAGE))
    assert direct["num_dets"].item() == 11
    assert_same(parse_binary(gateway.ask(INFER, IMAGE)), direct)


# ---------------------------------------------------------------------------------------------
# What goes through


@SCHEMES
def test_gateway_passes_answers_on_unchanged(
    server: RunningServer, gateway: Gateway, scheme: str
) -> None:
    with Client(server.grpc) as direct, gateway.client(scheme) as through:
        allowed: list[dict[str, Any]] = [
            {},
            {"conf_thres": 0.4, "classes": ["RBC", "0"]},
            {"class_conf_thres": {"RBC": 0.5, 0: 0.8}},
            {"class_conf_thres": '{"RBC": 0.5, "WBC": 0.1}'},
        ]
        for parameters in allowed:
            wanted = direct.detect(PHOTO, **parameters)
            assert len(wanted) > 2
            assert through.detect(PHOTO, **parameters).to_dict() == wanted.to_dict()
        for image, classes in ((b"no image", "RBC"), (IMAGE, "cat")):
            with pytest.raises(InvalidRequestError) as refused:
                direct.detect(image, classes=classes)
            with pytest.raises(InvalidRequestError) as same:
                through.detect(image, classes=classes)
            assert str(same.value) == str(refused.value)
        assert through.status().models == direct.status().models
        assert through.status().ready


def test_parameter_headers_arrive_in_any_spelling(gateway: Gateway) -> None:
    for name in ("X-Yolo-Max-Det", "x-yolo-max_det"):
        reply = gateway.ask(INFER, IMAGE, {**RAW, name: "2"})
        assert parse_binary(reply)["num_dets"].item() == 2
    reply = gateway.ask(INFER, IMAGE, {**RAW, "X-Yolo-Max-Dets": "2"})
    assert reply.status == 400
    assert "X-Yolo-Max-Dets' is unknown" in reply.json()["error"]


def test_base64_in_json_is_answered(gateway: Gateway) -> None:
    body = json.dumps({"image": base64.b64encode(IMAGE).decode()}).encode()
    for kind in ("application/json", "Application/JSON ; charset=utf-8"):
        reply = gateway.ask("/v2/models/yolov5_ensemble/generate", body, {"Content-Type": kind})
        assert reply.status == 200
        assert reply.json()["num_dets"] == 11


def test_probes_need_no_key_but_metadata_does(gateway: Gateway) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert gateway.ask(path, headers={}, method="GET", key=False).status == 200
    for path in ("/v2", "/v2/models/yolov5_ensemble", "/v2/models/yolov5_ensemble/ready"):
        assert gateway.ask(path, headers={}, method="GET").status == 200
        assert gateway.ask(path, headers={}, method="GET", key=False).status == 401


@SCHEMES
def test_connection_limit_of_nginx_loses_no_request(gateway: Gateway, scheme: str) -> None:
    change = ("100000;", "5;")  # keepalive_requests
    with (
        gateway.changed("nginx.conf", change),
        gateway.client(scheme, retry_for=20) as client,
    ):
        assert [len(found) for found in client.detect([PHOTO] * 40)] == [11] * 40


# ---------------------------------------------------------------------------------------------
# Who is let in


@SCHEMES
@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": ""}, {"X-Api-Key": "0" * 64}])
def test_request_without_a_known_key_is_refused(
    gateway: Gateway, scheme: str, headers: dict[str, str]
) -> None:
    with gateway.client(scheme, headers) as client:
        with pytest.raises(DeniedError, match="no API key in the header X-Api-Key, or one"):
            client.detect(PHOTO)
        with pytest.raises(DeniedError):
            client.status()


def certified(gateway: Gateway, authority: trustme.CA, folder: Path) -> TLS:
    mine = authority.issue_cert("client.example", common_name="the client")
    mine.cert_chain_pems[0].write_to_path(str(folder / "mine.pem"))
    mine.private_key_pem.write_to_path(str(folder / "my-key.pem"))
    return TLS(ca=gateway.certificate, certificate=folder / "mine.pem", key=folder / "my-key.pem")


@SCHEMES
def test_client_certificate_replaces_a_key(
    gateway: Gateway, authority: trustme.CA, tmp_path: Path, scheme: str
) -> None:
    before = len(gateway.log())
    with gateway.client(scheme, {}, certified(gateway, authority, tmp_path)) as client:
        assert len(client.detect(PHOTO)) == 11
    gateway.logged(before, ("the client", "200", "" if scheme else "0"))


@SCHEMES
def test_foreign_client_certificate_is_refused_even_with_a_key(
    gateway: Gateway, tmp_path: Path, scheme: str
) -> None:
    with (
        gateway.client(scheme, tls=certified(gateway, trustme.CA(), tmp_path)) as client,
        pytest.raises(DeniedError),
    ):
        client.detect(PHOTO)


def test_keys_are_reloaded_without_a_restart(gateway: Gateway) -> None:
    old = gateway.key
    line = (gateway.folder / "keys.map").read_text()
    new = f'"{"ab" * 32}" "second";\n'
    before = len(gateway.log())
    with gateway.changed("keys.map", (line, line + new)):
        for key in (old, {"X-Api-Key": "ab" * 32}):
            with gateway.client("https://", key) as client:
                assert len(client.detect(PHOTO)) == 11
        gateway.logged(before, ("first", "200", ""), ("second", "200", ""))
    with gateway.changed("keys.map", (line, new)):
        with gateway.client("", old) as client, pytest.raises(DeniedError):
            client.detect(PHOTO)
        gateway.logged(before, ("", "200", "16"))


def test_secrets_are_not_logged_and_private(gateway: Gateway) -> None:
    before = len(gateway.log())
    wrong = "0123456789abcdef" * 4
    gateway.ask(f"{INFER}?key={wrong}", IMAGE, {**RAW, "X-Api-Key": wrong}, key=False)
    gateway.ask(INFER, IMAGE)
    for entry in gateway.logged(before, ("", "401", ""), ("first", "200", "")):
        assert entry["request"] == f"POST {INFER}"
        if entry["status"] == "200":
            assert entry["bytes_in"] > len(IMAGE)
            assert 0 < float(entry["triton_seconds"]) <= entry["seconds"] + 0.001
    text = (gateway.folder / "access.log").read_text()
    assert wrong not in text
    assert gateway.key["x-api-key"] not in text + (gateway.folder / "error.log").read_text()
    for name in ("keys.map", "api-key.header", "key.pem"):
        assert (gateway.folder / name).stat().st_mode & 0o077 == 0


# ---------------------------------------------------------------------------------------------
# What is refused


def test_web_form_is_refused_and_the_server_survives(gateway: Gateway) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in (INFER, "/v2/models/yolov5_ensemble/generate"):
        reply = gateway.ask(path, bytes(5 << 20), form)
        assert reply.status == 415
        assert reply.json()["error"].startswith("the body is of a type that is not allowed")


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/octet-stream, application/x-www-form-urlencoded",
        "APPLICATION/X-WWW-FORM-URLENCODED",
        "application/json\tx",
    ],
)
def test_other_content_types_are_refused(gateway: Gateway, kind: str) -> None:
    assert gateway.ask(INFER, b"a=1", {"Content-Type": kind}).status == 415


def test_server_receives_only_an_allowed_content_type(gateway: Gateway) -> None:
    good, form = [("Content-Type", f"application/{x}") for x in ("json", "x-www-form-urlencoded")]
    for headers in ([good, form], [form, good]):
        assert gateway.ask(INFER, bytes(5 << 20), headers).json()["error"]
    # Triton's own Python client names none.
    length = {"Inference-Header-Content-Length": "0"}
    assert parse_binary(gateway.ask(INFER, IMAGE, length))["num_dets"].item() == 11


def test_compressed_bodies_are_refused(gateway: Gateway) -> None:
    packed = gzip.compress(IMAGE)
    assert gateway.ask(INFER, packed, {**RAW, "Content-Encoding": "gzip"}).status == 415
    with gateway.triton() as client, pytest.raises(InferenceServerException) as refused:
        client.infer(
            "yolov5_ensemble",
            [image_tensor(triton, [IMAGE])],
            headers=gateway.key,
            compression_algorithm="gzip",
        )
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "compressed" in refused.value.message()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (GENERATE, JSON),
        (INFER, JSON),
        (INFER, {}),
        (INFER, {"Content-Type": "application/octet-stream"}),
        (INFER, {**RAW, "Inference-Header-Content-Length": "150000"}),
        (GENERATE, RAW),
    ],
)
def test_deeply_nested_json_is_refused_and_the_server_survives(
    server: RunningServer, gateway: Gateway, path: str, headers: dict[str, str]
) -> None:
    before = server.processes("/tritonserver")
    for body in (b"[" * 150_000, rb'{"a": "\\", "inputs": ' + b'[{"a":' * 75_000):
        reply = gateway.ask(path, body, headers)
        assert reply.status == 400
        assert reply.json()["error"] == "the JSON is nested too deep; allowed: 16 levels"
    assert server.processes("/tritonserver") == before


def test_brackets_in_a_string_do_not_count_as_levels(gateway: Gateway) -> None:
    body = json.dumps({"image": "[" * 150_000, "conf_thres": '"' + "{" * 1000})
    reply = gateway.ask(GENERATE, body.encode(), JSON)
    assert reply.status == 400
    assert "conf_thres" in reply.json()["error"]


@pytest.mark.parametrize("piece", ["1,", '"",', " ", r'"\"",', "[],"])
def test_json_of_many_small_parts_is_refused_before_it_fills_the_memory(
    server: RunningServer, gateway: Gateway, piece: str
) -> None:
    before = peak(server)
    body = '{"a": [' + piece * ((40 << 20) // len(piece)) + "1]}"
    reply = gateway.ask(INFER, body.encode(), JSON)
    assert reply.status == 400
    assert reply.json()["error"].startswith("the request has too many parts; allowed: 64 kB of")
    assert peak(server) - before < 20 << 20


def test_string_of_backslashes_does_not_block_others(gateway: Gateway) -> None:
    body = b'{"a": "' + b"\\" * (40 << 20) + b'"}'
    started = time.monotonic()
    assert gateway.ask(GENERATE, body, JSON).status == 400
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "name", ["classification", r"cl\u0061ssification", r"\u0063lassificatio\u006E"]
)
def test_classification_of_an_output_is_refused_in_json(
    server: RunningServer, gateway: Gateway, name: str
) -> None:
    before = server.processes("/tritonserver")
    body = json.dumps(
        {
            "inputs": [{**IN_JSON, "data": [base64.b64encode(IMAGE).decode()]}],
            "outputs": [{"name": "det_labels", "parameters": {"NAME": 2}}],
        }
    ).replace("NAME", name)
    for headers in (JSON, {**JSON, "Inference-Header-Content-Length": str(len(body))}):
        reply = gateway.ask(INFER, body.encode(), headers)
        assert reply.status == 400
        assert reply.json()["error"].startswith("an output has the parameter 'classification'")
    assert server.processes("/tritonserver") == before


def test_classification_of_an_output_is_refused_over_grpc(
    server: RunningServer, gateway: Gateway
) -> None:
    before = server.processes("/tritonserver")
    with gateway.triton() as client, pytest.raises(InferenceServerException) as refused:
        client.infer(
            "yolov5_ensemble",
            [image_tensor(triton, [IMAGE])],
            outputs=[triton.InferRequestedOutput("det_labels", class_count=2)],
            headers=gateway.key,
        )
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message().startswith("an output has the parameter 'classification'")
    assert server.processes("/tritonserver") == before


@pytest.mark.parametrize("model", ["preprocess", "yolov5", "postprocess", "", "x" * 1000])
def test_other_models_are_refused_over_grpc(gateway: Gateway, model: str) -> None:
    with gateway.triton() as client, pytest.raises(InferenceServerException) as refused:
        client.infer(model, [image_tensor(triton, [IMAGE])], headers=gateway.key)
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert refused.value.message() == "no such model; allowed: yolov5_ensemble"


def test_eight_images_pass_as_json_as_binary_tensors_and_over_grpc(gateway: Gateway) -> None:
    image = base64.b64encode(IMAGE).decode()
    body = json.dumps({"inputs": [{**IN_JSON, "shape": [8, 1], "data": [[image]] * 8}]})
    reply = gateway.ask(INFER, body.encode(), JSON)
    found = {one["name"]: one["data"] for one in reply.json()["outputs"]}
    assert found["num_dets"] == [11] * 8

    tensor = image_tensor(triton_http, [IMAGE] * 8)
    outputs = [triton_http.InferRequestedOutput("num_dets", binary_data=True)]
    binary, length = triton_http.InferenceServerClient.generate_request_body(
        [tensor], outputs=outputs
    )
    reply = gateway.ask(INFER, binary, {**RAW, "Inference-Header-Content-Length": str(length)})
    assert parse_binary(reply)["num_dets"].ravel().tolist() == [11] * 8

    with gateway.triton() as client:
        tensor = image_tensor(triton, [IMAGE] * 8)
        answer = client.infer("yolov5_ensemble", [tensor], headers=gateway.key)
        assert answer.as_numpy("num_dets").ravel().tolist() == [11] * 8


def test_largest_allowed_image_passes_as_json(gateway: Gateway) -> None:
    image = base64.b64encode(IMAGE + bytes((32 << 20) - len(IMAGE))).decode()
    for text in (image, image.replace("A", "\u0041", 1000)):
        reply = gateway.ask(GENERATE, f'{{"image": "{text}"}}'.encode(), JSON)
        assert reply.json()["num_dets"] == 11


def test_incomplete_messages_are_refused(gateway: Gateway) -> None:
    good = bytes(image_request(IMAGE[:1000]).SerializeToString())
    packed = gzip.compress(good)
    cases = {
        b"\0\0\0": "3",
        b"\0\0\0\0\1": "3",
        message(good)[:-1]: "3",
        message(good) * 2: "3",
        message(good + b"\x32\x7f"): "3",
        message(b"\x0b" * 100): "3",
        message(b"\x32\x02\x12\x00" * 100_000): "3",
        message(packed, flag=1): "12",
    }
    for body, status in cases.items():
        before = len(gateway.log())
        raw_grpc(gateway, body)
        gateway.logged(before, ("first", "200", status))


@pytest.mark.parametrize(
    "headers",
    [
        [("grpc-encoding", "identity"), ("grpc-encoding", "gzip")],
        [("grpc_encoding", "identity"), ("grpc-encoding", "gzip")],
        [("grpc-encoding", "gzip"), ("grpc_encoding", "identity")],
        [("grpc_encoding", "gzip")],
        [("content-encoding", "identity"), ("content-encoding", "gzip")],
        [("grpc-encoding", "identity")],
        [("grpc-internal-encoding-request", "gzip")],
        [],
    ],
)
def test_compressed_messages_are_never_unpacked(
    server: RunningServer, gateway: Gateway, headers: list[tuple[str, str]]
) -> None:
    body = message(gzip.compress(bytes(200 << 20)), flag=1)
    before = peak(server)
    entries = len(gateway.log())
    raw_grpc(gateway, body, headers)
    one = gateway.logged(entries)[0]
    # nginx may refuse it before it has read everything, and close the connection.
    assert (one["status"], one["grpc_status"]) in {("200", "3"), ("200", "12"), ("499", "")}
    assert peak(server) - before < 20 << 20


@pytest.mark.parametrize("name", EXAMINED)
def test_examined_header_given_twice_or_misspelt_is_refused(gateway: Gateway, name: str) -> None:
    given = {"Content-Type": RAW["Content-Type"], "Inference-Header-Content-Length": "0"}
    value = {**given, **gateway.key, "X-Api-Key": gateway.key["x-api-key"]}.get(name, "identity")
    others = [(key, text) for key, text in given.items() if key != name]
    others += [] if name == "X-Api-Key" else [*gateway.key.items()]
    reply = gateway.ask(INFER, IMAGE, [*others, (name, value)], key=False)
    assert parse_binary(reply)["num_dets"].item() == 11
    for second in (name, name.replace("-", "_"), name.replace("-", "_", 1).upper()):
        reply = gateway.ask(INFER, IMAGE, [*others, (name, value), (second, value)], key=False)
        assert reply.status == 400
        assert reply.json()["error"].startswith("a header is given twice or misspelt with an und")


@pytest.mark.parametrize("length", ["-1", "0x10", "0, 5", "1e3", "00 5", "9" * 20])
def test_json_length_that_is_not_a_number_is_refused(gateway: Gateway, length: str) -> None:
    reply = gateway.ask(INFER, IMAGE, {**RAW, "Inference-Header-Content-Length": length})
    assert reply.status == 400
    assert "the last as a number" in reply.json()["error"]


@SCHEMES
def test_100_mb_are_refused(gateway: Gateway, scheme: str) -> None:
    with (
        gateway.client(scheme) as client,
        pytest.raises(InvalidRequestError, match="^the request is too large; allowed: at most 48"),
    ):
        client.detect(bytes(100 << 20))


def test_100_mb_without_a_length_are_refused(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        headers = {**RAW, **gateway.key, "Host": "x", "Transfer-Encoding": "chunked"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"POST {INFER} HTTP/1.1\r\n{head}\r\n".encode())
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        for _ in range(100):
            connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_largest_allowed_image_passes(gateway: Gateway) -> None:
    # A JPEG may be followed by anything.
    reply = gateway.ask(INFER, IMAGE + bytes((32 << 20) - len(IMAGE)))
    assert parse_binary(reply)["num_dets"].item() == 11


@pytest.mark.parametrize(
    "asked",
    [
        f"GET {INFER}",
        f"OPTIONS {INFER}",
        "POST /v2/models/yolov5/infer",
        "POST /v2/models/yolov5_ensemble/versions/1/infer",
        "POST /v2/models/yolov5_ensemble/generate_stream",
        "POST /v2/models/yolov5_ensemble/infer%0a",
        "POST /v2/models/yolov5_ensemble/infer/",
        "POST /v2/models/yolov5_ensemble/infer;x",
        "POST /V2/models/yolov5_ensemble/infer",
        "POST /inference.grpcinferenceservice/ModelInfer",
        "GET /v2/models/yolov5_ensemble/config",
        "GET /v2/models/yolov5_ensemble/stats",
        "GET /v2/models/stats",
        "GET /metrics",
        "POST /v2/repository/index",
        "POST /v2/repository/models/yolov5/unload",
        "POST /v2/repository/models/yolov5/load",
        "GET /v2/systemsharedmemory/status",
        "POST /v2/systemsharedmemory/region/x/register",
        "POST /v2/cudasharedmemory/region/x/register",
        "POST /v2/systemsharedmemory/unregister",
        "POST /v2/trace/setting",
        "POST /v2/logging",
        "GET /v2/logging",
        "GET /refused/404",
    ],
)
def test_other_routes_are_refused(gateway: Gateway, asked: str) -> None:
    method, path = asked.split(" ")
    reply = gateway.ask(path, b"{}", {"Content-Type": "application/json"}, method=method)
    assert reply.status == 404
    assert reply.json()["error"].startswith("no such route; allowed: POST /v2/models/")


def test_path_is_normalised_before_it_is_checked(gateway: Gateway) -> None:
    for path in (f"/v2/repository/..{INFER[3:]}?a=b", f"//v2/./{INFER[4:]}"):
        assert parse_binary(gateway.ask(path, IMAGE))["num_dets"].item() == 11


@pytest.mark.parametrize(
    "call",
    [
        lambda client, **key: client.get_model_repository_index(**key),
        lambda client, **key: client.load_model("yolov5", **key),
        lambda client, **key: client.unload_model("yolov5", **key),
        lambda client, **key: client.get_model_config("yolov5_ensemble", **key),
        lambda client, **key: client.get_inference_statistics(**key),
        lambda client, **key: client.register_system_shared_memory("x", "/x", 8, **key),
        lambda client, **key: client.register_cuda_shared_memory("x", b"", 0, 8, **key),
        lambda client, **key: client.get_system_shared_memory_status(**key),
        lambda client, **key: client.unregister_system_shared_memory(**key),
        lambda client, **key: client.get_trace_settings(**key),
        lambda client, **key: client.update_log_settings({"log_verbose_level": 1}, **key),
    ],
)
def test_management_over_grpc_is_refused(gateway: Gateway, call: Callable[..., object]) -> None:
    with gateway.triton() as client:
        with pytest.raises(InferenceServerException, match="no such route") as refused:
            call(client, headers=gateway.key)
        assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


def test_plain_http_gets_an_explanation(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), 30) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error": "not a request that the gateway understands' in answer


# ---------------------------------------------------------------------------------------------
# Endpoints, and keys that are for some of them

YOLOV5, PLATES = "yolov5_ensemble", "plates_ensemble"
KEYS = {
    "all": ("a1" * 32, "all"),
    "both": ("b2" * 32, "both [yolov5_ensemble, plates_ensemble]"),
    "yolov5": ("c3" * 32, "yolov5 [yolov5_ensemble]"),
    "plates": ("d4" * 32, "plates  [plates_ensemble]"),
    "none": ("e5" * 32, "none ["),
    "without a name": ("f6" * 32, "[plates_ensemble]"),
}
NO_RIGHT = "the caller has no right to this endpoint; allowed: "
SERVICE = "/inference.GRPCInferenceService/"
NOT_SERVED = "Request for unknown model: 'plates_ensemble' is not found"


@dataclass
class Site:
    """A gateway with a repository of its own, whose second endpoint Triton does not know."""

    gateway: Gateway
    repository: Path

    def key(self, name: str) -> dict[str, str]:
        return {"x-api-key": KEYS[name][0]}

    def question(self, path: str, key: str, method: str = "GET") -> Reply:
        body = IMAGE if method == "POST" else None
        return self.gateway.ask(path, body, {**RAW, **self.key(key)}, method=method, key=False)

    def call(self, method: str, body: bytes, key: str) -> tuple[str, str, bytes]:
        return raw_call(self.gateway, method, body, self.key(key))


@pytest.fixture(scope="module")
def site(
    server: RunningServer, authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority.cert_pem.write_to_path(str(folder / "client-ca.pem"))
    lines = [f'"{key}" "{name}";\n' for key, name in KEYS.values()]
    (folder / "keys.map").write_text("".join(lines))
    repository = tmp_path_factory.mktemp("models")
    for name in ("yolov5", YOLOV5, "plates", PLATES, "preprocess", "postprocess"):
        (repository / name).mkdir()
    with running_gateway(server, folder, f"--repository={repository}") as running:
        yield Site(running, repository)


def raw_call(
    gateway: Gateway | str, method: str, body: bytes, key: Mapping[str, str] | None = None
) -> tuple[str, str, bytes]:
    """Send these bytes as a message; return the status, its sentence and the answer's bytes.

    Args:
        gateway: or the address of a server without TLS.
    """
    with open_channel(gateway) as channel:
        return send_bytes(channel, method, body, key)


def open_channel(gateway: Gateway | str) -> Any:
    if isinstance(gateway, str):
        return grpc.insecure_channel(gateway)
    credentials = grpc.ssl_channel_credentials(gateway.certificate.read_bytes())
    return grpc.secure_channel(gateway.address, credentials)


def send_bytes(
    channel: Any, method: str, body: bytes, key: Mapping[str, str] | None = None
) -> tuple[str, str, bytes]:
    send = channel.unary_unary(SERVICE + method)
    try:
        answer = send(body, metadata=[*(key or {}).items()], timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details(), b""
    return "OK", "", answer


def varint(value: int, length: int = 1) -> bytes:
    """Encode a number in at least `length` bytes."""
    found = b""
    while value > 127 or len(found) + 1 < length:
        found += bytes([value & 127 | 128])
        value >>= 7
    return found + bytes([value])


def name_field(name: str, tag: bytes = b"\x0a", size: int = 1) -> bytes:
    return tag + varint(len(name), size) + name.encode()


def number_of_detections(answer: bytes) -> int:
    found = service_pb2.ModelInferResponse.FromString(answer)
    index = [output.name for output in found.outputs].index("num_dets")
    return int(struct.unpack("<i", found.raw_output_contents[index])[0])


# How a ModelInferRequest can name its model: {spelling: message of (name, the other fields)}.
SPELLINGS: dict[str, Callable[[str, bytes], bytes]] = {
    "as usual": lambda name, rest: name_field(name) + rest,
    "at the end": lambda name, rest: rest + name_field(name),
    "twice": lambda name, rest: name_field(YOLOV5) + rest + name_field(name),
    "twice, an endpoint last of three": lambda name, rest: (
        name_field("postprocess") + name_field(YOLOV5) + rest + name_field(name)
    ),
    "after unknown fields": lambda name, rest: (
        varint(2000 << 3)
        + varint(2**64 - 1)
        + varint(2001 << 3 | 1)
        + b"\x0a\x0fyolov5"
        + varint(2002 << 3 | 2)
        + varint(17)
        + name_field(YOLOV5)
        + varint(2003 << 3 | 5)
        + b"\x0a\x02xy"
        + rest
        + name_field(name)
    ),
    "after its number with another type": lambda name, rest: b"\x08\x05" + name_field(name) + rest,
    "before its number with another type": lambda name, rest: (
        rest + name_field(name) + b"\x08\x05" + b"\x0d\x0a\x02xy"
    ),
    "with a number in five bytes": lambda name, rest: (
        name_field(YOLOV5) + rest + name_field(name, varint(10, 5))
    ),
    "with a number of 35 bits": lambda name, rest: (
        name_field(YOLOV5) + rest + name_field(name, b"\x8a\x80\x80\x80\x10")
    ),
    "with a length in five bytes": lambda name, rest: (
        name_field(YOLOV5) + rest + name_field(name, size=5)
    ),
    "behind two megabytes": lambda name, rest: (
        name_field(YOLOV5)
        + rest
        + varint(2004 << 3 | 2)
        + varint(2 << 20)
        + bytes(2 << 20)
        + name_field(name)
    ),
    "across the edge of what is read at once": lambda name, rest: across_the_edge(name, rest),
}


def across_the_edge(name: str, rest: bytes) -> bytes:
    """Put the middle of the name at the end of the script's first window of 64 kB."""
    head = name_field(YOLOV5) + rest + varint(2005 << 3 | 2)
    size = 65536 - 5 - len(head) - 3 - 2 - len(name) // 2
    body = head + varint(size, 3) + bytes(size) + name_field(name)
    assert body[65536 - 5 - len(name) // 2 :] == name.encode()
    return body


def without_a_name(image: bytes) -> bytes:
    """Return the fields of a ModelInferRequest, except for the model's name."""
    request = image_request(image)
    request.model_name = ""
    return bytes(request.SerializeToString())


@pytest.fixture(scope="module")
def other_fields() -> bytes:
    return without_a_name(IMAGE)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_message_reaches_another_model(
    server: RunningServer, site: Site, other_fields: bytes, spelling: str
) -> None:
    make = SPELLINGS[spelling]
    # The server reads the same name in this spelling, and so the gateway has to.
    for step in ("preprocess", "yolov5"):
        body = make(step, other_fields)
        status, sentence, _ = raw_call(server.grpc, "ModelInfer", body)
        assert f"2 identifiers of model '{step}'" in sentence, (status, sentence)
        for key, allowed in (("all", f"{PLATES}, {YOLOV5}"), ("plates", PLATES)):
            status, sentence, _ = site.call("ModelInfer", body, key)
            assert (status, sentence) == ("INVALID_ARGUMENT", f"no such model; allowed: {allowed}")
    body = make(YOLOV5, other_fields)
    for key in ("all", "yolov5"):
        status, sentence, answer = site.call("ModelInfer", body, key)
        assert (status, sentence) == ("OK", "")
        assert number_of_detections(answer) == 11
    status, sentence, _ = site.call("ModelInfer", body, "plates")
    assert (status, sentence) == ("PERMISSION_DENIED", NO_RIGHT + PLATES)
    body = make(PLATES, other_fields)
    status, sentence, _ = site.call("ModelInfer", body, "yolov5")
    assert (status, sentence) == ("PERMISSION_DENIED", NO_RIGHT + YOLOV5)
    status, sentence, _ = site.call("ModelInfer", body, "plates")
    assert NOT_SERVED in sentence, status


def random_message(random: Random) -> bytes:
    """Make a ModelReadyRequest of random fields, most of them names, some of them broken."""

    def number(value: int) -> bytes:
        return varint(value, random.choice([1] * 20 + [2] * 10 + [5] * 10 + [6, 10, 11]))

    def field() -> bytes:
        which = 8 if random.random() < 0.02 else random.choice([0, 1, 2, 3, 4, 5, 6, 7, 9])
        if which < 5:
            names = [YOLOV5] * 8 + [PLATES, "yolov5", "preprocess", "yolov5_ensemblf", "", "\xff"]
            name = random.choice(names).encode("latin-1")
            bits = random.choice([0] * 6 + [1 << 32, 7 << 32])
            return number(10 | bits) + number(len(name)) + name
        tag = random.choice([1, 2, 3, 1000, 1 << 28]) << 3
        if which == 5:
            return number(tag) + number(random.choice([0, 1, 2**63, 2**64 - 1]))
        if which == 6:
            return number(tag | 1) + random.randbytes(8)
        if which == 7:
            return number(tag | 5) + random.randbytes(4)
        if which == 8:
            inner = name_field(random.choice([YOLOV5, PLATES]))
            return number(tag | 3) + inner + number(tag | 4)
        data = random.choice([b"1", name_field(PLATES), random.randbytes(9)])
        return number(tag | 2) + number(len(data)) + data

    body = b"".join(field() for _ in range(random.randrange(1, 5)))
    if random.random() < 0.1:
        at = random.randrange(len(body))
        body = random.choice([body[:at], body[:at] + random.randbytes(1) + body[at + 1 :]])
    return body


def test_random_message_passes_only_if_the_server_reads_the_endpoint_of_the_key(
    server: RunningServer, site: Site
) -> None:
    random = Random(20261126)
    outcomes = Counter[str]()
    refusals = ("no such model; ", NO_RIGHT, "the message is cut off or is not a ModelReadyRequest")
    with open_channel(server.grpc) as direct, open_channel(site.gateway) as through:
        for _ in range(1000):
            body = random_message(random)
            status, sentence, answer = send_bytes(through, "ModelReady", body, site.key("yolov5"))
            expected = send_bytes(direct, "ModelReady", body)
            if sentence.startswith(refusals):
                outcomes["refused, " + expected[0]] += 1
                continue
            assert (status, sentence, answer) == expected, body.hex()
            assert "identifiers of model" not in sentence, body.hex()  # a step
            if status == "OK":
                assert answer == b"\x08\x01", body.hex()  # ready, as no other model is
            outcomes[f"passed, {status}"] += 1
    assert outcomes["passed, OK"] > 100
    assert outcomes["refused, OK"] > 100
    assert outcomes["refused, INVALID_ARGUMENT"] > 10


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda rest: name_field(YOLOV5) + rest + name_field(""), "no such model"),
        (lambda rest: rest, "no such model"),
        (lambda rest: name_field(YOLOV5 + "\0") + rest, "no such model"),
        (lambda rest: name_field(YOLOV5 + "\n") + rest, "no such model"),
        (lambda rest: name_field("models::yolov5_ensemble") + rest, "no such model"),
        (lambda rest: name_field("Yolov5_ensemble") + rest, "no such model"),
        (lambda rest: name_field(f"{PLATES}\n{YOLOV5}") + rest, "no such model"),
        (lambda rest: rest + name_field(YOLOV5, varint(10, 6)), "the message is cut off"),
        (lambda rest: rest + name_field(YOLOV5, size=6), "the message is cut off"),
        (lambda rest: rest + b"\x0b" + name_field("yolov5") + b"\x0c", "the message is cut off"),
        (lambda rest: rest + b"\x0a\xff\xff\xff\xff\x7f", "the message is cut off"),
        (lambda rest: rest + b"\x0a\x80", "the message is cut off"),
        (lambda rest: rest + b"\x0f", "the message is cut off"),
    ],
)
def test_message_in_doubt_is_refused(
    site: Site, other_fields: bytes, make: Callable[[bytes], bytes], expected: str
) -> None:
    status, sentence, _ = site.call("ModelInfer", make(other_fields), "all")
    assert status == "INVALID_ARGUMENT"
    assert sentence.startswith(expected)


def logged_call(gateway: Gateway, path: str, frames: bytes, status: str) -> dict[str, Any]:
    """Send these frames as a call, and return its line of the log, which has this gRPC status."""
    before = len(gateway.log())
    with gateway.connect("h2") as connection:
        call = headers_frame(gateway, path, GRPC_HEADERS)
        exchange(connection, PREFACE + frame(1, 4, 1, call) + frames, answered)
    entries = gateway.logged(before, ("first", "200", status))
    (entry,) = [one for one in entries if one["request"] == f"POST {path}"]
    assert entry["grpc_status"] == status
    return entry


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("model", [YOLOV5, "yolov5", PLATES])
def test_name_is_read_however_the_message_is_cut_into_frames(
    gateway: Gateway, size: int, model: str
) -> None:
    body = message(name_field(model) + without_a_name(IMAGE[:3000]))
    entry = logged_call(gateway, MODEL_INFER, grpc_data(body, size), "3")
    assert entry["grpc_status"] == "3"
    # What passes is refused by the server itself, as it is half a picture.
    assert bool(entry["triton_seconds"]) == (model == YOLOV5)


@pytest.mark.parametrize("names", [(YOLOV5, "yolov5"), ("yolov5", YOLOV5)])
def test_several_messages_in_a_call_are_refused(
    gateway: Gateway, other_fields: bytes, names: tuple[str, str]
) -> None:
    body = b"".join(message(name_field(name) + other_fields) for name in names)
    for method in ("ModelInfer", "ModelReady", "ModelMetadata", "ModelStreamInfer"):
        status = "12" if method == "ModelStreamInfer" else "3"
        entry = logged_call(gateway, SERVICE + method, grpc_data(body), status)
        assert not entry["triton_seconds"]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata"])
def test_questions_about_a_model_need_the_right_to_it(
    server: RunningServer, site: Site, method: str
) -> None:
    asked = name_field(YOLOV5)
    direct = raw_call(server.grpc, method, asked)
    assert direct[0] == "OK"
    for key in ("all", "both", "yolov5"):
        assert site.call(method, asked, key) == direct
    for key in ("plates", "without a name"):
        assert site.call(method, asked, key)[:2] == ("PERMISSION_DENIED", NO_RIGHT + PLATES)
    assert site.call(method, asked, "none")[:2] == ("PERMISSION_DENIED", NO_RIGHT + "none")
    for name in ("preprocess", "yolov5", "postprocess", "", "models::yolov5", "x" * 1000):
        for body in (name_field(name), asked + b"\x12\x011" + name_field(name)):
            status, sentence, _ = site.call(method, body, "yolov5")
            assert (status, sentence) == ("INVALID_ARGUMENT", f"no such model; allowed: {YOLOV5}")
    status, sentence, _ = site.call(method, b"\x0a\x7fyolov5", "all")
    assert status == "INVALID_ARGUMENT"
    assert sentence.startswith(f"the message is cut off or is not a {method}Request;")


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelStatistics", "ModelConfig"])
def test_other_calls_about_a_model_are_open_to_no_key(site: Site, method: str) -> None:
    for key in ("all", "yolov5", "plates"):
        for name in (YOLOV5, PLATES, "yolov5"):
            status, sentence, _ = site.call(method, name_field(name), key)
            assert status == "UNIMPLEMENTED"
            assert sentence.startswith("no such route")


@SCHEMES
def test_client_is_told_that_its_key_is_for_another_endpoint(site: Site, scheme: str) -> None:
    before = len(site.gateway.log())
    for key in ("all", "both", "yolov5"):
        with site.gateway.client(scheme, site.key(key)) as client:
            assert len(client.detect(PHOTO)) == 11
            assert client.status().ready
    with (
        site.gateway.client(scheme, site.key("plates")) as client,
        pytest.raises(DeniedError, match=f"{NO_RIGHT}{PLATES}$"),
    ):
        client.detect(PHOTO)
    refused = ("plates", "403", "") if scheme else ("plates", "200", "7")
    site.gateway.logged(before, refused, ("both", "200", "" if scheme else "0"))


def test_rights_hold_on_every_route(site: Site) -> None:
    for path, method in ((f"/v2/models/{YOLOV5}/infer", "POST"), (f"/v2/models/{YOLOV5}", "GET")):
        assert site.question(path, "yolov5", method).status == 200
        for key, allowed in (("plates", PLATES), ("none", "none")):
            reply = site.question(path, key, method)
            assert (reply.status, reply.json()) == (403, {"error": NO_RIGHT + allowed})
    for path, method in (
        (f"/v2/models/{PLATES}/infer", "POST"),
        (f"/v2/models/{PLATES}", "GET"),
        (f"/v2/models/{PLATES}/ready", "GET"),
    ):
        assert site.question(path, "yolov5", method).status == 403
        for key in ("plates", "both", "without a name"):
            assert site.question(path, key, method).status in {400, 404}
    assert (
        NOT_SERVED in site.question(f"/v2/models/{PLATES}/infer", "plates", "POST").json()["error"]
    )
    for key in KEYS:
        assert site.question("/v2", key).status == 200
        for model in ("yolov5", "preprocess", "other_ensemble", "Plates_ensemble"):
            assert site.question(f"/v2/models/{model}/infer", key, "POST").status == 404


def test_client_certificate_may_be_for_some_endpoints(
    site: Site, authority: trustme.CA, tmp_path: Path
) -> None:
    mine = authority.issue_cert("client.example", common_name="robot [plates_ensemble]")
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "mine.pem"))
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    tls = TLS(
        ca=site.gateway.certificate, certificate=tmp_path / "mine.pem", key=tmp_path / "key.pem"
    )
    before = len(site.gateway.log())
    with site.gateway.client("", {}, tls) as client, pytest.raises(DeniedError, match=NO_RIGHT):
        client.detect(PHOTO)
    site.gateway.logged(before, ("robot", "200", "7"))


def test_sentence_lists_the_endpoints_of_the_caller_and_none_to_strangers(site: Site) -> None:
    allowed = {
        "all": f"/v2/models/ENDPOINT/infer and generate, GET /v2, /v2/health/live and ready,"
        f" /v2/models/ENDPOINT and its ready, and the same over gRPC, where ENDPOINT is one of"
        f" {PLATES}, {YOLOV5}",
        "plates": f"/v2/models/{PLATES}/infer and generate, GET /v2, /v2/health/live and ready,"
        f" /v2/models/{PLATES} and its ready, and the same over gRPC",
    }
    for key, expected in allowed.items():
        error = site.question("/v2/models/stats", key).json()["error"]
        assert error == f"no such route; allowed: POST {expected}"
    error = site.gateway.ask("/v2/models/stats", headers={}, method="GET", key=False).json()
    assert "ENDPOINT/infer" in error["error"]
    assert "plates" not in error["error"]


def test_sentence_for_one_endpoint_names_it(gateway: Gateway) -> None:
    for key in (True, False):
        error = gateway.ask("/v2/models/stats", headers={}, method="GET", key=key).json()["error"]
        assert error == (
            "no such route; allowed: POST /v2/models/yolov5_ensemble/infer and generate, GET /v2,"
            " /v2/health/live and ready, /v2/models/yolov5_ensemble and its ready, and the same"
            " over gRPC"
        )


def wait_until(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_endpoint_comes_and_goes_without_a_failed_request(site: Site) -> None:
    stop = threading.Event()
    answers: dict[str, list[int]] = {"https://": [], "": []}

    def detect_for_ever(scheme: str) -> None:
        with site.gateway.client(scheme, site.key("yolov5")) as client:
            while not stop.is_set():
                answers[scheme].append(len(client.detect(PHOTO)))

    def reaches(key: str = "all") -> bool:
        over_http = site.question("/v2/models/helmets_ensemble/ready", key)
        _, sentence, _ = site.call("ModelReady", name_field("helmets_ensemble"), key)
        # Before, the gateway refuses; then the server says that it does not serve it.
        known = "no such model" not in sentence
        assert known == ("no such route" not in over_http.body.decode()), (sentence, over_http)
        return known

    workers = site.gateway.workers()
    with ThreadPoolExecutor() as threads:
        callers = [threads.submit(detect_for_ever, scheme) for scheme in answers]
        try:
            for _ in range(3):
                for name in ("helmets", "helmets_ensemble"):
                    (site.repository / name).mkdir()
                wait_until(lambda: settled(reaches) is True)
                reply = site.question("/v2/models/helmets_ensemble/ready", "yolov5")
                assert reply.status == 403
                for name in ("helmets", "helmets_ensemble"):
                    (site.repository / name).rmdir()
                wait_until(lambda: settled(reaches) is False)
        finally:
            stop.set()
        for caller in callers:
            caller.result()  # raises if a request has failed
    assert all(len(found) > 10 and {*found} == {11} for found in answers.values())
    assert site.gateway.workers() == workers  # nginx was not reloaded


def settled(ask: Callable[[], bool]) -> bool | None:
    """The answer; None if the list has changed between its two questions."""
    try:
        return ask()
    except AssertionError:
        return None


def test_repository_without_an_endpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "models" / "yolov5").mkdir(parents=True)
    for repository, expected in (
        (tmp_path / "models", f"{tmp_path}/models has no endpoint; needed: the folders NAME and"),
        (tmp_path / "missing", f"{tmp_path}/missing cannot be used (No such file or directory)."),
    ):
        command = [sys.executable, "deploy/gateway/run.py", f"--port={free_ports(1)[0]}"]
        done = subprocess.run(
            [*command, f"--folder={tmp_path / 'gateway'}", f"--repository={repository}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {expected}")
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(
    importlib.util.find_spec("yolov5_build._networks") is None,
    reason="make model cannot install a further network yet",
)
def test_two_served_networks_answer_the_keys_that_have_a_right_to_them(tmp_path: Path) -> None:
    """A further network is installed while gateway and server run, used, and removed."""
    repository = make_repository(tmp_path, BUNDLED)
    folder = tmp_path / "gateway"
    folder.mkdir()
    lines = [f'"{key}" "{name}";\n' for key, name in KEYS.values()]
    (folder / "keys.map").write_text("".join(lines))
    (tmp_path / "names").write_text("one\ntwo\nthree\n")
    install = [str(BUNDLED), "--name=plates", f"--names={tmp_path / 'names'}"]
    with (
        running_server(f"--repository={repository}") as server,
        running_gateway(server, folder, f"--repository={repository}") as gateway,
    ):
        site = Site(gateway, repository)
        assert build([*install, f"--repository={repository}"]) == 0
        ready = f"/v2/models/{PLATES}/ready"
        wait_until(lambda: site.question(ready, "plates").status == 200, 60)
        labels = {}
        for key, model in (("plates", PLATES), ("yolov5", YOLOV5)):
            body = name_field(model) + without_a_name(IMAGE)
            status, sentence, answer = site.call("ModelInfer", body, key)
            assert (status, sentence) == ("OK", "")
            found = service_pb2.ModelInferResponse.FromString(answer)
            index = [output.name for output in found.outputs].index("det_labels")
            labels[model] = found.raw_output_contents[index]
            other = YOLOV5 if model == PLATES else PLATES
            body = name_field(other) + without_a_name(IMAGE)
            assert site.call("ModelInfer", body, key)[0] == "PERMISSION_DENIED"
            assert site.question(f"/v2/models/{other}/infer", key, "POST").status == 403
            assert site.question(f"/v2/models/{model}/infer", key, "POST").status == 200
        assert b"two" in labels[PLATES] and b"RBC" in labels[YOLOV5]
        for step in ("plates", "yolov5", "preprocess", "postprocess"):
            body = name_field(step) + without_a_name(IMAGE)
            assert site.call("ModelInfer", body, "all")[0] == "INVALID_ARGUMENT"
            assert raw_call(server.grpc, "ModelInfer", body)[0] == "INVALID_ARGUMENT"
        for name in ("plates", PLATES):
            shutil.rmtree(repository / name)
        wait_until(lambda: site.question(ready, "plates").status == 404)
        assert site.question(f"/v2/models/{YOLOV5}/infer", "yolov5", "POST").status == 200


# ---------------------------------------------------------------------------------------------
# Trouble


def test_slow_callers_do_not_block_others_and_are_cut_off(
    gateway: Gateway, second_key: dict[str, str]
) -> None:
    key = gateway.key["x-api-key"]
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\n"
    body = f"{head}Content-Type: application/octet-stream\r\nContent-Length: 1000\r\n\r\nhalf"
    with (
        gateway.changed(
            "nginx.conf",
            ("client_header_timeout       10s", "client_header_timeout       3s"),
            ("client_body_timeout         10s", "client_body_timeout         3s"),
        ),
        ExitStack() as stack,
    ):
        slow = []
        for number in range(200):
            slow.append(stack.enter_context(gateway.connect()))
            slow[-1].sendall((head if number % 2 else body).encode())
        for scheme in ("https://", ""):
            with gateway.client(scheme, second_key) as client:
                started = time.monotonic()
                assert [len(found) for found in client.detect([PHOTO] * 8)] == [11] * 8
                assert time.monotonic() - started < 30
        for connection in slow:
            with suppress(ConnectionError):
                assert connection.recv(12) in {b"", b"HTTP/1.1 429"}


def test_flood_of_resets_fills_no_log_and_blocks_no_caller(gateway: Gateway) -> None:
    question = headers_frame(gateway, "/v2/models/yolov5_ensemble/ready", method="GET")
    before = (gateway.folder / "error.log").read_text()
    with gateway.client("") as client:
        assert len(client.detect(PHOTO)) == 11
        with gateway.connect("h2") as connection:
            exchange(connection, PREFACE, lambda received: len(received) > 0)
            for stream in range(1, 12_001, 64):
                resets = b"".join(
                    frame(1, 5, one, question) + frame(3, 0, one, bytes(3) + b"\x08")
                    for one in range(stream, stream + 64, 2)
                )
                exchange(connection, resets, lambda _received: True)
                time.sleep(0.002)  # nginx closes a connection that sends too much at once
        # The requests of one caller are counted together, and it may be refused for a moment.
        with gateway.client("", retry_for=10) as other:
            assert [len(found) for found in other.detect([PHOTO] * 20)] == [11] * 20
        assert len(client.detect(PHOTO)) == 11
    assert len((gateway.folder / "error.log").read_text()) - len(before) < 2000


@SCHEMES
def test_bodies_announced_as_too_large_fill_no_log(gateway: Gateway, scheme: str) -> None:
    before = (gateway.folder / "error.log").read_text()
    path = INFER if scheme else MODEL_INFER
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"
    for key in ("", gateway.key["x-api-key"]):
        for _ in range(10):
            with gateway.connect() as connection:
                connection.sendall(
                    head.replace("\r\n\r\n", f"\r\nX-Api-Key: {key}\r\n\r\n").encode()
                )
                assert connection.recv(9) == b"HTTP/1.1 "
    assert (gateway.folder / "error.log").read_text() == before


@SCHEMES
def test_concurrent_requests_are_limited_by_key(
    gateway: Gateway, second_key: dict[str, str], scheme: str
) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {gateway.key['x-api-key']}\r\n"
    half = f"{head}Content-Type: application/octet-stream\r\nContent-Length: 9\r\n\r\nhalf"
    with ExitStack() as stack:
        for _ in range(32):
            stack.enter_context(gateway.connect()).sendall(half.encode())
        with (
            gateway.client(scheme) as client,
            pytest.raises(UnavailableError, match="^too many requests at once"),
        ):
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:  # nginx may not have read all other requests yet
                client.detect(PHOTO)
        with gateway.client(scheme, second_key) as client:
            assert len(client.detect(PHOTO)) == 11


def test_batches_leave_capacity_for_single_images(
    gateway: Gateway, second_key: dict[str, str]
) -> None:
    tensor = image_tensor(triton, [IMAGE] * 8)
    stop = threading.Event()
    outcomes: list[str] = []

    def send_batches() -> None:
        with gateway.triton() as client:
            while not stop.is_set():
                try:
                    client.infer("yolov5_ensemble", [tensor], headers=gateway.key)
                    outcomes.append("answered")
                except InferenceServerException as refused:
                    outcomes.append(refused.message())
                    stop.wait(0.25)

    threads = [threading.Thread(target=send_batches) for _ in range(12)]
    for thread in threads:
        thread.start()
    try:
        with gateway.client("", second_key) as client:
            assert [len(client.detect(PHOTO)) for _ in range(4)] == [11] * 4
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    full = "the server behind the gateway cannot answer now; try again later"
    assert {*outcomes} == {"answered", full}


def test_slow_readers_hold_no_memory_of_the_server(server: RunningServer, gateway: Gateway) -> None:
    request = image_request(IMAGE)
    request.model_name = "preprocess"
    # A flow-control window of 0: not a byte of a body may be sent.
    settings = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    before = peak(server)
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(gateway.connect("h2"))
            call = headers_frame(gateway, MODEL_INFER, GRPC_HEADERS)
            connection.sendall(PREFACE + settings + frame(1, 4, 1, call))
            connection.sendall(grpc_data(message(request.SerializeToString())))
        time.sleep(2)
        assert peak(server) - before < 20 << 20


@SCHEMES
def test_rate_limit_is_retryable_and_fills_no_log(gateway: Gateway, scheme: str) -> None:
    logged = (gateway.folder / "error.log").read_text()
    changes = ("rate=1000r/s", "rate=1r/m"), ("burst=1000", "burst=1")
    with (
        gateway.changed("nginx.conf", *changes),
        gateway.client(scheme) as client,
        pytest.raises(UnavailableError, match="^too many requests at once"),
    ):
        for _ in range(4):
            client.detect(PHOTO)
    assert (gateway.folder / "error.log").read_text() == logged


@SCHEMES
def test_missing_server_is_unavailable(
    gateway: Gateway, server: RunningServer, scheme: str
) -> None:
    away = free_ports(1)[0]
    changes = [(f"127.0.0.1:{port}", f"127.0.0.1:{away}") for port in server.ports[:2]]
    with (
        gateway.changed("nginx.conf", *changes),
        gateway.client(scheme) as client,
        pytest.raises(UnavailableError, match="^the server behind the gateway cannot be"),
    ):
        client.detect(PHOTO)


@SCHEMES
def test_slow_server_is_timed_out(gateway: Gateway, scheme: str) -> None:
    change = ("read_timeout     60s", "read_timeout     1ms")
    with (
        gateway.changed("nginx.conf", change),
        gateway.client(scheme) as client,
        pytest.raises(TimedOutError, match="in time$"),
    ):
        client.detect(PHOTO)


# ---------------------------------------------------------------------------------------------
# Its life


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_gateway_starts_and_ends_both_processes(
    bundled_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOV5_HOST", "0.0.0.0")  # must not open the server behind the gateway
    (port,) = free_ports(1)
    folder = tmp_path / "gateway"
    make = ["make", "--no-print-directory", "-C", str(ROOT), "gateway", f"GATEWAY_PORT={port}"]
    flags = [f"--repository={bundled_repository}", f"--folder={folder}", *TRITON_FLAGS]
    make.append(f"ARGS={' '.join(flags)}")
    with running_server(command=make, wait=False) as server:
        wait_for(server.log, "Gateway:", server.process)
        server.ports.append(port)
        server.seen.update(server.descendants())
        assert f"Ready: HTTP on 127.0.0.1:{server.ports[0]}" in server.log.read_text()
        assert server.processes("nginx")
        ca, header = folder / "certificate.pem", (folder / "api-key.header").read_text()
        name, _, key = header.strip().partition(": ")
        with Client(f"127.0.0.1:{port}", headers={name: key}, tls=TLS(ca=ca)) as client:
            assert len(client.detect(PHOTO)) == 11
        deadline = time.monotonic() + 20
        os.killpg(server.process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        server.process.wait(20)
        while server.leftovers():
            assert time.monotonic() < deadline, server.leftovers()
            time.sleep(0.1)


def test_no_process_outlives_a_killed_gateway_and_a_running_server_stays(
    server: RunningServer, tmp_path: Path
) -> None:
    with running_gateway(server, tmp_path) as gateway:
        nginx = int((tmp_path / "nginx.pid").read_text())
        gateway.process.kill()
        deadline = time.monotonic() + 10
        while psutil.pid_exists(nginx):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert parse_binary(post_raw(server.http, IMAGE))["num_dets"].item() == 11


def test_port_in_use_is_named(server: RunningServer, gateway: Gateway, tmp_path: Path) -> None:
    command = [sys.executable, "deploy/gateway/run.py", f"--port={gateway.port}"]
    done = subprocess.run(
        [*command, f"--folder={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: Port {gateway.port} on 127.0.0.1 cannot be used (")
    assert done.stderr.endswith("set GATEWAY_PORT to another one.\n")


def test_missing_javascript_module_prevents_the_start(tmp_path: Path) -> None:
    """The installed nginx, but with an empty folder of modules."""
    assert NGINX
    stand_in = tmp_path / "nginx"
    stand_in.write_text(
        f'#!/bin/sh\n{NGINX} "$@" 2>&1 | sed "s,--modules-path=,&{tmp_path}," >&2\n'
    )
    stand_in.chmod(0o755)
    command = [sys.executable, "deploy/gateway/run.py", f"--port={free_ports(1)[0]}"]
    done = subprocess.run(
        [*command, f"--folder={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: nginx's module for JavaScript (njs) is not installed; on Debian and Ubuntu: apt"
        " install libnginx-mod-http-js; with nginx.org's packages: nginx-module-njs.\n"
    )
