"""Answers that break the contract, over real sockets, by HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hostile import (
    Send,
    Tensor,
    dribble,
    grpc_server,
    http,
    http_server,
    over_grpc,
    over_http,
    strings,
    tcp_server,
    tensors,
)

from yolov5_client import (
    AsyncClient,
    Client,
    DeniedError,
    Detections,
    ServerError,
    TimedOutError,
    UnavailableError,
    YoloClientError,
)

# A server goes on for many more seconds than a client with a timeout takes, on a busy machine too.
SOON, ENDLESS = 8, 15
PICTURE = b"any bytes: nobody looks at them"


def ask(address: str, timeout: float = 10) -> Detections:
    with Client(address, timeout=timeout) as client:
        return client.detect(PICTURE)


def ask_async(address: str, timeout: float = 10) -> Detections:
    async def asking() -> Detections:
        async with AsyncClient(address, timeout=timeout) as client:
            return await client.detect(PICTURE)

    return asyncio.run(asking())


def status(address: str, timeout: float = 10) -> object:
    with Client(address, timeout=timeout) as client:
        return client.status()


def status_async(address: str, timeout: float = 10) -> object:
    async def asking() -> object:
        async with AsyncClient(address, timeout=timeout) as client:
            return await client.status()

    return asyncio.run(asking())


BOTH = pytest.mark.parametrize("asking", [ask, ask_async])
ALL = pytest.mark.parametrize("asking", [ask, ask_async, status, status_async])
Asking = Callable[..., Any]


@BOTH
def test_valid_answer_is_accepted(asking: Asking) -> None:
    answer = [*tensors().values(), Tensor("of_a_later_version", "UINT8", [1], b"x")]
    with http_server(over_http(answer)) as by_http, grpc_server(over_grpc(answer)) as by_grpc:
        for address in (by_http, by_grpc):
            found = asking(address)
            assert found.labels == ("RBC", "WBC")
            assert found.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 640, 480]]


def changed(name: str, **changes: Any) -> list[Tensor]:
    answer = tensors()
    for what, value in changes.items():
        setattr(answer[name], what, value)
    return [*answer.values()]


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def ints(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


NOT_AS_THE_CONTRACT_SAYS = {
    "negative_count": (changed("num_dets", data=ints(-1)), "num_dets is -1"),
    "count_over_k": (changed("num_dets", data=ints(3)), "num_dets is 3, of at most 2"),
    "count_is_a_vector": (changed("num_dets", shape=[1]), r"num_dets has shape \(1,\)"),
    "count_is_a_float": (
        changed("num_dets", datatype="FP32", data=floats(2)),
        "num_dets is of the type float32",
    ),
    "nan_box": (changed("det_boxes", data=floats(*[np.nan] * 8)), "not in the image"),
    "infinite_box": (changed("det_boxes", data=floats(0, 0, np.inf, 1, 0, 0, 1, 1)), "not in the"),
    "box_beyond": (changed("det_boxes", data=floats(0, 0, 641, 1, 0, 0, 1, 1)), "not in the image"),
    "box_before": (changed("det_boxes", data=floats(-1, 0, 1, 1, 0, 0, 1, 1)), "not in the image"),
    "box_reversed": (changed("det_boxes", data=floats(9, 0, 1, 1, 0, 0, 1, 1)), "ends before"),
    "boxes_of_five": (
        changed("det_boxes", shape=[1, 2, 5], data=floats(*[0] * 10)),
        "det_boxes has shape",
    ),
    "nan_score": (changed("det_scores", data=floats(np.nan, np.nan)), "not from 0 to 1"),
    "score_over_1": (changed("det_scores", data=floats(1.5, 1)), "not from 0 to 1"),
    "score_below_0": (changed("det_scores", data=floats(0.5, -0.5)), "not from 0 to 1"),
    "scores_ascend": (changed("det_scores", data=floats(0.5, 0.9)), "descending"),
    "a_score_for_each_but_one": (
        changed("det_scores", shape=[1, 1], data=floats(0.5)),
        "has shape",
    ),
    "padding_as_a_class": (changed("det_classes", data=ints(1, -1)), "negative index"),
    "class_without_label": (
        changed("det_labels", shape=[1, 1], data=strings(b"RBC")),
        "det_labels has shape",
    ),
    "label_is_not_utf8": (changed("det_labels", data=strings(b"\xff", b"")), "not UTF-8"),
    "labels_are_numbers": (
        changed("det_labels", datatype="INT32", data=ints(1, 2)),
        "det_labels is of the type int32",
    ),
    "label_longer_than_the_bytes": (
        changed("det_labels", data=b"\xff\xff\xff\x7fRBC" + b"\0" * 8),
        "longer than its bytes",
    ),
    "more_labels_than_said": (
        changed("det_labels", data=strings(b"a", b"b", b"c")),
        "do not make",
    ),
    "empty_image": (changed("image_size", data=ints(0, 640)), r"image_size is \(0, 640\)"),
    "negative_image": (changed("image_size", data=ints(480, -640)), "image_size is"),
    "size_of_three": (changed("image_size", shape=[1, 3], data=ints(1, 1, 1)), "image_size has"),
    "fewer_bytes_than_the_shape": (changed("det_boxes", data=floats(1)), "do not make"),
    "huge_shape": (changed("det_boxes", shape=[2**31 - 1] * 3), "do not make"),
    "negative_shape": (changed("det_boxes", shape=[1, -2, -4]), "no shape"),
    "unknown_type": (changed("det_boxes", datatype="FP99"), "of the type 'FP99'"),
    "a_tensor_twice": ([*tensors().values(), tensors()["num_dets"]], "num_dets is there twice"),
    "a_tensor_too_few": ([*tensors().values()][1:], "no output 'num_dets'"),
    "no_tensor": ([], "no output 'num_dets'"),
    "two_images": (
        [
            Tensor(one.name, one.datatype, [2, *one.shape[1:]], one.data * 2)
            for one in tensors().values()
        ],
        "for 2 images; one was sent",
    ),
    "no_image": (
        [Tensor(one.name, one.datatype, [0, *one.shape[1:]], b"") for one in tensors().values()],
        "no image 1, of 0",
    ),
}


@BOTH
@pytest.mark.parametrize("name", NOT_AS_THE_CONTRACT_SAYS)
def test_tensor_that_breaks_the_contract_is_refused(asking: Asking, name: str) -> None:
    answer, sentence = NOT_AS_THE_CONTRACT_SAYS[name]
    with http_server(over_http(answer)) as by_http, grpc_server(over_grpc(answer)) as by_grpc:
        for address in (by_http, by_grpc):
            with pytest.raises(ServerError, match=sentence) as caught:
                asking(address)
            assert_sentence(caught.value)


def assert_sentence(error: YoloClientError) -> None:
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) < 2300
    assert "Traceback" not in text


GOOD = over_http([*tensors().values()]).partition(b"\r\n\r\n")[2]
LENGTH = "Inference-Header-Content-Length"
NOT_TRITONS = {
    "no_length_of_the_json": http(GOOD),
    "length_is_no_number": http(GOOD, {LENGTH: "x"}),
    "length_in_other_digits": http(GOOD, {LENGTH: "\u0661"}),
    "negative_length": http(GOOD, {LENGTH: -1}),
    "length_beyond_the_body": http(GOOD, {LENGTH: len(GOOD) + 1}),
    "length_too_small": http(GOOD, {LENGTH: 5}),
    "endless_length": http(GOOD, {LENGTH: "9" * 5000}),
    "no_json": http(b"\xff" * 10, {LENGTH: 10}),
    "no_object": http(b"[]", {LENGTH: 2}),
    "deep_json": http(b"[" * 200_000, {LENGTH: 200_000}),
    "bytes_left_over": over_http([*tensors().values()]).replace(b'": 32}', b'": 24}'),
    "more_bytes_than_came": over_http([*tensors().values()]).replace(b'": 32}', b'": 99}'),
    "negative_size": over_http([*tensors().values()]).replace(b'": 32}', b'": -9}'),
    "size_is_a_bool": http(
        (
            head := b'{"outputs":[{"name":"num_dets","datatype":"INT32","shape":[1],"parameters":'
            b'{"binary_data_size":true}}]}'
        )
        + b"x",
        {LENGTH: len(head)},
    ),
    "packed": http(GOOD, {LENGTH: 10, "Content-Encoding": "gzip"}),
    "not_http": b"\x00\x01\x02\x03 nothing of the kind\r\n\r\n",
    "web_page": http(b"<html>", {"Content-Type": "text/html"}),
}


@BOTH
@pytest.mark.parametrize("name", NOT_TRITONS)
def test_body_that_is_not_tritons_is_refused(asking: Asking, name: str) -> None:
    with http_server(NOT_TRITONS[name]) as address:
        with pytest.raises(ServerError) as caught:
            asking(address)
        assert_sentence(caught.value)


@BOTH
def test_malformed_grpc_message_is_refused(asking: Asking) -> None:
    without_contents = over_grpc([*tensors().values()])[:-30]
    for message in (b"\xff" * 100, without_contents, over_grpc([])[:5]):
        with grpc_server(message) as address, pytest.raises(ServerError) as caught:
            asking(address)
        assert_sentence(caught.value)


@ALL
def test_timeout_ends_a_server_that_sends_byte_by_byte(asking: Asking) -> None:
    """One byte at a time in the headers, the body or gRPC's first frame, or none at all."""
    body = http(b"", {"Content-Length": 1000, LENGTH: 1000})
    ready = http(json.dumps({"version": "2.0"}).encode(), {"Connection": "close"})
    half = b"\0\0\x06\4\0\0\0\0\0\0\3\0\0\0\x64"

    def body_only(request: bytes, send: Send) -> None:
        send(body)
        dribble(b"{")(request, send)

    def ready_but_slow(request: bytes, send: Send) -> None:
        """Each request of `status` stays within the timeout, but all together exceed it."""
        time.sleep(0.12)
        send(ready)

    servers: list[tuple[str, Callable[[bytes, Send], None]]] = [
        ("http://", dribble(b"HTTP/1.1 200 OK\r\nX: y")),
        ("http://", body_only),
        ("http://", lambda request, send: time.sleep(ENDLESS)),
        ("", dribble(half)),
        ("", lambda request, send: time.sleep(ENDLESS)),
    ]
    if asking in (status, status_async):
        servers.append(("http://", ready_but_slow))

    def ask_one(scheme: str, answer: Callable[[bytes, Send], None]) -> None:
        with tcp_server(answer) as address:
            started = time.monotonic()
            # gRPC may first close the connection, because the bytes are not HTTP/2.
            with pytest.raises((TimedOutError, UnavailableError)) as caught:
                asking(scheme + address, timeout=0.3)
            assert time.monotonic() - started < SOON
            assert_sentence(caught.value)
            assert not scheme or isinstance(caught.value, TimedOutError)

    with ThreadPoolExecutor() as threads:  # nearly all of the time is waiting
        by_http = [threads.submit(ask_one, *server) for server in servers if server[0]]
        for server in servers:
            if not server[0]:  # one event loop of gRPC at a time
                ask_one(*server)
        for asked in by_http:
            asked.result()


