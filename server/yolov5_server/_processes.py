"""The processes that a running Triton has started for its Python models."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_STUB = "triton_python_backend_stub"
# Directly or through a shell. Triton also runs it without arguments, to test whether it can.
_STUB_WITH_ARGUMENTS = re.compile(rf"{_STUB} +[^ ]")
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


@dataclass(frozen=True, kw_only=True)
class ModelProcess:
    """The process of one instance of a model.

    Attributes:
        process: equal to another only if both are the same process, though numbers are reused.
        started: when, in seconds.
        model: name of the model.
    """

    process: psutil.Process
    started: float
    model: str

    @property
    def step(self) -> str:
        """The model's name without the number that a reload appends: `yolov5` for `yolov5.2`."""
        return self.model.partition(".")[0]


def model_processes(server: int) -> list[ModelProcess]:
    """The living model processes of a Triton.

    Args:
        server: Triton's process number.
    """
    found = []
    for process in _children(server):
        with suppress(psutil.Error):
            if model := _served_model(process.cmdline()):
                started = process.create_time()
                found.append(ModelProcess(process=process, started=started, model=model))
    return found


def starting_processes(server: int) -> dict[psutil.Process, str | None]:
    """Model processes of this Triton, also those that are only starting -> the model, if known."""
    found: dict[psutil.Process, str | None] = {}
    for process in _children(server):
        with suppress(psutil.Error):
            arguments = process.cmdline()
            if _STUB_WITH_ARGUMENTS.search(" ".join(arguments)):
                found[process] = _served_model(arguments)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended; a process that was stopped has not."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() not in _ENDED
    return False


def is_stopped(process: psutil.Process) -> bool:
    """Whether a signal or a debugger has stopped it."""
    with suppress(psutil.Error):
        return process.status() in _STOPPED
    return False


def cpu_seconds(server: int) -> float:
    """CPU time of this Triton and its present model processes, in seconds."""
    total = 0.0
    with suppress(psutil.Error):
        total += _cpu_seconds(psutil.Process(server))
    for child in model_processes(server):
        with suppress(psutil.Error):
            total += _cpu_seconds(child.process)
    return total


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _children(server: int) -> list[psutil.Process]:
    """The living children of a Triton that belong to its process group, as all its models' do.

    `psutil.Process.children` reads every process of the machine, which is slow, and fails if /proc
    shows an ordinary user only processes of his own (`hidepid=1`).
    """
    found = []
    with suppress(OSError):
        group = os.getpgid(server)
        for pid in psutil.pids():
            with suppress(OSError, psutil.Error):
                if os.getpgid(pid) == group:
                    process = psutil.Process(pid)
                    if process.ppid() == server and process.status() not in _ENDED:
                        found.append(process)
    return found


def _served_model(arguments: list[str]) -> str | None:
    """Name of the model that a process with these arguments serves; None if it serves none."""
    if len(arguments) < 2 or not arguments[0].endswith(_STUB):
        return None
    return Path(arguments[1]).parent.parent.name  # REPOSITORY/MODEL/VERSION/FILE
