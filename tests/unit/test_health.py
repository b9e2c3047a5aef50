"""The health that probes are told. The test chooses the answers of the endpoint that is judged."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import free_ports

from yolov5_client._commands import status
from yolov5_server import Settings, _probe
from yolov5_server._health import Health
from yolov5_server._health_server import _metrics
from yolov5_server._probe import LATE, PIXEL, SATURATED, Statistics


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(Settings(), clock)


def test_readiness_names_the_reason_and_the_remaining_pause(health: Health, clock: Clock) -> None:
    assert health.check() == "it is starting"
    health.down("Triton ended by itself (exit status -9).", pause=8)
    clock.now += 3.5
    assert health.check() == (
        "Triton ended by itself (exit status -9). Starting Triton again in 5 s."
    )
    assert "\nyolov5_restart_pause_seconds 4.5\n" in _metrics(health)
    clock.now += 4.5
    assert health.check() == "Triton ended by itself (exit status -9)."
    assert "\nyolov5_restart_pause_seconds 0.0\n" in _metrics(health)


def test_draining_server_is_not_ready_although_it_answers(health: Health) -> None:
    assert not health.drain()  # it is starting
    health.up([])
    assert health.drain()
    assert health.check() == health.check("yolov5") == "the server is about to end"
    assert health.is_live


def test_launcher_that_pauses_between_starts_is_live(health: Health, clock: Clock) -> None:
    for _ in range(10):
        health.down("Triton ended by itself (exit status -9).", pause=30)
        clock.now += 35
        assert health.is_live
    clock.now += 60
    assert not health.is_live
    health.up()
    assert health.is_live


def test_client_sends_the_same_canary_as_the_launcher() -> None:
    assert status.PIXEL == PIXEL


# -- the launcher's own reports ----------------------------------------------------------------


def test_service_is_live_for_a_minute_without_health(health: Health, clock: Clock) -> None:
    health.up()
    health.down("it has ended.")
    clock.now += 60
    assert health.is_live, "exactly a minute"
    clock.now += 0.5
    assert not health.is_live
    health.down("it has ended.", pause=10)
    clock.now += 70
    assert health.is_live, "a minute after the pause"
    clock.now += 0.5
    assert not health.is_live


def test_pause_ends_at_zero(health: Health, clock: Clock) -> None:
    health.down("it has ended.", pause=3)
    assert health.pause == 3
    clock.now += 5
    assert (health.pause, health.check()) == (0, "it has ended.")
    health.down("it has ended.", pause=3)
    health.up()
    assert health.pause == 0


# -- what Triton answers -----------------------------------------------------------------------


class Endpoint(ThreadingHTTPServer):
    """An endpoint with answers that the test chooses; a real one is in test_supervision.py.

    Attributes:
        answered: images with detections; grows with each canary.
        status: of the answer to a canary.
        body: of an answer that is an error.
        metrics: what is told of them.
        during: called while a canary is being answered.
        asked: number of canaries.
    """

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answered, self.asked, self.status = 0, 0, 200
        self.body, self.metrics = b"", ""
        self.compute = {"ns": 0, "count": 0}
        self.during: Callable[[], object] = lambda: None


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        if self.path == "/metrics":
            return self._send(200, self.server.metrics.encode())
        assert self.path == "/v2/models/yolov5_ensemble/stats"
        counts = {"success": {"count": self.server.answered}, "compute_infer": self.server.compute}
        other = {"success": {"count": 77}, "compute_infer": {"ns": 77_000_000_000, "count": 1}}
        stats = [{"inference_stats": counts}, {"inference_stats": other}]
        return self._send(200, json.dumps({"model_stats": stats}).encode())

    def do_POST(self) -> None:
        assert self.path == "/v2/models/yolov5_ensemble/infer"
        assert self.rfile.read(int(self.headers["Content-Length"])) == PIXEL
        self.server.asked += 1
        self.server.during()
        self.server.answered += self.server.status == 200
        self._send(self.server.status, self.server.body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    (port,) = free_ports(1)
    with Endpoint(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def running(endpoint: Endpoint, clock: Clock) -> Health:
    """The health of a server that has just become ready."""
    one = Health(Settings(http_port=endpoint.server_address[1]), clock)
    one.up()
    return one


def test_answer_to_any_caller_is_health_and_spares_a_canary(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    assert running.check() is None
    assert (endpoint.asked, running.canaries) == (1, {"sent": 1})
    clock.now += 0.9
    assert running.check() is None
    assert endpoint.asked == 1, "the result is a second old at most"
    clock.now += 0.1
    assert running.check() is None
    assert endpoint.asked == 2, "the only answer was the canary's"
    clock.now += 1
    endpoint.answered += 1
    assert running.check() is None
    assert endpoint.asked == 2, "a caller had an answer"
    clock.now += 1
    assert running.check() is None
    assert (endpoint.asked, running.canaries) == (3, {"sent": 3})


def test_images_of_before_a_restart_do_not_count(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answered = 5
    assert running.check() is None
    assert endpoint.asked == 0
    running.up()
    endpoint.answered = 1
    assert running.check() is None
    assert endpoint.asked == 0, "of the new server, which has answered a caller at once"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, b"{}", SATURATED),
        (400, b'{"error": "no"}', "the endpoint answers an image with HTTP 400 (no)"),
        (500, b"<html>", "the endpoint answers an image with HTTP 500"),
        (504, b"[]", "the endpoint answers an image with HTTP 504"),
        (
            500,
            b'{"error": "%s"}' % (b"x" * 987),
            f"the endpoint answers an image with HTTP 500 ({'x' * 987})",
        ),
        (500, b'{"error": "%s"}' % (b"x" * 988), "the endpoint answers an image with HTTP 500"),
    ],
)
def test_refused_canary_gives_the_reason(
    running: Health, endpoint: Endpoint, status: int, body: bytes, reason: str
) -> None:
    endpoint.status, endpoint.body = status, body
    assert running.check() == reason
    assert running.canaries == {"sent": 1, "failed": 1}
    assert running.check() == reason
    assert endpoint.asked == 1


def test_answer_to_a_caller_during_a_failed_canary_is_health(
    running: Health, endpoint: Endpoint
) -> None:
    endpoint.status = 503
    endpoint.during = lambda: setattr(endpoint, "answered", 4)
    assert running.check() is None
    assert running.canaries == {"sent": 1, "failed": 1}


def test_canary_that_is_not_answered_in_time_is_late(
    running: Health, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_probe, "_FIRST_CANARY_TIMEOUT", 0.05)
    endpoint.during = lambda: time.sleep(0.3)
    assert running.check() == LATE


def test_unhealthy_endpoint_is_live_for_a_minute(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.status = 500
    for seconds in (0, 30, 30):
        clock.now += seconds
        assert running.check() is not None
        assert running.is_live
    clock.now += 0.5
    assert not running.is_live
    clock.now += 0.5
    endpoint.status = 200
    assert running.check() is None
    assert running.is_live


def test_health_of_a_server_that_is_being_ended_does_not_count(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.during = lambda: running.down("it is ended.")
    assert running.check() is None
    clock.now += 61
    assert not running.is_live


def test_silent_triton_does_not_answer(clock: Clock) -> None:
    one = Health(Settings(http_port=free_ports(1)[0]), clock)
    assert one.unanswered_reason() is None, "it is starting"
    assert one.finished_images() == 0
    one.up()
    assert one.check() == "Triton does not answer"
    assert one.unanswered_reason() == "Triton does not answer"


def test_saturated_server_is_ended_only_without_progress(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    endpoint.answered = 1
    assert running.unanswered_reason() is None
    endpoint.status = 503
    for seconds in (0.5, 0.5, 2.9):
        clock.now += seconds
        assert running.unanswered_reason() is None
    assert endpoint.asked == 2, "not while an answer is fresh"
    clock.now += 0.1
    assert running.unanswered_reason() == SATURATED, "four seconds without an answer"
    endpoint.status = 400
    assert running.unanswered_reason() == "the endpoint answers an image with HTTP 400"


def test_progress_counts_answered_and_decoded_images(
    running: Health, endpoint: Endpoint, clock: Clock
) -> None:
    ports = free_ports(1)
    with Endpoint(ports[0]) as metrics:
        thread = threading.Thread(target=metrics.serve_forever, args=(0.01,))
        thread.start()
        one = Health(Settings(http_port=endpoint.server_address[1], metrics_port=ports[0]), clock)
        one.up()
        endpoint.answered = 5
        assert one.check() is None
        metrics.metrics = (
            'yolov5_decode_seconds_count{format="jpeg"} 3\nyolov5_decode_seconds_sum 99\n'
            "yolov5_decode_seconds_count 4e+0\nother_yolov5_decode_seconds_count 50\n"
        )
        assert one.finished_images() == 12
        metrics.shutdown()
        thread.join()
    assert one.finished_images() == 12, "as it was last told"


# -- several endpoints -------------------------------------------------------------------------


def answer(health: Health, network: str, is_answer: bool) -> None:
    """Choose whether an endpoint answers from now on, or refuses each image."""

    def probe() -> None:
        if not is_answer:
            raise urllib.error.HTTPError("", 400, "", Message(), io.BytesIO(b'{"error": "no"}'))

    health._probes[network]._probe = probe  # type: ignore[method-assign]


def test_endpoint_that_has_never_answered_is_to_blame_while_another_answers(
    health: Health, clock: Clock
) -> None:
    health.up(["yolov5", "plates"])
    answer(health, "yolov5", True)
    answer(health, "plates", False)
    assert health.unanswered_reason("plates") == "the endpoint answers an image with HTTP 400 (no)"
    assert not health.is_to_blame("plates"), "none has answered yet"
    assert health.unanswered_reason("yolov5") is None
    assert (health.is_to_blame("plates"), health.is_to_blame("yolov5")) == (True, False)
    for _ in range(7):
        clock.now += 10
        assert health.check("yolov5") is None
        assert health.check() == "plates_ensemble: the endpoint answers an image with HTTP 400 (no)"
    assert health.is_live, "a restart would not help"
    answer(health, "yolov5", False)
    clock.now += 10
    assert health.check("yolov5")
    assert not health.is_to_blame("plates"), "it is the server that fails"
    clock.now += 61
    assert not health.is_live


def test_endpoint_that_is_replaced_has_to_answer_anew(health: Health) -> None:
    health.up(["yolov5", "plates"])
    for network in ("yolov5", "plates"):
        answer(health, network, True)
        assert health.unanswered_reason(network) is None
    answer(health, "plates", False)
    assert health._refresh(health._probes["plates"])
    assert not health.is_to_blame("plates"), "it has answered: the server may hang"
    health.replaced("plates")
    answer(health, "plates", False)
    assert health.unanswered_reason("plates")
    assert health.is_to_blame("plates")
    health.replaced("unknown")
    assert health.networks == ["yolov5", "plates"]
    assert not health.is_to_blame("unknown")


@pytest.mark.parametrize(
    ("answered", "ns", "count", "batch", "seconds"),
    [
        (0, 0, 0, 8, 20),
        (1, 0, 0, 8, 2),
        (1, 3_000_000_000, 1, 1, 6),
        (9, 24_000_000_000, 8, 8, 48),
        (0, 24_000_000_000, 8, 8, 48),
        (9, 1_000_000, 1, 8, 2),
    ],
)
def test_slow_network_has_more_time_for_a_canary(
    endpoint: Endpoint, answered: int, ns: int, count: int, batch: int, seconds: float
) -> None:
    endpoint.answered, endpoint.compute = answered, {"ns": ns, "count": count}
    base = f"http://127.0.0.1:{endpoint.server_address[1]}/v2"
    for before in (answered - 1, answered):
        found = Statistics(base, "yolov5_ensemble", before=before, batch=batch)
        assert (found.answered, found.has_grown) == (answered, before < answered)
        assert found.canary_timeout == seconds
