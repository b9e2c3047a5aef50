"""Prepare the launcher's own process, and bound the time in which it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# Some container engines allow a thousand million descriptors, which slows down programs that close
# or count all possible ones.
_MOST_DESCRIPTORS = 1 << 20
_KILL_SECONDS = 8.0  # after a signal: whatever still runs is killed
_EXIT_SECONDS = 9.5  # after a signal: the process ends, whatever it waits for


def open_standard_streams() -> None:
    """Open the null device for each closed standard stream.

    Otherwise the next file or socket would get its number, and the log would be written there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def raise_descriptor_limit() -> None:
    """Raise the limit on open descriptors for this process and for Triton, which inherits it.

    Each connection needs one. Triton waits for them with epoll, which has no limit of its own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def on_signals(numbers: Iterable[int], notice: Callable[[], None]) -> None:
    """Call `notice` on a thread of its own for each signal of these numbers.

    Python runs a handler on the main thread, in the middle of whatever that does. If that is a wait
    for an event, the main thread may hold the event's lock, and a handler that sets the event
    would wait for ever. To put something into a `SimpleQueue` takes no such lock.
    """
    received: queue.SimpleQueue[int] = queue.SimpleQueue()

    def relay() -> None:
        while True:
            received.get()
            notice()

    threading.Thread(target=relay, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda number, frame: received.put(number))


def end_in_time(
    should_exit: threading.Event,
    *,
    kill_seconds: float = _KILL_SECONDS,
    exit_seconds: float = _EXIT_SECONDS,
) -> None:
    """Bound the time from `should_exit` to the end of this process, whatever it waits for.

    Args:
        kill_seconds: until child processes are killed, each with its group.
        exit_seconds: until this process ends, with status 1.
    """

    def end() -> None:
        should_exit.wait()
        started = time.monotonic()
        time.sleep(kill_seconds)
        for child in _children():
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)  # Triton leads a group of its own
        time.sleep(max(0.0, started + exit_seconds - time.monotonic()))
        os._exit(1)

    threading.Thread(target=end, name="end", daemon=True).start()


class Stop:
    """What signals ask of the launcher: to drain, then to end, then to end at once.

    Attributes:
        should_exit: the server is to end.
        force_exit: it is to end without waiting for requests in flight.
    """

    def __init__(self) -> None:
        self.should_exit = threading.Event()
        self.force_exit = threading.Event()
        self._drain_seconds = 0.0
        self._start_drain: Callable[[], bool] | None = None

    def drain_first(self, seconds: float, start: Callable[[], bool]) -> None:
        """Let the next signal begin a drain, which ends in `should_exit`.

        Args:
            seconds: how long the server goes on; 0 for no drain.
            start: called when the drain begins; False if there is nothing to wait for.
        """
        if seconds:
            self._drain_seconds, self._start_drain = seconds, start

    def request(self) -> None:
        """Note a signal. Not for several threads at the same time."""
        start, self._start_drain = self._start_drain, None
        if self.should_exit.is_set():
            self.force_exit.set()
        elif start is None or not start():
            self.should_exit.set()
        else:
            threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        self.should_exit.wait(self._drain_seconds)
        self.should_exit.set()


def _children() -> list[int]:
    listed = Path("/proc/self/task").glob("*/children")
    found = []
    for path in listed:
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found
