"""A day's load, a spike and the loss of a zone, for fleets of several sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random

from simpy import Environment

from ._arrivals import Rate, by_rate, day, spike, steady
from ._autoscaler import Policy
from ._clock import call_later
from ._fleet import Fleet, Setup
from ._parameters import Parameters
from ._record import Record
from ._server import Outcome

_MINUTE, _HOUR = 60.0, 3600.0
_SHED = (Outcome.REFUSED, Outcome.EXPIRED)
_PEAK = 5.0  # times the usual rate
_SPIKE_SECONDS = 10 * _MINUTE
_LOST_ZONE = 0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A fleet and what happens to it.

    Attributes:
        name: in words.
        pods: at the start; at the usual rate they are on target.
        seconds: how long it is looked at.
        event: when something happens, in seconds; before it the fleet settles.
        load: of a day, of a spike, or always the same.
        loses_zone: whether a third of the machines is gone then.
        target: saturation that the autoscaler aims at.
        start_seconds: of a pod; None stands for the measured time.
    """

    name: str
    pods: int
    seconds: float
    event: float
    load: str = "steady"
    loses_zone: bool = False
    target: float = 0.7
    start_seconds: float | None = None

    def rate(self, capacity: float) -> Rate:
        """Images per second by time; `capacity` is that of one server."""
        usual = self.pods * capacity * self.target
        if self.load == "day":
            return day(usual, _PEAK * usual)
        if self.load == "spike":
            return spike(usual, _PEAK, self.event, self.event + _SPIKE_SECONDS)
        return steady(usual)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out.

    Attributes:
        name: of the scenario.
        images: that arrived from the event on.
        least, most: numbers of ready pods from the event on.
        p50, p99: seconds, from the event on.
        worst: p99 of the worst minute, in seconds.
        shed, lost: shares of the images from the event on.
        calm: seconds from the event to the last refused or lost image; 0 if none was.
        pod_hours: of all pods, also those that start.
        took: seconds that the simulation took.
    """

    name: str
    images: int
    least: int
    most: int
    p50: float
    p99: float
    worst: float
    shed: float
    lost: float
    calm: float
    pod_hours: float
    took: float = field(compare=False)


def scenarios(scale: int = 1) -> list[Scenario]:
    """All that is simulated, the longest first.

    Args:
        scale: by which all fleets but the largest are larger.
    """
    event = 5 * _MINUTE
    a_day = Scenario(
        name="a day: from a fifth of the peak to the peak and back",
        pods=scale,
        seconds=24 * _HOUR,
        event=0.0,
        load="day",
    )
    thousand = Scenario(
        name="a third of 999 machines lost",
        pods=999,
        seconds=3 * _MINUTE,
        event=_MINUTE,
        loses_zone=True,
    )
    spikes = [
        Scenario(
            name=f"five times the load for 10 minutes{more}",
            pods=10 * scale,
            seconds=event + 2 * _SPIKE_SECONDS,
            event=event,
            load="spike",
            start_seconds=seconds,
        )
        for more, seconds in (("", None), *((f"; a pod takes {n:g} s", n) for n in (60.0, 180.0)))
    ]
    zones = [
        Scenario(
            name=f"a third of {30 * scale} machines lost; target {target}",
            pods=30 * scale,
            seconds=event + 10 * _MINUTE,
            event=event,
            loses_zone=True,
            target=target,
        )
        for target in (0.7, 0.6, 0.5)
    ]
    return [a_day, thousand, *spikes, *zones]


def run(scenario: Scenario, parameters: Parameters, *, seed: int = 0) -> Result:
    """Simulate a scenario."""
    began = time.monotonic()
    env, record, random = Environment(), Record(), Random(seed)
    setup = Setup(
        pods=scenario.pods,
        policy=Policy(target=scenario.target, least=min(3, scenario.pods), most=20 * scenario.pods),
        start_seconds=scenario.start_seconds,
    )
    fleet = Fleet(env, parameters, setup, random)
    by_rate(env, scenario.rate(parameters.capacity), fleet.send, record, random)
    if scenario.loses_zone:
        call_later(env, scenario.event, lambda: fleet.lose_zone(_LOST_ZONE))
    env.run(until=scenario.seconds)
    return _result(scenario, fleet, record, time.monotonic() - began)


def _result(scenario: Scenario, fleet: Fleet, record: Record, took: float) -> Result:
    begin = scenario.event
    after = record.between(begin)
    failures = record.failures_from(begin)
    looks = [look for look in fleet.history if look.time >= begin]
    minutes = int((scenario.seconds - begin) // _MINUTE)
    edges = [begin + _MINUTE * number for number in range(minutes + 1)]
    step = looks[1].time - looks[0].time
    return Result(
        name=scenario.name,
        images=after.requests,
        least=min(look.ready for look in looks),
        most=max(look.ready for look in looks),
        p50=after.quantile(0.5),
        p99=after.quantile(0.99),
        worst=max(record.quantiles(0.99, edges)),
        shed=after.share(*_SHED),
        lost=after.share(Outcome.LOST),
        calm=max(failures) - begin if failures else 0.0,
        pod_hours=sum(look.wanted for look in looks) * step / _HOUR,
        took=took,
    )
