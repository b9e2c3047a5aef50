"""Probes are answered, whatever else is connected to the health port. No Triton is needed."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import free_ports

from yolov5_server import Settings, _health_server
from yolov5_server._health import Health
from yolov5_server._health_server import HealthServer


@pytest.fixture(scope="module")
def ending() -> Iterator[ThreadPoolExecutor]:
    """Servers end here, beside the next tests: each takes up to half a second."""
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def server(ending: ThreadPoolExecutor) -> Iterator[HealthServer]:
    ports = free_ports(2)
    settings = Settings(http_port=ports[0], health_port=ports[1])
    server = HealthServer(settings, Health(settings))
    yield server
    ending.submit(server.shutdown).add_done_callback(lambda _: server.server_close())


@pytest.fixture
def port(server: HealthServer) -> int:
    return server.server_port


def probe(port: int, path: str = "/ready", head: str = "") -> str:
    """The status line of an answer; empty if there is none."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(5)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: probe\r\n{head}\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
    return answer.partition(b"\r\n")[0].decode()


def test_metrics_are_read_by_prometheus(server: HealthServer) -> None:
    server.health.restarts.update({("yolov5", "died"): 2, ("tritonserver", "hung"): 1})
    server.health.canaries.update(sent=7, failed=3)
    server.health.down("it is starting", pause=60)
    address = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    assert {name: family.type for name, family in families.items()} == {
        "yolov5_ready": "gauge",
        "yolov5_restarts": "counter",
        "yolov5_restart_pause_seconds": "gauge",
        "yolov5_canaries": "counter",
    }
    assert all(family.documentation.endswith(".") for family in families.values())
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert 59 <= found.pop(("yolov5_restart_pause_seconds",)) <= 60
    assert found == {
        ("yolov5_ready",): 0,
        ("yolov5_restarts_total", "tritonserver", "hung"): 1,
        ("yolov5_restarts_total", "yolov5", "died"): 2,
        ("yolov5_canaries_total", "sent"): 7,
        ("yolov5_canaries_total", "failed"): 3,
    }


def test_probes_are_answered_beside_silent_connections(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(80)]
    try:
        answers = [probe(port) for _ in range(20)]
        assert answers == ["HTTP/1.0 503 Service Unavailable"] * 20
        assert probe(port, "/live") == "HTTP/1.0 200 OK"
        assert threading.active_count() < 80
    finally:
        for one in silent:
            one.close()


def test_silent_connection_is_closed_soon(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _health_server._Handler.timeout == 2
    monkeypatch.setattr(_health_server._Handler, "timeout", 0.5)
    with socket.create_connection(("127.0.0.1", port), 5) as silent:
        silent.settimeout(6)
        started = time.monotonic()
        assert silent.recv(1) == b""
        assert time.monotonic() - started < 3


def test_slow_request_head_is_bounded_in_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _health_server._HEAD_SECONDS == 5
    monkeypatch.setattr(_health_server, "_HEAD_SECONDS", 1.0)
    with socket.create_connection(("127.0.0.1", port), 5) as slow:
        slow.sendall(b"GET /ready HTTP/1.1\r\n")
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - started < 5:
                slow.sendall(b"X-A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - started < 4


def test_request_head_is_bounded_in_size(port: int) -> None:
    assert probe(port, head=f"X-A: {'b' * 8000}\r\n").startswith("HTTP/1.0 503")
    assert probe(port, head="X-A: b\r\n" * 90).startswith("HTTP/1.0 503")
    large = f"X-A: {'b' * 10_000}\r\n" * 2
    assert probe(port, head=large).startswith("HTTP/1.0 431")
    assert probe(port, path="/" + "a" * 20_000) == ""


def test_hostile_bytes_get_an_error_status(port: int) -> None:
    for data in (
        b"\0" * 100 + b"\r\n\r\n",
        b"POST /ready HTTP/1.1\r\n\r\n",
        b"\r\n",
        b"\xff" * 70_000,
    ):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.settimeout(5)
            connection.sendall(data)
            try:
                connection.shutdown(socket.SHUT_WR)
                answer = connection.recv(4096)
            except OSError:  # the server has closed it already
                answer = b""
            assert b"Traceback" not in answer
    assert probe(port).startswith("HTTP/1.0 503")
