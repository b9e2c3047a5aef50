"""Who asks: a stream that does not care for the answers, or callers that wait for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from random import Random
from typing import Any

from simpy import Environment
from simpy.events import Event

from ._clock import call_later
from ._record import Record
from ._server import Answer, Outcome

Send = Callable[[Answer], None]
Rate = Callable[[float], float]  # seconds since the start -> images per second

_DAY = 24 * 3600.0


def poisson_times(rate: float, seconds: float, random: Random) -> list[float]:
    """Times of arrival of a Poisson stream."""
    times: list[float] = []
    now = random.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += random.expovariate(rate)
    return times


def at_times(env: Environment, times: Sequence[float], send: Send, record: Record) -> None:
    """Send requests at these times."""

    def arrivals() -> Generator[Event, Any, None]:
        for time in times:
            yield env.timeout(time - env.now)
            _send(env, send, record)

    env.process(arrivals())


def by_rate(env: Environment, rate: Rate, send: Send, record: Record, random: Random) -> None:
    """Send a Poisson stream whose rate changes, slowly against the time between two requests."""

    def arrivals() -> Generator[Event, Any, None]:
        while True:
            yield env.timeout(random.expovariate(rate(env.now)))
            _send(env, send, record)

    env.process(arrivals())


def _send(env: Environment, send: Send, record: Record) -> None:
    arrived = env.now
    send(lambda outcome: record.add(arrived, env.now, outcome))


class Callers:
    """Callers that send the next request as soon as they have an answer.

    Args:
        number: how many; they begin at once.
        pause: seconds that one waits after a request that was not answered.
    """

    def __init__(
        self, env: Environment, number: int, send: Send, record: Record, *, pause: float
    ) -> None:
        self._env = env
        self._ask = send
        self._record = record
        self._pause = pause
        for _ in range(number):
            call_later(env, 0.0, self._next)

    def _next(self) -> None:
        arrived = self._env.now

        def answer(outcome: Outcome) -> None:
            self._record.add(arrived, self._env.now, outcome)
            pause = 0.0 if outcome is Outcome.ANSWERED else self._pause
            call_later(self._env, pause, self._next)

        self._ask(answer)


def day(lowest: float, highest: float) -> Rate:
    """A day's load: a sine from its lowest at midnight to its highest at noon."""
    middle, half = (highest + lowest) / 2, (highest - lowest) / 2
    return lambda now: middle - half * math.cos(2 * math.pi * now / _DAY)


def spike(usual: float, factor: float, begin: float, end: float) -> Rate:
    """The usual rate, and `factor` times as much for a while."""
    return lambda now: usual * (factor if begin <= now < end else 1.0)


def steady(usual: float) -> Rate:
    """Always the same rate."""
    return lambda now: usual
