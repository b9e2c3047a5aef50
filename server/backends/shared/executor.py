"""Images side by side on the CPU, each on as many cores as the others leave it.

A network runs fastest over many images when each has a core to itself, and over one image when it
has them all. Both are wanted of the same server, so the network is held for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Semaphore
from typing import Any

# How many images after the last that was not alone it is taken that the next will not be either.
_MEMORY = 4

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # inputs by name -> outputs by name


def thread_counts(cpus: int) -> list[int]:
    """The numbers of threads that a network is held for: 1, 4, 16 and so on, and all cores."""
    found, threads = [], 1
    while threads < cpus:
        found.append(threads)
        threads *= 4
    return [*found, cpus]


class ImageExecutor:
    """
    Args:
        runs: the network by number of threads; each may be called from several threads.
        cpus: how many cores there are for all runs together.
    """

    def __init__(self, runs: Mapping[int, Run], cpus: int) -> None:
        self._runs = sorted(runs.items())
        self._cpus = cpus
        workers = max(1, cpus // self._runs[0][0])
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="network")
        self._slots = Semaphore(2 * workers)  # a free worker finds the next image queued
        self._lock = Lock()
        self._active = 0
        self._recent_load: deque[int] = deque(maxlen=_MEMORY)

    def submit(self, work: Callable[[Run], None], *, waiting: int = 0) -> None:
        """Have `work` called with the network on a thread of its own, once one is free.

        Returns when it has begun or is among the next, so that all others stay in Triton's queue.

        Args:
            work: must not raise.
            waiting: how many are to be started directly after this one.
        """
        self._slots.acquire()
        with self._lock:
            self._active += 1
            self._recent_load.append(self._active + waiting)
            # Of two callers in turn, the one finds the cores free and the other does not.
            run = self._choose(max(self._recent_load))
        self._pool.submit(self._call, work, run)

    def _choose(self, images: int) -> Run:
        share = self._cpus // images
        fitting = [run for threads, run in self._runs if threads <= share]
        return fitting[-1] if fitting else self._runs[0][1]

    def _call(self, work: Callable[[Run], None], run: Run) -> None:
        try:
            work(run)
        finally:
            with self._lock:
                self._active -= 1
            self._slots.release()

    def close(self) -> None:
        """Wait until all that was started is done."""
        self._pool.shutdown()