def test_timeout_ends_a_server_that_reads_slowly() -> None:
    def take(request: bytes, send: Send) -> None:
        time.sleep(ENDLESS)

    for scheme in ("http://", ""):
        with tcp_server(take) as address, Client(scheme + address, timeout=0.5) as client:
            started = time.monotonic()
            with pytest.raises((TimedOutError, UnavailableError)):
                client.detect(bytes(30 << 20))
            assert time.monotonic() - started < SOON


@ALL
@pytest.mark.parametrize("form", ["declared", "until_closed", "chunked", "refusal"])
def test_endless_http_answer_is_refused(asking: Asking, form: str) -> None:
    block = b"x" * (1 << 20)

    def answer(request: bytes, send: Send) -> None:
        headers: dict[str, Any] = {LENGTH: 100, "Content-Length": {"declared": 1 << 40}.get(form)}
        if form == "chunked":
            headers |= {"Transfer-Encoding": "chunked"}
        send(http(b"", headers, "400 Bad Request" if form == "refusal" else "200 OK"))
        for _ in range(200):
            send(b"100000\r\n" + block + b"\r\n" if form == "chunked" else block)

    tracemalloc.start()
    try:
        with (
            tcp_server(answer) as address,
            pytest.raises(ServerError, match="the answer is larger than 16 MiB"),
        ):
            asking(f"http://{address}")
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@BOTH
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_oversized_grpc_answer_is_refused(asking: Asking, compression: grpc.Compression) -> None:
    answer = [*tensors().values(), Tensor("padding", "UINT8", [20 << 20], bytes(20 << 20))]
    with grpc_server(over_grpc(answer), compression) as address:
        with pytest.raises(ServerError) as caught:
            asking(address)
        assert_sentence(caught.value)


@BOTH
def test_server_error_message_becomes_one_printable_line(asking: Asking) -> None:
    said = json.dumps({"error": "no\n\x1b[31mthat\x07 " + "x" * 100_000}).encode()
    for status, kind in {"500 Oh": ServerError, "503 No": UnavailableError}.items():
        with http_server(http(said, status=status)) as address:
            with pytest.raises(kind, match=r"^no \\x1b\[31mthat\\x07 xx") as caught:
                asking(address)
            assert_sentence(caught.value)
    for status, body in (("500 \x1b]0;x\x07", b""), ("401 Who", b'{"error": ["\\u0000"]}')):
        with http_server(http(body, status=status)) as address:
            with pytest.raises((ServerError, UnavailableError, DeniedError)) as caught:
                asking(address)
            assert_sentence(caught.value)
