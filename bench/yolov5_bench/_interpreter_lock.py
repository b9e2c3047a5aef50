"""For how long processes hold the lock of their Python interpreter, sampled by py-spy.

py-spy reads the memory of a process and sees which thread has the lock, hundreds of times in a
second, without stopping it: the launcher takes a process that a tracer has stopped for hung.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np

_SAMPLES_PER_SECOND = 250
_COUNTS = re.compile(r"Samples: (\d+) Errors: (\d+)")


class CannotSampleError(Exception):
    """py-spy is not installed, or may not read the processes."""


def lock_shares(pids: Sequence[int], seconds: int) -> dict[int, float]:
    """Sample processes at the same time.

    Args:
        seconds: for how long, at least 1.

    Returns:
        By PID, the share of the time in which the process held the lock: the samples in which a
        thread had it, by all those that could be read. Of this the part is left out for which its
        threads wait for a core, as the kernel counts it for all of them together.

    Raises:
        CannotSampleError: a process could not be sampled.
    """
    program = Path(sys.executable).with_name("py-spy")
    if not program.exists():
        raise CannotSampleError("py-spy is not installed")
    found = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running, before = {}, {pid: _on_core_and_waiting(pid) for pid in pids}
        for pid in pids:
            command = [
                *(str(program), "record", "--gil", "--nonblocking", f"--pid={pid}"),
                *(f"--duration={seconds}", f"--rate={_SAMPLES_PER_SECOND}"),
                *("--format=raw", f"--output={folder}/{pid}"),
            ]
            running[pid] = stack.enter_context(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
            )
        for pid, process in running.items():
            said, _ = process.communicate()
            on_core, waiting = np.subtract(_on_core_and_waiting(pid), before[pid]).tolist()
            share = _share(said, seconds * _SAMPLES_PER_SECOND)
            found[pid] = share * on_core / max(1, on_core + waiting)
    return found


def _on_core_and_waiting(pid: int) -> tuple[int, int]:
    """Nanoseconds for which the threads of a process were on a core, and could have been.

    From /proc/PID/task/TID/schedstat, see the kernel's Documentation/scheduler/sched-stats.rst.

    Raises:
        CannotSampleError: the kernel does not count it, or the process has ended.
    """
    on_core = waiting = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                first, second, _ = (thread / "schedstat").read_text().split()
                on_core, waiting = on_core + int(first), waiting + int(second)
    except OSError as error:
        raise CannotSampleError(f"/proc/{pid}/task cannot be read: {error.strerror}") from None
    return on_core, waiting


def _share(said: str, count: int) -> float:
    """The share by what py-spy says at its end.

    Args:
        count: of the samples that were taken.
    """
    counts = _COUNTS.search(said)
    if counts is None:
        if "permission denied" in said.lower():
            raise CannotSampleError(
                "py-spy may not read the server; it needs CAP_SYS_PTRACE or root"
            )
        lines = [line for line in said.splitlines() if line.strip()]
        raise CannotSampleError(lines[-1].strip() if lines else "py-spy says nothing")
    held, unread = int(counts[1]), int(counts[2])
    return held / max(1, count - unread)
