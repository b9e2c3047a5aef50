"""Exit together with make, under `make serve`.

GNU make passes SIGTERM on to its children, but not SIGINT, because a terminal sends SIGINT to the
whole foreground group. Without this module, SIGINT to make alone would have no effect, and SIGKILL
would leave the server behind.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path


def exit_with_make(should_exit: threading.Event) -> None:
    """If make has started this process, set `should_exit` once make is gone or was interrupted."""
    parent = os.getppid()
    if _read(parent, "comm").strip() in ("make", "gmake") and _catches_interrupts(parent):
        threading.Thread(
            target=_watch, args=(parent, should_exit), name="make", daemon=True
        ).start()


def _watch(parent: int, should_exit: threading.Event) -> None:
    # On a fatal signal make first restores the signal's default action, which is visible.
    while os.getppid() == parent and _catches_interrupts(parent):
        if should_exit.wait(0.2):
            return
    should_exit.set()


def _catches_interrupts(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", _read(pid, "status"), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGINT - 1) & 1)


def _read(pid: int, name: str) -> str:
    try:
        return Path("/proc", str(pid), name).read_text()
    except OSError:
        return ""
