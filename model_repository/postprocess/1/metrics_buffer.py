"""Buffer updates of Triton's metrics: each update is a blocking call to the server.

Two calls at a time crash Triton's stub. To create or to drop a metric is a call as well.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Condition, Event, Lock, Thread
from typing import Any

_PAUSE = 0.05  # seconds between two deliveries; counts in between are added up


class MetricsBuffer:
    """Collects from several threads, delivers from one.

    Args:
        log: called with a line for the log if a delivery fails.

    Attributes:
        calling: held while the server is called; hold it to create or drop metrics.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.calling = Lock()
        self._log = log
        self._counts: dict[Any, float] = {}
        self._times: list[tuple[Any, float]] = []
        self._changed = Condition()
        self._closed = Event()
        self._thread = Thread(target=self._run, name="metrics buffer", daemon=True)
        self._thread.start()

    def increment(self, metric: Any, amount: float = 1) -> None:
        """Increment a counter."""
        with self._changed:
            self._counts[metric] = self._counts.get(metric, 0) + amount
            self._changed.notify()

    def observe(self, histogram: Any, seconds: float) -> None:
        """Observe a value."""
        with self._changed:
            self._times.append((histogram, seconds))
            self._changed.notify()

    def close(self) -> None:
        """Deliver the rest, and end."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(_PAUSE)
            with self._changed:
                self._changed.wait_for(self._has_work)
                counts, times = self._counts, self._times
                self._counts, self._times = {}, []
            with self.calling:
                self._deliver(counts, times)

    def _deliver(self, counts: dict[Any, float], times: list[tuple[Any, float]]) -> None:
        try:
            for metric, amount in counts.items():
                metric.increment(amount)
            for histogram, seconds in times:
                histogram.observe(seconds)
        except Exception:
            self._log(traceback.format_exc())
        # These may be the last references.
        counts.clear()
        times.clear()

    def _has_work(self) -> bool:
        return bool(self._counts or self._times or self._closed.is_set())
