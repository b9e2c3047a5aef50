"""What an autoscaler reads: gauges that follow the load and fall back, and how requests end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import mean

import pytest
import tritonclient.grpc as grpc
from cpu_count import available_cpus
from support import (
    PHOTO,
    RunningServer,
    ask_grpc,
    image_tensor,
    post_raw,
    running_server,
    samples,
    wait_until,
)

pytestmark = pytest.mark.alone

PHOTO_BYTES = PHOTO.read_bytes()
GAUGES = ("yolov5_queued_images", "yolov5_in_flight_images", "yolov5_saturation")
MAX_IN_FLIGHT = 2 * available_cpus() + 2  # images; two cores have 6, and 32 callers then wait
WINDOW = 6  # seconds after which nothing is left of an earlier load


@pytest.fixture(scope="module")
def own_server() -> Iterator[RunningServer]:
    """A server to which nobody else has sent anything."""
    with running_server() as server:
        yield server


@contextmanager
def callers(server: RunningServer, count: int) -> Iterator[Counter[int]]:
    """Callers who send the photo again when it is answered; yields the answers by status."""
    over = threading.Event()
    answers = Counter[int]()

    def ask_again_and_again() -> None:
        while not over.is_set():
            answers[post_raw(server.http, PHOTO_BYTES).status] += 1

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(ask_again_and_again) for _ in range(count)]
        try:
            yield answers
        finally:
            over.set()
        for future in futures:
            future.result(60)


def gauges(server: RunningServer) -> tuple[float, float, float]:
    """Queued images, images in flight, and saturation."""
    queued, in_flight, saturation = (samples(server.metrics, name)[0].value for name in GAUGES)
    return queued, in_flight, saturation


def readings(server: RunningServer, seconds: int) -> list[tuple[float, float, float]]:
    found = []
    for _ in range(seconds):
        time.sleep(1)
        found.append(gauges(server))
    return found


def ended(server: RunningServer) -> Counter[str]:
    """Requests so far, by outcome."""
    return Counter(
        {
            sample.labels["outcome"]: int(sample.value)
            for sample in samples(server.metrics, "yolov5_requests_total")
        }
    )


def timed(server: RunningServer) -> Counter[str]:
    """Requests of which the time was recorded, by outcome; of many only some."""
    return Counter(
        {
            sample.labels["outcome"]: int(sample.value)
            for sample in samples(server.metrics, "yolov5_request_seconds_count")
        }
    )


def test_nothing_is_lost_before_the_first_caller(own_server: RunningServer) -> None:
    wait_until(lambda: gauges(own_server)[2] < 0.1, 2 * WINDOW)  # after Triton's warm-up
    assert gauges(own_server)[:2] == (0, 0)
    assert ended(own_server).keys() == {
        *("answered", "rejected", "shed", "expired", "failed", "lost")
    }
    assert ended(own_server)["lost"] == 0
    time.sleep(1)  # for an image of one pixel in flight
    received = samples(own_server.metrics, "yolov5_images_total")[0].value
    assert abs(ended(own_server).total() - received) <= 1


def test_saturation_follows_the_load_and_falls_back(own_server: RunningServer) -> None:
    with callers(own_server, 1) as answers:
        time.sleep(WINDOW)
        one = readings(own_server, 4)
    assert {*answers} == {200}
    assert 0.1 < mean(saturation for _, _, saturation in one) < 0.8
    assert max(queued for queued, _, _ in one) <= 1
    with callers(own_server, MAX_IN_FLIGHT + 26) as answers:
        time.sleep(WINDOW)
        many = readings(own_server, 4)
    assert {*answers} == {200}
    assert min(saturation for _, _, saturation in many) > 1.05
    assert mean(queued for queued, _, _ in many) > 16
    assert mean(in_flight for _, in_flight, _ in many) >= 4
    wait_until(lambda: gauges(own_server)[2] < 0.1, 2 * WINDOW)
    # At most an image of one pixel, by which the launcher looks whether it is answered.
    assert sum(gauges(own_server)[:2]) <= 1


def test_outcomes_of_requests_are_counted(own_server: RunningServer) -> None:
    time.sleep(1)
    before, before_timed = ended(own_server), timed(own_server)
    ask_grpc(own_server.grpc, [PHOTO_BYTES] * 2)
    assert post_raw(own_server.http, b"no image").status == 400
    assert post_raw(own_server.http, PHOTO_BYTES, {"X-Yolo-Max-Det": "0"}).status == 400
    with ThreadPoolExecutor(200) as pool:
        statuses = Counter(
            pool.map(lambda _: post_raw(own_server.http, PHOTO_BYTES).status, range(200))
        )
    assert {*statuses} == {200, 503}
    late = expire(own_server)
    assert late > 0
    time.sleep(2)
    counted = ended(own_server) - before
    answered = 1 + statuses[200] + 64 - late
    assert answered <= counted["answered"] <= answered + 60  # with the images of one pixel
    assert counted["rejected"] == 2
    assert counted["shed"] == statuses[503]
    assert counted["expired"] == late
    assert counted["failed"] == counted["lost"] == 0
    recorded = timed(own_server) - before_timed
    assert recorded["rejected"] == 2
    assert 1 <= recorded["expired"] <= late
    assert {*recorded} >= {"answered", "rejected", "expired"}


def expire(server: RunningServer) -> int:
    """Send 16 requests that may wait for a millisecond behind 48 others; return how many expire."""
    answers: list[bool] = []
    with grpc.InferenceServerClient(server.grpc) as client:
        image = image_tensor(grpc, [PHOTO_BYTES])
        for timeout in (*[None] * 48, *[1000] * 16):
            client.async_infer(
                "yolov5_ensemble",
                [image],
                lambda result, error: answers.append(error is None),
                timeout=timeout,
            )
        wait_until(lambda: len(answers) == 64, 60)
    return answers.count(False)


@pytest.mark.slow
def test_request_of_a_caller_who_hangs_up_is_lost(own_server: RunningServer) -> None:
    before = ended(own_server)
    with grpc.InferenceServerClient(own_server.grpc) as client:
        image = image_tensor(grpc, [PHOTO_BYTES])
        calls = [
            client.async_infer("yolov5_ensemble", [image], lambda result, error: None)
            for _ in range(40)
        ]
        time.sleep(0.1)
        for call in calls:
            call.cancel()
    wait_until(lambda: (ended(own_server) - before)["lost"] > 0, 90)
    assert (ended(own_server) - before)["failed"] == 0
    assert gauges(own_server)[2] < 0.2
