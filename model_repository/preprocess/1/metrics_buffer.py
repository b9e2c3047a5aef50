"""Buffer updates of Triton's metrics: each update is a blocking call to the server.

Two calls at a time crash Triton's stub. To create or to drop a metric is a call as well.

Counts are added up, and of a gauge's values only the last is delivered. A histogram takes one value
with each call, which may last a millisecond under load: of many values only some are delivered, or
else they would pile up.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from threading import Condition, Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

_PAUSE = 0.2  # seconds between two deliveries; counts in between are added up
_MOST = 16  # values of one histogram in one delivery


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
        self._times: dict[Any, list[float]] = {}
        self._gauges: dict[Any, float] = {}
        self._changed = Condition()
        self._closed = Event()
        self._thread = Thread(target=self._run, name="metrics buffer", daemon=True)
        self._thread.start()

    def increment(self, metric: Any, amount: float = 1) -> None:
        """Increment a counter."""
        with self._changed:
            self._counts[metric] = self._counts.get(metric, 0) + amount
            self._changed.notify()

    def set(self, gauge: Any, value: float) -> None:
        """Set a gauge."""
        with self._changed:
            self._gauges[gauge] = value
            self._changed.notify()

    def observe(self, histogram: Any, seconds: float) -> None:
        """Observe a value; of more than 16 in a fifth of a second, only some."""
        with self._changed:
            self._times.setdefault(histogram, []).append(seconds)
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
                counts, times, gauges = self._counts, self._times, self._gauges
                self._counts, self._times, self._gauges = {}, {}, {}
            with self.calling:
                self._deliver(counts, times, gauges)

    def _deliver(
        self,
        counts: dict[Any, float],
        times: dict[Any, list[float]],
        gauges: dict[Any, float],
    ) -> None:
        try:
            for gauge, value in gauges.items():
                gauge.set(value)
            for metric, amount in counts.items():
                metric.increment(amount)
            for histogram, values in times.items():
                for seconds in values[:: -(-len(values) // _MOST)]:
                    histogram.observe(seconds)
        except Exception:
            self._log(traceback.format_exc())
        # These may be the last references.
        counts.clear()
        times.clear()
        gauges.clear()

    def _has_work(self) -> bool:
        return bool(self._counts or self._times or self._gauges or self._closed.is_set())


class Labelled(Protocol):
    """The metrics of one model."""

    def label(self, labels: Mapping[str, str]) -> None:
        """Create the metrics that are missing, with these labels."""


M = TypeVar("M", bound=Labelled)


class MetricsByModel(Generic[M]):
    """The metrics of each model. If there are several models, all carry the label `model`.

    Args:
        log: as in `MetricsBuffer`.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._buffer = MetricsBuffer(log)
        self._models: dict[str, M] = {}
        self._started = False

    def start(self) -> None:
        """Create the metrics of the models so far; later ones are created at once.

        Triton goes on showing metrics without the label, with their last values, when a second
        model comes. So those of the models at the start are created together.
        """
        self._started = True
        self._label()

    def close(self) -> None:
        self._buffer.close()

    def _find(self, model: str, make: Callable[[], M]) -> M:
        if model not in self._models:
            self._models[model] = make()
        return self._models[model]

    def _label(self) -> None:
        if not self._started:
            return
        with self._buffer.calling:
            for name, metrics in self._models.items():
                metrics.label({"model": name} if len(self._models) > 1 else {})
