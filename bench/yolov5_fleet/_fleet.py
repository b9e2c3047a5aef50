"""A fleet in simulated time: servers in zones, the balancer, and the autoscaler."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from random import Random
from statistics import mean
from typing import Any, NamedTuple

from simpy import Environment
from simpy.events import Event

from ._autoscaler import Autoscaler, Policy
from ._balancer import Balancer, Balancing
from ._clock import call_later
from ._cores import Cores
from ._parameters import Parameters
from ._server import Answer, Server

ZONES = 3
_READ_SECONDS = 1.0  # between two readings of a server's saturation, as in load_signals.py


@dataclass(eq=False)
class _Pod:
    """A pod: where it is, and what has become of it.

    Attributes:
        server: None until it is ready, and when it has gone.
        scraped: the last readings of its saturation by Prometheus.
    """

    zone: int
    scraped: deque[float]
    server: Server | None = None
    is_lost: bool = False


class Look(NamedTuple):
    """A decision of the autoscaler.

    Attributes:
        time: seconds.
        ready: number of pods that answer.
        wanted: number of pods from now on.
        saturation: mean of the pods.
    """

    time: float
    ready: int
    wanted: int
    saturation: float


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A fleet.

    Attributes:
        pods: at the start, all ready.
        start_seconds: from the autoscaler's decision to a ready pod; None stands for what was
            measured, on a machine that is there and has the image.
        evict_seconds: after which a pod of a lost machine is replaced; Kubernetes' default.
    """

    pods: int
    policy: Policy = field(default_factory=Policy)
    balancing: Balancing = field(default_factory=Balancing)
    start_seconds: float | None = None
    evict_seconds: float = 300.0


class Fleet:
    """Servers that come and go.

    Args:
        env: simulated time; runs for as long as the caller likes.
        random: for everything that is drawn.

    Attributes:
        history: what the autoscaler saw and decided.
    """

    def __init__(
        self, env: Environment, parameters: Parameters, setup: Setup, random: Random
    ) -> None:
        self._env = env
        self._parameters = parameters
        self._setup = setup
        self._scale = parameters.scales(random)
        self._balancer = Balancer(env, random, setup.balancing)
        self._autoscaler = Autoscaler(setup.policy, setup.pods)
        self._pods: list[_Pod] = []
        self._dead_zones: set[int] = set()
        self.history: list[Look] = []
        for _ in range(setup.pods):
            self._make_ready(self._new_pod())
        env.process(self._watch())

    @property
    def ready(self) -> int:
        """Number of pods that answer."""
        return sum(pod.server is not None for pod in self._pods)

    def send(self, answer: Answer) -> None:
        """Send an image to one of the servers."""
        self._balancer.send(self._scale(), answer)

    def lose_zone(self, zone: int) -> None:
        """All machines of a zone are gone, and no new ones can be had there."""
        self._dead_zones.add(zone)
        lost = [pod for pod in self._pods if pod.zone == zone]
        for pod in lost:
            pod.is_lost = True
            if pod.server is not None:
                self._balancer.lose(pod.server)
                pod.server = None
        call_later(self._env, self._setup.evict_seconds, lambda: self._replace(lost))

    def _watch(self) -> Generator[Event, Any, None]:
        """Read the saturation each second; scrape and decide when it is time."""
        policy = self._setup.policy
        scraped = decided = 0.0
        while True:
            yield self._env.timeout(_READ_SECONDS)
            readings = [(pod, pod.server.read_saturation()) for pod in self._pods if pod.server]
            if self._env.now >= scraped + policy.scrape_seconds:
                scraped = self._env.now
                for pod, reading in readings:
                    pod.scraped.append(reading)
            if self._env.now >= decided + policy.sync_seconds:
                decided = self._env.now
                self._scale_to(self._decide())

    def _decide(self) -> int:
        metrics = [mean(pod.scraped) for pod in self._pods if pod.server and pod.scraped]
        without = len(self._pods) - len(metrics)
        wanted = self._autoscaler.decide(self._env.now, metrics, without)
        saturation = mean(metrics) if metrics else 0.0
        self.history.append(Look(self._env.now, self.ready, wanted, saturation))
        return wanted

    def _scale_to(self, wanted: int) -> None:
        for _ in range(wanted - len(self._pods)):
            self._start(self._new_pod())
        for _ in range(len(self._pods) - wanted):
            self._stop(self._next_to_stop())

    def _new_pod(self) -> _Pod:
        """A pod in the zone that has the fewest."""
        zones = [zone for zone in range(ZONES) if zone not in self._dead_zones]
        number = [sum(pod.zone == zone for pod in self._pods) for zone in zones]
        pod = _Pod(zones[number.index(min(number))], deque(maxlen=self._setup.policy.scrapes))
        self._pods.append(pod)
        return pod

    def _start(self, pod: _Pod) -> None:
        seconds = self._setup.start_seconds
        if seconds is None:
            seconds = self._parameters.start_seconds
        call_later(self._env, seconds, lambda: self._make_ready(pod))

    def _make_ready(self, pod: _Pod) -> None:
        if pod not in self._pods or pod.is_lost:
            return
        cores = Cores(self._env, self._parameters.cores)
        pod.server = Server(
            self._env,
            cores,
            self._parameters.work,
            self._parameters.limits,
            workers=self._parameters.cores,
        )
        self._balancer.add(pod.server)

    def _next_to_stop(self) -> _Pod:
        """One that is not ready, else the newest."""
        return next((pod for pod in self._pods if not pod.server), self._pods[-1])

    def _stop(self, pod: _Pod) -> None:
        self._pods.remove(pod)
        if pod.server:
            self._balancer.remove(pod.server)
            pod.server = None

    def _replace(self, lost: list[_Pod]) -> None:
        """Start others in place of pods that are gone."""
        for pod in lost:
            if pod in self._pods:
                self._pods.remove(pod)
                self._start(self._new_pod())
