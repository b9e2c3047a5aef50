"""Loading a model, and seeing when Triton will wait for it for ever.

When a model's process is killed before it has reported to Triton, in the first tenths of a second,
Triton waits for its report without a limit (2.51), and one of its eight HTTP threads with it. A
process that ends later is noticed by Triton itself, within two seconds.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

from ._control import ControlError
from ._processes import read_process, starting_processes

_POLL_SECONDS = 0.2  # seconds between two looks at the processes
_GONE_SECONDS = 5.0  # that Triton is given to notice the end of a process
_MISSING_SECONDS = 20.0  # that it is given to start one
_STOPPED_SECONDS = 5.0  # that a process may be stopped; it is ended then


class LoadStuckError(ControlError):
    """Triton waits for a process that has ended."""


class StartingProcesses:
    """Those that a Triton starts from now on.

    Args:
        server: its process number.
        models: which of the models that it loads have a process for certain.
    """

    def __init__(
        self,
        server: int,
        models: Collection[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._models = models
        self._clock = clock
        self._earlier = set(starting_processes(server))
        self._seen: set[int] = set()
        self._gone_at: float | None = None
        self._missing_at: float | None = None
        self._stopped_at: dict[int, float] = {}
        self._polled_at = float("-inf")

    def are_stuck(self) -> bool:
        """Whether one has ended, and Triton goes on as if it had not. Ends those that are stopped.

        Meant to be called often until Triton has loaded them, and no longer.
        """
        now = self._clock()
        if now - self._polled_at < _POLL_SECONDS:  # all of /proc is read for it
            return False
        self._polled_at = now
        there = starting_processes(self._server)
        self._seen |= set(there) - self._earlier
        self._end_stopped({pid: there[pid] for pid in self._seen & set(there)}, now)
        processes = (read_process(pid, self._server) for pid in there if pid not in self._earlier)
        new = {process.model for process in processes if process}
        if self._seen <= set(there):
            self._gone_at = None
        elif self._gone_at is None:
            self._gone_at = now
        # One may have ended between two looks.
        if set(self._models) <= new:
            self._missing_at = None
        elif self._missing_at is None:
            self._missing_at = now
        return (self._gone_at is not None and now - self._gone_at > _GONE_SECONDS) or (
            self._missing_at is not None and now - self._missing_at > _MISSING_SECONDS
        )

    def _end_stopped(self, stopped: Mapping[int, bool], now: float) -> None:
        for pid, is_stopped in stopped.items():
            if not is_stopped:
                self._stopped_at.pop(pid, None)
            elif now - self._stopped_at.setdefault(pid, now) > _STOPPED_SECONDS:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def load(
    control: Callable[[str], None],
    model: str,
    *,
    server: int,
    has_process: bool,
) -> None:
    """Load a model by `ModelControl.load`.

    Args:
        has_process: whether it is certain that Triton starts one for it.

    Raises:
        LoadStuckError: its process has ended, and Triton waits for it for ever.
        ControlError: it could not be loaded.
    """
    errors: list[Exception] = []
    processes = StartingProcesses(server, [model] if has_process else [])

    def work() -> None:
        try:
            control(model)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name=f"load {model}", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        if thread.is_alive() and processes.are_stuck():
            raise LoadStuckError(f"a process of {model} has ended while it was loading")
    if errors:
        raise errors[0]
