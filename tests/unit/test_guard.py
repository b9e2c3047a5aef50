from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from yolov5_server._processes import is_alive

_LAUNCHER = """
import subprocess, sys, time
from yolov5_server._guard import GroupGuard
# A group of its own that ignores SIGTERM.
child = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60 & sleep 60"], start_new_session=True)
guard = GroupGuard(child.pid, 1)
print(child.pid, guard._process.pid, flush=True)
time.sleep(60)
"""


def _is_alive(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_group_of_a_killed_launcher_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        child, guard = map(int, launcher.stdout.readline().split())
        os.kill(child, signal.SIGSTOP)
        os.kill(launcher.pid, signal.SIGKILL)
        _wait(lambda: not _is_alive(child) and not _is_alive(guard))


def test_closed_guard_kills_nothing() -> None:
    from yolov5_server._guard import GroupGuard

    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        guard = GroupGuard(process.pid, 0)
        guard.close()
        time.sleep(0.2)
        assert process.poll() is None
        process.kill()
