"""The REST service under callers who are slow, greedy or gone, and while it is being stopped."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus

import cv2
import httpx
import numpy as np
import psutil
import pytest
from api_service import RunningApi, running_api
from support import PHOTO, RunningServer, metric, wait_until

from yolov5_client._api.cancelling import withstands

pytestmark = pytest.mark.alone

IMAGE = PHOTO.read_bytes()
HEAD = "POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
MIB = 1 << 20


def connected(api: RunningApi) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.port), 30)


def resident(api: RunningApi) -> float:
    """MiB of the service in memory."""
    return psutil.Process(api.process.pid).memory_info().rss / MIB


def gauge(api: RunningApi, name: str) -> int:
    return metric(f"{api.url}/metrics", f"yolov5_api_{name}")


def is_idle(api: RunningApi) -> bool:
    # This request for the metrics is one.
    return gauge(api, "requests_in_progress") == 1 and gauge(api, "buffered_bytes") == 0


def detections(api: RunningApi) -> int:
    answer = httpx.post(f"{api.url}/detect", content=IMAGE, timeout=60)
    assert answer.status_code == 200, answer.text
    return len(answer.json()["images"][0]["detections"])


def status_of(connection: socket.socket) -> int:
    with connection.makefile("rb") as file:
        return int(file.readline().split()[1])


@pytest.fixture
def patient(server: RunningServer) -> Iterator[RunningApi]:
    """A service that lets a body take two seconds, with memory for one large request."""
    with running_api(server, "--upload-timeout=2", "--max-buffered-mib=48") as running:
        yield running


@pytest.mark.parametrize("chunked", [False, True])
def test_body_of_100_mb_is_refused_before_it_has_come(api: RunningApi, chunked: bool) -> None:
    before = resident(api)
    with connected(api) as caller:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {100 * MIB}"
        caller.sendall(f"{HEAD}{length}\r\n\r\n".encode())
        sent = 0
        try:
            while sent < 100 * MIB:
                part = bytes(MIB)
                caller.sendall(b"100000\r\n" + part + b"\r\n" if chunked else part)
                sent += MIB
        except OSError:
            pass  # the service has closed the connection
        assert sent < 100 * MIB
    assert resident(api) < before + 120
    wait_until(lambda: any(one["status"] == 413 for one in api.access_log), 5)
    assert is_idle(api)
    assert detections(api) == 11


def test_caller_that_waits_for_leave_reads_why_its_body_is_too_large(api: RunningApi) -> None:
    with connected(api) as caller:
        lines = f"{HEAD}Content-Length: {100 * MIB}\r\nExpect: 100-continue\r\n\r\n"
        caller.sendall(lines.encode())
        assert status_of(caller) == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_slow_uploads_hinder_nobody_and_end(patient: RunningApi) -> None:
    before = resident(patient)
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(patient)) for _ in range(200)]
        for caller in callers:
            caller.sendall(f"{HEAD}Content-Length: {MIB}\r\n\r\n".encode() + bytes(1000))
        assert [detections(patient) for _ in range(10)] == [11] * 10
        statuses = Counter(status_of(caller) for caller in callers)
    assert statuses == {HTTPStatus.REQUEST_TIMEOUT: 200}
    assert resident(patient) < before + 40
    wait_until(lambda: is_idle(patient), 5)


def test_large_bodies_share_a_bounded_memory(patient: RunningApi) -> None:
    with connected(patient) as first, connected(patient) as second:
        for caller in (first, second):
            caller.sendall(f"{HEAD}Content-Length: {30 * MIB}\r\n\r\n".encode())
        first.sendall(bytes(29 * MIB))
        wait_until(lambda: gauge(patient, "buffered_bytes") == 29 * MIB, 5)
        second.settimeout(0.5)
        with pytest.raises(OSError):
            for _ in range(29):
                second.sendall(bytes(MIB))
                time.sleep(0.01)
        assert detections(patient) == 11, "a small one still fits"
    wait_until(lambda: is_idle(patient), 10)
    [refused] = [one for one in patient.access_log if one["status"] == 503]
    assert "saturated" in refused["problem"]


def test_picture_that_its_caller_does_not_read_counts_as_memory_until_it_hangs_up(
    patient: RunningApi,
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2400, 2400, 3), np.uint8)
    image = cv2.imencode(".jpg", noise)[1].tobytes()
    with ExitStack() as stack:
        callers = [stack.enter_context(socket.socket()) for _ in range(2)]
        for caller in callers:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.settimeout(30)
            caller.connect(("127.0.0.1", patient.port))
            head = HEAD.replace("/detect", "/detect.jpg")
            caller.sendall(f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image)
            assert status_of(caller) == HTTPStatus.OK
        drawn = gauge(patient, "buffered_bytes")
        assert 10 * MIB < drawn < 2.2 * len(image)
        assert gauge(patient, "requests_in_progress") == 3, "with the one for the metrics"
        assert detections(patient) == 11
    wait_until(lambda: is_idle(patient), 5)


def test_a_thousand_callers_hang_up_half_way(server: RunningServer, api: RunningApi) -> None:
    """Triton 2.51 would end if their calls were cancelled."""

    def cancelled() -> int:
        return metric(server.metrics, "nv_inference_request_failure", reason="CANCELED")

    def starts() -> int:
        return server.log.read_text().count("Starting Triton again")

    detections(api)
    before, already, restarts = resident(api), cancelled(), starts()
    may_cancel = withstands(server.triton_version)
    whole = f"{HEAD}Content-Length: {len(IMAGE)}\r\n\r\n".encode() + IMAGE
    stop = threading.Event()
    found: list[int] = []

    def ask() -> None:
        while not (stop.is_set() and found):
            answer = httpx.post(f"{api.url}/detect", content=IMAGE, timeout=60)
            # Those who have not yet hung up may fill the server's queue.
            assert answer.status_code in (200, 503), answer.text
            if answer.status_code == 200:
                found.append(len(answer.json()["images"][0]["detections"]))

    neighbour = threading.Thread(target=ask)
    neighbour.start()
    try:
        for _ in range(20):
            with ExitStack() as stack:
                callers = [stack.enter_context(connected(api)) for _ in range(50)]
                for number, caller in enumerate(callers):
                    # Most in the middle of the image, some while it is being looked at.
                    caller.sendall(whole if number % 5 == 0 else whole[: len(whole) // 2])
                time.sleep(0.02)
    finally:
        stop.set()
        neighbour.join()
    assert found and set(found) == {11}, "the one who stayed has all answers"
    wait_until(lambda: is_idle(api), 20)
    assert resident(api) < before + 60
    assert starts() == restarts
    if may_cancel:
        wait_until(lambda: cancelled() > already, 20)
    else:
        assert cancelled() == already
    gone = [one for one in api.access_log if one["status"] == 499]
    assert len(gone) >= 800
    assert api.errors.read_text() == ""


def test_more_images_than_are_allowed_in_flight_are_refused_at_once(server: RunningServer) -> None:
    with running_api(server, "--in-flight=8") as narrow:
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(httpx.post(f"{narrow.url}/detect", content=IMAGE, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = Counter(answer.status_code for answer in answers)
        assert statuses.keys() == {200, 503} and statuses[200] >= 8
        for answer in answers:
            if answer.status_code == 503:
                assert answer.headers["Retry-After"] == "1"
                assert "8 images are in progress" in answer.json()["detail"]


def test_shedding_of_the_server_is_passed_on(api: RunningApi) -> None:
    statuses: Counter[int] = Counter()
    form = [("image", IMAGE)] * 8

    def ask() -> None:
        answer = httpx.post(f"{api.url}/detect", files=form, timeout=60)
        statuses[answer.status_code] += 1
        if answer.status_code == 503:
            assert answer.headers["Retry-After"] == "1"
            assert "saturated" in answer.json()["detail"]

    threads = [threading.Thread(target=ask) for _ in range(20)]  # 160 images
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.keys() == {200, 503}


def test_stop_under_load_loses_no_answer(server: RunningServer) -> None:
    outcomes: Counter[str] = Counter()
    with running_api(server) as api:

        def ask() -> None:
            while True:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
                    while True:
                        connection.request("POST", "/detect", IMAGE)
                        answer = connection.getresponse()
                        body = answer.read()
                        outcomes[f"{answer.status}"] += 1
                        assert body.endswith(b"]}]}")
                        if answer.getheader("Connection", "").lower() == "close":
                            break
                except http.client.IncompleteRead:
                    outcomes["cut off"] += 1
                    return
                except ConnectionRefusedError:
                    return
                except OSError:  # closed before it had read the next request
                    outcomes["not begun"] += 1

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        wait_until(lambda: outcomes["200"] > 30, 60)
        started = time.monotonic()
        api.process.send_signal(signal.SIGTERM)
        assert api.process.wait(15) == 0
        assert time.monotonic() - started < 10
        for thread in threads:
            thread.join(30)
        assert outcomes["cut off"] == 0
        assert outcomes.keys() <= {"200", "not begun", "cut off"}
        assert outcomes["200"] == sum(one["status"] == 200 for one in api.access_log)
        assert api.errors.read_text() == ""


def test_stop_does_not_wait_for_a_slow_upload(server: RunningServer) -> None:
    with running_api(server, "--drain=1") as api, connected(api) as caller:
        caller.sendall(f"{HEAD}Content-Length: {MIB}\r\n\r\n".encode() + bytes(1000))
        wait_until(lambda: gauge(api, "buffered_bytes") == 1000, 5)
        started = time.monotonic()
        api.process.terminate()
        assert api.process.wait(15) == 0
        assert time.monotonic() - started < 5
