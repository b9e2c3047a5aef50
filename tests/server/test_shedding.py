"""Overload: requests beyond the queue are refused at once, the rest are answered as usual."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from statistics import median
from typing import Any

import pytest
import tritonclient.grpc as grpc
from support import (
    PHOTO,
    RunningServer,
    ask_grpc,
    assert_same,
    image_tensor,
    infer,
    inferences,
    post_raw,
    wait_until,
)
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.alone

PHOTO_BYTES = PHOTO.read_bytes()


@dataclass
class Call:
    """One of many requests; `finished` and the fields after it are set when it has an answer."""

    started: float
    context: Any = None
    finished: float = 0.0
    result: Any = None
    error: Any = None

    @property
    def seconds(self) -> float:
        return self.finished - self.started


class Crowd:
    """Sends requests without waiting for their answers."""

    def __init__(self, client: grpc.InferenceServerClient) -> None:
        self._client = client
        self._image = image_tensor(grpc, [PHOTO_BYTES])
        self._done: Queue[Call] = Queue()
        self.calls: list[Call] = []

    def send(self, count: int, **arguments: Any) -> None:
        for _ in range(count):
            call = Call(time.monotonic())

            def answered(result: Any, error: Any, call: Call = call) -> None:
                call.finished, call.result, call.error = time.monotonic(), result, error
                self._done.put(call)

            call.context = self._client.async_infer(
                "yolov5_ensemble", [self._image], answered, **arguments
            )
            self.calls.append(call)

    def wait(self) -> tuple[list[Call], list[Call]]:
        """Wait for all; return the calls that were answered, and those that were refused."""
        for _ in self.calls:
            self._done.get(timeout=60)
        return (
            [call for call in self.calls if call.error is None],
            [call for call in self.calls if call.error is not None],
        )


@pytest.fixture
def crowd(server: RunningServer) -> Iterator[Crowd]:
    with grpc.InferenceServerClient(server.grpc) as client:
        yield Crowd(client)


def seconds_alone(server: RunningServer) -> float:
    """Duration of one request while there are no others."""

    def ask() -> float:
        started = time.monotonic()
        ask_grpc(server.grpc, [PHOTO_BYTES])
        return time.monotonic() - started

    return median(ask() for _ in range(7))


def outputs(call: Call) -> Any:
    names = [output.name for output in call.result.get_response().outputs]
    return {name: call.result.as_numpy(name) for name in names}


def test_requests_beyond_the_queue_are_refused_at_once(server: RunningServer, crowd: Crowd) -> None:
    expected = ask_grpc(server.grpc, [PHOTO_BYTES])
    before = seconds_alone(server)
    crowd.send(400)
    # More than the queue holds, however many of the others are answered by now.
    with ThreadPoolExecutor(200) as pool:
        replies = [*pool.map(lambda _: post_raw(server.http, PHOTO_BYTES), range(200))]
    accepted, refused = crowd.wait()

    too_many = [reply for reply in replies if reply.status != 200]
    assert too_many, "HTTP was never refused"
    for reply in too_many:
        assert reply.status == 503
        assert "saturated: the queue of 64 images has no room for 1 more" in reply.json()["error"]
    assert len(accepted) >= 64
    for call in accepted:
        assert_same(outputs(call), expected, exact=False)
    assert len(refused) > 100
    for call in refused:
        assert call.error.status() == "StatusCode.UNAVAILABLE"
        assert "saturated: the queue of 64 images has no room for 1 more" in call.error.message()
    # Most refusals come while accepted requests still wait. This process, the sender, shares the
    # server's cores; test_siege.py measures the time.
    assert median(call.finished for call in refused) < max(call.finished for call in accepted)
    wait_until(lambda: seconds_alone(server) < 2 * before, 30)


def test_concurrent_requests_are_answered_without_a_pause(server: RunningServer) -> None:
    """Triton's batcher with a queue policy forgets requests until the next one comes."""
    alone = seconds_alone(server)
    slowest = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(10):
            started = time.monotonic()
            [*pool.map(lambda _: post_raw(server.http, PHOTO_BYTES), range(3))]
            slowest.append(time.monotonic() - started)
    assert median(slowest) < 5 * alone


def test_64_callers_are_never_refused(crowd: Crowd) -> None:
    crowd.send(64)
    accepted, refused = crowd.wait()
    assert (len(accepted), len(refused)) == (64, 0)


def test_request_is_refused_when_its_own_timeout_is_over(crowd: Crowd) -> None:
    crowd.send(48)
    crowd.send(16, timeout=1000)  # microseconds
    _, refused = crowd.wait()
    assert refused
    assert all("saturated: not begun within 0.001 s" in call.error.message() for call in refused)
    assert {call.error.status() for call in refused} == {"StatusCode.UNAVAILABLE"}
    assert all(call.error is None for call in crowd.calls[:48])


def test_cancelled_requests_do_not_reach_the_network(server: RunningServer, crowd: Crowd) -> None:
    before = inferences(server, "yolov5")
    crowd.send(60)
    for call in crowd.calls:
        call.context.cancel()
    _, refused = crowd.wait()
    assert {call.error.status() for call in refused} == {"StatusCode.CANCELLED"}
    ask_grpc(server.grpc, [PHOTO_BYTES])  # is answered after all of them
    # Some have been dispatched before they are cancelled, on a busy machine more of them.
    assert inferences(server, "yolov5") - before < 55


def test_single_caller_gets_a_fair_share_beside_twelve_callers_with_batches(
    server: RunningServer,
) -> None:
    """Each sends again as soon as it is answered, until 36 batches have been answered."""
    answered, refused = Counter[int](), Counter[int]()
    over = threading.Event()

    def ask_again_and_again(images: int) -> None:
        with grpc.InferenceServerClient(server.grpc) as client:
            while not over.is_set():
                try:
                    infer(client, [PHOTO_BYTES] * images)
                except InferenceServerException as error:
                    assert "saturated: " in error.message()
                    refused[images] += 1
                    time.sleep(0.05)
                else:
                    answered[images] += 1
                    if answered[8] >= 36:
                        over.set()

    with ThreadPoolExecutor(13) as pool:
        callers = [pool.submit(ask_again_and_again, images) for images in (*[8] * 12, 1)]
        for caller in callers:
            caller.result(240)
    assert refused[1] == 0
    assert answered[1] >= answered.total() / 13
