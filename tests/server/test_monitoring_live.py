"""A real Prometheus asks for the right number of servers while the load of a real one changes."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tritonclient.grpc as grpc
import yaml
from cpu_count import available_cpus
from monitoring import (
    MONITORING,
    RunningPrometheus,
    dashboard_queries,
    running_prometheus,
    substitute,
)
from support import PHOTO, RunningServer, infer, samples
from tritonclient.utils import InferenceServerException

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (its own package)"
    ),
]

TARGET = 0.7  # saturation of each server
WITHIN = 30.0  # seconds from a change of the load to the right number of servers
IMAGE = PHOTO.read_bytes()


class Callers:
    """Callers that each send one image again as soon as it is answered."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._wanted = 0
        self._threads: list[threading.Thread] = []
        self.told: Counter[str] = Counter()

    def set(self, count: int) -> None:
        """Have so many callers from now on."""
        self._wanted = count
        for number in range(len(self._threads), count):
            thread = threading.Thread(target=self._run, args=[number], daemon=True)
            self._threads.append(thread)
            thread.start()
        if count < len(self._threads):
            for thread in self._threads[count:]:
                thread.join(60)
            del self._threads[count:]

    def _run(self, number: int) -> None:
        with grpc.InferenceServerClient(self._server.grpc) as client:
            while number < self._wanted:
                try:
                    infer(client, [IMAGE])
                    outcome = "answered"
                except InferenceServerException as error:
                    assert "saturated: " in error.message()
                    outcome = "shed"
                with self._lock:
                    self.told[outcome] += 1
                if outcome == "shed":
                    time.sleep(0.1)


@contextmanager
def calling(server: RunningServer) -> Iterator[Callers]:
    callers = Callers(server)
    try:
        yield callers
    finally:
        callers.set(0)


def short_rules() -> dict[str, Any]:
    """The rules, with the times of the alerts on shedding shortened to seconds."""
    found: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    for group in found["groups"]:
        for rule in group["rules"]:
            if group["name"] == "yolov5-requests":
                rule["expr"] = rule["expr"].replace("[5m]", "[10s]")
            if rule.get("alert") == "Yolov5Shedding":
                rule["for"] = "4s"
        if group["name"] == "yolov5-autoscaling":
            group["interval"] = "2s"
    return found


def targets(server: RunningServer) -> dict[str, list[str]]:
    return {
        "yolov5": [f"127.0.0.1:{server.ports[2]}"],
        "yolov5-launcher": [f"127.0.0.1:{server.ports[3]}"],
    }


@pytest.fixture(scope="module")
def prometheus(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPrometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with running_prometheus(folder, targets(server), short_rules()) as running:
        yield running


def expected_saturation(callers: int, answered_per_second: float) -> float:
    """What the callers alone tell: each core works on one image, and the others wait.

    Those that the server has not admitted are to be worked off within a second.
    """
    cores = available_cpus()
    if callers <= cores:
        return callers / cores
    return 1 + max(0, callers - (2 * cores + 2)) / answered_per_second


@dataclass
class Step:
    """What happened after a change of the load.

    Attributes:
        wanted: the servers that Prometheus asked for, by the seconds since the change.
        rate: images answered in a second, in the last 15 s.
        saturation: at the end, as the rules have it.
    """

    wanted: dict[float, int]
    rate: float
    saturation: float

    def seconds_until(self, allowed: Collection[int]) -> float | None:
        """After how long the number was one of these for good; None if it was not at the end."""
        since = None
        for seconds, number in self.wanted.items():
            if number not in allowed:
                since = None
            elif since is None:
                since = seconds
        return since


def take_step(callers: Callers, count: int, prometheus: RunningPrometheus) -> Step:
    """Change to so many callers, and watch for 45 s."""
    wanted: dict[float, int] = {}
    answered: dict[float, int] = {}
    started = time.monotonic()
    callers.set(count)
    while (seconds := time.monotonic() - started) < WITHIN + 15:
        number = prometheus.value('yolov5:replicas_wanted{job="yolov5"}')
        if number is not None:
            wanted[seconds] = int(number)
        answered[seconds] = callers.told["answered"]
        time.sleep(0.5)
    (first, earlier), *_, (last, later) = (
        (when, number) for when, number in answered.items() if when > WITHIN
    )
    saturation = prometheus.value("sum(yolov5:saturation)")
    assert saturation is not None
    return Step(wanted, (later - earlier) / (last - first), saturation)


def test_right_number_of_servers_is_asked_for_within_half_a_minute(
    server: RunningServer, prometheus: RunningPrometheus
) -> None:
    with calling(server) as callers:
        for count in (1, 32, 4):
            step = take_step(callers, count, prometheus)
            saturation = expected_saturation(count, step.rate)
            # A fifth more or less: the rate changes while it is measured.
            allowed = range(
                max(1, math.ceil(0.8 * saturation / TARGET)),
                math.ceil(1.2 * saturation / TARGET) + 1,
            )
            seconds = step.seconds_until(allowed)
            numbers = [number for _, number in step.wanted.items()]
            changes = [one for one, before in zip(numbers, [0, *numbers]) if one != before]
            print(
                f"{count} callers: {changes} servers asked for, {[*allowed]} are right, and were"
                f" asked for after {seconds} s; {step.rate:.1f} images/s, saturation"
                f" {step.saturation:.2f}, of the callers alone {saturation:.2f}"
            )
            assert seconds is not None and seconds <= WITHIN
    assert callers.told["shed"] == 0


def test_shedding_is_told_under_overload_and_resolves(
    server: RunningServer, prometheus: RunningPrometheus
) -> None:
    assert "Yolov5Shedding" not in prometheus.firing()
    with calling(server) as callers:
        callers.set(96)  # 64 can wait
        fired = prometheus.wait_for(
            lambda: "Yolov5Shedding" in prometheus.firing(), 60, "the alert fires"
        )
        assert callers.told["shed"] > 0
    resolved = prometheus.wait_for(
        lambda: "Yolov5Shedding" not in prometheus.firing(), 60, "the alert resolves"
    )
    print(f"The alert fired after {fired:.1f} s and resolved after {resolved:.1f} s.")
    assert not prometheus.firing() & {"Yolov5TargetDown", "Yolov5NotReady", "Yolov5Absent"}


def test_dashboard_has_something_to_show(
    server: RunningServer, prometheus: RunningPrometheus
) -> None:
    with grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: infer(client, [IMAGE]), range(40)):
            pass
    time.sleep(5)
    assert samples(server.metrics, "yolov5_images_total")
    queries = [substitute(query) for query in dashboard_queries()]
    shown = {query: bool(prometheus.query(query)) for query in queries}
    absent = [query for query, any_series in shown.items() if not any_series]
    # No REST service, gateway, restart, refused image or earlier week is there.
    without = ("yolov5_api_", "probe_ssl", "restarts_total", "offset", "by (reason)", "1h", "[3d]")
    print(f"{len(queries) - len(absent)} of {len(queries)} queries have series; without:", absent)
    assert [one for one in absent if not any(word in one for word in without)] == []


def test_rules_are_evaluated_without_a_fault(prometheus: RunningPrometheus) -> None:
    assert prometheus.healthy_rules() == {"ok"}
