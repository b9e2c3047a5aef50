"""Run a network over several images at once on the CPU, sharing the cores between them.

Many images run fastest with one core each, a single image with all cores. One server has to do
both, so the network is loaded once for each number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, Semaphore
from typing import Any

_RECENT_IMAGES = 4  # number of images for which recent concurrency is assumed to continue

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # inputs by name -> outputs by name


def thread_counts(cpus: int) -> list[int]:
    """Numbers of threads to load a network for: 1, 4, 16 and so on, and all cores."""
    found, threads = [], 1
    while threads < cpus:
        found.append(threads)
        threads *= 4
    return [*found, cpus]


class ImageExecutor:
    """Runs each image on a worker of its own, with an equal share of the cores.

    The share is rounded down to one of `thread_counts`.

    Args:
        runs: the network by number of threads; each may be called from several threads.
        cpus: number of cores for all runs together.
    """

    def __init__(self, runs: Mapping[int, Run], cpus: int) -> None:
        self._runs = sorted(runs.items())
        self._cpus = cpus
        workers = max(1, cpus // self._runs[0][0])
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="network")
        self._slots = Semaphore(2 * workers)  # a free worker finds the next image queued
        self._lock = Lock()
        self._active = 0
        self._recent_load: deque[int] = deque(maxlen=_RECENT_IMAGES)

    def submit(self, task: Callable[[Run], None], *, waiting: int = 0) -> None:
        """Call `task` with the network on a thread of its own, once one is free.

        Blocks until the task runs or is among the next, so that all others stay in Triton's queue.

        Args:
            task: must not raise.
            waiting: number of tasks that will be submitted directly after this one.
        """
        self._slots.acquire()
        with self._lock:
            self._active += 1
            self._recent_load.append(self._active + waiting)
            # Two callers that take turns see the cores free and busy alternately: the largest
            # recent load decides.
            run = self._choose(max(self._recent_load))
        self._pool.submit(self._call, task, run)

    def _choose(self, images: int) -> Run:
        share = self._cpus // images
        fitting = [run for threads, run in self._runs if threads <= share]
        return fitting[-1] if fitting else self._runs[0][1]

    def _call(self, task: Callable[[Run], None], run: Run) -> None:
        try:
            task(run)
        finally:
            with self._lock:
                self._active -= 1
            self._slots.release()

    def close(self) -> None:
        """Wait until all submitted tasks are done."""
        self._pool.shutdown()
