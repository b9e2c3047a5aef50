"""What became of the requests: latencies, and shares of those that were not answered."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._server import Outcome


class Record:
    """Requests by their time of arrival."""

    def __init__(self) -> None:
        self._arrived = array("d")
        self._latencies = array("d")
        self._failed: dict[Outcome, array[float]] = {}

    def add(self, arrived: float, now: float, outcome: Outcome) -> None:
        """Note the end of a request."""
        if outcome is Outcome.ANSWERED:
            self._arrived.append(arrived)
            self._latencies.append(now - arrived)
        else:
            self._failed.setdefault(outcome, array("d")).append(arrived)

    def answered_between(self, begin: float, end: float) -> int:
        """Number of answers that came from `begin` on and before `end`."""
        when = _numbers(self._arrived) + _numbers(self._latencies)
        return int(np.sum((begin <= when) & (when < end)))

    def failures_from(self, begin: float) -> list[float]:
        """When the requests arrived, from `begin` on, that were not answered."""
        return [when for times in self._failed.values() for when in times if when >= begin]

    def between(self, begin: float = 0.0, end: float = float("inf")) -> Summary:
        """Summarise the requests that arrived from `begin` on and before `end`."""
        arrived = _numbers(self._arrived)
        latencies = _numbers(self._latencies)[(begin <= arrived) & (arrived < end)]
        failed = {}
        for outcome, times in self._failed.items():
            when = _numbers(times)
            failed[outcome] = int(np.sum((begin <= when) & (when < end)))
        return Summary(latencies, failed)

    def quantiles(self, share: float, edges: Sequence[float]) -> list[float]:
        """The quantile of the latencies by time of arrival: between each two edges."""
        arrived = _numbers(self._arrived)
        order = np.argsort(arrived)
        latencies = _numbers(self._latencies)[order]
        parts = np.split(latencies, np.searchsorted(arrived[order], edges))[1:-1]
        return [float(np.quantile(part, share)) for part in parts if len(part)]


def _numbers(values: array[float]) -> NDArray[np.float64]:
    return np.frombuffer(values) if values else np.empty(0)


class Summary:
    """Some requests.

    Args:
        latencies: of the answered ones, in seconds.
        failed: numbers of the others by outcome.
    """

    def __init__(
        self, latencies: Sequence[float] | NDArray[np.float64], failed: Mapping[Outcome, int]
    ) -> None:
        self.latencies = np.array(latencies, np.float64)
        self.failed = Counter(failed)

    @property
    def requests(self) -> int:
        """All requests."""
        return len(self.latencies) + sum(self.failed.values())

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the answers came; not a number without answers."""
        return float(np.quantile(self.latencies, share)) if len(self.latencies) else float("nan")

    def share(self, *outcomes: Outcome) -> float:
        """Share of the requests that ended in one of these ways, of which none is an answer."""
        return sum(self.failed[outcome] for outcome in outcomes) / max(1, self.requests)
