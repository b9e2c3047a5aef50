from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import periodic
from periodic import Periodic


def test_function_is_called_again_though_it_fails() -> None:
    called = threading.Semaphore(0)
    logged: list[str] = []

    def work() -> None:
        called.release()
        raise ValueError("no")

    timer = Periodic(work, logged.append, seconds=0.01)
    for _ in range(3):
        assert called.acquire(timeout=10)
    timer.close()
    assert "ValueError: no" in logged[0]


def test_closed_timer_calls_no_more() -> None:
    calls: list[int] = []
    timer = Periodic(lambda: calls.append(1), print, seconds=60.0)
    timer.close()  # at once, not after a minute
    assert calls == []


def test_process_ends_though_the_timer_is_not_closed() -> None:
    script = "import periodic; periodic.Periodic(print, print)"
    folder = Path(periodic.__file__).parent
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, timeout=60)
