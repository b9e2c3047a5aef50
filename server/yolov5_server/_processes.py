"""Read in /proc the processes that a running Triton has started for its Python models."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_STUB = b"triton_python_backend_stub"
# Directly or through a shell. Triton also runs it without arguments, to test whether it can.
_STUB_WITH_ARGUMENTS = re.compile(_STUB + rb"[ \0]+[^ \0]")
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True, kw_only=True)
class ModelProcess:
    """The process of one instance of a model.

    Attributes:
        started: when, in clock ticks since the boot. Process numbers are reused; with `pid` this is
            unique.
        model: name of the model.
        stopped: whether a signal or a debugger has stopped it.
        cpu: CPU time used so far, in seconds.
    """

    pid: int
    started: int
    model: str
    stopped: bool
    cpu: float

    @property
    def key(self) -> tuple[int, int]:
        """Unique, unlike `pid`."""
        return self.pid, self.started

    @property
    def step(self) -> str:
        """The model's name without the number that a reload appends: `yolov5` for `yolov5.2`."""
        return self.model.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class _Status:
    state: bytes
    parent: int
    started: int
    cpu: float

    @property
    def ended(self) -> bool:
        return self.state in b"ZX"

    @property
    def stopped(self) -> bool:
        return self.state in b"Tt"


def model_processes(server: int) -> dict[int, ModelProcess]:
    """The living model processes of a Triton, by process number.

    Args:
        server: Triton's process number.
    """
    found = {}
    for pid in _all_pids():
        if process := read_process(pid, server):
            found[process.pid] = process
    return found


def read_process(pid: int, server: int) -> ModelProcess | None:
    """This process, if it is a living model process of this Triton; else None."""
    status = _read_status(pid)
    if status is None or status.parent != server or status.ended:
        return None
    arguments = _arguments(pid).split(b"\0")
    if len(arguments) < 2 or not arguments[0].endswith(_STUB):
        return None
    # REPOSITORY/MODEL/VERSION/FILE
    model = Path(arguments[1].decode(errors="replace")).parent.parent.name
    return ModelProcess(
        pid=pid, started=status.started, model=model, stopped=status.stopped, cpu=status.cpu
    )


def starting_processes(server: int) -> dict[int, bool]:
    """Model processes of this Triton, also those that are only starting -> whether stopped."""
    found = {}
    for pid in _all_pids():
        status = _read_status(pid)
        if status is None or status.parent != server or status.ended:
            continue
        if _STUB_WITH_ARGUMENTS.search(_arguments(pid)):
            found[pid] = status.stopped
    return found


def is_alive(pid: int) -> bool:
    status = _read_status(pid)
    return status is not None and not status.ended


def is_stopped(pid: int) -> bool:
    status = _read_status(pid)
    return status is not None and status.stopped


def cpu_seconds(server: int) -> float:
    """CPU time of this Triton and its present model processes, in seconds."""
    status = _read_status(server)
    own = status.cpu if status else 0.0
    return own + sum(process.cpu for process in model_processes(server).values())


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208


def _read_status(pid: int) -> _Status | None:
    try:
        # The second field is a name in brackets, which may contain spaces and brackets.
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return _Status(
            state=fields[0],
            parent=int(fields[1]),
            started=int(fields[19]),
            cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
        )
    except (OSError, ValueError, IndexError):
        return None


def _arguments(pid: int) -> bytes:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
