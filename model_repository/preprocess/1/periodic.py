"""Call a function once a second."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Event, Thread


class Periodic:
    """Calls a function on a thread of its own.

    Args:
        work: the function.
        log: called with a line for the log if it fails; it is called again all the same.
        seconds: between two calls.
    """

    def __init__(
        self, work: Callable[[], None], log: Callable[[str], None], seconds: float = 1.0
    ) -> None:
        self._work = work
        self._log = log
        self._seconds = seconds
        self._closed = Event()
        self._thread = Thread(target=self._run, name="periodic", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after a call in progress."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._seconds):
            try:
                self._work()
            except Exception:
                self._log(traceback.format_exc())
