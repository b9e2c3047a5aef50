"""Real servers on this machine, and what a load on them costs whom."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from yolov5_bench._contenders import end_group, free_ports, launcher
from yolov5_bench._gpu_probe import cpu_by_process
from yolov5_build.paths import BUNDLED_PHOTOS, REPOSITORY
from yolov5_build.photos import photos_in

from ._record import Summary
from ._server import Outcome

_START_SECONDS = 120.0
_LOAD_SECONDS = 180.0  # beyond which a load has not ended
_OUTCOMES = {503: Outcome.REFUSED}
PAUSE_SECONDS = 1.0  # of a caller after a request that was not answered


@dataclass(frozen=True, kw_only=True)
class RealServer:
    """A launcher and its server.

    Attributes:
        process: PID of the launcher.
        address: host and port, HTTP.
        start_seconds: from the start of the launcher until it was ready.
    """

    process: int
    address: str
    start_seconds: float

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the launcher, which sends an idle server an image each second."""
        os.kill(self.process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process, signal.SIGCONT)


@contextmanager
def on_cores(cores: Collection[int]) -> Iterator[None]:
    """Let what is started in the block run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running_server(precision: str) -> Iterator[RealServer]:
    """Start the installed network's server, on the cores of this thread.

    Raises:
        RuntimeError: it does not get ready.
    """
    ports = free_ports(4)
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *launcher(REPOSITORY, precision, ports)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while not _is_ready(ports[3]):
                if process.poll() is not None or time.monotonic() > begin + _START_SECONDS:
                    log.seek(0)
                    raise RuntimeError(f"the server did not get ready:\n{log.read().decode()}")
                time.sleep(0.05)
            seconds = time.monotonic() - begin
            yield RealServer(
                process=process.pid, address=f"127.0.0.1:{ports[0]}", start_seconds=seconds
            )
        finally:
            end_group(process)


def _is_ready(health: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{health}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # not there yet, or 503
        return False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A load and what it took.

    Attributes:
        summary: of the requests after the warm-up.
        rate: images answered per second of the measurement.
        cpu: milliseconds of CPU for an answered image, by process.
        late: the longest that a request was sent after its time, in seconds.
    """

    summary: Summary
    rate: float
    cpu: dict[str, float]
    late: float


def load(
    address: str,
    *,
    warm: float,
    seconds: float,
    callers: int = 0,
    times: Sequence[float] = (),
    launchers: Sequence[int] = (),
    envoy: int = 0,
) -> Measured:
    """Load an address with callers, or at given times, from the cores of this thread.

    Args:
        warm: seconds at the beginning that do not count.
        seconds: after them.
        times: in place of callers: seconds from the start.
        launchers, envoy: PIDs whose CPU time is looked at; 0 for no Envoy.

    Raises:
        RuntimeError: a request was neither answered nor refused.
    """
    order: dict[str, Any] = {"address": address, "photos": [*map(str, photos_in(BUNDLED_PHOTOS))]}
    if times:
        order["times"] = [*times]
    else:
        order.update(callers=callers, seconds=warm + seconds, pause=PAUSE_SECONDS)
    before = _cpu(launchers, envoy)
    done = subprocess.run(
        [sys.executable, "-m", "yolov5_fleet._load"],
        input=json.dumps(order),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
        timeout=_LOAD_SECONDS,
    )
    after = _cpu(launchers, envoy)
    report = json.loads(done.stdout)
    return _measured(
        report, warm, warm + seconds, {name: after[name] - before[name] for name in after}
    )


def _measured(report: dict[str, Any], begin: float, end: float, cpu: dict[str, float]) -> Measured:
    results = report["results"]
    if strange := {status for *_, status in results} - {200, *_OUTCOMES}:
        raise RuntimeError(f"a request was answered with {strange}; allowed: 200, 503")
    counted = [one for one in results if begin <= one[0] < end]
    refused = sum(status == 503 for *_, status in counted)
    latencies = [latency for _, latency, status in counted if status == 200]
    answered = sum(begin <= sent + took < end for sent, took, status in results if status == 200)
    images = max(1, sum(status == 200 for *_, status in results))
    seconds = {**cpu, "generator": report["cpu"]}
    return Measured(
        summary=Summary(latencies, {Outcome.REFUSED: refused}),
        rate=answered / (end - begin),
        cpu={name: 1000 * used / images for name, used in seconds.items()},
        late=report["late"],
    )


def _cpu(launchers: Sequence[int], envoy: int) -> dict[str, float]:
    """CPU seconds since their start, by the names of the processes."""
    found: dict[str, float] = {}
    for process in launchers:
        for name, used in cpu_by_process(process).items():
            found[name] = found.get(name, 0.0) + used
    if envoy:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(envoy).cpu_times()
            found["envoy"] = times.user + times.system
    return found
