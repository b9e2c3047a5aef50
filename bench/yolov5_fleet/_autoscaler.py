"""The arithmetic of Kubernetes' HorizontalPodAutoscaler for one metric of the pods.

It follows `calcPlainMetricReplicas` and the rules of `behavior` of Kubernetes: pods that have no
metric yet, or none any more, count as idle when the others ask for more, and as exactly on target
when the others ask for less.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Settings of the autoscaler; the defaults are those of the chart in deploy/kubernetes.

    Attributes:
        target: mean of the metric that it aims at.
        least, most: numbers of pods.
        sync_seconds: between two decisions.
        tolerance: by which the mean may differ from the target, as a share of it.
        up_percent, up_pods: that may be added within `up_seconds`; the larger of both counts.
        down_percent: that may be taken away within `down_seconds`.
        stable_seconds: the highest wish within these counts before pods are taken away.
        scrape_seconds: between two readings of the metric by Prometheus.
        scrapes: whose mean is the metric.
    """

    target: float = 0.7
    least: int = 3
    most: int = 30
    sync_seconds: float = 15.0
    tolerance: float = 0.1
    up_percent: float = 100.0
    up_pods: int = 2
    up_seconds: float = 30.0
    down_percent: float = 20.0
    down_seconds: float = 60.0
    stable_seconds: float = 300.0
    scrape_seconds: float = 5.0
    scrapes: int = 3


def wanted_pods(metrics: Sequence[float], without: int, current: int, policy: Policy) -> int:
    """How many pods a metric asks for, before any bounds.

    Args:
        metrics: of the pods that have one.
        without: number of pods that have none.
        current: number of pods that were asked for last.
    """
    if not metrics:
        return current
    ratio = sum(metrics) / len(metrics) / policy.target
    if not without:
        if abs(ratio - 1) <= policy.tolerance:
            return current
        return math.ceil(ratio * len(metrics))
    assumed = policy.target * without if ratio < 1 else 0.0
    pods = len(metrics) + without
    corrected = (sum(metrics) + assumed) / pods / policy.target
    turned = (ratio < 1) != (corrected < 1)
    if abs(corrected - 1) <= policy.tolerance or turned:
        return current
    wanted = math.ceil(corrected * pods)
    backwards = (corrected < 1) != (wanted < current)
    return current if backwards else wanted


class Autoscaler:
    """Decides how many pods there should be.

    Args:
        current: number of pods at the start, which counts as wished then.
    """

    def __init__(self, policy: Policy, current: int) -> None:
        self._policy = policy
        self.current = current
        self._wishes: deque[tuple[float, int]] = deque([(0.0, current)])  # time, pods
        self._changes: deque[tuple[float, int]] = deque()  # time, pods

    def decide(self, now: float, metrics: Sequence[float], without: int) -> int:
        """Look at the metrics, and return the number of pods from now on.

        Args:
            now: seconds.
            metrics, without: as for `wanted_pods`.
        """
        wish = wanted_pods(metrics, without, self.current, self._policy)
        wish = min(max(wish, self._policy.least), self._policy.most)
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - self._policy.stable_seconds:
            self._wishes.popleft()
        if wish > self.current:
            self._change(now, max(self.current, min(wish, self._most_at(now))))
        elif wish < self.current:
            highest = max(pods for _, pods in self._wishes)
            self._change(now, min(self.current, max(highest, self._least_at(now))))
        return self.current

    def _most_at(self, now: float) -> int:
        recent = self._recent(now, self._policy.up_seconds)
        before = self.current - sum(change for change in recent if change > 0)
        by_percent = math.ceil(before * (1 + self._policy.up_percent / 100))
        return max(by_percent, before + self._policy.up_pods)

    def _least_at(self, now: float) -> int:
        recent = self._recent(now, self._policy.down_seconds)
        before = self.current - sum(change for change in recent if change < 0)
        return int(before * (1 - self._policy.down_percent / 100))

    def _recent(self, now: float, seconds: float) -> list[int]:
        """Changes of the number of pods during these seconds."""
        return [change for when, change in self._changes if when > now - seconds]

    def _change(self, now: float, pods: int) -> None:
        longest = max(self._policy.up_seconds, self._policy.down_seconds)
        while self._changes and self._changes[0][0] <= now - longest:
            self._changes.popleft()
        if pods != self.current:
            self._changes.append((now, pods - self.current))
            self.current = pods
