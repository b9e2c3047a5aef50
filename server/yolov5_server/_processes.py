"""The processes that a running Triton has started for its Python models, as /proc shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STUB = b"triton_python_backend_stub"
_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class ModelProcess:
    """
    Attributes:
        model: whose instance it is.
        stopped: by a signal or a debugger; it does nothing then.
    """

    pid: int
    model: str
    stopped: bool


def model_processes(server: int) -> dict[int, ModelProcess]:
    """Those of the Triton with this process number that are alive, by process number."""
    found = {}
    for entry in _PROC.glob("[0-9]*"):
        if entry.name.isdecimal() and (process := read_process(int(entry.name), server)):
            found[process.pid] = process
    return found


def read_process(pid: int, server: int) -> ModelProcess | None:
    """This process, if it is one of those."""
    try:
        # The second field is a name in brackets, and may hold blanks and brackets itself.
        state, parent = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        if int(parent) != server or state in b"ZX":
            return None
        arguments = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    if len(arguments) < 2 or not arguments[0].endswith(_STUB):
        return None
    # REPOSITORY/MODEL/VERSION/FILE
    # where a model of another network than the first has a number behind its name.
    model = Path(arguments[1].decode(errors="replace")).parent.parent.name.partition(".")[0]
    return ModelProcess(pid=pid, model=model, stopped=state in b"Tt")


def is_alive(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[0] not in b"ZX"
    except (OSError, IndexError):
        return False
