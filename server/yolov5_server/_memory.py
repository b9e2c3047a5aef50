"""The memory of the service: what its processes hold, and what they may hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from ._processes import model_processes


def memory_by_process(server: int | None) -> dict[str, int]:
    """Memory of the launcher, of Triton and of each step, in bytes.

    It is the proportional set size, shared memory included: shared pages are divided among the
    processes that have them.

    Args:
        server: Triton's process number; None if none runs.
    """
    found: dict[str, int] = {}
    processes = [("launcher", psutil.Process())]
    if server is not None:
        with suppress(psutil.Error):
            processes.append(("tritonserver", psutil.Process(server)))
        processes += [(one.step, one.process) for one in model_processes(server)]
    for what, process in processes:
        with suppress(psutil.Error, AttributeError):
            found[what] = found.get(what, 0) + process.memory_full_info().pss
    return found


def memory_limit(proc: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that the service may hold, in bytes.

    It is the smallest limit of all control groups around this process (version 1 or 2), or else
    the memory of the machine.

    Args:
        proc: the folder in which the kernel describes the process.
        groups: where the control groups are mounted.
    """
    return min([psutil.virtual_memory().total, *_limits(proc, groups)])


def _limits(proc: Path, groups: Path) -> Iterator[int]:
    try:
        lines = (proc / "cgroup").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mounted = groups / "memory" if controllers else groups
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        below = [part for part in path.split("/") if part not in ("", "..")]
        # A container may see the host's path while its own group is mounted as the root.
        for depth in range(len(below) + 1):
            with suppress(OSError, ValueError):
                yield int(mounted.joinpath(*below[:depth], name).read_text())
