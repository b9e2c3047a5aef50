"""The simulated server gives the waiting times and losses that queueing theory states."""

from __future__ import annotations

import math
from collections.abc import Generator
from random import Random
from typing import Any

import pytest
from simpy import Environment
from simpy.events import Event

from yolov5_fleet._arrivals import Callers, at_times, poisson_times
from yolov5_fleet._cores import Cores
from yolov5_fleet._record import Record, Summary
from yolov5_fleet._server import Answer, Limits, Outcome, Server, Work

SERVICE = 0.05  # seconds
SECONDS = 2500.0


def erlang_c(servers: int, load: float) -> float:
    """Probability that a request has to wait in M/M/c; `load` is the rate times the service."""
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(load**n / math.factorial(n) for n in range(servers)) + last)


def loss(servers: int, places: int, load: float) -> float:
    """Share of the requests that M/M/c/K refuses; `places` are all, with those at work."""
    weights = [1.0]
    for n in range(1, places + 1):
        weights.append(weights[-1] * load / min(n, servers))
    return weights[-1] / sum(weights)


def simulate(
    *, servers: int, load: float, queue: int, seconds: float = SECONDS, exponential: bool = True
) -> tuple[Summary, list[int]]:
    """A server with only the network's work; the second result is its requests each second."""
    env, random, record = Environment(), Random(1), Record()
    work = Work(prepare=0.0, network=SERVICE, network_alone=SERVICE, finish=0.0, refuse=0.0)
    limits = Limits(max_queued_images=queue, max_queue_seconds=1e9, max_in_flight_images=servers)
    # As many cores as threads could ever want: an image alone gains nothing.
    server = Server(env, Cores(env, servers**2), work, limits, workers=servers)
    times = poisson_times(load / SERVICE, seconds, random)

    def send(answer: Answer) -> None:
        server.submit(random.expovariate(1.0) if exponential else 1.0, answer)

    present: list[int] = []

    def look() -> Generator[Event, Any, None]:
        while True:
            yield env.timeout(1.0)
            present.append(server.requests)

    env.process(look())
    at_times(env, times, send, record)
    env.run(until=seconds)
    return record.between(seconds / 20, seconds), present


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (1, 0.8), (2, 1.4), (4, 3.2)])
def test_mean_wait_is_that_of_erlang_c(servers: int, load: float) -> None:
    found, _ = simulate(servers=servers, load=load, queue=10**6)
    wait = erlang_c(servers, load) * SERVICE / (servers - load)
    assert found.latencies.mean() == pytest.approx(wait + SERVICE, rel=0.06)
    assert found.failed.total() == 0


def test_deterministic_work_waits_half_as_long() -> None:
    """Pollaczek and Khinchine: M/D/1 against M/M/1."""
    found, _ = simulate(servers=1, load=0.8, queue=10**6, exponential=False)
    assert found.latencies.mean() - SERVICE == pytest.approx(0.8 * SERVICE / 2 / 0.2, rel=0.06)


def test_quantile_is_that_of_m_m_1() -> None:
    """Its time in the system is exponential."""
    found, _ = simulate(servers=1, load=0.7, queue=10**6)
    assert found.quantile(0.99) == pytest.approx(math.log(100) * SERVICE / 0.3, rel=0.1)


@pytest.mark.parametrize(
    ("servers", "queue", "load"), [(1, 4, 0.9), (2, 6, 1.8), (2, 10, 3.0), (4, 0, 3.0)]
)
def test_share_of_refusals_is_that_of_m_m_c_k(servers: int, queue: int, load: float) -> None:
    found, _ = simulate(servers=servers, load=load, queue=queue)
    wanted = loss(servers, servers + queue, load)
    assert found.share(Outcome.REFUSED) == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize("load", [0.9, 1.5])
def test_littles_law_holds(load: float) -> None:
    found, present = simulate(servers=2, load=load, queue=50)
    answered_rate = len(found.latencies) / (SECONDS * 0.95)
    mean_present = sum(present) / len(present)
    assert mean_present == pytest.approx(answered_rate * found.latencies.mean(), rel=0.06)


def closed_loop(callers: int, limits: Limits, cores: int = 2) -> Summary:
    env, record = Environment(), Record()
    work = Work(prepare=0.002, network=0.04, network_alone=0.025, finish=0.002, refuse=0.001)
    server = Server(env, Cores(env, cores), work, limits, workers=cores)
    Callers(env, callers, lambda answer: server.submit(1.0, answer), record, pause=1.0)
    env.run(until=60.0)
    return record.between(10.0, 60.0)


def test_single_caller_has_all_cores() -> None:
    assert closed_loop(1, Limits()).quantile(0.5) == pytest.approx(0.029, rel=0.01)


def test_callers_share_the_cores() -> None:
    found = closed_loop(8, Limits())
    assert len(found.latencies) / 50 == pytest.approx(2 / 0.044, rel=0.02)
    assert found.latencies.mean() == pytest.approx(8 * 0.044 / 2, rel=0.02)


def test_64_callers_are_never_refused_and_96_are() -> None:
    assert closed_loop(64, Limits()).failed.total() == 0
    assert closed_loop(96, Limits()).failed[Outcome.REFUSED] > 0


def test_wait_that_is_too_long_ends_the_request() -> None:
    found = closed_loop(32, Limits(max_queue_seconds=0.2))
    assert found.failed[Outcome.EXPIRED] > 0
    assert found.quantile(1.0) < 0.2 + 6 * 0.044


def test_threads_share_cores_evenly() -> None:
    env, ends = Environment(), []
    cores = Cores(env, 2)
    cores.run(1.0, lambda: ends.append(env.now), threads=2)  # has both cores at first
    env.run(until=0.5)
    cores.run(0.5, lambda: ends.append(env.now))  # from here on two thirds of a core each
    env.run()
    assert ends == pytest.approx([1.25, 1.25])
