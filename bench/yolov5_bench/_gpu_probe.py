"""What happens on the machine while a server is loaded: the GPU's state, CPU time by process."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil

_FIELDS = ("utilization.gpu", "memory.used", "power.draw")
_POLL_SECONDS = 0.5
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """Utilisation in percent of the time, memory in MiB, power in watts."""

    percent: float
    memory: float
    power: float


def nvidia_smi(*fields: str) -> list[str]:
    """Ask the driver about the first GPU; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}"]
    try:
        answer = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.strip().splitlines()
    if answer.returncode or not lines:
        return []
    return [value.strip() for value in lines[0].split(",")]


def gpu_state(values: Sequence[str]) -> GpuState | None:
    """Read an answer of `nvidia_smi`, in which a card may lack a value ("[N/A]")."""
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            numbers.append(float("nan"))
    if len(numbers) != len(_FIELDS):
        return None
    return GpuState(percent=numbers[0], memory=numbers[1], power=numbers[2])


@contextmanager
def gpu_states() -> Iterator[list[GpuState]]:
    """Collect the GPU's state twice a second during the block."""
    found: list[GpuState] = []
    ended = threading.Event()

    def collect() -> None:
        while not ended.is_set():
            if state := gpu_state(nvidia_smi(*_FIELDS)):
                found.append(state)
            ended.wait(_POLL_SECONDS)

    thread = threading.Thread(target=collect, name="nvidia-smi", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join(20)


def average(states: Sequence[GpuState]) -> GpuState | None:
    """Mean utilisation and power, and the largest memory."""
    if not states:
        return None
    return GpuState(
        percent=mean(state.percent for state in states),
        memory=max(state.memory for state in states),
        power=mean(state.power for state in states),
    )


def process_name(command: Sequence[str]) -> str:
    """Name a process of a server by its command line: a step, `tritonserver`, or `launcher`."""
    program = Path(command[0]).name if command else ""
    if program == _STUB and len(command) > 1:
        return Path(command[1]).parent.parent.name  # REPOSITORY/MODEL/VERSION/FILE
    if program == "tritonserver":
        return program
    return "launcher" if "yolov5_server" in command else "other"


def cpu_by_process(launcher: int) -> dict[str, float]:
    """CPU seconds since their start of a launcher and all below it, by `process_name`."""
    found: dict[str, float] = {}
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(launcher)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                name, used = process_name(process.cmdline()), process.cpu_times()
                found[name] = found.get(name, 0.0) + used.user + used.system
    return found


def processes(launcher: int, name: str) -> list[psutil.Process]:
    """The processes below a launcher with this `process_name`."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(launcher).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process_name(process.cmdline()) == name:
                    found.append(process)
    return found


def milliseconds_for_an_image(
    before: Mapping[str, float], after: Mapping[str, float], images: int
) -> dict[str, float]:
    """CPU time by process between two looks, in milliseconds for each image."""
    return {
        name: 1000 * (seconds - before.get(name, 0.0)) / max(1, images)
        for name, seconds in sorted(after.items())
    }


def tensorrt_library() -> str | None:
    """The name of TensorRT's library that this machine has; None if it has none."""
    for name in ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so.8"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return name
    return None
