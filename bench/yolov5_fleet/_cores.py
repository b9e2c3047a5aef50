"""Cores that the runnable threads share evenly, as the operating system divides them."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from simpy import Environment
from simpy.events import Event, Timeout

_ROUNDING = 1e-9  # seconds of work that count as none


class Cores:
    """Processor sharing: with more threads than cores, each has the same part of the time.

    Progress is kept as the work that a thread would have done that has been running since the
    start. It is the same for all threads, and thus a task's end is known when it begins.

    Args:
        number: of cores.
    """

    def __init__(self, env: Environment, number: int) -> None:
        self._env = env
        self._number = number
        self._threads = 0  # runnable
        self._progress = 0.0  # seconds of work of each thread since the start
        self._updated = 0.0  # when `_progress` was right
        self._order = count()
        # Progress at the end, order, threads, what to call then.
        self._tasks: list[tuple[float, int, int, Callable[[], None]]] = []
        self._wanted = 0  # number of the wake-up that counts; earlier ones are stale

    def run(self, seconds: float, done: Callable[[], None], *, threads: int = 1) -> None:
        """Begin a task.

        Args:
            seconds: that it takes with a core for each of its threads.
            done: called at its end.
            threads: which it has, all with the same work.
        """
        self._advance()
        task = (self._progress + seconds, next(self._order), threads, done)
        before = self._rate
        heapq.heappush(self._tasks, task)
        self._threads += threads
        if self._tasks[0] is task or self._rate != before:
            self._schedule()

    @property
    def _rate(self) -> float:
        """Seconds of work that each thread does in a second."""
        return 1.0 if self._threads <= self._number else self._number / self._threads

    def _advance(self) -> None:
        now = self._env.now
        self._progress += (now - self._updated) * self._rate
        self._updated = now

    def _schedule(self) -> None:
        self._wanted += 1
        if self._tasks:
            delay = max(0.0, (self._tasks[0][0] - self._progress) / self._rate)
            Timeout(self._env, delay, self._wanted).callbacks.append(self._wake)

    def _wake(self, event: Event) -> None:
        if event.value != self._wanted:
            return
        self._advance()
        ended = []
        while self._tasks and self._tasks[0][0] <= self._progress + _ROUNDING:
            *_, threads, done = heapq.heappop(self._tasks)
            self._threads -= threads
            ended.append(done)
        self._schedule()
        for done in ended:
            done()
