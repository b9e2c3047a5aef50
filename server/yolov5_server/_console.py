"""Write the launcher's own output in a thread, so that a lost or slow log cannot end the service.

The reader of a log may go away (`| head`), the disk may be full, a terminal may be stopped. Lines
therefore wait in a bounded buffer for a thread that writes them. Lines that cannot be written are
counted, and the count is written as soon as that is possible again.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque

STDOUT, STDERR = 1, 2
_CAPACITY = 1 << 20  # bytes that may wait to be written
_FLUSH_SECONDS = 0.5


class Console:
    """A bounded buffer of lines, and the thread that writes them.

    Args:
        capacity: bytes that may wait to be written; further lines are dropped and counted.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._writing = False
        self._dropped = 0  # lines since the last one that fitted into the buffer
        self._unwritten = 0  # lines since the last one that was written
        self._thread: threading.Thread | None = None

    def log(self, text: str, *, descriptor: int = STDERR) -> None:
        """Queue a line to be written. Never blocks, never raises."""
        data = f"{text}\n".encode("utf-8", "backslashreplace")
        with self._changed:
            if self._size + len(data) > self._capacity:
                self._dropped += 1
                return
            if self._dropped:
                data = _lost(self._dropped) + data
                self._dropped = 0
            self._waiting.append((descriptor, data))
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, seconds: float = _FLUSH_SECONDS) -> bool:
        """Wait until all lines are written, at most for so long. Returns whether they are."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._waiting and not self._writing, timeout=seconds
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                descriptor, data = self._waiting.popleft()
                self._writing = True
            if self._unwritten:
                written = _write(descriptor, _lost(self._unwritten) + data)
            else:
                written = _write(descriptor, data)
            self._unwritten = 0 if written else self._unwritten + 1
            with self._changed:
                self._size -= len(data)
                self._writing = False
                self._changed.notify_all()


def _write(descriptor: int, data: bytes) -> bool:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # a terminal that another program has made non-blocking
            with contextlib.suppress(OSError):
                select.select([], [descriptor], [], 1.0)
        except OSError:
            return False
    return True


def _lost(lines: int) -> bytes:
    return f"({lines:,} lines of the log were lost: they could not be written in time.)\n".encode()


_console = Console()
log = _console.log
flush = _console.flush
