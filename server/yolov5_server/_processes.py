"""The processes that a running Triton has started for its Python models, as /proc shows them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_STUB = b"triton_python_backend_stub"
# By itself or by way of a shell; Triton runs it without arguments too, to see whether it can.
_STUB_WITH_ARGUMENTS = re.compile(_STUB + rb"[ \0]+[^ \0]")
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")  # in a second


@dataclass(frozen=True, kw_only=True)
class ModelProcess:
    """
    Attributes:
        started: with `pid`, which is used again, what tells it from all others.
        model: whose instance it is.
        stopped: by a signal or a debugger; it does nothing then.
        cpu: seconds of CPU time that it has used so far.
    """

    pid: int
    started: int
    model: str
    stopped: bool
    cpu: float

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.started

    @property
    def step(self) -> str:
        """The model without the number that it has behind its name for a later network."""
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
    """Those of the Triton with this process number that are alive, by process number."""
    found = {}
    for pid in _all_pids():
        if process := read_process(pid, server):
            found[process.pid] = process
    return found


def read_process(pid: int, server: int) -> ModelProcess | None:
    """This process, if it is one of those."""
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
    """Model processes of this Triton and those that are about to become one: are they stopped?"""
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
    """CPU time of this Triton and of the model processes that it has now."""
    status = _read_status(server)
    own = status.cpu if status else 0.0
    return own + sum(process.cpu for process in model_processes(server).values())


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208


def _read_status(pid: int) -> _Status | None:
    try:
        # The second field is a name in brackets, and may hold blanks and brackets itself.
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
