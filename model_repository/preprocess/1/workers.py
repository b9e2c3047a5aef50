"""Threads that work on images: a `ThreadPoolExecutor` of less work for each task.

That makes a future for each, with a lock and a condition. Its threads share one queue, in which
each task wakes two of them if two are idle (CPython's `SimpleQueue.get`).
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread

Task = Callable[[], object]


class Workers:
    """Calls tasks on several threads, in the order in which they come.

    Args:
        count: of the threads.
        log: called with the traceback of a task that fails.
    """

    def __init__(self, count: int, log: Callable[[str], None]) -> None:
        self._log = log
        self._lock = Lock()
        self._closed = False
        self._waiting: deque[Task] = deque()  # only while no thread is idle
        self._idle: list[SimpleQueue[Task | None]] = []  # where each idle thread waits for a task
        self._threads = [Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Call the task, on the thread that has been idle for the shortest time."""
        with self._lock:
            if not self._idle:
                self._waiting.append(task)
                return
            inbox = self._idle.pop()
        inbox.put(task)

    def close(self) -> None:
        """Do what has been submitted, and end."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        inbox: SimpleQueue[Task | None] = SimpleQueue()
        while (task := self._next(inbox)) is not None:
            try:
                task()
            except Exception:
                self._log(traceback.format_exc())
            del task  # it holds a request with its images

    def _next(self, inbox: SimpleQueue[Task | None]) -> Task | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._idle.append(inbox)
        return inbox.get()
