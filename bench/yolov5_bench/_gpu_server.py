"""Servers for `make gpu-check`: start, ask, load, kill."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._contenders import end_group, free_ports, launcher
from ._gpu_probe import (
    average,
    cpu_by_process,
    gpu_states,
    milliseconds_for_an_image,
    processes,
)
from ._gpu_report import Load
from ._load import make_sender
from ._measure import LoadGenerator
from ._pipeline import Answer

_PROVIDER = re.compile(r"^yolov5 runs on (GPU .+?)\.$", re.MULTILINE)
_ON_CPU = re.compile(r"yolov5 runs on the CPU.*|the network runs on the CPU.*")


KILLED = ("postprocess", "preprocess", "yolov5", "tritonserver")  # processes, in this order


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is loaded.

    Attributes:
        sender: arguments of `_load.make_sender`.
        pid: of its first process, whose descendants belong to it.
        metrics: `host:port` of a Triton's metrics; empty for none.
    """

    sender: list[str]
    pid: int
    metrics: str = ""


@dataclass
class GpuServer:
    """A running launcher.

    Attributes:
        seconds: from its start until it was ready.
        log: file with all that it has written.
    """

    process: subprocess.Popen[bytes]
    http: str
    metrics: str
    log: Path
    seconds: float = 0.0

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def target(self) -> Target:
        return Target(sender=["http", self.http], pid=self.process.pid, metrics=self.metrics)

    @property
    def provider(self) -> str:
        """What runs the network, as the log says."""
        return provider(self.text())


def provider(log: str) -> str:
    """What runs the network, by a launcher's log: `GPU 0, by ...`, or why it is the CPU."""
    if found := _PROVIDER.search(log):
        return found[1]
    found = _ON_CPU.search(log)
    return f"CPU: {found[0]}" if found else "CPU"


@contextmanager
def gpu_server(repository: Path, *, precision: str, seconds: float) -> Iterator[GpuServer]:
    """Start a launcher, wait until it is ready, and end it after the block.

    Args:
        precision: as for `make serve`.
        seconds: for it to get ready.

    Raises:
        RuntimeError: it did not; the message holds the end of its log.
    """
    web, _, metrics, _ = ports = free_ports(4)
    command = [sys.executable, "-m", *launcher(repository, precision, ports)]
    with tempfile.TemporaryDirectory(prefix="yolov5-gpu-check-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as file:
            started = time.monotonic()
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        server = GpuServer(process, f"127.0.0.1:{web}", f"127.0.0.1:{metrics}", log)
        try:
            while "Ready:" not in server.text():
                if process.poll() is not None or time.monotonic() - started > seconds:
                    raise RuntimeError(f"the server did not get ready: {server.text()[-3000:]}")
                time.sleep(0.05)
            server.seconds = time.monotonic() - started
            yield server
        finally:
            end_group(process)


def answers(server: GpuServer, photos: Sequence[Path]) -> dict[str, Answer]:
    """The server's answers by the photo's name."""
    send = make_sender("http", server.http)
    return {photo.name: send(photo.read_bytes())[0] for photo in photos}


def kill_process(server: GpuServer, name: str, photo: Path, *, seconds: float) -> float:
    """Kill a process of the server; return the seconds until an image is answered again.

    Args:
        name: see `process_name`.

    Raises:
        RuntimeError: there is no such process, or no image is answered in time.
    """
    found = processes(server.process.pid, name)
    if not found:
        raise RuntimeError(f"{name} has no process")
    for process in found:
        process.kill()
    killed = time.monotonic()
    while time.monotonic() - killed < seconds:
        try:
            make_sender("http", server.http)(photo.read_bytes())
        except Exception:
            time.sleep(0.05)
        else:
            return time.monotonic() - killed
    raise RuntimeError(f"no image was answered in {seconds:.0f} s after {name} was killed")


def shares(callers: int, generators: int) -> list[int]:
    """Spread callers over processes that generate load, as evenly as can be."""
    used = min(callers, generators)
    return [callers // used + (index < callers % used) for index in range(used)]


def use_tensorrt(network: Path, *, engines: Path) -> None:
    """Let ONNX Runtime use TensorRT, by the lines that docs/operations.md shows.

    Args:
        network: folder of the network in a repository.
        engines: folder to keep its engines in.
    """
    engines.mkdir(exist_ok=True)
    options = {"precision_mode": "FP16", "trt_engine_cache_enable": "1"}
    options["trt_engine_cache_path"] = str(engines)
    parameters = " ".join(
        f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items()
    )
    for path in (network / "config.pbtxt", *network.glob("configs/*.pbtxt")):
        with path.open("a") as file:
            file.write(
                "\noptimization { execution_accelerators { gpu_execution_accelerator : [ {"
                f' name : "tensorrt" {parameters} }} ] }} }}\n'
            )


def measure_load(
    target: Target,
    generators: Sequence[LoadGenerator],
    photos: Sequence[Path],
    *,
    case: str,
    callers: int,
    counts: Sequence[int],
    seconds: float,
    warm: float,
) -> Load:
    """Load the server for some seconds.

    Args:
        generators: processes that send: one alone could not keep up with a GPU.
        counts: of the boxes in each photo, for a single caller.
        warm: seconds of load before the measurement.
    """
    spread = shares(callers, len(generators))
    with ThreadPoolExecutor(len(spread)) as pool:
        ask = {"photos": [*map(str, photos)], "counts": [*counts], "server": 0}
        ask |= {"sender": target.sender, "seconds": seconds, "warm": warm}
        reports = [
            pool.submit(
                generator.request, **ask, callers=count, metrics="" if number else target.metrics
            )
            for number, (generator, count) in enumerate(zip(generators, spread))
        ]
        time.sleep(warm)
        before = cpu_by_process(target.pid)
        with gpu_states() as states:
            time.sleep(seconds)
        after = cpu_by_process(target.pid)
        found = [report.result() for report in reports]
    images = _total(found, "images")
    p50, p99 = quantiles([x for one in found for caller in one["latencies"] for x in caller])
    cpu = milliseconds_for_an_image(before, after, images)
    cpu["load generator"] = 1000 * _total(found, "client_cpu") / images
    return Load(
        case=case,
        callers=callers,
        rate=images / seconds,
        p50=p50,
        p99=p99,
        gpu=average(states),
        cpu=cpu,
        failed=_total(found, "failed"),
        wrong=_total(found, "wrong"),
        steps=found[0]["steps"],
    )


def _total(found: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(one[name] for one in found)


def quantiles(latencies: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile of seconds, in milliseconds; NaN if there are none."""
    if not latencies:
        return float("nan"), float("nan")
    p50, p99 = (1000 * np.quantile(latencies, [0.5, 0.99])).tolist()
    return p50, p99
