"""What the simulation says of a load on one server, or on several that share this machine.

One server has all cores, and the load generator runs on any of them. Several have one core each, so
that it is known which threads meet where: the first server has the first core, and so on around.
Envoy and the load generator run on the last core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import mean

from simpy import Environment

from ._arrivals import Callers, at_times, poisson_times
from ._balancer import Balancer, Balancing
from ._cores import Cores
from ._parameters import Parameters
from ._record import Record, Summary
from ._server import Answer, Limits, Outcome, Server, Work

_SEEDS = 5
ALL = 0  # servers that the balancer draws: it compares all of them


@dataclass(frozen=True, kw_only=True)
class Case:
    """A load on servers.

    Attributes:
        servers: how many; one is asked directly, several are behind a balancer.
        callers: that wait for their answers, or 0.
        load: without callers: requests per second, as a share of the capacity.
    """

    servers: int
    callers: int = 0
    load: float = 0.0

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.callers} callers" if self.callers else f"{self.load:.0%} of the capacity"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is compared.

    Attributes:
        rate: images answered per second.
        p50, p99: seconds.
        shed: share of the requests that were refused.
    """

    rate: float
    p50: float
    p99: float
    shed: float


def figures(summary: Summary, rate: float) -> Figures:
    """The figures of some requests."""
    return Figures(
        rate=rate,
        p50=summary.quantile(0.5),
        p99=summary.quantile(0.99),
        shed=summary.share(Outcome.REFUSED, Outcome.EXPIRED),
    )


def capacity(parameters: Parameters, servers: int) -> float:
    """Images per second of servers that share this machine with the load generator."""
    work = parameters.work
    image = work.prepare + work.network + work.finish
    if servers == 1:
        return parameters.cores / (image + parameters.generator)
    if parameters.cores > servers:
        return servers / image
    return parameters.cores / (image + parameters.generator + parameters.balancer)


def at_speed(parameters: Parameters, speed: float) -> Parameters:
    """The same server on a machine that is so many times as fast."""
    work = parameters.work
    return replace(
        parameters,
        work=Work(
            prepare=work.prepare / speed,
            network=work.network / speed,
            network_alone=work.network_alone / speed,
            finish=work.finish / speed,
            refuse=work.refuse / speed,
        ),
        generator=parameters.generator / speed,
        balancer=parameters.balancer / speed,
    )


def arrivals(case: Case, parameters: Parameters, seconds: float, seed: int) -> list[float]:
    """Times at which requests are sent, the same for simulation and reality; none for callers."""
    if case.callers:
        return []
    rate = case.load * capacity(parameters, case.servers)
    return poisson_times(rate, seconds, Random(seed))


def predict(
    case: Case,
    parameters: Parameters,
    times: Sequence[float],
    *,
    warm: float,
    seconds: float,
    pause: float,
) -> Figures:
    """Simulate a case a few times, and return the means.

    Args:
        times: from `arrivals`.
        warm: seconds at the beginning that do not count.
        seconds: after them.
        pause: of a caller after a request that was not answered, in seconds.
    """
    end = warm + seconds
    found = []
    for seed in range(_SEEDS):
        env, record, random = Environment(), Record(), Random(seed)
        send = _Machine(env, parameters, case.servers, random).send
        if case.callers:
            Callers(env, case.callers, send, record, pause=pause)
            env.run(until=end + parameters.limits.max_queue_seconds)
        else:
            at_times(env, times, send, record)
            env.run()
        answered = record.answered_between(warm, end)
        found.append(figures(record.between(warm, end), answered / seconds))
    return Figures(
        rate=mean(one.rate for one in found),
        p50=mean(one.p50 for one in found),
        p99=mean(one.p99 for one in found),
        shed=mean(one.shed for one in found),
    )


class _Machine:
    """Servers, a balancer if there are several, and the load generator."""

    def __init__(
        self, env: Environment, parameters: Parameters, servers: int, random: Random
    ) -> None:
        self._balancer = Balancer(env, random, Balancing(choices=ALL))
        self._scale = parameters.scales(random)
        if servers == 1:
            self._last = Cores(env, parameters.cores)
            self._beside = parameters.generator
            self._add(env, self._last, parameters, parameters.limits, parameters.cores)
            return
        cores = [Cores(env, 1) for _ in range(parameters.cores)]
        self._last = cores[-1]
        self._beside = parameters.generator + parameters.balancer
        for number in range(servers):
            one = cores[number % len(cores)]
            self._add(env, one, parameters, parameters.limits_of_one_core, 1)

    def _add(
        self, env: Environment, cores: Cores, parameters: Parameters, limits: Limits, workers: int
    ) -> None:
        work = parameters.work
        if workers == 1:
            work = replace(work, network_alone=work.network)
        self._balancer.add(Server(env, cores, work, limits, workers=workers))

    def send(self, answer: Answer) -> None:
        """Let the load generator and the balancer work, then the server that is chosen."""
        self._last.run(self._beside, lambda: self._balancer.send(self._scale(), answer))
