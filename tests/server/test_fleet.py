"""What `make fleet` measures of real servers, and its Envoy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from yolov5_fleet.__main__ import main
from yolov5_fleet._envoy import find_envoy, running_envoy
from yolov5_fleet._measure import read_limits
from yolov5_fleet._real import RealServer, load, running_server
from yolov5_fleet._server import Outcome

pytestmark = pytest.mark.server
needs_envoy = pytest.mark.skipif(find_envoy() is None, reason="there is no envoy")


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with running_server("fp32") as found:
        yield found


def test_start_to_ready_is_measured(server: RealServer) -> None:
    assert 0.5 < server.start_seconds < 120


def test_load_at_given_times(server: RealServer) -> None:
    times = [0.2 * number for number in range(10)]
    found = load(server.address, warm=0.5, seconds=5.0, times=times, launchers=[server.process])
    assert found.summary.requests == 7
    assert found.summary.failed.total() == 0
    assert {"generator", "preprocess", "postprocess", "tritonserver"} <= {*found.cpu}


def test_load_by_callers(server: RealServer) -> None:
    found = load(server.address, warm=0.0, seconds=2.0, callers=4)
    assert found.summary.requests >= 4
    # Each caller always waits for one answer.
    assert found.summary.latencies.sum() < 4 * (2.0 + found.summary.quantile(1.0))


def test_full_queue_refuses(server: RealServer) -> None:
    most = read_limits().max_queued_images + read_limits().max_in_flight_images
    found = load(server.address, warm=0.0, seconds=5.0, times=[0.001] * (most + 30))
    assert 1 <= found.summary.failed[Outcome.REFUSED] <= 30


@needs_envoy
def test_envoy_passes_requests_on(server: RealServer) -> None:
    with running_envoy({"one": [server.address]}) as (process, addresses):
        found = load(addresses["one"], warm=0.0, seconds=1.0, callers=2, envoy=process)
    assert found.summary.failed.total() == 0
    assert found.cpu["envoy"] > 0


@needs_envoy
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_measurement_and_check(tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.json"
    main(["measure", f"--output={tmp_path}", f"--parameters={parameters}", "--factor=0.3"])
    report = (tmp_path / "fleet-check.md").read_text()
    assert report.count(" callers | ") == 4
    assert report.count("% of the capacity | ") == 6
    assert json.loads(parameters.read_text())["cores"] >= 1
