"""Failures of many hours in minutes; prints figures.

`pytest -m slow -s tests/server/test_endurance.py`. KILLS (10) is the number of each kind.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from support import (
    MODEL_PROCESSES,
    PHOTO,
    RunningServer,
    ready,
    regions,
    running_server,
    wait_until,
)

from yolov5_client import Client, YoloClientError
from yolov5_server._processes import is_alive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("KILLS", "10"))  # of each kind
CALLERS = 8
CGROUP = Path("/sys/fs/cgroup/memory/yolov5-endurance")


@dataclass(frozen=True)
class Call:
    begun: float
    ended: float
    error: str | None


class Load:
    """Callers that send requests without a pause, and the result of each request."""

    def __init__(self, address: str, callers: int) -> None:
        self.calls: list[Call] = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        photo = PHOTO.read_bytes()
        with Client(self._address, timeout=20) as client:
            while not self._stop.is_set():
                begun = time.monotonic()
                try:
                    error = None if len(client.detect(photo)) == 11 else "another answer"
                except YoloClientError as raised:
                    error = f"{type(raised).__name__}: {raised}"
                    time.sleep(0.01)
                self.calls.append(Call(begun, time.monotonic(), error))

    def good_since(self, moment: float) -> list[Call]:
        return [call for call in self.calls if call.begun > moment and call.error is None]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def load(server: RunningServer, callers: int = CALLERS) -> Iterator[Load]:
    steady = Load(server.grpc, callers)
    try:
        wait_until(lambda: len(steady.calls) > 4 * callers, 60)
        yield steady
    finally:
        steady.close()


@pytest.fixture(scope="module")
def own(bundled_repository: Path) -> Iterator[RunningServer]:
    with running_server(f"--repository={bundled_repository}") as running:
        yield running


def kill(name: str, number: signal.Signals) -> Callable[[RunningServer], float]:
    """A function that sends the signal to the process of this name, and returns when."""

    def now(server: RunningServer) -> float:
        victim = server.processes(name)[0]
        killed = time.monotonic()
        os.kill(victim, number)
        return killed

    return now


def run_out_of_memory(server: RunningServer) -> float:
    """Limit preprocess to the memory that it has, and send it an image that needs more.

    Returns:
        When the kernel has ended it; before that the kernel looks for memory, for seconds at times.
    """
    victim = psutil.Process(server.processes("/preprocess/1/")[0])
    CGROUP.mkdir(exist_ok=True)
    (CGROUP / "memory.limit_in_bytes").write_text(str(48 << 20))
    (CGROUP / "cgroup.procs").write_text(str(victim.pid))
    jpeg = cv2.imencode(".jpg", np.zeros((7500, 8000, 3), np.uint8))[1].tobytes()

    def ask() -> None:
        with Client(server.grpc, timeout=20) as client, pytest.raises(YoloClientError):
            client.detect(jpeg)

    threading.Thread(target=ask, daemon=True).start()
    wait_until(lambda: not is_alive(victim), 30)
    return time.monotonic()


CASES = {
    **{f"kill -9 {model}": kill(f"/{model}/1/", signal.SIGKILL) for model in MODEL_PROCESSES},
    **{f"kill -STOP {model}": kill(f"/{model}/1/", signal.SIGSTOP) for model in MODEL_PROCESSES},
    "kill -9 tritonserver": kill("bin/tritonserver", signal.SIGKILL),
    "out of memory": run_out_of_memory,
}


@pytest.mark.parametrize("case", CASES)
def test_server_is_restarted_in_time_after_each_failure(own: RunningServer, case: str) -> None:
    if case == "out of memory" and not os.access(CGROUP.parent, os.W_OK):
        pytest.skip("no writable memory cgroup here")
    said = len(own.log.read_text())
    allowed = 10.0 if "STOP" in case else 5.0
    seen, up_again, back, lost = [], [], [], Counter[str]()
    with load(own) as steady:
        for _ in range(ROUNDS):
            wait_until(lambda: ready(own)[0], 30)
            time.sleep(8)  # long enough to reset the pauses
            processes, shared = len(own.processes("triton_python_backend_stub")), regions(own)
            started = CASES[case](own)
            wait_until(lambda: not ready(own)[0], 15)
            down = time.monotonic()
            wait_until(lambda: ready(own)[0], 30)
            up = time.monotonic()
            wait_until(lambda moment=up: len(steady.good_since(moment)) > 0, 30)  # type: ignore[misc]
            seen.append(down - started)
            up_again.append(up - started)
            back.append(min(call.ended for call in steady.good_since(up)) - started)
            wait_until(lambda: len(steady.good_since(time.monotonic() - 1)) > 8, 30)
            for call in steady.calls:
                if call.ended > started and call.error:
                    when = "in flight" if call.begun < started else "meanwhile"
                    # A gRPC channel takes some time to reconnect to the new server.
                    lost[when if call.begun < up else "afterwards"] += 1
            wait_until(
                lambda number=processes: (  # type: ignore[misc]
                    len(own.processes("triton_python_backend_stub")) == number
                ),
                10,
            )
            assert regions(own) <= shared
    print(f"\n{case}, {ROUNDS} times; lost: {dict(lost)}")
    for what, times in (("seen", seen), ("ready again", up_again), ("answering again", back)):
        print(
            f"  {what} after {statistics.median(times):.2f} s (median), {max(times):.2f} s (worst)"
        )
    print(own.log.read_text()[said:])
    assert max(back) < allowed


def test_server_is_ready_within_a_minute_after_forty_kills(bundled_repository: Path) -> None:
    """Kill one process after the other, every two seconds."""
    targets = ("bin/tritonserver", *(f"/{model}/1/" for model in MODEL_PROCESSES))
    with running_server(f"--repository={bundled_repository}") as server:
        hit = 0
        for number in range(40):
            for pid in server.processes(targets[number % len(targets)]):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    hit += 1
            time.sleep(2)
        assert server.process.poll() is None
        last = time.monotonic()
        wait_until(lambda: ready(server)[0], 60)
        back = time.monotonic() - last
        with Client(server.grpc, timeout=5) as client:
            assert len(client.detect(PHOTO)) == 11
        print(f"\n40 kills, {hit} of a process that was there: back {back:.1f} s after the last")
        print(server.log.read_text())
        time.sleep(max(0.0, 60 - back))
        assert ready(server) == (True, "")
        assert server.stop() < 10
