"""Load a model, and notice when Triton would wait for it for ever.

If a model's process is killed in the first tenths of a second, before it has reported to Triton,
Triton 2.51 waits for its report without a limit, and blocks one of its eight HTTP threads. Triton
itself notices a process that ends later, within two seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import psutil

from ._control import ControlError
from ._processes import is_stopped, starting_processes

_POLL_SECONDS = 0.2  # between two checks of the processes
_GONE_SECONDS = 5.0  # for Triton to notice the end of a process
_MISSING_SECONDS = 20.0  # for Triton to start a process
_STOPPED_SECONDS = 5.0  # that a process may be stopped before it is killed


class LoadStuckError(ControlError):
    """Triton waits for a process that has ended."""


class StartingProcesses:
    """The model processes that a Triton starts from now on.

    Args:
        server: Triton's process number.
        models: the models to be loaded that certainly have a process.
        failed: models that Triton has reported as failed; their processes have ended.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        server: int,
        models: Collection[str],
        failed: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._models = models
        self._failed = failed
        self._clock = clock
        self._earlier = set(starting_processes(server))
        self._seen: dict[psutil.Process, str | None] = {}  # with their models
        self._gone_at: float | None = None
        self._missing_at: float | None = None
        self._stopped_at: dict[psutil.Process, float] = {}
        self._polled_at = float("-inf")

    def are_stuck(self) -> bool:
        """Whether Triton waits for a process that has ended. Kills processes that stay stopped.

        To be called often until Triton has loaded the models, and not afterwards.
        """
        now = self._clock()
        if now - self._polled_at < _POLL_SECONDS:  # looking at all processes is slow
            return False
        self._polled_at = now
        alive = starting_processes(self._server)
        new = alive.keys() - self._earlier
        self._seen |= {process: alive[process] for process in new}
        self._kill_stopped(new, now)
        gone = [model for process, model in self._seen.items() if process not in alive]
        if all(model in self._failed for model in gone):
            self._gone_at = None
        elif self._gone_at is None:
            self._gone_at = now
        # A process may have come and gone between two checks.
        present = {*self._failed, *(alive[process] for process in new)}
        if set(self._models) <= present:
            self._missing_at = None
        elif self._missing_at is None:
            self._missing_at = now
        return (self._gone_at is not None and now - self._gone_at > _GONE_SECONDS) or (
            self._missing_at is not None and now - self._missing_at > _MISSING_SECONDS
        )

    def _kill_stopped(self, processes: Collection[psutil.Process], now: float) -> None:
        for process in processes:
            if not is_stopped(process):
                self._stopped_at.pop(process, None)
            elif now - self._stopped_at.setdefault(process, now) > _STOPPED_SECONDS:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def load(
    control: Callable[[str], None],
    model: str,
    *,
    server: int,
    has_process: bool,
) -> None:
    """Load a model, and give up if Triton would wait for ever.

    Args:
        control: `ModelControl.load`.
        server: Triton's process number.
        has_process: whether the model certainly has a process.

    Raises:
        LoadStuckError: the model's process has ended, and Triton waits for it for ever.
        ControlError: the model could not be loaded.
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
